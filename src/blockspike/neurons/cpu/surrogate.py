"""Surrogate derivatives in kernels: the formulas of `surrogates.py` on vectors of margins.

A formula is a text like a model's step, and Numba compiles it into the kernel. `MultiGaussian` is
written by hand, with one exponential in place of three.
"""

import hashlib
import math
from functools import partial
from typing import Any, NamedTuple

from numba.extending import typeof_impl

from blockspike.neurons.cpu.exponential import LN2, exp2_negative, is_single, real_of
from blockspike.neurons.cpu.kernels import WITH_FMA, in_kernels, kernel_with_fma
from blockspike.neurons.cpu.lanes import spread
from blockspike.neurons.cpu.steps import in_numba, known_type
from blockspike.neurons.derivative import slope_text
from blockspike.neurons.model import where
from blockspike.neurons.surrogates import CENTRE, SIDES, MultiGaussian, Surrogate


class Slope(NamedTuple):
    """A class of surrogates, as kernels take it."""

    kind: type[Surrogate]
    n_constants: int


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
    e = exp2_negative(square * real(-1 / (18 * LN2)))
    near = where(square < real(40.0), e, real(0.0))  # e³⁶ < 1e−34 beyond; denormals are slow
    e4 = near * near  # e³⁶ by squaring: five products in place of an exponential
    e4 = e4 * e4
    e32 = e4 * e4
    e32 = e32 * e32
    e32 = e32 * e32
    # (u/18)², limited since 0 · Inf would be NaN; e is 0 beyond |u| = 39.7
    w = where(square < real(1600.0), square, real(1600.0)) * real(1 / 324)
    if is_single(u):  # cosh by its Taylor series in w, as far as the precision needs
        cosh = w * real(1 / 40320) + real(1 / 720)
    else:
        cosh = w * real(1 / 3628800) + real(1 / 40320)
        cosh = cosh * w + real(1 / 720)
    cosh = cosh * w + real(1 / 24)
    cosh = cosh * w + real(0.5)
    cosh = cosh * w + real(1.0)
    return height * (real(CENTRE) * e32 * e4 - real(_BOTH_SIDES) * e * cosh)


_BOTH_SIDES = SIDES * 2 * math.exp(-1 / 72)


@typeof_impl.register(Slope)
def _typeof_slope(surrogate, c):  # pyright: ignore[reportUnusedParameter]
    kind, n_constants = surrogate
    if kind.formula is MultiGaussian.formula:
        return known_type(surrogate, "multi_gaussian")
    text = slope_text(kind.formula, n_constants)
    return known_type(surrogate, hashlib.sha256(text.encode()).hexdigest()[:32])


@partial(in_kernels, **WITH_FMA)
def slope_of(surrogate, margin, constants):
    """Derivative of a surrogate at a vector of margins."""
    kind, n_constants = surrogate.of
    own: Any = multi_gaussian
    if kind.formula is not MultiGaussian.formula:
        own = in_numba(slope_text(kind.formula, n_constants), WITH_FMA)
    return lambda surrogate, margin, constants: spread(own(margin, constants), margin)
