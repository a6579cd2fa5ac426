"""Products on the CPU in which each synapse has a delay of its own, spike by spike.

Spikes are sorted by unit, in blocks of samples. For each block, `NEURONS` neighbouring neurons keep
what they add up in a buffer in the L1 cache. A spike has one place there, for each neuron moved by
its delay.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.cpu.kernels import intrinsic, kernel, kernel_with_fma, without_refcount
from blockspike.neurons.cpu.lane_memory import (
    PART,
    load_lanes,
    load_part,
    lowest_bit,
    pointer_to,
    store_part,
)
from blockspike.neurons.cpu.lanes import Lanes, in_every_lane, n_lanes
from blockspike.neurons.cpu.threads import run

NEURONS, _SAMPLES = PART, 4


class SortedSpikes(NamedTuple):
    """Spikes, or other inputs that are seldom other than 0, by blocks of samples and by unit.

    Attributes:
        first, last: int64 [n_blocks, K]; spikes first[c, k] … last[c, k] − 1 are of unit k.
        place: int32, (sample in the block · row + step) · NEURONS.
        size: the elements.
        row: steps and the longest delay.
    """

    first: Tensor
    last: Tensor
    place: Tensor
    size: Tensor
    row: int

    def n_spikes(self) -> int:
        """Number of spikes."""
        return int((self.last - self.first).sum())


def sort_spikes(spikes: Tensor, longest: int, most: float) -> SortedSpikes | None:
    """Sort the elements of spikes [T, B, K] that are not 0, for delays of 0 to `longest` steps.

    Returns:
        None if more than a share `most` of the elements of a block are not 0.
    """
    spikes = spikes.detach().contiguous()
    n_steps, batch_size, n_units = spikes.shape
    n_blocks, n_most = -(-batch_size // _SAMPLES), int(most * _SAMPLES * n_steps * n_units)
    first, last = spikes.new_empty(2, n_blocks, n_units, dtype=torch.int64)
    place = spikes.new_empty(n_blocks * n_most, dtype=torch.int32)
    sorted_ = SortedSpikes(first, last, place, spikes.new_empty(len(place)), n_steps + longest)
    run(_sort, n_blocks, *_arrays(spikes, *sorted_[:4]), sorted_.row, n_most)
    return None if bool((last[:, -1] < 0).any()) else sorted_


@kernel
def _sort(begin, end, spikes, first, last, place, size, row, n_most):
    n_steps, batch_size, n_units = spikes.shape
    most, lanes = _SAMPLES * n_steps, np.uintp(n_lanes(spikes))
    own_place, own_size = np.empty(n_units * most, np.int32), np.empty(n_units * most, size.dtype)
    free, flat = np.empty(n_units, np.int64), without_refcount(spikes).ravel()
    for block in range(begin, end):
        for k in range(n_units):
            free[k] = k * most
        sample = block * _SAMPLES
        n_samples = min(_SAMPLES, batch_size - sample)
        for i in range(n_samples):
            for t in range(n_steps):
                at, here = (t * batch_size + sample + i) * n_units, (i * row + t) * NEURONS
                for unit in range(0, n_units, lanes):
                    own = load_lanes(
                        flat, np.uintp(at + unit), min(lanes, np.uintp(n_units - unit))
                    )
                    active = bits_of_lanes(own != 0)
                    while active != 0:
                        k = unit + np.int64(lowest_bit(active))
                        own_place[free[k]], own_size[free[k]] = here, flat[at + k]
                        free[k] += 1
                        active &= active - np.uint64(1)
        total = block * n_most
        full = total + n_most * n_samples // _SAMPLES
        for k in range(n_units):
            first[block, k], stop = total, free[k]
            if total + stop - k * most > full:
                last[block, n_units - 1] = -1  # too many
                break
            for listed in range(k * most, stop):
                place[total], size[total] = own_place[listed], own_size[listed]
                total += 1
            last[block, k] = total


def sum_spikes(
    spikes: SortedSpikes, weight: Tensor, delay: Tensor, bias: Tensor, n_steps: int, batch_size: int
) -> Tensor:
    """Sum out[t, b, n] = bias[n] + Σ weight[n, k] · size, over unit k's spikes at t − delay[n, k].

    Args:
        spikes: sorted for delays as long as these.
        weight: [N, K].
        delay: int64 [N, K] in steps, ≥ 0.
        bias: [N].
        n_steps, batch_size: T and B.
    """
    bias = _whole(bias)
    out = weight.new_empty(n_steps, batch_size, len(bias))
    arrays = _arrays(*spikes[:4], _whole(weight.T), _whole(delay.T), bias, out)
    run(_sum_spikes, len(spikes.first), *arrays, spikes.row)
    if out.shape[2] == len(weight):
        return out
    return out[:, :, : len(weight)].clone(memory_format=torch.contiguous_format)


@kernel_with_fma
def _sum_spikes(begin, end, first, last, place, size, weight, delay, bias, out, row):
    n_steps, batch_size, n = out.shape
    buffer = np.empty((_SAMPLES * row, NEURONS), out.dtype)
    place, size, flat = without_refcount(place), without_refcount(size), out.ravel()
    weight, delay = without_refcount(weight).ravel(), without_refcount(delay).ravel()
    for block in range(begin, end):
        start, stop = block * _SAMPLES, min((block + 1) * _SAMPLES, batch_size)
        for post in range(0, n, NEURONS):
            buffer[:] = 0
            for k in range(first.shape[1]):
                at = np.uintp(k * n + post)
                own, places = load_neurons(weight, at), addresses(buffer, load_neurons(delay, at))
                for spike in range(np.uintp(first[block, k]), np.uintp(last[block, k])):
                    add_at(own, size[spike], places, np.uintp(place[spike]))
            own_bias = load_part(bias, np.uintp(post))
            for sample in range(start, stop):
                for t in range(n_steps):
                    at = np.uintp(((sample - start) * row + t) * NEURONS)
                    to = np.uintp((t * batch_size + sample) * n + post)
                    store_part(load_part(buffer, at) + own_bias, flat, to)


def spike_correlations(
    spikes: SortedSpikes, grad: Tensor, delay: Tensor, span: int
) -> tuple[Tensor, Tensor]:
    """Sum size · grad[t + delay[n, k], b, n] over unit k's spikes (t, b), and with a difference.

    Args:
        spikes: sorted for delays as long as these.
        grad: [T, B, N], 0 before and after its T steps.
        delay: int64 [N, K] in steps, ≥ 0.
        span: ≥ 1.

    Returns:
        The sums, and those of grad[t + delay + span] − grad[t + delay − span]; both [N, K].
    """
    (n, n_units), by_unit = delay.shape, _whole(delay.T)
    sums = grad.new_zeros(by_unit.shape[1] // NEURONS, n_units, NEURONS, 2)
    run(_correlate, len(sums), *_arrays(*spikes[:4], _whole(grad), by_unit, sums), spikes.row, span)
    total, change = (x.movedim(1, 2).flatten(0, 1)[:n] for x in sums.unbind(3))
    return total, change


@kernel_with_fma
def _correlate(begin, end, first, last, place, size, grad, delay, sums, row, span):
    n_steps, batch_size, n = grad.shape
    padded = np.zeros((row + 2 * span, NEURONS), grad.dtype)
    pairs = np.zeros((_SAMPLES * row, NEURONS, 2), grad.dtype)
    place, size, grad = without_refcount(place), without_refcount(size), grad.ravel()
    delay, sums = without_refcount(delay).ravel(), without_refcount(sums).ravel()
    for group in range(begin, end):
        for block in range(first.shape[0]):
            start, stop = block * _SAMPLES, min((block + 1) * _SAMPLES, batch_size)
            for sample in range(start, stop):
                for t in range(n_steps):
                    at = np.uintp((t * batch_size + sample) * n + group * NEURONS)
                    store_part(load_part(grad, at), padded, np.uintp((span + t) * NEURONS))
                for t in range(row):
                    at, ahead = np.uintp(t * NEURONS), np.uintp(span * NEURONS)
                    change = load_part(padded, at + ahead + ahead) - load_part(padded, at)
                    to = np.uintp(((sample - start) * row + t) * NEURONS * 2)
                    store_pairs(pairs_of(load_part(padded, at + ahead), change), pairs, to)
            for k in range(first.shape[1]):
                own = load_neurons(delay, np.uintp(k * n + group * NEURONS))
                places = addresses(pairs, own)
                at = np.uintp((group * first.shape[1] + k) * NEURONS * 2)
                total = load_pairs(sums, at)
                for spike in range(np.uintp(first[block, k]), np.uintp(last[block, k])):
                    total = add_pairs(total, size[spike], places, np.uintp(place[spike]))
                store_pairs(total, sums, at)


def _whole(x: Tensor) -> Tensor:
    """Fill up the last axis with 0 to whole groups of neurons."""
    missing = -x.shape[-1] % NEURONS
    return (F.pad(x.detach(), (0, missing)) if missing else x.detach()).contiguous()


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.numpy() for x in tensors]


# Parts of kernels. Places in arrays count numbers, as in a flat array.


@intrinsic
def load_neurons(typingctx, array, at):  # pyright: ignore[reportUnusedParameter]
    """Load NEURONS numbers from array[at] on, as a tuple."""
    result = types.UniTuple(array.dtype, NEURONS)

    def codegen(context, builder, signature, args):
        pointers = [
            pointer_to(context, builder, array, args[0], args[1], i) for i in range(NEURONS)
        ]
        return context.make_tuple(builder, result, [builder.load(x) for x in pointers])

    return result(array, types.uintp), codegen


@intrinsic
def bits_of_lanes(typingctx, condition):  # pyright: ignore[reportUnusedParameter]
    """Bits of a vector of bools; the first lane is the lowest."""

    def codegen(context, builder, signature, args):
        bits = builder.bitcast(args[0], ir.IntType(condition.count))
        return builder.zext(bits, ir.IntType(64))

    return types.uint64(condition), codegen


@intrinsic
def addresses(typingctx, buffer, delays):  # pyright: ignore[reportUnusedParameter]
    """Where each neuron's delay leads in a buffer [step, neuron] or [step, neuron, 2]."""
    result = types.UniTuple(types.uintp, NEURONS)
    width = 1 if buffer.ndim == 2 else 2

    def codegen(context, builder, signature, args):
        places = []
        for i in range(NEURONS):
            delay = builder.extract_value(args[1], i)
            place = builder.mul(delay, delay.type(NEURONS * width))
            pointer = pointer_to(context, builder, buffer, args[0], place, i * width)
            places.append(builder.ptrtoint(pointer, place.type))
        return context.make_tuple(builder, result, places)

    return result(buffer, delays), codegen


