"""Loads and stores of vectors: whole or cut off at the last column, as rows, past the caches.

Arrays are flat and `at` counts their elements. Each access takes n, the number of lanes that exist,
because the last group of a row has fewer columns than lanes:

    row of 20 columns in float32     | 0 … 15         | 16 … 19 · · · · · · · · · · · · |
                                       n = 16: plain     n = 4: masked; the other lanes
                                       load, store       are 0 in loads, kept in stores

Numba's own indexing yields numbers, one at a time, so these functions write LLVM's instructions.
"""

from typing import Any, NamedTuple

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import types
from numba.core import cgutils

from blockspike.neurons.cpu.kernels import intrinsic
from blockspike.neurons.cpu.lanes import in_every_lane, lanes_of

STREAM_BYTES = 32
# A sum over rows keeps a block in registers, vectors side by side as one wide vector. LLVM splits
# it: AVX-512 has 32 registers of a vector each; others need several registers for a single vector.
BLOCK = 2 if get_host_cpu_features().get("avx512f") else 1


_NO = ir.IntType(1)(0)


class _Place(NamedTuple):
    """Where the first n lanes of a vector lie in memory; `align` in bytes."""

    pointer: Any
    vector: ir.VectorType
    align: int
    n: Any


def _place(
    context: Any, builder: Any, kind: Any, array: Any, at: Any, n: Any, count: int
) -> _Place:
    data = context.make_array(kind)(context, builder, array).data
    vector = ir.VectorType(data.type.pointee, count)
    pointer = builder.bitcast(builder.gep(data, [at]), vector.as_pointer())
    return _Place(pointer, vector, kind.dtype.bitwidth // 8, n)  # lanes may begin at any element


def _is_whole(builder: Any, place: _Place) -> Any:
    return builder.icmp_unsigned("==", place.n, place.n.type(place.vector.count))


def _masked(builder: Any, place: _Place, operation: str, result: Any, *before: Any) -> Any:
    """Call LLVM's masked load or store, which does not touch memory of masked lanes."""
    vector, n = place.vector, place.n
    kinds = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.IntType(8): "i8"}
    name = f"llvm.masked.{operation}.v{vector.count}{kinds[vector.element]}.p0"
    numbered = ir.Constant(ir.VectorType(n.type, vector.count), list(range(vector.count)))
    mask = builder.icmp_unsigned("<", numbered, in_every_lane(builder, n, vector.count))
    args = [*before, place.pointer, ir.IntType(32)(place.align), mask]
    if operation == "load":
        args.append(ir.Constant(vector, None))  # zeros, for the masked lanes
    kind = ir.FunctionType(result, [x.type for x in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def load(context: Any, builder: Any, kind: Any, array: Any, at: Any, n: Any, count: int) -> Any:
    """Generate code that loads n elements from array[at] on into `count` lanes, the others 0."""
    place = _place(context, builder, kind, array, at, n, count)
    # A masked access to all lanes would be right but slower. n rarely changes, so the branch is
    # predicted; where n is a constant, LLVM removes it.
    with builder.if_else(_is_whole(builder, place), likely=True) as (whole, part):
        with whole:
            all_, after_all = builder.load(place.pointer, align=place.align), builder.block
        with part:
            some, after_some = _masked(builder, place, "load", place.vector), builder.block
    loaded = builder.phi(place.vector)
    loaded.add_incoming(all_, after_all)
    loaded.add_incoming(some, after_some)
    return loaded


def store(
    context: Any, builder: Any, kind: Any, value: Any, array: Any, at: Any, n: Any,
    stream: Any = _NO,
) -> None:  # fmt: skip
    """Generate code that stores the first n lanes from array[at] on.

    If `stream`, whole vectors go past the caches; array[at] must then be aligned to STREAM_BYTES.
    """
    place = _place(context, builder, kind, array, at, n, value.type.count)
    with builder.if_else(_is_whole(builder, place), likely=True) as (whole, part):
        with whole, builder.if_else(stream) as (past, into):
            with past:
                stored = builder.store(value, place.pointer, align=STREAM_BYTES)
                flag = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
                stored.set_metadata("nontemporal", flag)
            with into:
                builder.store(value, place.pointer, align=place.align)
        with part:
            _masked(builder, place, "store", ir.VoidType(), value)


def _loader(n_vectors: int) -> Any:
    @intrinsic
    def load_lanes(typingctx, array, at, n):  # pyright: ignore[reportUnusedParameter]
        """Load array[at … at + n − 1]; the other lanes are 0."""
        lanes = lanes_of(array.dtype, n_vectors)

        def codegen(context, builder, signature, args):
            flat, at, n = args
            return load(context, builder, array, flat, at, n, lanes.count)

        return lanes(array, types.uintp, types.uintp), codegen

    return load_lanes


load_lanes, load_block, load_two_blocks = _loader(1), _loader(BLOCK), _loader(2 * BLOCK)


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


def _row_writer(adds: bool) -> Any:
    @intrinsic
    def write_rows(typingctx, values, array, at, stride, n):  # pyright: ignore[reportUnusedParameter]
        """Write the first n lanes of each of a tuple's vectors from array[at + row · stride] on."""

        def codegen(context, builder, signature, args):
            rows, flat, place, stride, n = args
            for k in range(values.count):
                value = builder.extract_value(rows, k)
                if adds:  # in the array's type, float64
                    before = load(context, builder, array, flat, place, n, values.dtype.count)
                    if value.type != before.type:
                        value = builder.fpext(value, before.type)
                    value = builder.fadd(before, value)
                store(context, builder, array, value, flat, place, n)
                place = builder.add(place, stride)
            return context.get_dummy_value()

        uintp = types.uintp
        return types.void(values, array, uintp, uintp, uintp), codegen

    return write_rows


store_rows, add_rows = _row_writer(adds=False), _row_writer(adds=True)


@intrinsic
def bits_of(typingctx, array, at):  # pyright: ignore[reportUnusedParameter]
    """The bytes array[at … at + 63] as 64 bits: 1 where a byte is not 0."""

    def codegen(context, builder, signature, args):
        place = _place(context, builder, array, args[0], args[1], None, 64)
        fired = builder.load(place.pointer, align=1)
        fired = builder.icmp_unsigned("!=", fired, ir.Constant(place.vector, None))
        return builder.bitcast(fired, ir.IntType(64))  # the first byte is the lowest bit

    return types.uint64(array, types.uintp), codegen


@intrinsic
def lowest_bit(typingctx, bits):  # pyright: ignore[reportUnusedParameter]
    """Place of the lowest 1 among 64 bits that are not all 0."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.IntType(1)(1))  # 1: not all are 0, so no check is needed

    return types.uint64(types.uint64), codegen
