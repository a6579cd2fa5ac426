"""Vectors of neighbouring columns as a number type of kernels, on which a model's step works.

The obvious kernel loops over time outside and over columns inside. LLVM vectorises the inner loop,
and then loads and stores the state of every column at every step. With `Lanes`, time is the inner
loop and the state of a vector of columns stays in registers:

    columns   0 … 15        16 … 31                  registers, all through a chunk of time
    time  0   [ Lanes ]     [ Lanes ]                parameters  [ Lanes ] …
          1   [ Lanes ]     [ Lanes ]                states      [ Lanes ] …
          …   ↓ this group, then the next            sums        [ Lanes ] …

A vector is 64 bytes: one cache line, 16 columns in float32, 8 in float64. Where registers are
narrower, LLVM splits it into two or four. It also splits wider ones, see `lane_memory.py`.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import TypingError
from numba.extending import models, overload, register_model

from blockspike.neurons.cpu.kernels import in_kernels, intrinsic
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


@in_kernels
def n_lanes(array):
    """Number of the array's elements in a vector, a constant of the kernel."""
    count = lanes_of(array.dtype).count
    return lambda array: count


def lanes_of(dtype: Any, n_vectors: int = 1) -> Lanes:
    """Type of a vector of numbers of this type, or of several in one."""
    return Lanes(dtype, n_vectors * LANES_BYTES * 8 // dtype.bitwidth)


def dtype_of(kind: Any) -> Any:
    """Type of a number, or of the lanes of a vector."""
    return kind.dtype if isinstance(kind, Lanes) else kind


# Arithmetic


def in_every_lane(builder: Any, number: Any, count: int) -> Any:
    """Generate code for a vector with the number in each of its lanes."""
    # LLVM knows this pair as one broadcast: insert into lane 0, then copy lane 0 to all.
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
    """Let `operation` take vectors, or a vector and a number.

    LLVM's instructions are the same for vectors and numbers, so one line each suffices below.
    """

    @intrinsic
    def compute(typingctx, x, y):  # pyright: ignore[reportUnusedParameter]
        lanes = _lanes_among(x, y)
        result = lanes if dtype is None else Lanes(dtype, lanes.count)

        def codegen(context, builder, signature, args):
            pairs = zip((x, y), args, strict=True)
            return build(builder, *(_spread(context, builder, *pair, lanes) for pair in pairs))

        return result(x, y), codegen

    # Numba compiles this overload with the flags of its caller: in a kernel with FMA, LLVM may
    # fuse the multiplication and addition of two such operations.
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
# As in IEEE 754, a comparison with NaN is false, except this one.
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
