"""Exponentials for kernels, on vectors and numbers.

LLVM would call the C library's `exp` for each lane. These are polynomials, which it vectorises:

    exp(x) = 2^k · exp(r),  k = round(x / ln2),  r = x − k ln2,  so |r| ≤ ln2 / 2

exp(r) is a Taylor series, and 2^k is written into the bits of the exponent. `exact_exp` rounds each
operation, so that spikes equal those of the loop, whose `model.exp` does the same on tensors.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import overload

from blockspike.neurons.cpu.kernels import in_kernels, intrinsic, kernel_with_fma
from blockspike.neurons.cpu.lanes import Lanes, dtype_of
from blockspike.neurons.derivative import compiled
from blockspike.neurons.model import exp, maximum, where

LN2 = math.log(2)
COEFFICIENTS = {
    itemsize: tuple(1 / math.factorial(n) for n in range(degree, -1, -1))
    for itemsize, degree in ((4, 6), (8, 11))
}
"""Of the Taylor series of exp, the highest power first, by the bytes of a number."""
MOST = {4: 126.0, 8: 1022.0}
"""Largest power of two."""


@in_kernels
def real_of(x):
    """Float type of a number or of a vector's lanes."""
    real = np.float32 if dtype_of(x) == types.float32 else np.float64
    return lambda x: real


@in_kernels
def is_single(x):
    """Whether x is in float32; resolved when a kernel is compiled."""
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
        added, shift = (
            ir.Constant(whole, [n] * x.count if isinstance(x, Lanes) else n)
            for n in (bias, mantissa)
        )
        exponent = builder.add(builder.fptosi(args[0], whole), added)
        return builder.bitcast(builder.shl(exponent, shift), args[0].type)

    return x(x), codegen


def _series_by(**options: Any) -> Any:
    @in_kernels
    def series(r):
        """exp(r) for |r| ≤ ln2/2 by its Taylor series."""
        first, *others = COEFFICIENTS[dtype_of(r).bitwidth // 8]
        # Written out, since a loop over the coefficients would load them from memory.
        y = f"real({first!r})"
        for coefficient in others:
            y = f"({y} * r + real({coefficient!r}))"
        real = np.float32 if dtype_of(r) == types.float32 else np.float64
        own = njit(**options)(compiled(f"def series(r):\n    return {y}\n", real=real))
        return lambda r: own(r)

    return series


_series, _exact_series = _series_by(fastmath={"contract"}), _series_by()


@kernel_with_fma
def exp2_negative(t):
    """Compute 2^t for t ≤ 0, to a few ulp (in float64 to 1e−12); 0 below 2^−126."""
    real = real_of(t)
    clipped = maximum(t, real(-126.0))
    k = _truncated(clipped - real(0.5))  # to the nearest, since t ≤ 0
    r = (clipped - k) * real(LN2)  # |r| ≤ ln2/2
    return where(t < real(-126.0), real(0.0), _series(r) * _power_of_two(k))


def _exp_by(series: Any, **options: Any) -> Any:
    def compute(x):
        """Compute exp(x) to a few ulp (in float64 to 1e−12); 0 or Inf beyond its range."""
        real = real_of(x)
        most = real(126.0) if is_single(x) else real(1022.0)
        t = x * real(1 / LN2)
        clipped = maximum(-maximum(-t, -most), -most)  # so that k fits into the exponent's bits
        k = _truncated(clipped + where(clipped < real(0.0), real(-0.5), real(0.5)))  # rounds
        y = series(x - k * real(LN2)) * _power_of_two(k)
        return where(t < -most, real(0.0), where(t > most, real(math.inf), y))

    def implement(x):
        own = njit(error_model="numpy", **options)(compute)
        return lambda x: own(x)

    return implement


overload(exp)(_exp_by(_series, fastmath={"contract"}))
exact_exp = in_kernels(_exp_by(_exact_series))  # for steps, rounded as `model.exp` rounds
