"""Drive, neurons of any model without recurrence and van Rossum distance in one pass (Numba).

Computes the spikes and gradients of a simulation with `weight · current + bias + noise · draws`,
the mean over trials and `squared_distance`, without storing drives, spikes or filtered differences.
As many neurons as a vector has lanes go through all steps and back at a time, so that only their
states, every CHUNK steps, are kept. The gradient is computed at once, up to the factor that
`backward` gets. The readable twin is the other branch of `NeuronPopulation.distance`.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blockspike.fitting.distance import Window
from blockspike.neurons.cpu.kernels import (
    kernel,
    kernel_part,
    kernel_with_fma,
    without_refcount,
)
from blockspike.neurons.cpu.lane_memory import add_rows, load_lanes, store_lanes, store_rows
from blockspike.neurons.cpu.lanes import LANES_BYTES, add_each, n_lanes, spread
from blockspike.neurons.cpu.steps import (
    grad_rows,
    n_rows,
    no_sums,
    numbers,
    parameter_rows,
    reverse_step,
    state_rows,
    step,
)
from blockspike.neurons.cpu.surrogate import Slope, slope_of
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.cpu.tiles import columns
from blockspike.neurons.derivative import derived
from blockspike.neurons.errors import check_finite
from blockspike.neurons.model import NeuronModel, where
from blockspike.neurons.precision import in_full_precision
from blockspike.neurons.surrogates import Surrogate

CHUNK = 16  # steps between kept states


class Drive(NamedTuple):
    """How a current drives neurons, [N] each: I[t] = weight · current[t] + bias + noise · ξ[t].

    Attributes:
        weight, bias, noise: coefficients per step; ξ is standard normal, new for each trial.
        start: membrane before the first step.
    """

    weight: Tensor
    bias: Tensor
    noise: Tensor
    start: Tensor


class _Inputs(NamedTuple):
    """Arrays that every neuron reads, flat.

    Attributes:
        current, target: [T, B · C].
        draws: [T, R, B], empty without noise.
        splits, lasts: [B · C], see `Window`.
        n_starts: columns that share a cell's current.
        n_neurons: columns that share a segment's draws.
    """

    current: np.ndarray
    target: np.ndarray
    draws: np.ndarray
    splits: np.ndarray
    lasts: np.ndarray
    n_starts: int
    n_neurons: int


class Neurons(NamedTuple):
    """Model and constants of all columns, parameters [K, B · N] and drive [4, B · N]."""

    model: Any
    constants: tuple
    parameters: np.ndarray
    drive: np.ndarray


class _Buffers(NamedTuple):
    """Inputs and results of a group of neurons in a chunk: [CHUNK, lanes] each, flat.

    Attributes:
        currents, draws, wanted: of each lane.
        counts: spikes of all trials.
        filters: filtered differences; then gradients to a spike.
        ends: [2, lanes], steps from the start of the chunk to the split and to the end.
    """

    currents: np.ndarray
    draws: np.ndarray
    wanted: np.ndarray
    counts: np.ndarray
    filters: np.ndarray
    ends: np.ndarray


@in_full_precision
def fitting_distance(
    current: Tensor,
    target: Tensor,
    model: NeuronModel,
    constants: tuple[float, ...],
    parameters: tuple[Tensor, ...],
    drive: Drive,
    *,
    draws: Tensor | None = None,
    surrogate: Surrogate,
    decay: float,
    window: Window,
) -> tuple[Tensor, Tensor]:
    """Sums of squared filtered differences over fitted and held-out steps, [B, N] each.

    Args:
        current, target: [T, B, C] of C cells.
        model, constants: the neurons' model; see `simulate`.
        parameters: [N] each, in the model's order, N = C · K, K consecutive starts for each cell.
        drive: [N] each. The fitted sum is differentiable in these and in the parameters.
        draws: [T, B, R], the noise of R trials, whose mean is compared; None = one trial without
            noise.
        surrogate: derivative of the spike; the reset carries no gradient.
        decay, window: as in `squared_distance`.

    Raises:
        ValueError: the membrane did not stay finite.
    """
    fitted, held_out = _FittingDistance.apply(  # pyright: ignore
        current, target, model, constants, draws, surrogate, decay, window, *drive, *parameters
    )
    return fitted, held_out


class _FittingDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, target, model, constants, draws, surrogate, decay, window, *neurons: Tensor
    ):  # fmt: skip
        n_steps, batch_size, n_cells = current.shape
        n_neurons = len(neurons[0])
        n_columns = batch_size * n_neurons
        real = neurons[0].dtype
        n_trials = 1 if draws is None else draws.shape[2]
        draws = current.new_empty(0, 0, 0) if draws is None else draws.transpose(1, 2)
        split, last = window.of_segments(batch_size, n_cells)
        inputs = _Inputs(
            flat(current.to(real)), flat(target.to(real)), flat(draws.to(real)),
            flat(split), flat(last), n_neurons // n_cells, n_neurons,
        )  # fmt: skip
        repeated = columns(torch.stack(neurons), batch_size)
        wants_gradient = any(ctx.needs_input_grad)
        sums, grads = accumulators(len(neurons), n_columns, wants_gradient)
        last = torch.empty(n_columns, dtype=real)
        numbers_ = numbers(constants, repeated)
        own = Neurons(derived(model, len(numbers_)), numbers_, repeated[4:], repeated[:4])
        slope = Slope(type(surrogate), 2 + len(surrogate.constants))
        run(
            _run_groups, -(-n_columns // (LANES_BYTES // last.itemsize)), inputs, own, n_steps,
            n_trials, repeated.dtype.type(decay), window.first, slope,
            numbers(surrogate.constants, repeated), wants_gradient, sums.numpy(), grads.numpy(),
            last.numpy(),
        )  # fmt: skip
        check_finite(last.view(1, batch_size, -1), current, ("membrane",))
        return results(ctx, sums, grads, batch_size, real)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, None, None, None, None, None, *per_neuron(ctx, grads[0])


def accumulators(n_rows: int, n_columns: int, wants_gradient: bool) -> tuple[Tensor, Tensor]:
    """Sums over fitted and held-out steps, and gradients of `n_rows` numbers, of each column."""
    sums = torch.zeros(2, n_columns, dtype=torch.float64)
    return sums, torch.zeros(n_rows, n_columns if wants_gradient else 0, dtype=torch.float64)


def results(
    ctx: Any, sums: Tensor, grads: Tensor, batch_size: int, real: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Both sums, [B, N] each, of which the first is differentiable; keeps the gradients."""
    ctx.grads = grads.view(len(grads), batch_size, -1)
    fitted, held_out = sums.to(real).view(2, batch_size, -1)
    ctx.mark_non_differentiable(held_out)
    return fitted, held_out


