"""Exponentials for kernels: polynomials, which LLVM vectorises; it would call the C library."""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload

from blockspike.neurons.cpu.kernels import intrinsic, kernel_with_fma
from blockspike.neurons.cpu.lanes import Lanes, dtype_of
from blockspike.neurons.model import exp, maximum, where

_LN2 = math.log(2)


def real_of(x: Any) -> Any:
    """Float type of a number or of a vector's lanes; callable in kernels only."""
    raise NotImplementedError


@overload(real_of)
def _real_of_overload(x):
    real = np.float32 if dtype_of(x) == types.float32 else np.float64
    return lambda x: real


def is_single(x: Any) -> Any:
    """Whether x is in float32; resolved when a kernel is compiled."""
    raise NotImplementedError


@overload(is_single)
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
def _exp_of_small(r):
    """Compute exp(r) for |r| ≤ ln2/2 by its Taylor series."""
    real = real_of(r)
    if is_single(r):
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
    return y


@kernel_with_fma
def exp2_negative(t):
    """Compute 2^t for t ≤ 0, to a few ulp (in float64 to 1e−12); 0 below 2^−126."""
    real = real_of(t)
    clipped = maximum(t, real(-126.0))
    k = _truncated(clipped - real(0.5))  # to the nearest, since t ≤ 0
    r = (clipped - k) * real(_LN2)  # |r| ≤ ln2/2
    return where(t < real(-126.0), real(0.0), _exp_of_small(r) * _power_of_two(k))


@kernel_with_fma
def _exp(x):
    """Compute exp(x) to a few ulp (in float64 to 1e−12); 0 or Inf where it leaves the range."""
    real = real_of(x)
    most = real(126.0) if is_single(x) else real(1022.0)
    t = x * real(1 / _LN2)
    clipped = maximum(-maximum(-t, -most), -most)
    k = _truncated(clipped + where(clipped < real(0.0), real(-0.5), real(0.5)))
    y = _exp_of_small(x - k * real(_LN2)) * _power_of_two(k)
    return where(t < -most, real(0.0), where(t > most, real(math.inf), y))


@overload(exp)
def _exp_overload(x):
    return lambda x: _exp(x)
