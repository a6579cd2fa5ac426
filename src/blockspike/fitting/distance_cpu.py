"""Drive, ALIF neurons without recurrence and van Rossum distance in one pass (Numba).

Computes the spikes and gradients of `alif(weight · current + bias + noise · draws)`, the mean over
trials and `squared_distance`, without storing drives, spikes or filtered differences. Only the
state every CHUNK steps is kept; backward recomputes the steps between. The steps are those of
`step.py`; the readable twin is the other branch of `NeuronPopulation.distance`.
"""

from typing import NamedTuple

import numpy as np
import torch
from numba.core.errors import NumbaError
from torch import Tensor

from blockspike.fitting.distance import Window
from blockspike.memory import keep_freed_memory_if_large
from blockspike.neurons.alif.step import ALIF, check_arp
from blockspike.neurons.autograd import differentiable_once, in_full_precision, refuse_transforms
from blockspike.neurons.cpu.kernels import kernel, kernel_with_fma, without_refcount
from blockspike.neurons.cpu.model_errors import error_of_model
from blockspike.neurons.cpu.steps import numbers, reverse_step, step
from blockspike.neurons.cpu.surrogate import surrogate_derivative
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.cpu.tiles import CHUNK, WIDEST_TILE, columns, tile_width
from blockspike.neurons.spec import SimulationSpec
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.trace import check_finite


class _Inputs(NamedTuple):
    """Arrays that every neuron reads.

    Attributes:
        current, target: [T, B · C].
        draws: [T, R, B], or None without noise.
        n_starts: columns that share a cell's current.
        n_neurons: columns that share a segment's draws.
    """

    current: np.ndarray
    target: np.ndarray
    draws: np.ndarray | None
    n_starts: int
    n_neurons: int


class _Neurons(NamedTuple):
    """Parameters of the columns, [B · N] each."""

    beta: np.ndarray
    p: np.ndarray
    b: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    noise: np.ndarray


@in_full_precision
def fitting_distance(
    current: Tensor,
    target: Tensor,
    beta: Tensor,
    p: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    noise: Tensor,
    *,
    draws: Tensor | None = None,
    arp: int,
    surrogate: Surrogate,
    decay: float,
    window: Window,
) -> tuple[Tensor, Tensor]:
    """Sums of squared filtered differences over fitted and held-out steps, [B, N] each.

    Args:
        current, target: [T, B, C] of C cells; counts of one trial load faster as uint8.
        beta, p, b, weight, bias, noise: [N], N = C · K, K consecutive starts for each cell. The
            fitted sum is differentiable in these.
        draws: [T, B, R], the noise of R trials, whose mean is compared; None = one trial without
            noise.
        arp: refractory period in steps.
        surrogate: derivative of the spike; the reset carries no gradient.
        decay, window: as in `squared_distance`.

    Raises:
        ValueError: arp is invalid (see `alif`), or the membrane did not stay finite.
    """
    refuse_transforms("fitting_distance", "fused")
    check_arp(arp, len(current), beta.dtype)
    fitted, held_out = _FittingDistance.apply(  # pyright: ignore
        current, target, beta, p, b, weight, bias, noise, draws, arp, surrogate, decay, window
    )
    return fitted, held_out