def per_neuron(ctx: Any, grad: Tensor) -> Tensor:
    """Gradients of the numbers of each neuron, given that [B, N] of the first of the `results`."""
    return (ctx.grads * grad.double()).sum(1).to(grad.dtype)


def flat(x: Tensor) -> np.ndarray:
    """The numbers of a tensor in one row, for a kernel."""
    return x.contiguous().view(-1).numpy()


@kernel_part
def gather(array, row, group, n, out, at):
    """Set out[at + i] = array[row + group[i]] for n columns, which often share one value."""
    first = row + group[0]
    if group[0] == group[n - 1]:
        for i in range(group.size):
            out[at + i] = array[first]
    elif group[n - 1] - group[0] == n - 1:
        values = load_lanes(array, np.uintp(first), np.uintp(n))
        store_lanes(values, out, np.uintp(at), np.uintp(group.size), False)
    else:
        for i in range(n):
            out[at + i] = array[row + group[i]]


@kernel_part
def latest(steps, cell):
    """The largest of the steps of a group's columns."""
    most = 0
    for i in range(cell.size):
        most = max(most, steps[cell[i]])
    return most


@kernel_part
def enter_window(inputs, chunk_start, cell, ends):
    """Set the steps from the start of a chunk to the split and to the end of each lane's window."""
    for i in range(cell.size):
        ends[i] = min(max(inputs.splits[cell[i]] - chunk_start, 0), CHUNK)
        ends[cell.size + i] = min(max(inputs.lasts[cell[i]] - chunk_start, 0), CHUNK)


