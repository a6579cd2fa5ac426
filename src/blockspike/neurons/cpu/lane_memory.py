"""Loads and stores of vectors: whole or in part, as rows of tuples, in blocks, past the caches."""

from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils

from blockspike.neurons.cpu.kernels import intrinsic
from blockspike.neurons.cpu.lanes import in_every_lane, lanes_of

STREAM_BYTES = 32
# Vectors that a sum over rows keeps in registers; a vector takes one of the 32 of AVX-512.
BLOCK = 2 if get_host_cpu_features().get("avx512f") else 1


def _mask(builder: Any, n: Any, count: int) -> Any:
    """Whether each lane is one of the first n."""
    places = ir.Constant(ir.VectorType(n.type, count), list(range(count)))
    return builder.icmp_unsigned("<", places, in_every_lane(builder, n, count))


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


def pointer_to(
    context: Any, builder: Any, kind: Any, array: Any, at: Any, ahead: int, count: int = 1
) -> Any:
    """Generate code for a pointer to array[at + ahead], or to a vector of `count` from there on.

    Places count numbers, as in a flat array.
    """
    data = context.make_array(kind)(context, builder, array).data
    pointer = builder.gep(data, [builder.add(at, at.type(ahead))])
    if count == 1:
        return pointer
    return builder.bitcast(pointer, ir.VectorType(data.type.pointee, count).as_pointer())


def _vector_at(
    context: Any, builder: Any, kind: Any, array: Any, at: Any, count: int | None = None
) -> tuple[Any, Any]:
    count = count or lanes_of(kind.dtype).count
    place = pointer_to(context, builder, kind, array, at, 0, count)
    return place.type.pointee, place


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
