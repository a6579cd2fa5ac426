"""Drive, ALIF neurons without recurrence and van Rossum distance in one pass (Numba).

What `alif(weight · current + bias)` and then `squared_distance` compute, spikes and gradients,
without an array of drives, spikes or filtered differences: the state every CHUNK steps is all that
is kept, from which backward repeats them. The steps are those of `step.py`; the readable twin is
`NeuronPopulation.distance_in_steps`.
"""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.alif.step import ALIF
from blockspike.neurons.kernels import borrowed, kernel, kernel_with_fma, run
from blockspike.neurons.model_cpu import numbers, reverse_step, step
from blockspike.neurons.spike_distance import Window
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.surrogate_cpu import surrogate_code, surrogate_derivative
from blockspike.neurons.tiles_cpu import CHUNK, columns, tile_width
from blockspike.neurons.trace import check_finite


def fitting_distance(
    current: Tensor,
    target: Tensor,
    beta: Tensor,
    p: Tensor,
    b: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    arp: int,
    surrogate: Surrogate,
    decay: float,
    window: Window,
) -> tuple[Tensor, Tensor]:
    """Sums of squared filtered differences over fitted and held-out steps, [B, N] each.

    Args:
        current, target: [T, B, C] of C cells; counts of one trial as uint8 are read faster.
        beta, p, b, weight, bias: [N], N = C · K, K starts after another for each cell. The fitted
            sum is differentiable in these.
        arp: refractory period in steps.
        surrogate: the derivative of the spike; that in the reset carries no gradient.
        decay, window: as `squared_distance`.

    Raises:
        ValueError: the membrane did not stay finite.
    """
    fitted, held_out = _FittingDistance.apply(  # pyright: ignore
        current, target, beta, p, b, weight, bias, arp, surrogate, decay, window
    )
    return fitted, held_out