@kernel_part
def _enter(inputs, chunk_start, chunk_stop, n_columns, cell, n, buffers):
    """Gather the currents and targets of a chunk for the columns of a group."""
    lanes = cell.size
    n_rows_ = n_columns // inputs.n_starts
    for t in range(chunk_start, chunk_stop):
        at = (t - chunk_start) * lanes
        gather(inputs.current, t * n_rows_, cell, n, buffers.currents, at)
        gather(inputs.target, t * n_rows_, cell, n, buffers.wanted, at)
        for i in range(lanes):
            buffers.counts[at + i] = 0


@kernel_part
def _draw(inputs, trial, n_trials, chunk_start, chunk_stop, n_columns, segment, n, buffers):
    """Gather a trial's draws of a chunk."""
    lanes, n_segments = segment.size, n_columns // inputs.n_neurons
    for t in range(chunk_start, chunk_stop):
        row = (t * n_trials + trial) * n_segments
        gather(inputs.draws, row, segment, n, buffers.draws, (t - chunk_start) * lanes)


@kernel_part
def _driven(k, weight, bias, noise, has_draws, buffers, lanes):
    """Drive of step k of a chunk."""
    drive = load_lanes(buffers.currents, k, lanes) * weight + bias
    if has_draws:
        drive = drive + load_lanes(buffers.draws, k, lanes) * noise
    return drive


@kernel
def _advance(neurons, own, drive, has_draws, n_steps, buffers, states, at, lanes):
    """Take one trial through a chunk; add its spikes to `counts`."""
    weight, bias, noise = drive
    now = state_rows(neurons.model, states, at, lanes, lanes)
    k = np.uintp(0)
    for _ in range(n_steps):
        input_ = _driven(k, weight, bias, noise, has_draws, buffers, lanes)
        spike, _, now = step(neurons.model, input_, own, neurons.constants, now)
        store_lanes(load_lanes(buffers.counts, k, lanes) + spike, buffers.counts, k, lanes, False)
        k += lanes
    store_rows(now, states, at, lanes, lanes)


@kernel
def _replay(
    neurons, own, drive, has_draws, n_steps, surrogate, slope_constants, buffers, states, at,
    replayed, into, lanes,
):  # fmt: skip
    """Advance a trial and store margins, slopes and states before each step, from `into` on."""
    weight, bias, noise = drive
    now = state_rows(neurons.model, states, at, lanes, lanes)
    to_slopes, n_states = np.uintp(CHUNK) * lanes, np.uintp(n_rows(neurons.model)[1])
    k, kept = np.uintp(0), into + np.uintp(2) * to_slopes
    for _ in range(n_steps):
        store_rows(now, replayed, kept, lanes, lanes)
        input_ = _driven(k, weight, bias, noise, has_draws, buffers, lanes)
        spike, margin, now = step(neurons.model, input_, own, neurons.constants, now)
        store_lanes(margin, replayed, into + k, lanes, False)
        slope = slope_of(surrogate, margin, slope_constants)
        store_lanes(slope, replayed, into + to_slopes + k, lanes, False)
        store_lanes(load_lanes(buffers.counts, k, lanes) + spike, buffers.counts, k, lanes, False)
        k += lanes
        kept += n_states * lanes