class _FittingDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, target, beta, p, b, weight, bias, noise, draws, arp: int, surrogate, decay,
        window,
    ):  # fmt: skip
        n_steps, batch_size, n_cells = current.shape
        n_columns = batch_size * len(beta)
        rows = [x.reshape(n_steps, -1).contiguous() for x in (current.to(beta.dtype), target)]
        if draws is not None:
            draws = draws.to(beta.dtype).transpose(1, 2).contiguous()  # [T, R, B]
        n_trials = 1 if draws is None else draws.shape[1]
        # membranes, adaptations and refractory steps left of the trials, then the filter
        saved = beta.new_empty(3 * n_trials + 1, -(-n_steps // CHUNK), n_columns)
        keep_freed_memory_if_large(saved.nbytes)
        sums = torch.zeros(2, n_columns, dtype=torch.float64)
        last_state = beta.new_empty(n_columns)
        drive = rows[0].numpy()
        inputs = _Inputs(
            drive, rows[1].numpy(), None if draws is None else draws.numpy(),
            len(beta) // n_cells, len(beta),
        )  # fmt: skip
        neurons = _Neurons(*(columns(x, batch_size) for x in (beta, p, b, weight, bias, noise)))
        tile = tile_width(n_columns, None, WIDEST_TILE // n_trials)
        ctx.arguments = (
            inputs, neurons, ALIF, numbers((min(arp, n_steps),), drive), drive.dtype.type(decay),
            window, tile,
        )  # fmt: skip
        run(
            _forward, -(-n_columns // tile), *ctx.arguments, saved.numpy(), sums.numpy(),
            last_state.numpy(),
        )  # fmt: skip
        check_finite(last_state.view(batch_size, -1), current)
        ctx.save_for_backward(*rows, saved)
        ctx.surrogate, ctx.batch_size = surrogate, batch_size
        fitted, held_out = sums.to(beta.dtype).view(2, batch_size, -1)
        ctx.mark_non_differentiable(held_out)
        return fitted, held_out

    @staticmethod
    @differentiable_once("fitting with method='fused'", instead="method='standard'")
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        *_, saved = ctx.saved_tensors  # raises if an input was changed in place
        scale = 2 * grads[0].reshape(-1).contiguous()
        sums = torch.zeros(6, len(scale), dtype=torch.float64)
        try:
            run(
                _backward, -(-len(scale) // ctx.arguments[-1]), *ctx.arguments, saved.numpy(),
                scale.numpy(), ctx.surrogate, numbers(ctx.surrogate.constants, saved.numpy()),
                sums.numpy(),
            )  # fmt: skip
        except NumbaError as error:
            spec = SimulationSpec(ALIF, (0.0,), 1, ctx.surrogate, True, True)
            raise error_of_model(spec, saved.dtype, error) from None
        per_neuron = sums.view(6, ctx.batch_size, -1).sum(1).to(saved.dtype)
        return None, None, *per_neuron, None, None, None, None, None


@kernel
def _of_column(start, width, n_each):
    """Group of n_each columns to which each column of a tile belongs: its cell or its segment."""
    return (np.arange(start, start + width) // n_each).astype(np.int32)


@kernel
def _spread(row, start, n_each, group, out):
    """Spread a row with one value per group over columns; the row itself if a group is a column."""
    if n_each == 1:
        return row[start : start + group.size]
    for i in range(group.size):
        out[i] = row[group[i]]
    return out


@kernel
def _draw(draws, t, trial, start, n_neurons, segment, out):
    """Draws of a trial at step t, one per column from its segment; None without noise."""
    if draws is None:
        return None
    return _spread(draws[t, trial], start, n_neurons, segment, out)


@kernel
def _drive(current, draw, weight, bias, noise, out):
    for i in range(out.size):
        out[i] = current[i] * weight[i] + bias[i]
    if draw is not None:
        for i in range(out.size):
            out[i] += draw[i] * noise[i]


@kernel
def _advance(trial, drive, beta, p, b, model, constants, membrane, adaptation, silent, n_spikes):
    """One step of one trial of one tile."""
    for i in range(n_spikes.size):
        s, _, after = step(
            model, drive[i], (beta[i], p[i], b[i]), constants,
            (membrane[trial, i], adaptation[trial, i], silent[trial, i]),
        )  # fmt: skip
        membrane[trial, i], adaptation[trial, i], silent[trial, i] = after
        n_spikes[i] = s if trial == 0 else n_spikes[i] + s


@kernel
def _compare(n_spikes, share, wanted, decay, counts, filtered, total):
    """Filter the difference at a step and, where the step counts, add its square."""
    real = type(decay)
    for i in range(filtered.size):
        f = decay * filtered[i] + (n_spikes[i] * share - real(wanted[i]))
        filtered[i] = f
        total[i] += counts * f * f


@kernel
def _flush(total, out):
    """Move sums into float64, so that long recordings lose no precision."""
    for i in range(total.size):
        out[i] += total[i]
        total[i] = 0


@kernel
def _without_refcount_or_none(array):
    if array is None:
        return None
    return without_refcount(array)


@kernel
def _enter(inputs, neurons, start, stop):
    """Neurons of a tile, the groups of its columns, and scratch arrays for their values."""
    width = stop - start
    own = _Neurons(
        without_refcount(neurons.beta)[start:stop], without_refcount(neurons.p)[start:stop],
        without_refcount(neurons.b)[start:stop], without_refcount(neurons.weight)[start:stop],
        without_refcount(neurons.bias)[start:stop], without_refcount(neurons.noise)[start:stop],
    )  # fmt: skip
    cell = _of_column(start, width, inputs.n_starts)
    segment = _of_column(start, width, inputs.n_neurons)
    targets = np.empty(width, inputs.target.dtype)
    values = np.empty_like(own.beta)
    return own, cell, segment, targets, values, np.empty_like(values)


@kernel
def _forward(
    first_tile, last_tile, inputs, neurons, model, constants, decay, window, tile, saved,
    sums, last_state,
):  # fmt: skip
    n_steps, n_columns, n_trials = len(inputs.current), sums.shape[1], len(saved) // 3
    current, target = without_refcount(inputs.current), without_refcount(inputs.target)
    draws = _without_refcount_or_none(inputs.draws)
    real = saved.dtype.type
    share = real(1.0 / n_trials)
    for start in range(first_tile * tile, min(n_columns, last_tile * tile), tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        own, cell, segment, targets, values, own_draw = _enter(inputs, neurons, start, stop)
        membrane = np.zeros((n_trials, width), saved.dtype)
        adaptation, silent = np.zeros_like(membrane), np.zeros_like(membrane)
        filtered, total = np.zeros(width, saved.dtype), np.zeros(width, saved.dtype)
        drive, n_spikes = np.empty_like(total), np.empty_like(total)
        for t in range(n_steps):
            if t % CHUNK == 0:
                saved[:n_trials, t // CHUNK, start:stop] = membrane
                saved[n_trials : 2 * n_trials, t // CHUNK, start:stop] = adaptation
                saved[2 * n_trials : -1, t // CHUNK, start:stop] = silent
                saved[-1, t // CHUNK, start:stop] = filtered
            driven_by = _spread(current[t], start, inputs.n_starts, cell, values)
            for trial in range(n_trials):
                draw = _draw(draws, t, trial, start, inputs.n_neurons, segment, own_draw)
                _drive(driven_by, draw, own.weight, own.bias, own.noise, drive)
                _advance(
                    trial, drive, own.beta, own.p, own.b, model, constants, membrane, adaptation,
                    silent, n_spikes,
                )  # fmt: skip
            wanted = _spread(target[t], start, inputs.n_starts, cell, targets)
            counts = real(1.0) if window.first <= t < window.last else real(0.0)
            _compare(n_spikes, share, wanted, decay, counts, filtered, total)
            if (t + 1) % 1024 == 0 or t + 1 == window.split or t + 1 == n_steps:
                _flush(total, sums[0 if t < window.split else 1, start:stop])
        for i in range(width):
            last_state[start + i] = membrane[:, i].sum()


@kernel
def _replay(
    trial, row, drive, beta, p, b, model, constants, membrane, adaptation, silent, membranes,
    adaptations, silents, margins,
):  # fmt: skip
    """Repeat a step of a trial; store its margin and the state before it in one row."""
    for i in range(drive.size):
        before = (membrane[trial, i], adaptation[trial, i], silent[trial, i])
        membranes[row, i], adaptations[row, i], silents[row, i] = before
        _, margins[row, i], after = step(model, drive[i], (beta[i], p[i], b[i]), constants, before)
        membrane[trial, i], adaptation[trial, i], silent[trial, i] = after


@kernel_with_fma
def _replay_comparison(k, margins, n_spikes, share, wanted, decay, filtered, out):
    """Repeat the filter of step k of a chunk; a spike is a margin above 0.

    `n_spikes` is scratch space for several trials.
    """
    real = filtered.dtype.type
    none, one = real(0.0), real(1.0)
    if len(margins) == CHUNK:  # one trial
        for i in range(filtered.size):
            s = one if margins[k, i] > none else none
            filtered[i] = decay * filtered[i] + (s - real(wanted[i]))
            out[k, i] = filtered[i]
        return
    n_spikes[:] = 0
    for row in range(k, len(margins), CHUNK):
        for i in range(filtered.size):
            n_spikes[i] += one if margins[row, i] > none else none
    for i in range(filtered.size):
        filtered[i] = decay * filtered[i] + (n_spikes[i] * share - real(wanted[i]))
        out[k, i] = filtered[i]


@kernel_with_fma
def _adjoint(filtered, scale, decay, counts, state):
    """Step the gradient to the spikes back; it is the same for every trial."""
    for i in range(state.size):
        state[i] = decay * state[i] + counts * scale[i] * filtered[i]


@kernel_with_fma
def _reverse(
    trial, row, grad_spikes, margins, slopes, membranes, adaptations, silents, beta, p, b, model,
    constants, grad_membrane, grad_adaptation, grad_current, sum_beta, sum_p, sum_b,
):  # fmt: skip
    """Backpropagate through a step of one trial; ALIF does not need the drive."""
    none = grad_current.dtype.type(0.0)
    for i in range(grad_current.size):
        grad_current[i], to_parameters, to_states = reverse_step(
            model, none, (beta[i], p[i], b[i]), constants,
            (membranes[row, i], adaptations[row, i], silents[row, i]),
            margins[row, i], slopes[row, i], grad_spikes[i], none,
            (grad_membrane[trial, i], grad_adaptation[trial, i]),
        )  # fmt: skip
        grad_membrane[trial, i], grad_adaptation[trial, i] = to_states
        sum_beta[i] += to_parameters[0]
        sum_p[i] += to_parameters[1]
        sum_b[i] += to_parameters[2]


@kernel_with_fma
def _add_drive_gradient(grad_drive, current, draw, sum_weight, sum_bias, sum_noise):
    for i in range(grad_drive.size):
        sum_weight[i] += grad_drive[i] * current[i]
        sum_bias[i] += grad_drive[i]
        if draw is not None:
            sum_noise[i] += grad_drive[i] * draw[i]


@kernel
def _backward(
    first_tile, last_tile, inputs, neurons, model, constants, decay, window, tile, saved,
    scale, surrogate, slope_constants, sums,
):  # fmt: skip
    n_steps, n_columns, n_trials = len(inputs.current), sums.shape[1], len(saved) // 3
    current, target = without_refcount(inputs.current), without_refcount(inputs.target)
    draws = _without_refcount_or_none(inputs.draws)
    real = saved.dtype.type
    share = real(1.0 / n_trials)
    for start in range(first_tile * tile, min(n_columns, last_tile * tile), tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        own, cell, segment, targets, values, own_draw = _enter(inputs, neurons, start, stop)
        scale_ = scale[start:stop] * share  # of a spike of one trial
        membrane = np.empty((n_trials, width), saved.dtype)
        adaptation, silent = np.empty_like(membrane), np.empty_like(membrane)
        grad_membrane, grad_adaptation = np.zeros_like(membrane), np.zeros_like(membrane)
        filtered, grad_spikes = np.empty(width, saved.dtype), np.zeros(width, saved.dtype)
        drive, grad_drive = np.empty_like(filtered), np.empty_like(filtered)
        n_spikes = np.empty_like(filtered)
        margins = np.zeros((n_trials * CHUNK, width), saved.dtype)  # CHUNK rows per trial
        membranes, adaptations = np.empty_like(margins), np.empty_like(margins)
        silents, slopes = np.empty_like(margins), np.empty_like(margins)
        filters = np.empty((CHUNK, width), saved.dtype)
        chunk_sums = np.zeros((6, width), saved.dtype)
        for chunk in range((n_steps - 1) // CHUNK, -1, -1):
            begin, end = chunk * CHUNK, min(n_steps, chunk * CHUNK + CHUNK)
            membrane[:] = saved[:n_trials, chunk, start:stop]
            adaptation[:] = saved[n_trials : 2 * n_trials, chunk, start:stop]
            silent[:] = saved[2 * n_trials : -1, chunk, start:stop]
            filtered[:] = saved[-1, chunk, start:stop]
            for t in range(begin, end):
                k = t - begin
                driven_by = _spread(current[t], start, inputs.n_starts, cell, values)
                for trial in range(n_trials):
                    draw = _draw(draws, t, trial, start, inputs.n_neurons, segment, own_draw)
                    _drive(driven_by, draw, own.weight, own.bias, own.noise, drive)
                    _replay(
                        trial, trial * CHUNK + k, drive, own.beta, own.p, own.b, model, constants,
                        membrane, adaptation, silent, membranes, adaptations, silents, margins,
                    )  # fmt: skip
                wanted = _spread(target[t], start, inputs.n_starts, cell, targets)
                _replay_comparison(k, margins, n_spikes, share, wanted, decay, filtered, filters)
            surrogate_derivative(surrogate, slope_constants, margins.ravel(), slopes.ravel())
            for t in range(end - 1, begin - 1, -1):
                k = t - begin
                counts = real(1.0) if window.first <= t < window.split else real(0.0)
                _adjoint(filters[k], scale_, decay, counts, grad_spikes)
                driven_by = _spread(current[t], start, inputs.n_starts, cell, values)
                for trial in range(n_trials):
                    draw = _draw(draws, t, trial, start, inputs.n_neurons, segment, own_draw)
                    _reverse(
                        trial, trial * CHUNK + k, grad_spikes, margins, slopes, membranes,
                        adaptations, silents, own.beta, own.p, own.b, model, constants,
                        grad_membrane, grad_adaptation, grad_drive, chunk_sums[0], chunk_sums[1],
                        chunk_sums[2],
                    )  # fmt: skip
                    _add_drive_gradient(
                        grad_drive, driven_by, draw, chunk_sums[3], chunk_sums[4], chunk_sums[5]
                    )
            for j in range(5 if inputs.draws is None else 6):
                _flush(chunk_sums[j], sums[j, start:stop])
