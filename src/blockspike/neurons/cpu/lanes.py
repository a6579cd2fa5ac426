"""Vectors for kernels: neighbouring columns are simulated together, their state in registers.

A compiler vectorises an inner loop over columns, and then loads and stores the state of every
column at every step. With `Lanes`, the loop over time can be the inner one. A vector is 64 bytes:
one cache line, or two to four registers where these are narrower.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import models, overload, register_model

from blockspike.neurons.cpu.kernels import intrinsic
from blockspike.neurons.model import maximum, where

LANES_BYTES = 64


class Lanes(types.Type):
    """Numba type of a vector of `count` numbers or bools."""

    def __init__(self, dtype: Any, count: int):
        self.dtype, self.count = dtype, count
        super().__init__(f"Lanes({dtype}, {count})")

    @property
    def llvm(self) -> ir.VectorType:
        """Type of the vector in LLVM."""
        kinds = {types.boolean: ir.IntType(1), types.float32: ir.FloatType()}
        return ir.VectorType(kinds.get(self.dtype, ir.DoubleType()), self.count)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes):
        super().__init__(manager, kind, kind.llvm)


def n_lanes(array: Any) -> Any:
    """Number of the array's elements in a vector; callable in kernels only."""
    raise NotImplementedError(
        "kernels: expected compiled ones, got NUMBA_DISABLE_JIT=1; unset it, or use "
        "method='standard'"
    )


@overload(n_lanes)
def _n_lanes(array):
    count = lanes_of(array.dtype).count
    return lambda array: count