@kernel_with_fma
def _reverse(
    neurons, own, drive, has_draws, n_steps, buffers, grads, at, replayed, into, sums, lanes
):
    """Backpropagate through a trial's chunk; `sums` are those of parameters and of the drive."""
    weight, bias, noise = drive
    now = grad_rows(neurons.model, grads, at, lanes, lanes)
    to_slopes, n_states = np.uintp(CHUNK) * lanes, np.uintp(n_rows(neurons.model)[1])
    total, (of_weight, of_bias, of_noise) = sums
    k = np.uintp(n_steps) * lanes
    kept = into + np.uintp(2) * to_slopes + k * n_states
    for _ in range(n_steps):
        k -= lanes
        kept -= n_states * lanes
        to_drive, to_parameters, now = reverse_step(
            neurons.model, _driven(k, weight, bias, noise, has_draws, buffers, lanes), own,
            neurons.constants, state_rows(neurons.model, replayed, kept, lanes, lanes),
            load_lanes(replayed, into + k, lanes),
            load_lanes(replayed, into + to_slopes + k, lanes),
            load_lanes(buffers.filters, k, lanes), neurons.constants[0], now,
        )  # fmt: skip
        total = add_each(total, to_parameters)
        of_weight = of_weight + to_drive * load_lanes(buffers.currents, k, lanes)
        of_bias = of_bias + to_drive
        if has_draws:
            of_noise = of_noise + to_drive * load_lanes(buffers.draws, k, lanes)
    store_rows(now, grads, at, lanes, lanes)
    return total, (of_weight, of_bias, of_noise)


@kernel_part
def _without_refcounts(inputs, buffers):
    """Strip the arrays of their counts of references; the caller keeps them alive."""
    return _Inputs(
        without_refcount(inputs.current), without_refcount(inputs.target),
        without_refcount(inputs.draws), without_refcount(inputs.splits),
        without_refcount(inputs.lasts), inputs.n_starts, inputs.n_neurons,
    ), _Buffers(
        without_refcount(buffers.currents), without_refcount(buffers.draws),
        without_refcount(buffers.wanted), without_refcount(buffers.counts),
        without_refcount(buffers.filters), without_refcount(buffers.ends),
    )  # fmt: skip


@kernel_part
def load_group(neurons, n_columns, first, inputs, cell, segment):
    """Parameters, drive and start of a group; writes the cell and segment of each column."""
    n = np.uintp(min(cell.size, n_columns - first))
    for i in range(cell.size):
        cell[i] = min(first + i, n_columns - 1) // inputs.n_starts
        segment[i] = min(first + i, n_columns - 1) // inputs.n_neurons
    at, stride = np.uintp(first), np.uintp(n_columns)
    drive = (
        load_lanes(neurons.drive, at, n), load_lanes(neurons.drive, stride + at, n),
        load_lanes(neurons.drive, np.uintp(2) * stride + at, n),
    )  # fmt: skip
    start = load_lanes(neurons.drive, np.uintp(3) * stride + at, n)
    return parameter_rows(neurons.model, neurons.parameters, at, stride, n), drive, start


