"""The surrogate derivatives of `surrogate.py` for an array of margins, vectorised by Numba.

`exp` is a polynomial, because LLVM vectorises a polynomial and calls the C library otherwise.
"""

import math

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from blockspike.neurons.kernels import kernel_with_fma
from blockspike.neurons.surrogate import Boxcar, FastSigmoid, MultiGaussian, Surrogate

FAST_SIGMOID, BOXCAR, MULTI_GAUSSIAN = 0, 1, 2
_CODES = {FastSigmoid: FAST_SIGMOID, Boxcar: BOXCAR, MultiGaussian: MULTI_GAUSSIAN}

_LOG2_E = math.log2(math.e)
_LN2_HIGH = 0.693359375  # exact in float32 with bits to spare, so k·ln2 loses nothing
_LN2_LOW = math.log(2) - _LN2_HIGH
_CENTRE = 0.5 * 1.15 / (0.5 * math.sqrt(2 * math.pi))
_SIDES = 0.5 * 0.15 * 2 * math.exp(-1 / 72) / (3 * math.sqrt(2 * math.pi))


def surrogate_code(surrogate: Surrogate) -> int:
    """The number by which the kernels know `surrogate`."""
    return _CODES[type(surrogate)]


@intrinsic
def _power_of_two(typingctx, exponent, like):  # pyright: ignore[reportUnusedParameter]
    """2^exponent (integer) in the float type of `like`, by writing the exponent bits."""
    bits, bias, mantissa = (32, 127, 23) if like == types.float32 else (64, 1023, 52)

    def codegen(context, builder, signature, args):
        integer = ir.IntType(bits)
        value = context.cast(builder, args[0], signature.args[0], types.int32)
        if bits == 64:
            value = builder.sext(value, integer)
        shifted = builder.shl(builder.add(value, integer(bias)), integer(mantissa))
        return builder.bitcast(shifted, context.get_value_type(like))

    return like(exponent, like), codegen


@kernel_with_fma
def exp_negative(x):
    """exp(x) for x ≤ 0, to a few ulp; below exp(−87) it stays at exp(−87)."""
    real = type(x)
    x = max(x, real(-87.0))
    k = np.int32(x * real(_LOG2_E) - real(0.5))  # truncation rounds to nearest, since x ≤ 0
    r = x - real(k) * real(_LN2_HIGH) - real(k) * real(_LN2_LOW)  # |r| ≤ ln2/2
    y = real(1 / 3628800)
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
    return y * _power_of_two(k, x)  # pyright: ignore[reportCallIssue]


@kernel_with_fma
def _multi_gaussian(u):
    """One exponential e = exp(−u²/18) gives all three bells.

    The centre is e³⁶ = exp(−u²/0.5); the sides are e·exp(−1/72)·2cosh(u/18) over a common norm.
    """
    real = type(u)
    square = u * u
    e = exp_negative(square * real(-1 / 18))
    near = e if square < real(40.0) else real(0.0)  # e³⁶ < 1e−34 beyond, and denormals are slow
    e4 = near * near * near * near
    e32 = e4 * e4
    e32 = e32 * e32
    e32 = e32 * e32
    w = min(square, real(1600.0)) * real(1 / 324)  # (u/18)²; e underflows beyond |u| = 40
    cosh = real(1 / 3628800)
    cosh = cosh * w + real(1 / 40320)
    cosh = cosh * w + real(1 / 720)
    cosh = cosh * w + real(1 / 24)
    cosh = cosh * w + real(0.5)
    cosh = cosh * w + real(1.0)
    return real(_CENTRE) * e32 * e4 - real(_SIDES) * e * cosh


@kernel_with_fma
def surrogate_derivative(code, margin, out):
    """Write dS/dV of the surrogate `code` at `margin` [N] to `out` [N]."""
    real = margin.dtype.type
    if code == FAST_SIGMOID:
        for i in range(margin.size):
            slope = real(10.0) * abs(margin[i]) + real(1.0)
            out[i] = real(1.0) / (slope * slope)
    elif code == BOXCAR:
        for i in range(margin.size):
            inside = (margin[i] > real(-0.5)) & (margin[i] <= real(0.5))
            out[i] = real(1.0) if inside else real(0.0)
    else:
        for i in range(margin.size):
            out[i] = _multi_gaussian(margin[i])
