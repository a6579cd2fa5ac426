"""Products on the CPU in which each synapse has a delay of its own, dense or event by event.

In the dense ones vectors hold neighbouring samples: array [block, unit, step, sample in the block],
each block as many samples as a vector has lanes. A delay then moves whole vectors, and a synapse
costs about twice what it costs in a matrix product. PyTorch aligns these arrays to vectors.
"""

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.cpu.kernels import kernel, kernel_with_fma, without_refcount
from blockspike.neurons.cpu.lane_memory import (
    PART,
    ROWS,
    STEPS,
    add_sums,
    load_each,
    load_lanes,
    load_part,
    load_parts,
    load_steps,
    store_part,
    store_steps,
)
from blockspike.neurons.cpu.lanes import LANES_BYTES, add_scaled, n_lanes, spread
from blockspike.neurons.cpu.threads import run

_CACHED_BYTES = 1 << 15  # of the units that are summed from the L1 cache
_GROUP, _LONGEST = 8, 60  # units and steps of a tile of the gradient, in the same cache
_NO_STEPS, _NO_ROWS = (0,) * STEPS, (0,) * ROWS


def to_lanes(x: Tensor, before: int = 0, after: int = 0) -> Tensor:
    """Rearrange [T, B, K] to [blocks of samples, K, before + T + after, lanes]; the rest is 0.

    T is rounded up to a multiple of STEPS.
    """
    n_steps, batch_size, n_units = x.shape
    lanes = LANES_BYTES // x.element_size()
    n_blocks, rounded = -(-batch_size // lanes), -(-n_steps // STEPS) * STEPS
    out = x.new_empty(n_blocks, n_units, before + rounded + after, lanes)
    run(_spread_samples, n_blocks, x.detach().contiguous().numpy(), before, out.numpy())
    return out


def from_lanes(x: Tensor, n_steps: int, batch_size: int, bias: Tensor) -> Tensor:
    """Undo `to_lanes` without padding, and add bias [K]."""
    out = x.new_empty(n_steps, batch_size, x.shape[1])
    run(_gather_samples, len(x), x.numpy(), bias.detach().contiguous().numpy(), out.numpy())
    return out


def sum_shifted(source: Tensor, weight: Tensor, shift: Tensor, n_steps: int) -> Tensor:
    """Sum out[c, o, t] = Σ_i weight[o, i] source[c, i, t + shift[o, i]], in lanes.

    Args:
        source: [n_blocks, I, n_steps in tiles of STEPS + the largest shift, lanes].
        weight: [O, I].
        shift: int64 [O, I], ≥ 0.
        n_steps: steps of the result, rounded up to a multiple of STEPS.
    """
    n_blocks, _, available, lanes = source.shape
    n_tiles = -(-n_steps // STEPS)
    out = source.new_empty(n_blocks, len(weight), n_tiles * STEPS, lanes)
    window_bytes = LANES_BYTES * (available - (n_tiles - 1) * STEPS)
    at_once = max(1, _CACHED_BYTES // window_bytes)
    arrays = [x.detach().contiguous().numpy() for x in (source, weight, shift, out)]
    run(_sum_shifted, n_blocks * n_tiles, *arrays, at_once)
    return out


@kernel_with_fma
def _sum_shifted(first, last, source, weight, shift, out, at_once):
    n_in, n_out, n_tiles = source.shape[1], out.shape[1], out.shape[2] // STEPS
    lanes = np.uintp(n_lanes(source))
    row, row_out = np.uintp(source.shape[2]) * lanes, np.uintp(out.shape[2]) * lanes
    source, out = without_refcount(source).ravel(), without_refcount(out).ravel()
    weight, shift = without_refcount(weight).ravel(), without_refcount(shift).ravel()
    zeros = spread(_NO_STEPS, load_lanes(source, np.uintp(0), lanes))
    for item in range(first, last):
        block, step = np.uintp(item // n_tiles), np.uintp(item % n_tiles * STEPS) * lanes
        for start in range(0, n_in, at_once):
            stop = np.uintp(min(start + at_once, n_in))
            begin = (block * np.uintp(n_in) + np.uintp(start)) * row + step
            to = block * np.uintp(n_out) * row_out + step
            for post in range(n_out):
                total = load_steps(out, to) if start > 0 else zeros
                at, synapses = begin, np.uintp(post) * np.uintp(n_in)
                for pre in range(np.uintp(start), stop):
                    own = load_steps(source, at + np.uintp(shift[synapses + pre]) * lanes)
                    total = add_scaled(total, weight[synapses + pre], own)
                    at += row
                store_steps(total, out, to)
                to += row_out


def correlations(
    early: Tensor, late: Tensor, shift: Tensor, n_steps: int, span: int
) -> tuple[Tensor, Tensor]:
    """Sum Σ_c Σ_t early[c, i, t + shift[o, i]] late[c, o, t + span], and with a difference.

    Args:
        early: [n_blocks, I, at least n_steps + the largest shift, lanes].
        late: [n_blocks, O, at least n_steps + 2 · span, lanes].
        shift: int64 [O, I], ≥ 0.
        n_steps: steps t = 0 … n_steps − 1 that are summed.
        span: ≥ 1.

    Returns:
        The sums, and those with late[c, o, t + 2 · span] − late[c, o, t] instead; both [O, I].
    """
    n_in = shift.shape[1]
    shift = F.pad(shift, (0, -n_in % ROWS))
    sums = early.new_zeros(2, *shift.shape)
    arrays = [x.numpy() for x in (early, late, shift, *sums)]
    run(_correlate, -(-n_in // _GROUP), *arrays, n_steps, span)
    return sums[0, :, :n_in], sums[1, :, :n_in]


@kernel_with_fma
def _correlate(first, last, early, late, shift, sums, changes, n_steps, span):
    n_blocks, n_in, n_out = early.shape[0], early.shape[1], late.shape[1]
    synapses, lanes = np.uintp(shift.shape[1]), np.uintp(n_lanes(early))
    row, row_out = np.uintp(early.shape[2]) * lanes, np.uintp(late.shape[2]) * lanes
    early, late = without_refcount(early).ravel(), without_refcount(late).ravel()
    shift, sums = without_refcount(shift).ravel(), without_refcount(sums).ravel()
    changes, places = without_refcount(changes).ravel(), np.empty(ROWS, np.uintp)
    ahead = np.uintp(span) * lanes
    zeros = spread(_NO_ROWS, load_lanes(early, np.uintp(0), lanes))
    for item in range(first, last):
        stop = min((item + 1) * _GROUP, n_in)
        for block in range(n_blocks):
            for begin in range(0, n_steps, _LONGEST):
                length = np.uintp(min(_LONGEST, n_steps - begin))
                for post in range(n_out):
                    start = np.uintp(block * n_out + post) * row_out + np.uintp(begin) * lanes
                    for pre in range(item * _GROUP, stop, ROWS):
                        synapse = np.uintp(post) * synapses + np.uintp(pre)
                        for k in range(ROWS):  # the last unit stands in for missing ones
                            own_row = np.uintp(block * n_in + min(pre + k, n_in - 1)) * row
                            own_step = np.uintp(shift[synapse + np.uintp(k)] + begin)
                            places[k] = own_row + own_step * lanes
                        total, change = zeros, zeros
                        for step in range(length):
                            offset = step * lanes
                            own = load_each(early, places, offset)
                            at = start + offset
                            before = load_lanes(late, at, lanes)
                            here = load_lanes(late, at + ahead, lanes)
                            after = load_lanes(late, at + ahead + ahead, lanes)
                            total = add_scaled(total, here, own)
                            change = add_scaled(change, after - before, own)
                        add_sums(total, sums, synapse)
                        add_sums(change, changes, synapse)


@kernel
def _spread_samples(first, last, x, before, out):
    n_steps, batch_size, n_units = x.shape
    available, lanes = out.shape[2], out.shape[3]
    flat, flat_out = x.ravel(), out.ravel()
    row, row_out = np.uintp(n_units), np.uintp(available * lanes)
    for block in range(first, last):
        n_samples = min(lanes, batch_size - block * lanes)
        whole_samples = n_samples // PART * PART
        for start in range(0, n_units, PART):
            stop = min(start + PART, n_units)
            n_whole = whole_samples if stop - start == PART else 0
            for at in range(available):
                t, n_given, n_fast = at - before, n_samples, n_whole
                if not 0 <= t < n_steps:
                    n_given, n_fast = 0, 0
                for sample in range(0, n_fast, PART):
                    source = (t * batch_size + block * lanes + sample) * n_units + start
                    to = np.uintp(((block * n_units + start) * available + at) * lanes + sample)
                    for part in load_parts(flat, np.uintp(source), row):
                        store_part(part, flat_out, to)
                        to += row_out
                for sample in range(n_fast, n_given):
                    for unit in range(start, stop):
                        out[block, unit, at, sample] = x[t, block * lanes + sample, unit]
                for sample in range(n_given, lanes):
                    for unit in range(start, stop):
                        out[block, unit, at, sample] = 0


@kernel
def _gather_samples(first, last, x, bias, out):
    n_steps, batch_size, n_units = out.shape
    available, lanes = x.shape[2], x.shape[3]
    flat, flat_out = x.ravel(), out.ravel()
    row, row_out = np.uintp(available * lanes), np.uintp(n_units)
    for block in range(first, last):
        n_samples = min(lanes, batch_size - block * lanes)
        for start in range(0, n_units, PART):
            stop = min(start + PART, n_units)
            n_fast = n_samples // PART * PART if stop - start == PART else 0
            for t in range(n_steps):
                for sample in range(0, n_fast, PART):
                    source = ((block * n_units + start) * available + t) * lanes + sample
                    to = np.uintp((t * batch_size + block * lanes + sample) * n_units + start)
                    own_bias = load_part(bias, np.uintp(start))
                    for part in load_parts(flat, np.uintp(source), row):
                        store_part(own_bias + part, flat_out, to)
                        to += row_out
                for sample in range(n_fast, n_samples):
                    for unit in range(start, stop):
                        value = bias[unit] + x[block, unit, t, sample]
                        out[t, block * lanes + sample, unit] = value


def delayed_event_currents(
    row_ptr: np.ndarray,
    unit: np.ndarray,
    weight_t: np.ndarray,
    delay_t: np.ndarray,
    bias: np.ndarray,
    out: np.ndarray,
) -> None:
    """Add bias, and weight_t[k, n] to out[t + delay_t[k, n], b, n] for events of unit k at (t, b).

    Args:
        row_ptr, unit: the events, T·B rows.
        weight_t: [K, N].
        delay_t: int64 [K, N] in steps, ≥ 0.
        bias: [N].
        out: [T, B, N], overwritten.
    """
    offset = (delay_t * len(bias) + np.arange(len(bias))).astype(np.uint64)
    reach = int(delay_t.max(initial=0)) + 1
    run(_delayed, out.shape[1], row_ptr, unit, weight_t, offset, bias, reach, out)


@kernel
def _delayed(first, last, row_ptr, unit, weight_t, offset, bias, reach, out):
    n_steps, batch_size, n_units = out.shape
    coming = np.empty((n_steps + reach) * n_units, out.dtype)  # input arriving at each step
    for sample in range(first, last):
        coming[:] = 0
        for t in range(n_steps):
            row = t * batch_size + sample
            now = coming[t * n_units :]
            for event in range(row_ptr[row], row_ptr[row + 1]):
                k = unit[event]
                for i in range(n_units):
                    now[offset[k, i]] += weight_t[k, i]
            for i in range(n_units):
                out[t, sample, i] = bias[i] + now[i]