class _FittingDistance(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, target, beta, p, b, weight, bias, arp: int, surrogate, decay, window
    ):  # fmt: skip
        n_steps, batch_size, n_cells = current.shape
        n_columns = batch_size * len(beta)
        rows = [x.reshape(n_steps, -1).contiguous() for x in (current.to(beta.dtype), target)]
        # membrane, adaptation, silent steps, filter
        saved = beta.new_empty(4, -(-n_steps // CHUNK), n_columns)
        sums = torch.zeros(2, n_columns, dtype=torch.float64)
        last_state = beta.new_empty(n_columns)
        drive = rows[0].numpy()
        ctx.arguments = (
            len(beta) // n_cells,
            *(columns(x, batch_size) for x in (beta, p, b, weight, bias)),
            ALIF, numbers((min(arp, n_steps),), drive), drive.dtype.type(decay), *window,
            tile_width(n_columns, None),
        )  # fmt: skip
        run(
            _forward, -(-n_columns // ctx.arguments[-1]), *(x.numpy() for x in rows),
            *ctx.arguments, saved.numpy(), sums.numpy(), last_state.numpy(),
        )  # fmt: skip
        check_finite(last_state.view(batch_size, -1), current)
        ctx.save_for_backward(*rows, saved)
        ctx.surrogate, ctx.batch_size = surrogate, batch_size
        fitted, held_out = sums.to(beta.dtype).view(2, batch_size, -1)
        ctx.mark_non_differentiable(held_out)
        return fitted, held_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        *rows, saved = ctx.saved_tensors
        scale = 2 * grads[0].reshape(-1).contiguous()
        sums = torch.zeros(5, len(scale), dtype=torch.float64)
        run(
            _backward, -(-len(scale) // ctx.arguments[-1]), *(x.numpy() for x in rows),
            *ctx.arguments, saved.numpy(), scale.numpy(), surrogate_code(ctx.surrogate),
            sums.numpy(),
        )  # fmt: skip
        per_neuron = sums.view(5, ctx.batch_size, -1).sum(1).to(saved.dtype)
        return None, None, *per_neuron, None, None, None, None


@kernel
def _cells(start, n_starts, width):
    """The cell of each column of a tile."""
    return (np.arange(start, start + width) // n_starts).astype(np.int32)


@kernel
def _cell_values(row, start, n_starts, cell, out):
    """The values of each column's cell; with one start each, the row itself."""
    if n_starts == 1:
        return row[start : start + cell.size]
    for i in range(cell.size):
        out[i] = row[cell[i]]
    return out


@kernel
def _advance(
    current, wanted, weight, bias, beta, p, b, model, constants, decay, counts, membrane,
    adaptation, silent, filtered, total,
):  # fmt: skip
    """One step of one tile: drive, neuron, filter and, where it counts, the square."""
    real = type(decay)
    for i in range(membrane.size):
        drive = current[i] * weight[i] + bias[i]
        s, _, after = step(
            model, drive, (beta[i], p[i], b[i]), constants,
            (membrane[i], adaptation[i], silent[i]),
        )  # fmt: skip
        membrane[i], adaptation[i], silent[i] = after
        f = decay * filtered[i] + (s - real(wanted[i]))
        filtered[i] = f
        total[i] += counts * f * f


@kernel
def _flush(total, out):
    """To float64, so that long recordings lose nothing."""
    for i in range(total.size):
        out[i] += total[i]
        total[i] = 0


@kernel
def _forward(
    first_tile, last_tile, current, target, n_starts, beta, p, b, weight, bias, model, constants,
    decay, first, split, last, tile, saved, sums, last_state,
):  # fmt: skip
    n_steps, n_columns = len(current), sums.shape[1]
    current, target = borrowed(current), borrowed(target)
    real = saved.dtype.type
    for start in range(first_tile * tile, min(n_columns, last_tile * tile), tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_ = beta[start:stop], p[start:stop], b[start:stop]
        weight_, bias_ = weight[start:stop], bias[start:stop]
        membrane, adaptation = np.zeros(width, saved.dtype), np.zeros(width, saved.dtype)
        silent, filtered = np.zeros_like(membrane), np.zeros_like(membrane)
        total = np.zeros_like(membrane)
        values, targets = np.empty_like(membrane), np.empty(width, target.dtype)
        cell = _cells(start, n_starts, width)
        for t in range(n_steps):
            if t % CHUNK == 0:
                saved[0, t // CHUNK, start:stop] = membrane
                saved[1, t // CHUNK, start:stop] = adaptation
                saved[2, t // CHUNK, start:stop] = silent
                saved[3, t // CHUNK, start:stop] = filtered
            driven_by = _cell_values(current[t], start, n_starts, cell, values)
            wanted = _cell_values(target[t], start, n_starts, cell, targets)
            counts = real(1.0) if first <= t < last else real(0.0)
            _advance(
                driven_by, wanted, weight_, bias_, beta_, p_, b_, model, constants, decay, counts,
                membrane, adaptation, silent, filtered, total,
            )  # fmt: skip
            if (t + 1) % 1024 == 0 or t + 1 == split or t + 1 == n_steps:
                _flush(total, sums[0 if t < split else 1, start:stop])
        last_state[start:stop] = membrane


@kernel
def _replay(
    k, current, weight, bias, beta, p, b, model, constants, membrane, adaptation, silent,
    membranes, adaptations, silents, margins,
):  # fmt: skip
    """Repeat step k of a chunk; its margin and the state before it go to arrays [CHUNK, tile]."""
    for i in range(membrane.size):
        before = (membrane[i], adaptation[i], silent[i])
        membranes[k, i], adaptations[k, i], silents[k, i] = before
        drive = current[i] * weight[i] + bias[i]
        _, margins[k, i], after = step(model, drive, (beta[i], p[i], b[i]), constants, before)
        membrane[i], adaptation[i], silent[i] = after


@kernel_with_fma
def _replay_filter(k, margins, wanted, decay, filtered, out):
    """Repeat the filter of step k of a chunk; a spike is a margin above 0."""
    real = filtered.dtype.type
    for i in range(filtered.size):
        s = real(1.0) if margins[k, i] > real(0.0) else real(0.0)
        filtered[i] = decay * filtered[i] + (s - real(wanted[i]))
        out[k, i] = filtered[i]


@kernel_with_fma
def _reverse(
    k, grad_spikes, margins, slopes, membranes, adaptations, silents, beta, p, b, model, constants,
    grad_membrane, grad_adaptation, grad_current, sum_beta, sum_p, sum_b,
):  # fmt: skip
    """Backpropagation through step k of a chunk, for one tile; ALIF's does not need the drive."""
    none = grad_spikes.dtype.type(0.0)
    for i in range(grad_spikes.size):
        grad_current[i], to_parameters, to_states = reverse_step(
            model, none, (beta[i], p[i], b[i]), constants,
            (membranes[k, i], adaptations[k, i], silents[k, i]), margins[k, i], slopes[k, i],
            grad_spikes[i], none, (grad_membrane[i], grad_adaptation[i]),
        )  # fmt: skip
        grad_membrane[i], grad_adaptation[i] = to_states
        sum_beta[i] += to_parameters[0]
        sum_p[i] += to_parameters[1]
        sum_b[i] += to_parameters[2]


@kernel_with_fma
def _adjoint(filtered, scale, decay, counts, state):
    for i in range(state.size):
        state[i] = decay * state[i] + counts * scale[i] * filtered[i]


@kernel_with_fma
def _add_drive_gradient(grad_drive, values, sum_weight, sum_bias):
    for i in range(grad_drive.size):
        sum_weight[i] += grad_drive[i] * values[i]
        sum_bias[i] += grad_drive[i]


@kernel
def _backward(
    first_tile, last_tile, current, target, n_starts, beta, p, b, weight, bias, model, constants,
    decay, first, split, last, tile, saved, scale, surrogate, sums,
):  # fmt: skip
    n_steps, n_columns = len(current), sums.shape[1]
    current, target = borrowed(current), borrowed(target)
    real = saved.dtype.type
    for start in range(first_tile * tile, min(n_columns, last_tile * tile), tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_, scale_ = beta[start:stop], p[start:stop], b[start:stop], scale[start:stop]
        weight_, bias_ = weight[start:stop], bias[start:stop]
        grad_membrane = np.zeros(width, saved.dtype)
        grad_adaptation, grad_spikes = np.zeros_like(grad_membrane), np.zeros_like(grad_membrane)
        grad_drive, values = np.empty_like(grad_membrane), np.empty_like(grad_membrane)
        membrane, adaptation = np.empty_like(grad_membrane), np.empty_like(grad_membrane)
        silent, filtered = np.empty_like(grad_membrane), np.empty_like(grad_membrane)
        cell = _cells(start, n_starts, width)
        targets = np.empty(width, target.dtype)
        margins = np.empty((CHUNK, width), saved.dtype)
        membranes, adaptations = np.empty_like(margins), np.empty_like(margins)
        silents, slopes, filters = (
            np.empty_like(margins), np.empty_like(margins), np.empty_like(margins),
        )  # fmt: skip
        own = np.zeros((5, width), saved.dtype)  # sums of a chunk
        for chunk in range((n_steps - 1) // CHUNK, -1, -1):
            begin, end = chunk * CHUNK, min(n_steps, chunk * CHUNK + CHUNK)
            membrane[:] = saved[0, chunk, start:stop]
            adaptation[:] = saved[1, chunk, start:stop]
            silent[:] = saved[2, chunk, start:stop]
            filtered[:] = saved[3, chunk, start:stop]
            for t in range(begin, end):
                k = t - begin
                driven_by = _cell_values(current[t], start, n_starts, cell, values)
                _replay(
                    k, driven_by, weight_, bias_, beta_, p_, b_, model, constants, membrane,
                    adaptation, silent, membranes, adaptations, silents, margins,
                )  # fmt: skip
                wanted = _cell_values(target[t], start, n_starts, cell, targets)
                _replay_filter(k, margins, wanted, decay, filtered, filters)
            used = (end - begin) * width
            surrogate_derivative(surrogate, margins.ravel()[:used], slopes.ravel()[:used])
            for t in range(end - 1, begin - 1, -1):
                k = t - begin
                counts = real(1.0) if first <= t < split else real(0.0)
                _adjoint(filters[k], scale_, decay, counts, grad_spikes)
                _reverse(
                    k, grad_spikes, margins, slopes, membranes, adaptations, silents, beta_, p_,
                    b_, model, constants, grad_membrane, grad_adaptation, grad_drive, own[0],
                    own[1], own[2],
                )  # fmt: skip
                driven_by = _cell_values(current[t], start, n_starts, cell, values)
                _add_drive_gradient(grad_drive, driven_by, own[3], own[4])
            for j in range(5):
                _flush(own[j], sums[j, start:stop])