@kernel
def _forward(
    first, inputs, neurons, n_steps, n_trials, decay, first_scored, buffers, states, kept, cell,
    segment, sums, last_states,
):  # fmt: skip
    """Take a group of columns through their steps; keep their states if `kept` has room."""
    inputs, buffers = _without_refcounts(inputs, buffers)
    states, kept = without_refcount(states), without_refcount(kept)
    cell, segment = without_refcount(cell), without_refcount(segment)
    sums, last_states = without_refcount(sums), without_refcount(last_states)
    real, n_columns, has_draws = states.dtype.type, last_states.size, inputs.draws.size > 0
    lanes, share = np.uintp(cell.size), real(1.0 / n_trials)
    own_size, n_ = np.uintp(n_rows(neurons.model)[1]) * lanes, min(cell.size, n_columns - first)
    own, drive, start = load_group(neurons, n_columns, first, inputs, cell, segment)
    for i in range(states.size):
        states[i] = 0
    for trial in range(n_trials):
        store_lanes(start, states, np.uintp(trial) * own_size, lanes, False)
    zeros = spread(neurons.constants[0], start)
    filtered, fitted, held_out, into = zeros, zeros, zeros, np.uintp(0)
    n_steps = min(n_steps, latest(inputs.lasts, cell))
    for begin in range(0, n_steps, CHUNK):
        end = min(n_steps, begin + CHUNK)
        _enter(inputs, begin, end, n_columns, cell, n_, buffers)
        if kept.size > 0:
            for i in range(states.size):
                kept[into + np.uintp(i)] = states[i]
            store_lanes(filtered, kept, into + np.uintp(states.size), lanes, False)
            into += np.uintp(states.size) + lanes
        for trial in range(n_trials):
            if has_draws:
                _draw(inputs, trial, n_trials, begin, end, n_columns, segment, n_, buffers)
            at = np.uintp(trial) * own_size
            _advance(neurons, own, drive, has_draws, end - begin, buffers, states, at, lanes)
        enter_window(inputs, begin, cell, buffers.ends)
        split = load_lanes(buffers.ends, np.uintp(0), lanes)
        last = load_lanes(buffers.ends, lanes, lanes)
        k = np.uintp(0)
        for t in range(begin, end):
            filtered = _filtered(filtered, k, share, decay, buffers, lanes)
            if first_scored <= t:
                square = where(last > real(t - begin), filtered * filtered, zeros)
                of_fitted = where(split > real(t - begin), square, zeros)
                fitted = fitted + of_fitted
                held_out = held_out + (square - of_fitted)
            k += lanes
        if begin % 1024 == 0 or end == n_steps:  # so that long recordings lose no precision
            add_rows((fitted, held_out), sums, np.uintp(first), np.uintp(n_columns), np.uintp(n_))
            fitted, held_out = zeros, zeros
    for i in range(n_):
        last_states[first + i] = 0
        for trial in range(n_trials):
            last_states[first + i] += states[np.uintp(trial) * own_size + np.uintp(i)]


@kernel_part
def _filtered(filtered, k, share, decay, buffers, lanes):
    """Filter the difference of the mean spike and the recorded one at step k of a chunk."""
    difference = load_lanes(buffers.counts, k, lanes) * share
    return decay * filtered + (difference - load_lanes(buffers.wanted, k, lanes))


