"""Currents of synapses that each have a delay, and their gradients, on the CPU.

Forward, each spike adds its weights to the neurons at their delays. Backward, the gradients of
weights and delays are sums over the same spikes. The gradient to spikes is dense, since silent
units have one too.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.cpu.kernels import intrinsic, kernel, kernel_with_fma, without_refcount
from blockspike.neurons.cpu.lane_memory import load_lanes, store_lanes
from blockspike.neurons.cpu.lanes import LANES_BYTES, Lanes, in_every_lane, n_lanes
from blockspike.neurons.cpu.threads import run

# A block of samples and a group of neurons share a buffer [step, sample, neuron] in the L1 cache:
# 35 KB for 275 steps in float32.
SAMPLES, GROUP = 4, 8
_SPOT = SAMPLES * GROUP  # numbers in a step of the buffer
_TILE = 63  # steps of a tile of the dense gradient; odd, so that rows use all of the cache


class SortedSpikes(NamedTuple):
    """Spikes by block of `SAMPLES` samples and by unit.

    Attributes:
        first, last: int64 [n_blocks, K + 1] and [n_blocks, K]; spikes first[c, k] … last[c, k] − 1
            are of unit k.
        place: int32 [n_events], step · SAMPLES + sample in the block.
        size: [n_events], what each spike counts.
    """

    first: Tensor
    last: Tensor
    place: Tensor
    size: Tensor


def room_for_spikes(values: Tensor, n_events: int) -> SortedSpikes:
    """Memory for up to `n_events` sorted spikes of values [T, B, K]."""
    shape = -(-values.shape[1] // SAMPLES), values.shape[2]
    first = values.new_zeros(shape[0], shape[1] + 1, dtype=torch.int64)
    place, size = values.new_empty(n_events, dtype=torch.int32), values.new_empty(n_events)
    return SortedSpikes(first, first.new_empty(shape), place, size)


def sort_spikes(values: Tensor, row_ptr: Tensor, unit: Tensor, sorted_: SortedSpikes) -> None:
    """Sort events, see `EventBatch`, each as large as its element of values [T, B, K].

    Equal events become one spike, as large as all of them.
    """
    run(_sort, len(sorted_.first), *_arrays(row_ptr, unit, values, *sorted_))


@kernel
def _sort(begin, end, row_ptr, unit, values, first, last, place, size):
    n_steps, batch_size, n_units = values.shape
    for block in range(begin, end):
        start, stop = block * SAMPLES, min((block + 1) * SAMPLES, batch_size)
        # Counting sort: events of each unit, the place of its first one, then the spikes.
        for row in range(0, n_steps * batch_size, batch_size):
            first[block, 0] += row_ptr[row + start] - row_ptr[row]  # of the blocks before
            for event in range(row_ptr[row + start], row_ptr[row + stop]):
                first[block, unit[event] + 1] += 1
        for k in range(n_units):
            first[block, k + 1] += first[block, k]
            last[block, k] = first[block, k]
        for t in range(n_steps):
            for sample in range(start, stop):
                row, here = t * batch_size + sample, t * SAMPLES + sample - start
                for event in range(row_ptr[row], row_ptr[row + 1]):
                    k = unit[event]
                    free = last[block, k]
                    if free > first[block, k] and place[free - 1] == here:
                        size[free - 1] += values[t, sample, k]
                    else:
                        place[free], size[free] = here, values[t, sample, k]
                        last[block, k] = free + 1


def delayed_current(
    spikes: SortedSpikes, weight: Tensor, delay: Tensor, bias: Tensor, out: Tensor
) -> None:
    """Sum I[t, b, n] = bias[n] + Σ_k weight[n, k] S[t − delay[n, k], b, k].

    The order of each sum is that of k, however time is cut into pieces.

    Args:
        spikes: S.
        weight: [N, K].
        delay: int64 [N, K] in steps, ≥ 0.
        bias: [N].
        out: I, [T, B, N], overwritten.
    """
    arrays = _arrays(*spikes, _whole(weight.T), _whole(delay.T), bias, out)
    run(_add_spikes, len(spikes.first), *arrays, len(out) + int(delay.max()))


@kernel_with_fma
def _add_spikes(begin, end, first, last, place, size, weight, delay, bias, out, n_buffered):
    n_steps, batch_size, n = out.shape
    buffer, n_padded = np.empty(n_buffered * _SPOT, out.dtype), weight.shape[1]
    place, size, out = without_refcount(place), without_refcount(size), out.ravel()
    weight, delay = without_refcount(weight).ravel(), without_refcount(delay).ravel()
    group = np.uintp(GROUP)
    for block in range(begin, end):
        start, stop = block * SAMPLES, min((block + 1) * SAMPLES, batch_size)
        for post in range(0, n, GROUP):
            buffer[:] = 0
            for k in range(last.shape[1]):
                # Weights and delays of a unit stay in registers. Each of its spikes then costs one
                # addition in L1 for each neuron.
                at = np.uintp(k * n_padded + post)
                own, later = load_group(weight, at), load_group(delay, at)
                for spike in range(np.uintp(first[block, k]), np.uintp(last[block, k])):
                    here = np.uintp(place[spike]) * group
                    add_to_group(buffer, here, later, size[spike], own)
            n_own = np.uintp(min(GROUP, n - post))
            for t in range(n_steps):
                for sample in range(start, stop):
                    at = np.uintp(t * SAMPLES + sample - start) * group
                    to_out = np.uintp((t * batch_size + sample) * n + post)
                    for i in range(n_own):
                        out[to_out + i] = buffer[at + i] + bias[np.uintp(post) + i]


def delayed_current_sums(spikes: SortedSpikes, grad: Tensor, delay: Tensor, span: int) -> Tensor:
    """Sums over the spikes of each synapse, of which the gradients of weight and delay are made.

    Args:
        spikes, delay: see `delayed_current`.
        grad: gradient of the current [T, B, N].
        span: steps of the difference, ≥ 1.

    Returns:
        [N, K, 2]: sum of `grad` where spikes arrive, and how much it would be larger if they
        arrived `span` steps later rather than `span` steps earlier.
    """
    grad = _whole(grad)
    sums = grad.new_zeros(grad.shape[2] // GROUP, delay.shape[1], GROUP, 2)
    arrays = _arrays(*spikes, grad, _whole(delay.T), sums)
    run(_correlate, len(sums), *arrays, len(grad) + int(delay.max()), span)
    return sums.movedim(1, 2).flatten(0, 1)[: len(delay)].contiguous()


@kernel_with_fma
def _correlate(begin, end, first, last, place, size, grad, delay, sums, n_buffered, span):
    n_steps, batch_size, n = grad.shape
    n_units, one, group = last.shape[1], np.uintp(1), np.uintp(GROUP)
    ahead = np.uintp(span * _SPOT)
    padded = np.zeros((n_buffered + 2 * span) * _SPOT, grad.dtype)
    pairs = np.zeros((n_buffered * _SPOT, 2), grad.dtype)
    flat, grad, delay = pairs.ravel(), grad.ravel(), without_refcount(delay).ravel()
    place, size = without_refcount(place), without_refcount(size)
    sums = without_refcount(sums).reshape(-1, 2)
    for item in range(begin, end):
        for block in range(first.shape[0]):
            start, stop = block * SAMPLES, min((block + 1) * SAMPLES, batch_size)
            for t in range(n_steps):
                for sample in range(start, stop):
                    at = np.uintp((t * batch_size + sample) * n + item * GROUP)
                    to = ahead + np.uintp(t * SAMPLES + sample - start) * group
                    for i in range(group):
                        padded[to + i] = grad[at + i]
            # Gradient and difference lie side by side, so that a spike fetches both at once.
            for i in range(np.uintp(n_buffered * _SPOT)):
                flat[i + i] = padded[i + ahead]
                flat[i + i + one] = padded[i + ahead + ahead] - padded[i]
            for k in range(n_units):
                # Sums and delays of a unit stay in registers.
                at, to = np.uintp(k * n + item * GROUP), np.uintp(item * n_units + k) * group
                total, later = load_group(sums, to), load_group(delay, at)
                for spike in range(np.uintp(first[block, k]), np.uintp(last[block, k])):
                    here = np.uintp(place[spike]) * group
                    total = add_from_group(total, size[spike], pairs, here, later)
                store_group(total, sums, to)


def gradient_to_spikes(grad: Tensor, weight: Tensor, delay: Tensor) -> Tensor:
    """Sum out[t, b, k] = Σ_n weight[n, k] grad[t + delay[n, k], b, n], where grad is not sparse.

    Arguments as in `delayed_current_sums`.
    """
    (n_steps, batch_size, _), grad, longest = grad.shape, _whole(grad), int(delay.max())
    lanes, n_tiles = LANES_BYTES // grad.itemsize, -(-n_steps // _TILE)
    row = (_TILE + longest | 1) * lanes  # odd numbers of vectors, as in `_TILE`
    out = grad.new_empty(n_steps, batch_size, weight.shape[1])
    places = _whole(torch.arange(len(delay), device=delay.device) % GROUP * row + delay.T * lanes)
    arrays = _arrays(grad, _whole(weight.T), places, out)
    run(_sum_back, -(-batch_size // lanes) * n_tiles, *arrays, n_tiles, longest, row)
    return out


@kernel_with_fma
def _sum_back(begin, end, grad, weight, places, out, n_tiles, longest, row):
    n_steps, batch_size, n = grad.shape
    n_units, lanes, stream = out.shape[2], n_lanes(grad), False
    vector, group = np.uintp(lanes), np.uintp(GROUP)
    near, sums = np.empty(GROUP * row, grad.dtype), np.empty(n_units * _TILE * lanes, grad.dtype)
    grad, out = grad.ravel(), out.ravel()
    weight, places = without_refcount(weight).ravel(), without_refcount(places).ravel()
    for item in range(begin, end):
        # A vector holds samples, so that a delay moves whole vectors.
        sample, step = item // n_tiles * lanes, item % n_tiles * _TILE
        n_samples, length = min(lanes, batch_size - sample), min(_TILE, n_steps - step)
        sums[:] = 0
        for post in range(0, n, GROUP):
            # Gradients of a group, as late as delays reach, go to L1: [neuron, step, sample].
            near[:] = 0
            for t in range(min(length + longest, n_steps - step)):
                for i in range(n_samples):
                    at = np.uintp(((step + t) * batch_size + sample + i) * n + post)
                    to = np.uintp(t * lanes + i)
                    for j in range(group):
                        near[to + j * np.uintp(row)] = grad[at + j]
            # They are summed for all units, whose sums [unit, step, sample] come from L2.
            for k in range(n_units):
                at = np.uintp(k * n + post)
                w, start = load_group(weight, at), load_group(places, at)
                for t in range(np.uintp(length)):
                    to, here = (np.uintp(k * _TILE) + t) * vector, t * vector
                    total = load_lanes(sums, to, vector)
                    total = total + w[0] * load_lanes(near, start[0] + here, vector)
                    total = total + w[1] * load_lanes(near, start[1] + here, vector)
                    total = total + w[2] * load_lanes(near, start[2] + here, vector)
                    total = total + w[3] * load_lanes(near, start[3] + here, vector)
                    total = total + w[4] * load_lanes(near, start[4] + here, vector)
                    total = total + w[5] * load_lanes(near, start[5] + here, vector)
                    total = total + w[6] * load_lanes(near, start[6] + here, vector)
                    total = total + w[7] * load_lanes(near, start[7] + here, vector)
                    store_lanes(total, sums, to, vector, stream)
        for t in range(length):
            for i in range(n_samples):
                at = np.uintp(t * lanes + i)
                to = np.uintp(((step + t) * batch_size + sample + i) * n_units)
                for k in range(np.uintp(n_units)):
                    out[to + k] = sums[at + k * np.uintp(_TILE * lanes)]


def _whole(x: Tensor) -> Tensor:
    """Fill up the last axis with 0 to whole groups of neurons."""
    missing = -x.shape[-1] % GROUP
    return (F.pad(x.detach(), (0, missing)) if missing else x.detach()).contiguous()


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.detach().numpy() for x in tensors]


# Parts of kernels, written out for each neuron of a group, so that its numbers are in registers. An
# array is flat, or an array of pairs [n, 2].


def _item(context: Any, builder: Any, kind: Any, array: Any, at: Any) -> tuple[Any, int]:
    """Generate code for a pointer to item `at` of an array; and its alignment."""
    data = context.make_array(kind)(context, builder, array).data
    if kind.ndim == 2:
        data = builder.bitcast(data, ir.VectorType(data.type.pointee, 2).as_pointer())
    return builder.gep(data, [at]), kind.dtype.bitwidth // 8


@intrinsic
def load_group(typingctx, array, at):  # pyright: ignore[reportUnusedParameter]
    """Load GROUP items from array[at] on, as a tuple; int64 as places."""
    item = types.uintp if array.dtype == types.int64 else array.dtype
    result = types.UniTuple(item if array.ndim == 1 else Lanes(item, 2), GROUP)

    def codegen(context, builder, signature, args):
        first, align = _item(context, builder, array, *args)
        items = [builder.gep(first, [args[1].type(i)]) for i in range(GROUP)]
        return context.make_tuple(builder, result, [builder.load(x, align=align) for x in items])

    return result(array, types.uintp), codegen


@intrinsic
def store_group(typingctx, group, array, at):  # pyright: ignore[reportUnusedParameter]
    """Store a tuple's items from array[at] on."""

    def codegen(context, builder, signature, args):
        first, align = _item(context, builder, array, *args[1:])
        for i in range(GROUP):
            item = builder.extract_value(args[0], i)
            builder.store(item, builder.gep(first, [args[2].type(i)]), align=align)
        return context.get_dummy_value()

    return types.void(group, array, types.uintp), codegen


