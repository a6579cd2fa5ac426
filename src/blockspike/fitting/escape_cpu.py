"""Neurons with escape noise: likelihood of recorded spikes, and a simulation, in one pass (Numba).

For the likelihood, neurons are reset by the recorded spikes. Nothing is stored but the states of as
many neurons as a vector has lanes, every CHUNK steps of one trial. The gradient is computed at
once, up to the factor that `backward` gets. The readable twin is `escape.py`.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blockspike.fitting.distance import Window
from blockspike.fitting.distance_cpu import (
    CHUNK,
    Drive,
    Neurons,
    accumulators,
    enter_window,
    flat,
    gather,
    latest,
    load_group,
    per_neuron,
    results,
)
from blockspike.fitting.escape import LOG_RATES
from blockspike.neurons.cpu.kernels import kernel, kernel_part, kernel_with_fma, without_refcount
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
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.cpu.tiles import columns
from blockspike.neurons.derivative import given_spikes
from blockspike.neurons.model import NeuronModel, exp, where
from blockspike.neurons.precision import in_full_precision


class _Inputs(NamedTuple):
    """Arrays that every neuron reads, flat.

    Attributes:
        current: [T, B · C].
        spikes: [T, R, B · C], recorded.
        is_there: [R, B · C], 1 if there is such a trial, else 0.
        splits, lasts: [B · C], see `Window`.
        n_starts: columns that share a cell's current.
        n_neurons: columns that share a segment.
    """

    current: np.ndarray
    spikes: np.ndarray
    is_there: np.ndarray
    splits: np.ndarray
    lasts: np.ndarray
    n_starts: int
    n_neurons: int


class _Buffers(NamedTuple):
    """Inputs and results of a group of neurons in a chunk: [CHUNK, lanes] each, flat.

    Attributes:
        currents, spikes: of each lane.
        margins: V − θ.
        rates: of a step.
        values, slopes: log-likelihoods, and their derivatives by the logarithm of the rate.
        states: before each step.
        ends: [2, lanes], as in `distance_cpu`.
    """

    currents: np.ndarray
    spikes: np.ndarray
    margins: np.ndarray
    rates: np.ndarray
    values: np.ndarray
    slopes: np.ndarray
    states: np.ndarray
    ends: np.ndarray


@in_full_precision
def escape_likelihood(
    current: Tensor,
    trains: Tensor,
    is_there: Tensor,
    model: NeuronModel,
    parameters: tuple[Tensor, ...],
    drive: Drive,
    *,
    at_threshold: float,
    window: Window,
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of recorded spikes over fitted and over held-out steps, [B, N] each.

    The rate of a step is exp(at_threshold + (V − θ) · `drive.noise`), within `LOG_RATES`; in the
    refractory period it is the lowest.

    Args:
        current: [T, B, C] of C cells.
        trains: [T, R, B, C] recorded spikes of up to R trials.
        is_there: [R, B, C], whether there is such a trial.
        model: the neurons' model, without constants; its last counter is 0 outside the refractory
            period.
        parameters: [N] each, in the model's order, N = C · K, K consecutive starts for each cell.
        drive: [N] each; `noise` is here the inverse of the width of the escape noise. The fitted
            sum is differentiable in these and in the parameters.
        at_threshold: logarithm of a step's rate at the threshold.
        window: the steps that are fitted and those held out.
    """
    fitted, held_out = _EscapeLikelihood.apply(  # pyright: ignore
        current, trains, is_there, model, at_threshold, window, *drive, *parameters
    )
    return fitted, held_out


