"""Groups: as many columns as a vector has lanes, taken through a chunk of steps in registers.

`fused.py` runs a tile of any model forward and backward with these kernels. All arrays are flat.
Step t of column c is at t · stride + c, and the rows of parameters, states and sums are as far
apart, except where `Rows` say otherwise. Indices are unsigned: signed ones may be negative, which
would be checked at each access. Two indices that step through the arrays are cheaper than
t · stride + c at each step.

`replay` writes into a piece of the L1 cache, for each of CHUNK steps a vector per number:

    replayed   | margins 0 … 7 | slopes 0 … 7 | states before step 0 | … | before step 7 |
                 1 vector each   1 vector each  K vectors each, one per state and counter

In float32 a vector is 64 bytes, so 2 KB for a model with 2 states.
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


class Gradients(NamedTuple):
    """Results of backward: gradients of states and current, and of parameters in float64 `sums`.

    `reset_has_grad` is 1 if gradient flows through the reset, else 0.
    """

    reset_has_grad: Any
    states: np.ndarray
    current: np.ndarray
    sums: np.ndarray


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
        # Registers: parameters and states, before the loop over time and throughout it. Memory: one
        # load and two stores for each step.
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
    """Replay a chunk of one group from the states at states[before + column].

    The surrogate's slope is computed on the way, while the margin is in a register.
    """
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
    neurons, chunk_first, span, drives, replayed, grad_spikes, grad_level, back
):  # fmt: skip
    """Backpropagate through the last steps of a group's chunk, which begins at chunk_first.

    `grad_level` are the gradients of membrane and threshold, or None, which Numba knows when it
    compiles, so that it leaves out the other branch.
    """
    model, lanes = neurons.model, np.uintp(n_lanes(drives))
    column, n = np.uintp(span.start), np.uintp(span.stop - span.start)
    own = parameter_rows(model, neurons.parameters, column, span.stride, n)
    now = grad_rows(model, back.states, column, span.stride, n)
    total = no_sums(model, drives)  # of this span, in the array's type and in registers
    to_slopes, n_states = np.uintp(CHUNK) * lanes, np.uintp(n_rows(model)[1])
    done = np.uintp(span.last - chunk_first) * lanes
    x = np.uintp(span.last) * span.stride + column
    y = np.uintp(span.last) * grad_spikes.stride + column - grad_spikes.shift
    k = replayed.at + done
    kept = replayed.at + np.uintp(2) * to_slopes + done * n_states
    # Indices start one step late and go down before each use, so that none falls below 0, which an
    # unsigned number cannot be. The loop itself counts up.
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
                back.reset_has_grad, now,
            )  # fmt: skip
        else:
            to_drive, to_parameters, now = reverse_step(
                model, drive, own, neurons.constants, state, margin, slope, grad_spike,
                back.reset_has_grad, now, load_lanes(grad_level[0], x, n),
                load_lanes(grad_level[1], x, n),
            )  # fmt: skip
        store_lanes(to_drive, back.current, x, n, False)
        total = add_each(total, to_parameters)
    store_rows(now, back.states, column, span.stride, n)
    # Sums over all of time are in float64: few additions, so it costs little.
    add_rows(total, back.sums, column, span.stride, n)