def lanes_of(dtype: Any) -> Lanes:
    """Type of a vector of numbers of this type."""
    return Lanes(dtype, LANES_BYTES * 8 // dtype.bitwidth)


def dtype_of(kind: Any) -> Any:
    """Type of a number, or of the lanes of a vector."""
    return kind.dtype if isinstance(kind, Lanes) else kind


# Arithmetic


def in_every_lane(builder: Any, number: Any, count: int) -> Any:
    """Generate code for a vector with the number in each of its lanes."""
    nothing = ir.Constant(ir.VectorType(number.type, count), ir.Undefined)
    first = builder.insert_element(nothing, number, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    return builder.shuffle_vector(first, nothing, places)


def _spread(context: Any, builder: Any, kind: Any, value: Any, lanes: Lanes) -> Any:
    """The value as a vector: as it is, or a number in every lane."""
    if isinstance(kind, Lanes):
        return value
    if isinstance(kind, types.BaseTuple):
        parts = [
            _spread(context, builder, part, builder.extract_value(value, i), lanes)
            for i, part in enumerate(kind)  # pyright: ignore[reportArgumentType]
        ]
        return context.make_tuple(builder, _spread_type(kind, lanes), parts)
    return in_every_lane(builder, context.cast(builder, value, kind, lanes.dtype), lanes.count)


def _spread_type(kind: Any, lanes: Lanes) -> Any:
    if isinstance(kind, types.BaseTuple):
        parts = tuple(_spread_type(x, lanes) for x in kind)  # pyright: ignore[reportGeneralTypeIssues]
        return types.BaseTuple.from_types(parts)
    if kind == lanes or isinstance(kind, types.Float | types.Integer):
        return lanes
    raise TypingError(f"expected {lanes} or a number, got {kind}")


@intrinsic
def spread(typingctx, values, like):  # pyright: ignore[reportUnusedParameter]
    """The values, also in nested tuples, with each number as a vector of the type of `like`."""

    def codegen(context, builder, signature, args):
        return _spread(context, builder, values, args[0], like)

    return _spread_type(values, like)(values, like), codegen


def _lanes_among(*kinds: Any) -> Lanes:
    """Type of the vectors among the arguments of an operation; the others are numbers."""
    lanes = next(kind for kind in kinds if isinstance(kind, Lanes))
    for kind in kinds:
        _spread_type(kind, lanes)
    return lanes


def _define(operation: Callable, build: Callable[..., Any], dtype: Any = None) -> None:
    """Let `operation` take vectors, or a vector and a number."""

    @intrinsic
    def compute(typingctx, x, y):  # pyright: ignore[reportUnusedParameter]
        lanes = _lanes_among(x, y)
        result = lanes if dtype is None else Lanes(dtype, lanes.count)

        def codegen(context, builder, signature, args):
            pairs = zip((x, y), args, strict=True)
            return build(builder, *(_spread(context, builder, *pair, lanes) for pair in pairs))

        return result(x, y), codegen

    @overload(operation)
    def _operation(x, y):
        if isinstance(x, Lanes) or isinstance(y, Lanes):
            return lambda x, y: compute(x, y)
        return None


def _compare(sign: str) -> Callable[..., Any]:
    return lambda builder, x, y: builder.fcmp_ordered(sign, x, y)


_define(operator.add, lambda builder, x, y: builder.fadd(x, y))
_define(operator.sub, lambda builder, x, y: builder.fsub(x, y))
_define(operator.mul, lambda builder, x, y: builder.fmul(x, y))
_define(operator.truediv, lambda builder, x, y: builder.fdiv(x, y))
_define(operator.gt, _compare(">"), types.boolean)
_define(operator.lt, _compare("<"), types.boolean)
_define(operator.ge, _compare(">="), types.boolean)
_define(operator.le, _compare("<="), types.boolean)
_define(operator.eq, _compare("=="), types.boolean)
_define(operator.ne, lambda builder, x, y: builder.fcmp_unordered("!=", x, y), types.boolean)
_define(operator.and_, lambda builder, x, y: builder.and_(x, y))
_define(operator.or_, lambda builder, x, y: builder.or_(x, y))


@intrinsic
def _negate(typingctx, x):  # pyright: ignore[reportUnusedParameter]
    return x(x), lambda context, builder, signature, args: builder.fneg(args[0])


@overload(operator.neg)
def _neg(x):
    return (lambda x: _negate(x)) if isinstance(x, Lanes) else None


@overload(abs)
def _abs(x):
    return (lambda x: maximum(x, -x)) if isinstance(x, Lanes) else None


def _of_numbers(condition: Lanes) -> Lanes:
    """Vectors for a choice between two numbers: as many lanes as the condition has."""
    return lanes_of(types.float32 if condition.count * 32 == 8 * LANES_BYTES else types.float64)


@intrinsic
def select(typingctx, condition, x, y):  # pyright: ignore[reportUnusedParameter]
    """In each lane, x where the condition holds, else y; each a vector or a number."""
    kinds = [kind for kind in (x, y) if isinstance(kind, Lanes)] or [_of_numbers(condition)]
    lanes = _lanes_among(*kinds, x, y)

    def codegen(context, builder, signature, args):
        pairs = zip((x, y), args[1:], strict=True)
        return builder.select(args[0], *(_spread(context, builder, *pair, lanes) for pair in pairs))

    return lanes(condition, x, y), codegen


@overload(where)
def _where(condition, x, y):
    if isinstance(condition, Lanes):
        return lambda condition, x, y: select(condition, x, y)
    return lambda condition, x, y: x if condition else y


@overload(maximum)
def _maximum(x, least):
    if isinstance(x, Lanes):
        return lambda x, least: select(x > least, x, least)
    return lambda x, least: max(x, least)


@intrinsic
def add_each(typingctx, x, y):  # pyright: ignore[reportUnusedParameter]
    """Add two tuples of vectors, element by element."""

    def codegen(context, builder, signature, args):
        pairs = [[builder.extract_value(a, k) for a in args] for k in range(x.count)]
        return context.make_tuple(builder, x, [builder.fadd(*pair) for pair in pairs])

    return x(x, y), codegen


@intrinsic
def add_scaled(typingctx, total, number, block):  # pyright: ignore[reportUnusedParameter]
    """Compute total + number · block for tuples of vectors."""

    def codegen(context, builder, signature, args):
        factor = _spread(context, builder, number, args[1], total.dtype)
        values = []
        for k in range(total.count):
            x, y = builder.extract_value(args[0], k), builder.extract_value(args[2], k)
            values.append(builder.fadd(x, builder.fmul(factor, y)))
        return context.make_tuple(builder, total, values)

    return total(total, number, block), codegen