def _later(context: Any, builder: Any, kind: Any, buffer: Any, here: Any, delays: Any) -> list[Any]:
    """Generate code for pointers to the items at which a group's neurons get the spike `here`."""
    pointers = []
    for i in range(GROUP):
        delay = builder.extract_value(delays, i)
        place = builder.add(builder.mul(delay, delay.type(_SPOT)), delay.type(i))
        start, _ = _item(context, builder, kind, buffer, place)  # the same for all spikes
        pointers.append(builder.gep(start, [here]))
    return pointers


@intrinsic
def add_to_group(typingctx, buffer, here, delays, factor, group):  # pyright: ignore[reportUnusedParameter]
    """Add factor · group[i] to each neuron's item of the buffer, later by its delay."""

    def codegen(context, builder, signature, args):
        for i, pointer in enumerate(_later(context, builder, buffer, *args[:3])):
            added = builder.fmul(args[3], builder.extract_value(args[4], i))
            builder.store(builder.fadd(builder.load(pointer), added), pointer)
        return context.get_dummy_value()

    return types.void(buffer, types.uintp, delays, factor, group), codegen


@intrinsic
def add_from_group(typingctx, total, factor, buffer, here, delays):  # pyright: ignore[reportUnusedParameter]
    """Add factor · each neuron's pair of the buffer, later by its delay, to total."""
    align = buffer.dtype.bitwidth // 8

    def codegen(context, builder, signature, args):
        factors, sums = in_every_lane(builder, args[1], 2), []
        for i, pointer in enumerate(_later(context, builder, buffer, *args[2:])):
            added = builder.fmul(factors, builder.load(pointer, align=align))
            sums.append(builder.fadd(builder.extract_value(args[0], i), added))
        return context.make_tuple(builder, total, sums)

    return total(total, factor, buffer, types.uintp, delays), codegen
