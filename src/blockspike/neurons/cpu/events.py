"""Event-driven products on the CPU: spikes are sparse, so sum the weight rows of units that spiked.

Events are `row_ptr` [R + 1] and `unit` [n_events]: the units that spiked in row r are
`unit[row_ptr[r]:row_ptr[r + 1]]`. A unit listed twice in a row counts twice. 3 rows of 4 units:

    spikes    0 1 0 1        row_ptr   0  2  2  3
              0 0 0 0        unit      1  3  0
              1 0 0 0
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from blockspike.neurons.cpu.kernels import kernel, kernel_part, without_refcount
from blockspike.neurons.cpu.lane_memory import (
    BLOCK,
    bits_of,
    load_block,
    load_two_blocks,
    lowest_bit,
    store_lanes,
)
from blockspike.neurons.cpu.lanes import LANES_BYTES, n_lanes
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.errors import NotFiniteError

_ROUNDING = 1e-5


@dataclass(frozen=True, eq=False)
class SpikeEvents:
    """Spikes that are converted to events when first needed, and then only once.

    Attributes:
        array: [T, B, N], each element 0 or 1; uint8 or any other dtype.
        scale: weight of each spike.
    """

    array: Tensor
    scale: float = 1.0

    @cached_property
    def row_ptr_and_unit(self) -> tuple[np.ndarray, np.ndarray]:
        """Events on the CPU: row_ptr [T·B + 1] and unit [n_events].

        Raises:
            ValueError: an element is neither 0 nor 1; NotFiniteError if it is NaN or Inf.
        """
        spiked = self.array
        if spiked.dtype not in (torch.uint8, torch.bool):  # our kernels write those
            spiked = _spiked(spiked)
        known: Any = None if spiked.is_inference() else _converted.get(spiked)
        if known is not None and known[0] == spiked._version:
            return known[1]
        events = events_of(spiked.view(torch.uint8).flatten(0, 1).contiguous().numpy())
        if not spiked.is_inference():
            _converted[spiked] = (spiked._version, events)
        return events


# Events of bytes that are still in use: the next layer, and backward through the recurrence of this
# one, convert the same spikes.
_converted: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _spiked(values: Tensor) -> Tensor:
    """Whether each value is 1; all must be 0 or 1, up to the rounding of 1 + x − x."""
    spiked = values > 0.5
    pieces = (x.flatten().split(1 << 16) for x in (values, spiked.view(torch.uint8)))  # fit into L2
    for own, rounded in zip(*pieces, strict=True):
        off = (own - rounded).abs_()
        if not float(off.max()) <= _ROUNDING:  # nor NaN
            got = own[off.argmax()].item()
            raise (ValueError if math.isfinite(got) else NotFiniteError)(
                f"spikes: expected 0 or 1, got {got}; other values need synapses='dense'"
            )
    return spiked


def events_of(spike_bytes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Convert spikes as bytes to events.

    Args:
        spike_bytes: uint8 [R, K] contiguous, each 0 or 1.

    Returns:
        row_ptr [R + 1] int64 and unit [n_events] int32.
    """
    row_ptr = np.zeros(len(spike_bytes) + 1, np.int64)
    run(_count, len(spike_bytes), spike_bytes, row_ptr[1:])
    row_ptr.cumsum(out=row_ptr)
    unit = np.empty(row_ptr[-1], np.int32)
    run(_fill, len(spike_bytes), spike_bytes, row_ptr, unit)
    return row_ptr, unit


@kernel
def _count(start, stop, spike_bytes, count):
    for row in range(start, stop):
        total = np.int32(0)
        for k in range(spike_bytes.shape[1]):
            total += np.int32(spike_bytes[row, k] != 0)
        count[row] = total


@kernel
def _fill(start, stop, spike_bytes, row_ptr, unit):
    n = spike_bytes.shape[1]
    flat, listed = without_refcount(spike_bytes).ravel(), np.empty(n, np.int32)
    for row in range(start, stop):
        first = np.uintp(row_ptr[row])
        for event in range(list_units(flat, np.uintp(row) * np.uintp(n), n, listed, np.uintp(0))):
            unit[first + event] = listed[event]


@kernel_part
def list_units(spike_bytes, at, n, unit, unit_at):
    """Write the units that spiked, of bytes spike_bytes[at …] [n], to unit[unit_at …] [n].

    Returns their number.
    """
    count, one = unit_at, np.uint64(1)
    n_grouped = n // 64 * 64
    # One comparison turns 64 bytes into a register of bits. The loop then takes a turn for each
    # spike, and none for the silent units, which are most.
    for first in range(0, n_grouped, 64):
        fired = bits_of(spike_bytes, at + np.uintp(first))
        while fired != 0:
            unit[count] = first + lowest_bit(fired)
            count += np.uintp(1)
            fired &= fired - one  # clears the lowest 1
    # Write each of the rest, and overwrite it if it was silent: a branch would often be
    # mispredicted.
    for k in range(n_grouped, n):
        unit[count] = k
        count += np.uintp(spike_bytes[at + np.uintp(k)] != 0)
    return count - unit_at