class _EscapeLikelihood(torch.autograd.Function):
    @staticmethod
    def forward(ctx, current, trains, is_there, model, at_threshold, window, *neurons: Tensor):
        n_steps, batch_size, n_cells = current.shape
        n_neurons, real = len(neurons[0]), neurons[0].dtype
        n_columns, n_trials = batch_size * n_neurons, trains.shape[1]
        split, last = window.of_segments(batch_size, n_cells)
        inputs = _Inputs(
            flat(current.to(real)), flat(trains.to(real)), flat(is_there.to(real)),
            flat(split), flat(last), n_neurons // n_cells, n_neurons,
        )  # fmt: skip
        repeated = columns(torch.stack(neurons), batch_size)
        wants_gradient = any(ctx.needs_input_grad)
        sums, grads = accumulators(len(neurons), n_columns, wants_gradient)
        own = Neurons(given_spikes(model, 2), numbers((), repeated), repeated[4:], repeated[:4])
        run(
            _run_groups, -(-n_columns // (LANES_BYTES // repeated.dtype.itemsize)), inputs, own,
            n_steps, n_trials, n_columns, numbers((at_threshold, *LOG_RATES), repeated)[2:],
            window.first, wants_gradient, sums.numpy(), grads.numpy(),
        )  # fmt: skip
        return results(ctx, sums, grads, batch_size, real)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, None, None, None, None, None, *per_neuron(ctx, grads[0])


@kernel_part
def _enter(inputs, trial, n_trials, begin, end, n_columns, cell, n, buffers):
    """Gather the currents and spikes of a trial's chunk for the columns of a group."""
    n_rows_ = n_columns // inputs.n_starts
    for t in range(begin, end):
        at = (t - begin) * cell.size
        gather(inputs.current, t * n_rows_, cell, n, buffers.currents, at)
        gather(inputs.spikes, (t * n_trials + trial) * n_rows_, cell, n, buffers.spikes, at)


@kernel
def _advance(neurons, own, drive, n_steps, buffers, states, into, lanes):
    """Take a trial through a chunk, from the states at `into` to the states behind them."""
    weight, bias, _ = drive
    now, k = state_rows(neurons.model, states, into, lanes, lanes), np.uintp(0)
    for _ in range(n_steps):
        input_ = load_lanes(buffers.currents, k, lanes) * weight + bias
        spike = load_lanes(buffers.spikes, k, lanes)
        _, _, now = step(neurons.model, (input_, spike), own, neurons.constants, now)
        k += lanes
    own_size = np.uintp(n_rows(neurons.model)[1]) * lanes
    store_rows(now, states, into + own_size, lanes, lanes)


@kernel_part
def _rate(log_rate, bounds):
    """Rate of a step, within its bounds; NaN stays NaN."""
    bounded = where(log_rate > bounds[2], bounds[2], log_rate)
    return exp(where(log_rate < bounds[1], bounds[1], bounded)) + (log_rate - log_rate)


@kernel
def _replay(neurons, own, drive, n_steps, bounds, buffers, states, into, lanes):
    """Advance a trial; store margins, log-likelihoods, slopes and the states before each step."""
    weight, bias, inverse_width = drive
    at_threshold, low, high = bounds
    zero, one = neurons.constants[0], neurons.constants[1]
    now = state_rows(neurons.model, states, into, lanes, lanes)
    own_size = np.uintp(n_rows(neurons.model)[1]) * lanes
    k, kept = np.uintp(0), np.uintp(0)
    for _ in range(n_steps):
        store_rows(now, buffers.states, kept, lanes, lanes)
        input_ = load_lanes(buffers.currents, k, lanes) * weight + bias
        spike = load_lanes(buffers.spikes, k, lanes)
        left = now[-1]
        _, margin, now = step(neurons.model, (input_, spike), own, neurons.constants, now)
        log_rate = where(left > zero, low, margin * inverse_width + at_threshold)
        inside = where((log_rate > low) & (log_rate < high), one, zero)
        rate = _rate(log_rate, bounds)
        store_lanes(margin, buffers.margins, k, lanes, False)
        store_lanes(rate, buffers.rates, k, lanes, False)
        store_lanes(-rate, buffers.values, k, lanes, False)
        store_lanes(-rate * inside, buffers.slopes, k, lanes, False)
        k += lanes
        kept += own_size
    for i in range(n_steps * lanes):
        if buffers.spikes[i] > 0:
            rate = buffers.rates[i]
            chance = -np.expm1(-rate)
            buffers.values[i] = np.log(chance)
            if buffers.slopes[i] != 0:
                buffers.slopes[i] = rate * np.exp(-rate) / chance


@kernel_part
def _sums(first_scored, begin, end, is_there, zeros, buffers, lanes):
    """Sums over the fitted and the held-out steps of a chunk; slopes of other steps become 0."""
    fitted, held_out, k = zeros, zeros, np.uintp(0)
    split = load_lanes(buffers.ends, np.uintp(0), lanes)
    last = load_lanes(buffers.ends, lanes, lanes)
    for t in range(begin, end):
        slope = zeros
        if first_scored <= t:
            step_ = buffers.ends.dtype.type(t - begin)
            value = load_lanes(buffers.values, k, lanes) * is_there
            value = where(last > step_, value, zeros)
            of_fitted = where(split > step_, value, zeros)
            fitted = fitted + of_fitted
            held_out = held_out + (value - of_fitted)
            slope = load_lanes(buffers.slopes, k, lanes) * is_there
            slope = where(split > step_, slope, zeros)
        store_lanes(slope, buffers.slopes, k, lanes, False)
        k += lanes
    return fitted, held_out


@kernel_with_fma
def _reverse(neurons, own, drive, n_steps, buffers, now, sums, lanes):
    """Backpropagate through a trial's chunk; `slopes` are those of the loss.

    `sums` are gradients of the parameters and of the drive.
    """
    weight, bias, inverse_width = drive
    own_size = np.uintp(n_rows(neurons.model)[1]) * lanes
    zero, one = neurons.constants[0], neurons.constants[1]
    total, (of_weight, of_bias, of_width) = sums
    one_each = spread(one, weight)
    k = np.uintp(n_steps) * lanes
    kept = np.uintp(n_steps) * own_size
    for _ in range(n_steps):
        k -= lanes
        kept -= own_size
        current = load_lanes(buffers.currents, k, lanes)
        spike = load_lanes(buffers.spikes, k, lanes)
        margin, slope = load_lanes(buffers.margins, k, lanes), load_lanes(buffers.slopes, k, lanes)
        to_drive, to_parameters, now = reverse_step(
            neurons.model, (current * weight + bias, spike), own, neurons.constants,
            state_rows(neurons.model, buffers.states, kept, lanes, lanes),
            margin, slope * inverse_width, one_each, zero, now,
        )  # fmt: skip
        total = add_each(total, to_parameters)
        of_weight = of_weight + to_drive * current
        of_bias = of_bias + to_drive
        of_width = of_width + slope * margin
    return now, (total, (of_weight, of_bias, of_width))


@kernel
def _run_group(
    first, inputs, neurons, n_steps, n_trials, n_columns, bounds, first_scored, wants_gradient,
    buffers, states, cell, segment, sums, grads, back,
):  # fmt: skip
    """Take a group of columns through all trials, and back."""
    inputs = _Inputs(
        without_refcount(inputs.current), without_refcount(inputs.spikes),
        without_refcount(inputs.is_there), without_refcount(inputs.splits),
        without_refcount(inputs.lasts), inputs.n_starts, inputs.n_neurons,
    )  # fmt: skip
    buffers = _Buffers(
        without_refcount(buffers.currents), without_refcount(buffers.spikes),
        without_refcount(buffers.margins), without_refcount(buffers.rates),
        without_refcount(buffers.values), without_refcount(buffers.slopes),
        without_refcount(buffers.states), without_refcount(buffers.ends),
    )  # fmt: skip
    states, back = without_refcount(states), without_refcount(back)
    cell, segment = without_refcount(cell), without_refcount(segment)
    sums, grads = without_refcount(sums), without_refcount(grads)
    lanes, n_ = np.uintp(cell.size), min(cell.size, n_columns - first)
    own_size = np.uintp(n_rows(neurons.model)[1]) * lanes
    own, drive, start = load_group(neurons, n_columns, first, inputs, cell, segment)
    column, stride, n = np.uintp(first), np.uintp(n_columns), np.uintp(n_)
    zeros = spread(neurons.constants[0], start)
    n_rows_, n_steps = n_columns // inputs.n_starts, min(n_steps, latest(inputs.lasts, cell))
    n_chunks, n_fitted = (n_steps + CHUNK - 1) // CHUNK, latest(inputs.splits, cell)
    for trial in range(n_trials):
        gather(inputs.is_there, trial * n_rows_, cell, n_, buffers.values, 0)
        is_there = load_lanes(buffers.values, np.uintp(0), lanes)
        for i in range(own_size):
            states[i] = 0
        store_lanes(start, states, np.uintp(0), lanes, False)
        for chunk in range(n_chunks):
            begin, end = chunk * CHUNK, min(n_steps, chunk * CHUNK + CHUNK)
            _enter(inputs, trial, n_trials, begin, end, n_columns, cell, n_, buffers)
            into = np.uintp(chunk) * own_size
            _advance(neurons, own, drive, end - begin, buffers, states, into, lanes)
        for i in range(back.size):
            back[i] = 0
        for chunk in range(n_chunks - 1, -1, -1):
            begin, end = chunk * CHUNK, min(n_steps, chunk * CHUNK + CHUNK)
            _enter(inputs, trial, n_trials, begin, end, n_columns, cell, n_, buffers)
            into = np.uintp(chunk) * own_size
            _replay(neurons, own, drive, end - begin, bounds, buffers, states, into, lanes)
            enter_window(inputs, begin, cell, buffers.ends)
            found = _sums(first_scored, begin, end, is_there, zeros, buffers, lanes)
            add_rows(found, sums, column, stride, n)
            if wants_gradient and begin < n_fitted:
                totals = (no_sums(neurons.model, states), (zeros, zeros, zeros))
                now = grad_rows(neurons.model, back, np.uintp(0), lanes, lanes)
                now, totals = _reverse(
                    neurons, own, drive, end - begin, buffers, now, totals, lanes
                )
                store_rows(now, back, np.uintp(0), lanes, lanes)
                add_rows(totals[1], grads, column, stride, n)
                add_rows(totals[0], grads, np.uintp(4) * stride + column, stride, n)
        if wants_gradient:
            of_start = load_lanes(back, np.uintp(0), lanes)
            add_rows((of_start,), grads, np.uintp(3) * stride + column, stride, n)


@kernel
def _run_groups(
    first_group, last_group, inputs, neurons, n_steps, n_trials, n_columns, bounds, first_scored,
    wants_gradient, sums, grads,
):  # fmt: skip
    """Take some groups of columns through all trials, and back."""
    model, dtype = neurons.model, neurons.drive.dtype
    lanes = n_lanes(neurons.drive)
    _, n_states, n_gradients = n_rows(model)
    neurons = Neurons(
        model, neurons.constants, without_refcount(neurons.parameters).ravel(),
        without_refcount(neurons.drive).ravel(),
    )  # fmt: skip
    sums, grads = without_refcount(sums).ravel(), without_refcount(grads).ravel()
    buffers = _Buffers(
        np.zeros(CHUNK * lanes, dtype), np.zeros(CHUNK * lanes, dtype),
        np.zeros(CHUNK * lanes, dtype), np.zeros(CHUNK * lanes, dtype),
        np.zeros(CHUNK * lanes, dtype), np.zeros(CHUNK * lanes, dtype),
        np.zeros(CHUNK * n_states * lanes, dtype), np.zeros(2 * lanes, dtype),
    )  # fmt: skip
    n_chunks = (n_steps + CHUNK - 1) // CHUNK
    states = np.zeros((n_chunks + 1) * n_states * lanes, dtype)
    back = np.zeros(n_gradients * lanes, dtype)
    cell, segment = np.empty(lanes, np.int64), np.empty(lanes, np.int64)
    for group in range(first_group, last_group):
        _run_group(
            group * lanes, inputs, neurons, n_steps, n_trials, n_columns, bounds, first_scored,
            wants_gradient, buffers, states, cell, segment, sums, grads, back,
        )  # fmt: skip


def escape_spikes(
    driven: Tensor, draws: Tensor, model: NeuronModel, parameters: tuple[Tensor, ...],
    drive: Drive, at_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Simulate: a neuron fires once so many spikes are expected since its last one as were drawn.

    Args:
        driven: [T, B, N] drive of the neurons, float64.
        draws: [T, B, N], exponentially distributed; one is used at the start and after each spike.
        model, parameters, drive, at_threshold: see `escape_likelihood`.

    Returns:
        Spikes, membrane before a reset, and V − θ, [T, B, N] each.
    """
    n_steps, batch_size, n = driven.shape
    repeated = columns(torch.stack([*drive, *parameters]), batch_size)
    found = torch.empty(3, n_steps, batch_size, n, dtype=driven.dtype)
    run(
        _fire_groups, -(-batch_size * n // (LANES_BYTES // repeated.dtype.itemsize)),
        flat(driven), flat(draws),
        Neurons(given_spikes(model, 2), numbers((), repeated), repeated[4:], repeated[:4]),
        n_steps, numbers((at_threshold, *LOG_RATES), repeated)[2:],
        *(x.view(-1).numpy() for x in found),
    )  # fmt: skip
    spikes, membrane, margin = found
    return spikes, membrane, margin


@kernel
def _fire_groups(
    first_group, last_group, driven, draws, neurons, n_steps, bounds, spikes, membranes, margins
):
    """Simulate some groups of columns."""
    lanes, n_columns = np.uintp(n_lanes(neurons.drive)), np.uintp(neurons.drive.shape[1])
    model, constants = neurons.model, neurons.constants
    own_size = np.uintp(n_rows(model)[1]) * lanes
    parameters = without_refcount(neurons.parameters).ravel()
    drive = without_refcount(neurons.drive).ravel()
    driven, draws = without_refcount(driven), without_refcount(draws)
    spikes, membranes = without_refcount(spikes), without_refcount(membranes)
    margins = without_refcount(margins)
    states = np.zeros(own_size, drive.dtype)
    for group in range(first_group, last_group):
        at = np.uintp(group) * lanes
        n = min(lanes, n_columns - at)
        own = parameter_rows(model, parameters, at, n_columns, n)
        inverse_width = load_lanes(drive, np.uintp(2) * n_columns + at, n)
        for i in range(states.size):
            states[i] = 0
        store_lanes(
            load_lanes(drive, np.uintp(3) * n_columns + at, n), states, np.uintp(0), lanes, False
        )
        now = state_rows(model, states, np.uintp(0), lanes, lanes)
        zeros, ones = spread(constants[0], inverse_width), spread(constants[1], inverse_width)
        expected, limit = zeros, load_lanes(draws, at, n)
        k = at
        for _ in range(n_steps):
            input_, left = load_lanes(driven, k, n), now[-1]
            _, margin, silent = step(model, (input_, zeros), own, constants, now)
            log_rate = where(left > zeros, bounds[1], margin * inverse_width + bounds[0])
            expected = expected + _rate(log_rate, bounds)
            spike = where(expected >= limit, ones, zeros)
            _, _, now = step(model, (input_, spike), own, constants, now)
            limit = where(spike > zeros, load_lanes(draws, k, n), limit)
            expected = expected * (ones - spike)
            store_lanes(spike, spikes, k, n, False)
            store_lanes(silent[0], membranes, k, n, False)
            store_lanes(margin, margins, k, n, False)
            k += n_columns
