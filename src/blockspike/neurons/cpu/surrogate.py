"""Surrogate derivatives of `surrogate.py` for arrays of margins, vectorised by Numba.

`exp` is a polynomial, which LLVM vectorises; otherwise it would call the C library.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from blockspike.neurons.cpu.kernels import kernel_with_fma
from blockspike.neurons.surrogate import Boxcar, FastSigmoid, MultiGaussian, Surrogate

FAST_SIGMOID, BOXCAR, MULTI_GAUSSIAN = 0, 1, 2
_CODES = {FastSigmoid: FAST_SIGMOID, Boxcar: BOXCAR, MultiGaussian: MULTI_GAUSSIAN}

_LN2 = math.log(2)
_CENTRE = 0.5 * 1.15 / (0.5 * math.sqrt(2 * math.pi))
_SIDES = 0.5 * 0.15 * 2 * math.exp(-1 / 72) / (3 * math.sqrt(2 * math.pi))


def surrogate_code(surrogate: Surrogate) -> int:
    """Number that stands for `surrogate` in the kernels."""
    return _CODES[type(surrogate)]


@intrinsic
def _power_of_two(typingctx, exponent, like):  # pyright: ignore[reportUnusedParameter]
    """Compute 2^exponent (an integer) in the float type of `like` by writing the exponent bits."""
    bits, bias, mantissa = (32, 127, 23) if like == types.float32 else (64, 1023, 52)

    def codegen(context, builder, signature, args):
        integer = ir.IntType(bits)
        value = context.cast(builder, args[0], signature.args[0], types.int32)
        if bits == 64:
            value = builder.sext(value, integer)
        shifted = builder.shl(builder.add(value, integer(bias)), integer(mantissa))
        return builder.bitcast(shifted, context.get_value_type(like))

    return like(exponent, like), codegen


def _is_single(x) -> bool:
    """Whether x is a float32; resolved when a kernel is compiled."""
    return type(x) is np.float32


@overload(_is_single)
def _is_single_overload(x):
    single = x == types.float32
    return lambda x: single


@kernel_with_fma
def exp2_negative(t):
    """Compute 2^t for t ≤ 0, to a few ulp (in float64 to 1e−12); 0 below 2^−126."""
    real = type(t)
    underflows = t < real(-126.0)
    t = max(t, real(-126.0))
    k = np.int32(t - real(0.5))  # truncation rounds to nearest, since t ≤ 0
    r = (t - real(k)) * real(_LN2)  # |r| ≤ ln2/2; exp(r) by its Taylor series
    y = real(1 / 720)
    if not _is_single(t):
        y = real(1 / 39916800)
        y = y * r + real(1 / 3628800)
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
    y *= _power_of_two(k, t)  # pyright: ignore[reportCallIssue]
    return real(0.0) if underflows else y


@kernel_with_fma
def multi_gaussian(u):
    """Derivative of `MultiGaussian` at the margin u.

    One exponential e = exp(−u²/18) gives all three bells. The centre is e³⁶ = exp(−u²/0.5); the
    sides are e·exp(−1/72)·2cosh(u/18), up to a common factor.
    """
    real = type(u)
    square = u * u
    e = exp2_negative(square * real(-1 / (18 * _LN2)))
    near = e if square < real(40.0) else real(0.0)  # e³⁶ < 1e−34 beyond, and denormals are slow
    e4 = near * near
    e4 = e4 * e4
    e32 = e4 * e4
    e32 = e32 * e32
    e32 = e32 * e32
    w = min(square, real(1600.0)) * real(1 / 324)  # (u/18)²; e is 0 beyond |u| = 39.7
    cosh = real(1 / 40320)
    if not _is_single(u):
        cosh = real(1 / 3628800) * w + real(1 / 40320)
    cosh = cosh * w + real(1 / 720)
    cosh = cosh * w + real(1 / 24)
    cosh = cosh * w + real(0.5)
    cosh = cosh * w + real(1.0)
    return real(_CENTRE) * e32 * e4 - real(_SIDES) * e * cosh


@kernel_with_fma
def fast_sigmoid(u):
    """Derivative of `FastSigmoid` at the margin u: 1 / (10|u| + 1)²."""
    real = type(u)
    slope = real(10.0) * abs(u) + real(1.0)
    return real(1.0) / (slope * slope)


@kernel_with_fma
def boxcar(u):
    """Derivative of `Boxcar` at the margin u: 1 for −0.5 < u ≤ 0.5, else 0."""
    real = type(u)
    return real(1.0) if (u > real(-0.5)) & (u <= real(0.5)) else real(0.0)


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
