"""Event-driven products on the CPU: spikes are sparse, so add up weight rows of those that spiked.

Events are `row_ptr` [R + 1] and `unit` [n_events]: the units that spiked in row r are
`unit[row_ptr[r]:row_ptr[r + 1]]`. A unit listed twice in a row counts twice.
"""

import numpy as np

from blockspike.neurons.kernels import kernel, run

_POST_TILE = 64  # weight-gradient columns a thread holds in its cache at a time


def events_of(spikes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Events of a dense 0/1 array.

    Args:
        spikes: [R, K] contiguous; every value but 0 is one event.

    Returns:
        row_ptr [R + 1] int64 and unit [n_events] int32.
    """
    row_ptr = np.zeros(len(spikes) + 1, np.int64)
    run(_count, len(spikes), spikes, row_ptr[1:])
    np.cumsum(row_ptr, out=row_ptr)
    unit = np.empty(row_ptr[-1], np.int32)
    run(_fill, len(spikes), spikes, row_ptr, unit)
    return row_ptr, unit


@kernel
def _count(start, stop, spikes, count):
    for row in range(start, stop):
        total = np.int64(0)
        for k in range(spikes.shape[1]):
            total += spikes[row, k] != 0
        count[row] = total


@kernel
def _fill(start, stop, spikes, row_ptr, unit):
    for row in range(start, stop):
        event = row_ptr[row]
        if event < row_ptr[row + 1]:
            for k in range(spikes.shape[1]):
                if spikes[row, k] != 0:
                    unit[event] = k
                    event += 1


@kernel
def add_row(total, row):
    """total += row, both [N]."""
    for i in range(row.size):
        total[i] += row[i]


def event_currents(
    row_ptr: np.ndarray, unit: np.ndarray, weight_t: np.ndarray, bias: np.ndarray, lag_rows: int,
    out: np.ndarray,
) -> None:  # fmt: skip
    """out[r] = bias + Σ_k Σ weight_t[k, unit] over the events of row r − k·lag_rows.

    Args:
        row_ptr, unit: the events, R rows.
        weight_t: [n_taps, K, N]; tap k acts k·lag_rows rows later.
        bias: [N].
        lag_rows: rows between taps (the batch size, as rows run through time first).
        out: [R, N], overwritten.
    """
    run(_event_currents, len(out), row_ptr, unit, weight_t, bias, lag_rows, out)


@kernel
def _event_currents(start, stop, row_ptr, unit, weight_t, bias, lag_rows, out):
    for row in range(start, stop):
        total = out[row]
        total[:] = bias
        for tap in range(weight_t.shape[0]):
            source = row - tap * lag_rows
            if source >= 0:
                for event in range(row_ptr[source], row_ptr[source + 1]):
                    add_row(total, weight_t[tap, unit[event]])


def event_weight_gradient(
    row_ptr: np.ndarray, unit: np.ndarray, grad: np.ndarray, lag_rows: int,
    grad_weight_t: np.ndarray,
) -> None:  # fmt: skip
    """grad_weight_t[k, unit] += grad[r] over the events of row r − k·lag_rows.

    grad [R, N] and grad_weight_t [n_taps, K, N]. A thread owns columns, so the order of the sums
    does not depend on the number of threads.
    """
    n_tiles = -(-grad.shape[1] // _POST_TILE)
    run(_event_weight_gradient, n_tiles, row_ptr, unit, grad, lag_rows, grad_weight_t)


@kernel
def _event_weight_gradient(first, last, row_ptr, unit, grad, lag_rows, grad_weight_t):
    for tile in range(first, last):
        start = tile * _POST_TILE
        stop = min(grad.shape[1], start + _POST_TILE)
        for row in range(grad.shape[0]):
            for tap in range(grad_weight_t.shape[0]):
                source = row - tap * lag_rows
                if source >= 0:
                    for event in range(row_ptr[source], row_ptr[source + 1]):
                        add_row(grad_weight_t[tap, unit[event], start:stop], grad[row, start:stop])