@kernel_part
def sum_rows(start_with, start_at, rows, unit, first, last, total, at, n):
    """Set total[at …] to start_with[start_at …] + rows[unit[e]] [n] for e = first … last − 1.

    The sums are taken in this order; arrays are flat.
    """
    # Events are the inner loop, so a block of sums stays in registers: a row of weights is read, a
    # sum is written once. With events outside, each would load and store all sums in L1.
    block = np.uintp(BLOCK * n_lanes(total))
    for done_ in range(0, n, BLOCK * n_lanes(total)):
        done = np.uintp(done_)
        left = min(block, np.uintp(n) - done)
        own = load_block(start_with, start_at + done, left)
        for event in range(np.uintp(first), np.uintp(last)):
            own = own + load_block(rows, np.uintp(unit[event]) * np.uintp(n) + done, left)
        store_lanes(own, total, at + done, left, False)


def event_currents(
    row_ptr: np.ndarray, unit: np.ndarray, weight_t: np.ndarray, bias: np.ndarray, lag_rows: int,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Sum currents by events: out[r] = bias + Σ_k Σ weight_t[k, unit], units of row r − k·lag_rows.

    Args:
        row_ptr, unit: the events, R rows.
        weight_t: [n_taps, K, N]; tap k acts k·lag_rows rows later.
        bias: [N].
        lag_rows: rows between taps, which is the batch size since rows are time-major.
        out: [R, N], overwritten.
    """
    run(_event_currents, len(out), row_ptr, unit, weight_t, bias, lag_rows, out)


@kernel
def _event_currents(start, stop, row_ptr, unit, weight_t, bias, lag_rows, out):
    n, none = out.shape[1], np.uintp(0)
    out, weight_t = without_refcount(out).ravel(), without_refcount(weight_t)
    for tap in range(weight_t.shape[0]):
        rows, lag = weight_t[tap].ravel(), tap * lag_rows
        for row in range(start, stop):
            at = np.uintp(row) * np.uintp(n)
            first, last = (row_ptr[row - lag], row_ptr[row - lag + 1]) if row >= lag else (0, 0)
            if tap == 0:
                sum_rows(bias, none, rows, unit, first, last, out, at, n)
            else:
                sum_rows(out, at, rows, unit, first, last, out, at, n)


def event_weight_gradient(
    row_ptr: np.ndarray,
    unit: np.ndarray,
    grad: np.ndarray,
    n_taps: int,
    lag_rows: int,
    n_units: int,
) -> np.ndarray:
    """Sum grad[r] over the events of row r − k·lag_rows for each tap k and unit: [n_taps, K, N].

    grad is [R, N]. A thread takes tiles of columns, so that the order of the sums does not depend
    on the number of threads:

        grad [R, N]         | tile 0 | tile 1 | tile 2 |      a row is read where a unit spiked
        tiles [K, width]    | K rows | K rows | K rows |      each in one piece of memory

    Next to another thread's columns, a thread would wait for cache lines that the other's
    prefetching takes (3 times slower).
    """
    n_columns = grad.shape[1]
    width = 2 * BLOCK * LANES_BYTES // grad.itemsize
    n_tiles = -(-n_columns // width)
    tiles = np.zeros((n_tiles, n_taps, n_units, width), grad.dtype)
    run(_event_weight_gradient, n_tiles, row_ptr, unit, grad, lag_rows, tiles)
    whole = np.moveaxis(tiles, 0, 2).reshape(n_taps, n_units, n_tiles * width)
    return np.ascontiguousarray(whole[:, :, :n_columns])


@kernel
def _event_weight_gradient(first_tile, last_tile, row_ptr, unit, grad, lag_rows, tiles):
    n_rows, n = grad.shape[0], np.uintp(grad.shape[1])
    grad, width = without_refcount(grad).ravel(), np.uintp(2 * BLOCK * n_lanes(grad))
    for tile in range(first_tile, last_tile):
        start = np.uintp(tile) * width
        left = min(width, n - start)
        for tap in range(tiles.shape[1]):
            sums = without_refcount(tiles[tile, tap]).ravel()
            for row in range(tap * lag_rows, n_rows):
                first, last = row_ptr[row - tap * lag_rows], row_ptr[row - tap * lag_rows + 1]
                if first == last:
                    continue
                # A row's gradient stays in registers while it is added for all units that spiked.
                # The sums of a tile stay in the L2 cache: 256 bytes a unit with AVX-512.
                own = load_two_blocks(grad, np.uintp(row) * n + start, left)
                for event in range(np.uintp(first), np.uintp(last)):
                    k = np.uintp(unit[event]) * width
                    store_lanes(load_two_blocks(sums, k, width) + own, sums, k, width, False)
