"""Drive, ALIF neurons without recurrence and van Rossum distance in one pass (Numba).

What `alif(weight · current + bias)` and then `squared_distance` compute, spikes and gradients,
without an array of drives, spikes or filtered differences: per neuron and step only the margin
V − θ is kept. The single steps are those of `strips_cpu.py`; the readable twin is
`NeuronPopulation.distance_in_steps`.
"""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.alif.strips_cpu import neuron_step, replay_step, reverse_step
from blockspike.neurons.alif.tiles_cpu import CHUNK, columns, tile_width
from blockspike.neurons.alif.trace import check_finite
from blockspike.neurons.kernels import borrowed, kernel, kernel_with_fma, run
from blockspike.neurons.spike_distance import Window
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.surrogate_cpu import surrogate_code, surrogate_derivative


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
        margin = beta.new_empty(n_steps, n_columns)
        saved = beta.new_empty(2, -(-n_steps // CHUNK), n_columns)  # adaptation, filter
        silent = torch.empty(saved.shape[1:], dtype=torch.int32)
        sums = torch.zeros(2, n_columns, dtype=torch.float64)
        last_state = beta.new_empty(n_columns)
        ctx.arguments = (
            len(beta) // n_cells,
            *(columns(x, batch_size) for x in (beta, p, b, weight, bias)),
            np.int32(min(arp, n_steps)), rows[0].numpy().dtype.type(decay), *window,
            tile_width(n_columns, None),
        )  # fmt: skip
        run(
            _forward, -(-n_columns // ctx.arguments[-1]), *(x.numpy() for x in rows),
            *ctx.arguments, margin.numpy(), *saved.numpy(), silent.numpy(), sums.numpy(),
            last_state.numpy(),
        )  # fmt: skip
        check_finite(last_state.view(batch_size, -1), current)
        ctx.save_for_backward(*rows, margin, saved, silent)
        ctx.surrogate, ctx.batch_size = surrogate, batch_size
        fitted, held_out = sums.to(beta.dtype).view(2, batch_size, -1)
        ctx.mark_non_differentiable(held_out)
        return fitted, held_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        *rows, margin, saved, silent = ctx.saved_tensors
        scale = 2 * grads[0].reshape(-1).contiguous()
        sums = torch.zeros(5, margin.shape[1], dtype=torch.float64)
        run(
            _backward, -(-margin.shape[1] // ctx.arguments[-1]), *(x.numpy() for x in rows),
            *ctx.arguments, margin.numpy(), *saved.numpy(), silent.numpy(), scale.numpy(),
            surrogate_code(ctx.surrogate), sums.numpy(),
        )  # fmt: skip
        per_neuron = sums.view(5, ctx.batch_size, -1).sum(1).to(margin.dtype)
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
    current, wanted, weight, bias, beta, p, b, arp, decay, counts, state, adaptation, silent,
    filtered, total, margin,
):  # fmt: skip
    """One step of one tile: drive, neuron, filter and, where it counts, the square."""
    real = type(decay)
    for i in range(state.size):
        drive = current[i] * weight[i] + bias[i]
        s, margin[i], state[i], adaptation[i], silent[i] = neuron_step(
            drive, beta[i], p[i], b[i], arp, state[i], adaptation[i], silent[i]
        )
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
    first_tile, last_tile, current, target, n_starts, beta, p, b, weight, bias, arp, decay, first,
    split, last, tile, margin, saved_adaptation, saved_filter, saved_silent, sums, last_state,
):  # fmt: skip
    n_steps, n_columns = margin.shape
    current, target, margin = borrowed(current), borrowed(target), borrowed(margin)
    real = margin.dtype.type
    for start in range(first_tile * tile, min(n_columns, last_tile * tile), tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_ = beta[start:stop], p[start:stop], b[start:stop]
        weight_, bias_ = weight[start:stop], bias[start:stop]
        state = np.zeros(width, margin.dtype)
        adaptation, filtered = np.zeros_like(state), np.zeros_like(state)
        total = np.zeros_like(state)
        silent = np.zeros(width, np.int32)
        values, targets = np.empty_like(state), np.empty(width, target.dtype)
        cell = _cells(start, n_starts, width)
        for t in range(n_steps):
            if t % CHUNK == 0:
                saved_adaptation[t // CHUNK, start:stop] = adaptation
                saved_filter[t // CHUNK, start:stop] = filtered
                saved_silent[t // CHUNK, start:stop] = silent
            driven_by = _cell_values(current[t], start, n_starts, cell, values)
            wanted = _cell_values(target[t], start, n_starts, cell, targets)
            counts = real(1.0) if first <= t < last else real(0.0)
            _advance(
                driven_by, wanted, weight_, bias_, beta_, p_, b_, arp, decay, counts, state,
                adaptation, silent, filtered, total, margin[t, start:stop],
            )  # fmt: skip
            if (t + 1) % 1024 == 0 or t + 1 == split or t + 1 == n_steps:
                _flush(total, sums[0 if t < split else 1, start:stop])
        last_state[start:stop] = state


@kernel
def _replay(k, margin, p, arp, adaptation, silent, margins, adaptations, opens):
    """Repeat adaptation and refractoriness of step k of a chunk into the arrays [CHUNK, tile]."""
    real = margin.dtype.type
    for i in range(margin.size):
        margins[k, i] = margin[i]
        adaptations[k, i] = adaptation[i]
        opens[k, i] = real(1.0) if silent[i] == 0 else real(0.0)
        adaptation[i], silent[i] = replay_step(margin[i], p[i], arp, adaptation[i], silent[i])


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
    k, grad_spikes, margins, slopes, adaptations, opens, beta, p, b, attached, grad_membrane,
    grad_adaptation, grad_current, sum_beta, sum_p, sum_b,
):  # fmt: skip
    """Backpropagation through step k of a chunk, for one tile."""
    for i in range(grad_spikes.size):
        grad_membrane[i], grad_adaptation[i], grad_current[i], to_beta, to_p, to_b = reverse_step(
            grad_spikes[i], margins[k, i], slopes[k, i], adaptations[k, i], opens[k, i],
            beta[i], p[i], b[i], attached, grad_membrane[i], grad_adaptation[i],
        )  # fmt: skip
        sum_beta[i] += to_beta
        sum_p[i] += to_p
        sum_b[i] += to_b


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
    first_tile, last_tile, current, target, n_starts, beta, p, b, weight, bias, arp, decay, first,
    split, last, tile, margin, saved_adaptation, saved_filter, saved_silent, scale, surrogate, sums,
):  # fmt: skip
    n_steps, n_columns = margin.shape
    current, target, margin = borrowed(current), borrowed(target), borrowed(margin)
    real = margin.dtype.type
    for start in range(first_tile * tile, min(n_columns, last_tile * tile), tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_, scale_ = beta[start:stop], p[start:stop], b[start:stop], scale[start:stop]
        grad_membrane = np.zeros(width, margin.dtype)
        grad_adaptation, grad_spikes = np.zeros_like(grad_membrane), np.zeros_like(grad_membrane)
        grad_drive, values = np.empty_like(grad_membrane), np.empty_like(grad_membrane)
        adaptation, filtered = np.empty_like(grad_membrane), np.empty_like(grad_membrane)
        silent, cell = np.empty(width, np.int32), _cells(start, n_starts, width)
        targets = np.empty(width, target.dtype)
        margins = np.empty((CHUNK, width), margin.dtype)
        adaptations, opens = np.empty_like(margins), np.empty_like(margins)
        slopes, filters = np.empty_like(margins), np.empty_like(margins)
        own = np.zeros((5, width), margin.dtype)  # sums of a chunk
        for chunk in range((n_steps - 1) // CHUNK, -1, -1):
            begin, end = chunk * CHUNK, min(n_steps, chunk * CHUNK + CHUNK)
            adaptation[:] = saved_adaptation[chunk, start:stop]
            filtered[:] = saved_filter[chunk, start:stop]
            silent[:] = saved_silent[chunk, start:stop]
            for t in range(begin, end):
                k = t - begin
                u = margin[t, start:stop]
                _replay(k, u, p_, arp, adaptation, silent, margins, adaptations, opens)
                wanted = _cell_values(target[t], start, n_starts, cell, targets)
                _replay_filter(k, margins, wanted, decay, filtered, filters)
            used = (end - begin) * width
            surrogate_derivative(surrogate, margins.ravel()[:used], slopes.ravel()[:used])
            for t in range(end - 1, begin - 1, -1):
                k = t - begin
                counts = real(1.0) if first <= t < split else real(0.0)
                _adjoint(filters[k], scale_, decay, counts, grad_spikes)
                _reverse(
                    k, grad_spikes, margins, slopes, adaptations, opens, beta_, p_, b_, real(0.0),
                    grad_membrane, grad_adaptation, grad_drive, own[0], own[1], own[2],
                )  # fmt: skip
                driven_by = _cell_values(current[t], start, n_starts, cell, values)
                _add_drive_gradient(grad_drive, driven_by, own[3], own[4])
            for j in range(5):
                _flush(own[j], sums[j, start:stop])
