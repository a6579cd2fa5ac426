"""Groups: as many columns as a vector has lanes, taken through a chunk of steps in registers.

`fused.py` runs a tile of any model forward and backward with these kernels. All arrays are flat.
Step t of column c is at t · stride + c, and the rows of parameters, states and sums are as far
apart, except where `Rows` say otherwise. Indices are unsigned: signed ones may be negative, which
would be checked at each access.
"""

from typing import Any, NamedTuple

import numpy as np

from blockspike.neurons.cpu.kernels import kernel, kernel_with_fma
from blockspike.neurons.cpu.lane_memory import (
    add_rows,
    load_lanes,
    store_bytes,
    store_lanes,
    store_rows,
)
from blockspike.neurons.cpu.lanes import add_each, n_lanes
from blockspike.neurons.cpu.steps import (
    grad_rows,
    n_rows,
    no_sums,
    parameter_rows,
    reverse_step,
    state_rows,
    step,
    whole_step,
)
from blockspike.neurons.cpu.surrogate import slope_of

CHUNK = 8  # steps between saved states, few enough that their replay stays in the L1 cache


class Neurons(NamedTuple):
    """Model and constants of all columns, and parameters [K, B·N]."""

    model: Any
    constants: tuple
    parameters: np.ndarray


class Span(NamedTuple):
    """Steps first … last − 1 of columns start … stop − 1."""

    first: Any
    last: Any
    start: Any
    stop: Any
    stride: Any


class Slopes(NamedTuple):
    """Surrogate and the constants of its formula."""

    surrogate: Any
    constants: tuple


class Rows(NamedTuple):
    """An array that holds step t of column c at t · stride + c − shift."""

    array: np.ndarray
    stride: Any
    shift: Any


class Outputs(NamedTuple):
    """Results of each step; `stream`: those as long as the current go past the caches."""

    spikes: np.ndarray
    spike_bytes: np.ndarray
    membrane: np.ndarray
    threshold: np.ndarray
    keep_membrane: bool
    stream: bool


class Replayed(NamedTuple):
    """Chunks of one group after another: margins, slopes, and the states before each step."""

    array: np.ndarray
    at: Any


@kernel
def advance(neurons, span, source, states, before, after, out):
    """Run a span of steps.

    The states of column c are at states[before + c] at first, and at states[after + c] at the end.
    """
    model, lanes = neurons.model, np.uintp(n_lanes(states))
    for column_ in range(span.start, span.stop, n_lanes(states)):
        column = np.uintp(column_)
        n = min(lanes, np.uintp(span.stop) - column)
        own = parameter_rows(model, neurons.parameters, column, span.stride, n)
        now = state_rows(model, states, before + column, span.stride, n)
        x = np.uintp(span.first) * span.stride + column
        y = np.uintp(span.first) * source.stride + column - source.shift
        for _ in range(span.first, span.last):
            drive = load_lanes(source.array, y, n)
            spike, membrane, threshold, _, now = whole_step(
                model, drive, own, neurons.constants, now
            )
            store_lanes(spike, out.spikes, x, n, out.stream)
            store_bytes(spike, out.spike_bytes, x, n)
            if out.keep_membrane:
                store_lanes(membrane, out.membrane, x, n, out.stream)
                store_lanes(threshold, out.threshold, x, n, out.stream)
            x += span.stride
            y += source.stride
        store_rows(now, states, after + column, span.stride, n)


@kernel
def replayed_size(model, like):
    """Elements of a replayed chunk of a group."""
    return np.uintp(CHUNK * (2 + n_rows(model)[1]) * n_lanes(like))


@kernel
def replay(neurons, slopes, span, drives, states, before, replayed):
    """Replay a chunk of one group from the states at states[before + column]."""
    model, lanes = neurons.model, np.uintp(n_lanes(drives))
    column, n = np.uintp(span.start), np.uintp(span.stop - span.start)
    own = parameter_rows(model, neurons.parameters, column, span.stride, n)
    now = state_rows(model, states, before + column, span.stride, n)
    to_slopes, n_states = np.uintp(CHUNK) * lanes, np.uintp(n_rows(model)[1])
    x, k = np.uintp(span.first) * span.stride + column, replayed.at
    kept = replayed.at + np.uintp(2) * to_slopes
    for _ in range(span.first, span.last):
        store_rows(now, replayed.array, kept, lanes, lanes)
        _, margin, now = step(model, load_lanes(drives, x, n), own, neurons.constants, now)
        store_lanes(margin, replayed.array, k, lanes, False)
        slope = slope_of(slopes.surrogate, margin, slopes.constants)
        store_lanes(slope, replayed.array, k + to_slopes, lanes, False)
        x += span.stride
        k += lanes
        kept += n_states * lanes


@kernel_with_fma
def reverse(
    neurons, reset_has_grad, chunk_first, span, grad_spikes, grad_level, drives, replayed, grads,
    grad_current, sums,
):  # fmt: skip
    """Backpropagate through the last steps of a group's chunk, which begins at chunk_first.

    `grads` are the gradients of the states; `sums`, in float64, those of the parameters.
    `grad_level` are the gradients of membrane and threshold, or None; Numba leaves out the branch
    that is not taken.
    """
    model, lanes = neurons.model, np.uintp(n_lanes(drives))
    column, n = np.uintp(span.start), np.uintp(span.stop - span.start)
    own = parameter_rows(model, neurons.parameters, column, span.stride, n)
    now = grad_rows(model, grads, column, span.stride, n)
    total = no_sums(model, drives)
    to_slopes, n_states = np.uintp(CHUNK) * lanes, np.uintp(n_rows(model)[1])
    done = np.uintp(span.last - chunk_first) * lanes
    x = np.uintp(span.last) * span.stride + column
    y = np.uintp(span.last) * grad_spikes.stride + column - grad_spikes.shift
    k = replayed.at + done
    kept = replayed.at + np.uintp(2) * to_slopes + done * n_states
    for _ in range(span.first, span.last):
        x -= span.stride
        y -= grad_spikes.stride
        k -= lanes
        kept -= n_states * lanes
        drive, state = (
            load_lanes(drives, x, n), state_rows(model, replayed.array, kept, lanes, lanes),
        )  # fmt: skip
        margin = load_lanes(replayed.array, k, lanes)
        slope = load_lanes(replayed.array, k + to_slopes, lanes)
        grad_spike = load_lanes(grad_spikes.array, y, n)
        if grad_level is None:
            to_drive, to_parameters, now = reverse_step(
                model, drive, own, neurons.constants, state, margin, slope, grad_spike,
                reset_has_grad, now,
            )  # fmt: skip
        else:
            to_drive, to_parameters, now = reverse_step(
                model, drive, own, neurons.constants, state, margin, slope, grad_spike,
                reset_has_grad, now, load_lanes(grad_level[0], x, n),
                load_lanes(grad_level[1], x, n),
            )  # fmt: skip
        store_lanes(to_drive, grad_current, x, n, False)
        total = add_each(total, to_parameters)
    store_rows(now, grads, column, span.stride, n)
    add_rows(total, sums, column, span.stride, n)
