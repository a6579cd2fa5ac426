"""Vectors for kernels: neighbouring columns are simulated together, their state in registers.

A compiler vectorises an inner loop over columns, and then loads and stores the state of every
column at every step. With `Lanes`, the loop over time can be the inner one. A vector is 64 bytes:
one cache line, or two to four registers where these are narrower.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import models, overload, register_model

from blockspike.neurons.cpu.kernels import intrinsic
from blockspike.neurons.model import maximum, where

LANES_BYTES = 64
STREAM_BYTES = 32
# Vectors that a sum over rows keeps in registers; a vector takes one of the 32 of AVX-512.
BLOCK = 2 if get_host_cpu_features().get("avx512f") else 1


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
    raise NotImplementedError


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
    number = context.cast(builder, value, kind, lanes.dtype)
    one = builder.insert_element(ir.Constant(lanes.llvm, ir.Undefined), number, ir.IntType(32)(0))
    places = ir.Constant(ir.VectorType(ir.IntType(32), lanes.count), [0] * lanes.count)
    return builder.shuffle_vector(one, ir.Constant(lanes.llvm, ir.Undefined), places)


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


# Memory


def _mask(builder: Any, n: Any, count: int) -> Any:
    """Whether each lane is one of the first n."""
    numbers = ir.VectorType(n.type, count)
    places = ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count)
    nothing = ir.Constant(numbers, ir.Undefined)
    first = builder.insert_element(nothing, n, ir.IntType(32)(0))
    spread = builder.shuffle_vector(first, nothing, places)
    return builder.icmp_unsigned("<", ir.Constant(numbers, list(range(count))), spread)


def _call(builder: Any, name: str, result: Any, vector: Any, *args: Any) -> Any:
    """Call one of LLVM's functions for masked loads and stores of such vectors."""
    kinds = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.IntType(8): "i8"}
    name = f"{name}.v{vector.count}{kinds[vector.element]}.p0"
    kind = ir.FunctionType(result, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def load(context: Any, builder: Any, kind: Any, array: Any, at: Any, n: Any) -> Any:
    """Generate code that loads n elements from array[at] on; the other lanes are 0."""
    vector, place = _vector_at(context, builder, kind, array, at)
    align = kind.dtype.bitwidth // 8
    with builder.if_else(_is_whole(builder, n, vector), likely=True) as (whole, part):
        with whole:
            all_, after_all = builder.load(place, align=align), builder.block
        with part:
            mask, zeros = _mask(builder, n, vector.count), ir.Constant(vector, None)
            align = ir.IntType(32)(align)
            some = _call(builder, "llvm.masked.load", vector, vector, place, align, mask, zeros)
            after_some = builder.block
    loaded = builder.phi(vector)
    loaded.add_incoming(all_, after_all)
    loaded.add_incoming(some, after_some)
    return loaded


def store(
    context: Any, builder: Any, kind: Any, value: Any, array: Any, at: Any, n: Any,
    stream: Any = None,
) -> None:  # fmt: skip
    """Generate code that stores the first n lanes from array[at] on.

    If `stream`, whole vectors go past the caches; array[at] must then be aligned to STREAM_BYTES.
    """
    vector, place = _vector_at(context, builder, kind, array, at, value.type.count)
    align = kind.dtype.bitwidth // 8
    with builder.if_else(_is_whole(builder, n, vector), likely=True) as (whole, part):
        with whole:
            if stream is None:
                builder.store(value, place, align=align)
            else:
                with builder.if_else(stream) as (past, into):
                    with past:
                        stored = builder.store(value, place, align=STREAM_BYTES)
                        flag = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
                        stored.set_metadata("nontemporal", flag)
                    with into:
                        builder.store(value, place, align=align)
        with part:
            mask, align = _mask(builder, n, vector.count), ir.IntType(32)(align)
            void = ir.VoidType()
            _call(builder, "llvm.masked.store", void, vector, value, place, align, mask)


def _vector_at(
    context: Any, builder: Any, kind: Any, array: Any, at: Any, count: int | None = None
) -> tuple[Any, Any]:
    data = context.make_array(kind)(context, builder, array).data
    vector = ir.VectorType(data.type.pointee, count or lanes_of(kind.dtype).count)
    return vector, builder.bitcast(builder.gep(data, [at]), vector.as_pointer())


def _is_whole(builder: Any, n: Any, vector: Any) -> Any:
    return builder.icmp_unsigned("==", n, n.type(vector.count))


@intrinsic
def load_lanes(typingctx, array, at, n):  # pyright: ignore[reportUnusedParameter]
    """Load array[at … at + n − 1]; the other lanes are 0."""

    def codegen(context, builder, signature, args):
        return load(context, builder, array, *args)

    return lanes_of(array.dtype)(array, types.uintp, types.uintp), codegen


@intrinsic
def store_lanes(typingctx, values, array, at, n, stream):  # pyright: ignore[reportUnusedParameter]
    """Store the first n lanes from array[at] on, past the caches if `stream`; see `store`."""

    def codegen(context, builder, signature, args):
        store(context, builder, array, *args)
        return context.get_dummy_value()

    return types.void(values, array, types.uintp, types.uintp, types.boolean), codegen


@intrinsic
def store_bytes(typingctx, values, array, at, n):  # pyright: ignore[reportUnusedParameter]
    """Store the first n lanes from array[at] on as bytes: 1 where a lane is above 0, else 0."""

    def codegen(context, builder, signature, args):
        above = builder.fcmp_ordered(">", args[0], ir.Constant(args[0].type, None))
        ones = builder.zext(above, ir.VectorType(ir.IntType(8), values.count))
        store(context, builder, array, ones, *args[1:])
        return context.get_dummy_value()

    return types.void(values, array, types.uintp, types.uintp), codegen


@intrinsic
def store_rows(typingctx, values, array, at, stride, n):  # pyright: ignore[reportUnusedParameter]
    """Store the first n lanes of each of a tuple's vectors from array[at + row · stride] on."""

    def codegen(context, builder, signature, args):
        row = args[2]
        for k in range(values.count):
            value = builder.extract_value(args[0], k)
            store(context, builder, array, value, args[1], row, args[4])
            row = builder.add(row, args[3])
        return context.get_dummy_value()

    uintp = types.uintp
    return types.void(values, array, uintp, uintp, uintp), codegen


@intrinsic
def add_rows(typingctx, values, array, at, stride, n):  # pyright: ignore[reportUnusedParameter]
    """Add the first n lanes of each of a tuple's vectors to array[at + row · stride …], float64."""
    wide = ir.VectorType(ir.DoubleType(), values.dtype.count)

    def codegen(context, builder, signature, args):
        row = args[2]
        for k in range(values.count):
            value = builder.extract_value(args[0], k)
            value = value if value.type == wide else builder.fpext(value, wide)
            vector, place = _vector_at(context, builder, array, args[1], row, wide.count)
            mask, align = _mask(builder, args[4], wide.count), ir.IntType(32)(8)
            zeros = ir.Constant(wide, None)
            before = _call(builder, "llvm.masked.load", wide, vector, place, align, mask, zeros)
            store(context, builder, array, builder.fadd(before, value), args[1], row, args[4])
            row = builder.add(row, args[3])
        return context.get_dummy_value()

    uintp = types.uintp
    return types.void(values, array, uintp, uintp, uintp), codegen


@intrinsic
def add_each(typingctx, x, y):  # pyright: ignore[reportUnusedParameter]
    """Add two tuples of vectors, element by element."""

    def codegen(context, builder, signature, args):
        pairs = [[builder.extract_value(a, k) for a in args] for k in range(x.count)]
        return context.make_tuple(builder, x, [builder.fadd(*pair) for pair in pairs])

    return x(x, y), codegen


@intrinsic
def load_block(typingctx, array, at, n):  # pyright: ignore[reportUnusedParameter]
    """Load array[at … at + n − 1] as BLOCK vectors; lanes beyond n are 0."""
    lanes = lanes_of(array.dtype)
    result = types.UniTuple(lanes, BLOCK)

    def codegen(context, builder, signature, args):
        at, n = args[1:]
        whole = builder.icmp_unsigned(">=", n, n.type(BLOCK * lanes.count))
        places = [builder.add(at, at.type(k * lanes.count)) for k in range(BLOCK)]
        with builder.if_else(whole, likely=True) as (all_, some):
            with all_:
                count = n.type(lanes.count)
                loaded = [load(context, builder, array, args[0], x, count) for x in places]
                after_all = builder.block
            with some:
                parts = []
                for k, place in enumerate(places):
                    own = _clamped(builder, n, k * lanes.count, lanes.count)
                    parts.append(load(context, builder, array, args[0], place, own))
                after_some = builder.block
        values = []
        for x, y in zip(loaded, parts, strict=True):
            value = builder.phi(lanes.llvm)
            value.add_incoming(x, after_all)
            value.add_incoming(y, after_some)
            values.append(value)
        return context.make_tuple(builder, result, values)

    return result(array, types.uintp, types.uintp), codegen


@intrinsic
def store_block(typingctx, values, array, at, n):  # pyright: ignore[reportUnusedParameter]
    """Store the first n numbers of BLOCK vectors from array[at] on."""
    count = values.dtype.count

    def codegen(context, builder, signature, args):
        at, n = args[2:]
        places = [builder.add(at, at.type(k * count)) for k in range(BLOCK)]
        parts = [builder.extract_value(args[0], k) for k in range(BLOCK)]
        whole = builder.icmp_unsigned(">=", n, n.type(BLOCK * count))
        with builder.if_else(whole, likely=True) as (all_, some):
            with all_:
                for place, value in zip(places, parts, strict=True):
                    store(context, builder, array, value, args[1], place, n.type(count))
            with some:
                for k, (place, value) in enumerate(zip(places, parts, strict=True)):
                    own = _clamped(builder, n, k * count, count)
                    store(context, builder, array, value, args[1], place, own)
        return context.get_dummy_value()

    return types.void(values, array, types.uintp, types.uintp), codegen


def _clamped(builder: Any, n: Any, before: int, count: int) -> Any:
    """Number of lanes, at most `count`, that are left of n after the first `before`."""
    left = builder.sub(n, n.type(before))
    left = builder.select(builder.icmp_unsigned(">", n, n.type(before)), left, n.type(0))
    full = builder.icmp_unsigned(">", left, n.type(count))
    return builder.select(full, n.type(count), left)


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


@intrinsic
def bits_of(typingctx, array, at):  # pyright: ignore[reportUnusedParameter]
    """The bytes array[at … at + 63] as 64 bits: 1 where a byte is not 0."""
    many = ir.VectorType(ir.IntType(8), 64)

    def codegen(context, builder, signature, args):
        data = context.make_array(array)(context, builder, args[0]).data
        place = builder.bitcast(builder.gep(data, [args[1]]), many.as_pointer())
        fired = builder.icmp_unsigned("!=", builder.load(place, align=1), ir.Constant(many, None))
        return builder.bitcast(fired, ir.IntType(64))  # the first byte is the lowest bit

    return types.uint64(array, types.uintp), codegen


@intrinsic
def lowest_bit(typingctx, bits):  # pyright: ignore[reportUnusedParameter]
    """Place of the lowest 1 among 64 bits that are not all 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.uint64(types.uint64), codegen