@intrinsic
def add_at(typingctx, numbers, factor, places, offset):  # pyright: ignore[reportUnusedParameter]
    """Add numbers[i] · factor to the number that lies `offset` numbers after places[i]."""
    kind = numbers.dtype

    def codegen(context, builder, signature, args):
        for i in range(NEURONS):
            number = builder.fmul(builder.extract_value(args[0], i), args[1])
            place = builder.extract_value(args[2], i)
            pointer = _moved(builder, place, args[3], number.type, kind.bitwidth // 8)
            builder.store(builder.fadd(builder.load(pointer), number), pointer)
        return context.get_dummy_value()

    return types.void(numbers, factor, places, types.uintp), codegen


@intrinsic
def add_pairs(typingctx, total, factor, places, offset):  # pyright: ignore[reportUnusedParameter]
    """Add to total[i] factor · the pair that lies `offset` pairs after places[i]."""
    n_bytes = total.dtype.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        factors = in_every_lane(builder, args[1], 2)
        sums = []
        for i in range(NEURONS):
            place = builder.extract_value(args[2], i)
            pointer = _moved(builder, place, args[3], total.dtype.llvm, 2 * n_bytes)
            pair = builder.fmul(builder.load(pointer, align=n_bytes), factors)
            sums.append(builder.fadd(builder.extract_value(args[0], i), pair))
        return context.make_tuple(builder, total, sums)

    return total(total, factor, places, types.uintp), codegen


@intrinsic
def pairs_of(typingctx, row, other):  # pyright: ignore[reportUnusedParameter]
    """Pairs of the numbers of two vectors, as a tuple."""
    result = types.UniTuple(Lanes(row.dtype, 2), NEURONS)
    index = ir.VectorType(ir.IntType(32), 2)

    def codegen(context, builder, signature, args):
        places = [ir.Constant(index, [i, NEURONS + i]) for i in range(NEURONS)]
        pairs = [builder.shuffle_vector(*args, x) for x in places]
        return context.make_tuple(builder, result, pairs)

    return result(row, other), codegen


@intrinsic
def load_pairs(typingctx, array, at):  # pyright: ignore[reportUnusedParameter]
    """Load NEURONS pairs that follow each other from array[at] on, as a tuple."""
    result = types.UniTuple(Lanes(array.dtype, 2), NEURONS)

    def codegen(context, builder, signature, args):
        pointers = [
            pointer_to(context, builder, array, args[0], args[1], 2 * i, 2) for i in range(NEURONS)
        ]
        pairs = [builder.load(x, align=array.dtype.bitwidth // 8) for x in pointers]
        return context.make_tuple(builder, result, pairs)

    return result(array, types.uintp), codegen


@intrinsic
def store_pairs(typingctx, pairs, array, at):  # pyright: ignore[reportUnusedParameter]
    """Store a tuple's pairs one after the other from array[at] on."""

    def codegen(context, builder, signature, args):
        for i in range(NEURONS):
            pointer = pointer_to(context, builder, array, args[1], args[2], 2 * i, 2)
            pair = builder.extract_value(args[0], i)
            builder.store(pair, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(pairs, array, types.uintp), codegen


def _moved(builder: Any, address: Any, offset: Any, kind: Any, n_bytes: int) -> Any:
    """Generate code for a pointer to the value of `n_bytes` that is `offset` values further on."""
    moved = builder.add(address, builder.mul(offset, offset.type(n_bytes)))
    return builder.inttoptr(moved, kind.as_pointer())