@kernel
def _backward(
    first, inputs, neurons, n_steps, n_trials, decay, first_scored, surrogate, slope_constants,
    buffers, states, kept, replayed, back, cell, segment, grads, n_columns,
):  # fmt: skip
    """Take a group of columns back through the fitted steps, from the states `_forward` kept."""
    inputs, buffers = _without_refcounts(inputs, buffers)
    kept, replayed = without_refcount(kept), without_refcount(replayed)
    back, grads = without_refcount(back), without_refcount(grads)
    cell, segment = without_refcount(cell), without_refcount(segment)
    real, has_draws = kept.dtype.type, inputs.draws.size > 0
    lanes, share = np.uintp(cell.size), real(1.0 / n_trials)
    _, n_states, n_gradients = n_rows(neurons.model)
    own_size, back_size = np.uintp(n_states) * lanes, np.uintp(n_gradients) * lanes
    replay_size = np.uintp((2 + n_states) * CHUNK) * lanes
    n_ = min(cell.size, n_columns - first)
    own, drive, start = load_group(neurons, n_columns, first, inputs, cell, segment)
    column, stride, n = np.uintp(first), np.uintp(n_columns), np.uintp(n_)
    zeros = spread(neurons.constants[0], start)
    twice = (neurons.constants[1] + neurons.constants[1]) * share
    for i in range(back.size):
        back[i] = 0
    to_spike, n_steps = zeros, min(n_steps, latest(inputs.splits, cell))
    for chunk in range((n_steps - 1) // CHUNK, -1, -1):
        begin, end = chunk * CHUNK, min(n_steps, chunk * CHUNK + CHUNK)
        _enter(inputs, begin, end, n_columns, cell, n_, buffers)
        at = np.uintp(chunk) * (np.uintp(states.size) + lanes)
        for trial in range(n_trials):
            if has_draws:
                _draw(inputs, trial, n_trials, begin, end, n_columns, segment, n_, buffers)
            _replay(
                neurons, own, drive, has_draws, end - begin, surrogate, slope_constants, buffers,
                kept, at + np.uintp(trial) * own_size, replayed, np.uintp(trial) * replay_size,
                lanes,
            )  # fmt: skip
        filtered, k = load_lanes(kept, at + np.uintp(states.size), lanes), np.uintp(0)
        for _ in range(begin, end):
            filtered = _filtered(filtered, k, share, decay, buffers, lanes)
            store_lanes(filtered, buffers.filters, k, lanes, False)
            k += lanes
        enter_window(inputs, begin, cell, buffers.ends)
        split = load_lanes(buffers.ends, np.uintp(0), lanes)
        for t in range(end - 1, begin - 1, -1):
            k -= lanes
            to_spike = decay * to_spike
            if first_scored <= t:
                own_slope = twice * load_lanes(buffers.filters, k, lanes)
                to_spike = to_spike + where(split > real(t - begin), own_slope, zeros)
            store_lanes(to_spike, buffers.filters, k, lanes, False)
        totals = (no_sums(neurons.model, kept), (zeros, zeros, zeros))
        for trial in range(n_trials):
            if has_draws and n_trials > 1:
                _draw(inputs, trial, n_trials, begin, end, n_columns, segment, n_, buffers)
            totals = _reverse(
                neurons, own, drive, has_draws, end - begin, buffers, back,
                np.uintp(trial) * back_size, replayed, np.uintp(trial) * replay_size, totals,
                lanes,
            )  # fmt: skip
        add_rows(totals[1], grads, column, stride, n)
        add_rows(totals[0], grads, np.uintp(4) * stride + column, stride, n)
    for trial in range(n_trials):
        of_start = load_lanes(back, np.uintp(trial) * back_size, lanes)
        add_rows((of_start,), grads, np.uintp(3) * stride + column, stride, n)


@kernel
def _run_groups(
    first_group, last_group, inputs, neurons, n_steps, n_trials, decay, first_scored, surrogate,
    slope_constants, wants_gradient, sums, grads, last_states,
):  # fmt: skip
    """Take some groups of columns through all steps, and back."""
    lanes, model, dtype = n_lanes(last_states), neurons.model, last_states.dtype
    _, n_states, n_gradients = n_rows(model)
    neurons = Neurons(
        model, neurons.constants, without_refcount(neurons.parameters).ravel(),
        without_refcount(neurons.drive).ravel(),
    )  # fmt: skip
    sums, grads = without_refcount(sums).ravel(), without_refcount(grads).ravel()
    buffers = _Buffers(
        np.zeros(CHUNK * lanes, dtype), np.zeros(CHUNK * lanes, dtype),
        np.zeros(CHUNK * lanes, dtype), np.zeros(CHUNK * lanes, dtype),
        np.zeros(CHUNK * lanes, dtype), np.zeros(2 * lanes, dtype),
    )  # fmt: skip
    states = np.empty(n_trials * n_states * lanes, dtype)
    n_chunks = (n_steps + CHUNK - 1) // CHUNK if wants_gradient else 0
    kept = np.empty(n_chunks * (states.size + lanes), dtype)
    replayed = np.empty(n_trials * (2 + n_states) * CHUNK * lanes, dtype)
    back = np.empty(n_trials * n_gradients * lanes, dtype)
    cell, segment = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    for group in range(first_group, last_group):
        _forward(
            group * lanes, inputs, neurons, n_steps, n_trials, decay, first_scored, buffers, states,
            kept, cell, segment, sums, last_states,
        )  # fmt: skip
        if wants_gradient:
            _backward(
                group * lanes, inputs, neurons, n_steps, n_trials, decay, first_scored, surrogate,
                slope_constants, buffers, states, kept, replayed, back, cell, segment, grads,
                last_states.size,
            )  # fmt: skip
