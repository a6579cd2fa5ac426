"""Surrogate derivatives of `surrogate.py` for arrays of margins, vectorised by Numba.

`exp` is a polynomial, which LLVM vectorises; otherwise it would call the C library.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from blockspike.neurons.cpu.kernels import intrinsic, kernel_with_fma
from blockspike.neurons.cpu.lanes import Lanes, dtype_of
from blockspike.neurons.model import maximum, where
from blockspike.neurons.surrogate import Boxcar, FastSigmoid, MultiGaussian, Surrogate

FAST_SIGMOID, BOXCAR, MULTI_GAUSSIAN = 0, 1, 2
_CODES = {FastSigmoid: FAST_SIGMOID, Boxcar: BOXCAR, MultiGaussian: MULTI_GAUSSIAN}

_LN2 = math.log(2)
_CENTRE = 0.5 * 1.15 / (0.5 * math.sqrt(2 * math.pi))
_SIDES = 0.5 * 0.15 * 2 * math.exp(-1 / 72) / (3 * math.sqrt(2 * math.pi))


def surrogate_code(surrogate: Surrogate) -> int:
    """Number that stands for `surrogate` in the kernels."""
    return _CODES[type(surrogate)]


def _real_of(x: Any) -> Any:
    """Float type of a number or of a vector's lanes; callable in kernels only."""
    raise NotImplementedError


@overload(_real_of)
def _real_of_overload(x):
    real = np.float32 if dtype_of(x) == types.float32 else np.float64
    return lambda x: real


def _is_single(x: Any) -> Any:
    """Whether x is in float32; resolved when a kernel is compiled."""
    raise NotImplementedError


@overload(_is_single)
def _is_single_overload(x):
    single = dtype_of(x) == types.float32
    return lambda x: single


def _integers(context: Any, kind: Any, bits: int) -> Any:
    integer = ir.IntType(bits)
    return ir.VectorType(integer, kind.count) if isinstance(kind, Lanes) else integer


@intrinsic
def _truncated(typingctx, x):  # pyright: ignore[reportUnusedParameter]
    """Round towards zero; |x| < 2³¹."""

    def codegen(context, builder, signature, args):
        whole = builder.fptosi(args[0], _integers(context, x, 32))
        return builder.sitofp(whole, args[0].type)

    return x(x), codegen


@intrinsic
def _power_of_two(typingctx, x):  # pyright: ignore[reportUnusedParameter]
    """Compute 2^x for whole numbers −126 ≤ x ≤ 127 by writing the bits of the exponent."""
    bits, bias, mantissa = (32, 127, 23) if dtype_of(x) == types.float32 else (64, 1023, 52)

    def codegen(context, builder, signature, args):
        whole = _integers(context, x, bits)
        filled = [bias] * x.count if isinstance(x, Lanes) else bias
        exponent = builder.add(builder.fptosi(args[0], whole), ir.Constant(whole, filled))
        filled = [mantissa] * x.count if isinstance(x, Lanes) else mantissa
        return builder.bitcast(builder.shl(exponent, ir.Constant(whole, filled)), args[0].type)

    return x(x), codegen


@kernel_with_fma
def exp2_negative(t):
    """Compute 2^t for t ≤ 0, to a few ulp (in float64 to 1e−12); 0 below 2^−126."""
    real = _real_of(t)
    clipped = maximum(t, real(-126.0))
    k = _truncated(clipped - real(0.5))  # to the nearest, since t ≤ 0
    r = (clipped - k) * real(_LN2)  # |r| ≤ ln2/2; exp(r) by its Taylor series
    if _is_single(t):
        y = r * real(1 / 720) + real(1 / 120)
    else:
        y = r * real(1 / 39916800) + real(1 / 3628800)
        y = y * r + real(1 / 362880)
        y = y * r + real(1 / 40320)
        y = y * r + real(1 / 5040)
        y = y * r + real(1 / 720)
        y = y * r + real(1 / 120)
    y = y * r + real(1 / 24)
    y = y * r + real(1 / 6)
    y = y * r + real(0.5)
    y = y * r + real(1.0)
    y = y * r + real(1.0)
    return where(t < real(-126.0), real(0.0), y * _power_of_two(k))


@kernel_with_fma
def multi_gaussian(u):
    """Derivative of `MultiGaussian` at the margin u.

    One exponential e = exp(−u²/18) gives all three bells. The centre is e³⁶ = exp(−u²/0.5); the
    sides are e·exp(−1/72)·2cosh(u/18), up to a common factor.
    """
    real = _real_of(u)
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
    if _is_single(u):
        cosh = w * real(1 / 40320) + real(1 / 720)
    else:
        cosh = w * real(1 / 3628800) + real(1 / 40320)
        cosh = cosh * w + real(1 / 720)
    cosh = cosh * w + real(1 / 24)
    cosh = cosh * w + real(0.5)
    cosh = cosh * w + real(1.0)
    return real(_CENTRE) * e32 * e4 - real(_SIDES) * e * cosh


@kernel_with_fma
def fast_sigmoid(u):
    """Derivative of `FastSigmoid` at the margin u: 1 / (10|u| + 1)²."""
    real = _real_of(u)
    slope = real(10.0) * maximum(u, -u) + real(1.0)
    return real(1.0) / (slope * slope)


@kernel_with_fma
def boxcar(u):
    """Derivative of `Boxcar` at the margin u: 1 for −0.5 < u ≤ 0.5, else 0."""
    real = _real_of(u)
    return where((u > real(-0.5)) & (u <= real(0.5)), real(1.0), real(0.0))


@kernel_with_fma
def slope_of(code, margin):
    """Derivative of the surrogate `code` at a margin, a number or a vector."""
    if code == FAST_SIGMOID:
        return fast_sigmoid(margin)
    if code == BOXCAR:
        return boxcar(margin)
    return multi_gaussian(margin)


@kernel_with_fma
def surrogate_derivative(code, margin, out):
    """Write dS/dV of the surrogate `code` at `margin` [N] to `out` [N]."""
    if code == FAST_SIGMOID:
        for i in range(margin.size):
            out[i] = fast_sigmoid(margin[i])
    elif code == BOXCAR:
        for i in range(margin.size):
            out[i] = boxcar(margin[i])
    else:
        for i in range(margin.size):
            out[i] = multi_gaussian(margin[i])
