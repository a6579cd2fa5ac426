"""Surrogate derivatives of `surrogate.py` in kernels, vectorised by Numba."""

import math
from typing import Any

from numba.extending import overload

from blockspike.neurons.cpu.exponential import exp2_negative, is_single, real_of
from blockspike.neurons.cpu.kernels import kernel_with_fma
from blockspike.neurons.cpu.lanes import Lanes, spread
from blockspike.neurons.cpu.steps import WITH_FMA, compiled
from blockspike.neurons.model import where
from blockspike.neurons.surrogate import MultiGaussian

_LN2 = math.log(2)
_CENTRE = 0.5 * 1.15 / (0.5 * math.sqrt(2 * math.pi))
_SIDES = 0.5 * 0.15 * 2 * math.exp(-1 / 72) / (3 * math.sqrt(2 * math.pi))


@kernel_with_fma
def multi_gaussian(margin, constants):
    """Formula of `MultiGaussian`.

    One exponential e = exp(−u²/18) gives all three bells. The centre is e³⁶ = exp(−u²/0.5); the
    sides are e·exp(−1/72)·2cosh(u/18), up to a common factor.
    """
    real = real_of(margin)
    _, one, width, height = constants
    u = margin * (one / width)
    square = u * u
    e = exp2_negative(square * real(-1 / (18 * _LN2)))
    near = where(square < real(40.0), e, real(0.0))  # e³⁶ < 1e−34 beyond; denormals are slow
    e4 = near * near
    e4 = e4 * e4
    e32 = e4 * e4
    e32 = e32 * e32
    e32 = e32 * e32
    # (u/18)²; e is 0 beyond |u| = 39.7
    w = where(square < real(1600.0), square, real(1600.0)) * real(1 / 324)
    if is_single(u):
        cosh = w * real(1 / 40320) + real(1 / 720)
    else:
        cosh = w * real(1 / 3628800) + real(1 / 40320)
        cosh = cosh * w + real(1 / 720)
    cosh = cosh * w + real(1 / 24)
    cosh = cosh * w + real(0.5)
    cosh = cosh * w + real(1.0)
    return height * (real(_CENTRE) * e32 * e4 - real(_SIDES) * e * cosh)


def slope_of(surrogate: Any, margin: Any, constants: Any) -> Any:
    """Derivative of a surrogate at a margin, a number or a vector; callable in kernels only."""
    raise NotImplementedError


_FASTER = {MultiGaussian: multi_gaussian}


@overload(slope_of, jit_options=WITH_FMA)
def _slope_of(surrogate, margin, constants):
    own = _FASTER.get(surrogate.of) or compiled(surrogate.of.formula, WITH_FMA)
    if isinstance(margin, Lanes):
        return lambda surrogate, margin, constants: spread(own(margin, constants), margin)
    return lambda surrogate, margin, constants: own(margin, constants)
