"""Shared by the CPU kernels of all methods: tiles of columns, and recurrence event by event.

Kernels treat [T, B, N] as T rows of B·N columns and take one tile of columns at a time. With
recurrence, a tile holds whole samples, and each spike adds one row of weights after the delay. This
needs no matrix product, and the cost does not depend on the delay.
"""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.cpu.events import SpikeEvents, add_rows, event_weight_gradient, list_units
from blockspike.neurons.cpu.kernels import kernel, kernel_with_fma

CHUNK = 16  # steps between saved states
WIDEST_TILE = 2048  # columns of a tile, few enough that a chunk stays in the L2 cache


@kernel
def add_recurrent(row, units, n_units, weight_t, drive):
    """Set drive = row + weights of the listed units, sample by sample of [N] neurons."""
    n_neurons = weight_t.shape[1]
    for i in range(row.size):
        drive[i] = row[i]
    for sample in range(n_units.size):
        start = sample * n_neurons
        total = drive[start : start + n_neurons]
        add_rows(total, weight_t, units, start, start + n_units[sample])


@kernel
def list_spikes(spike_bytes, n_neurons, units, n_units):
    """Write the units that spiked to `units` and their counts to `n_units`, sample by sample."""
    for sample in range(n_units.size):
        own = slice(sample * n_neurons, (sample + 1) * n_neurons)
        n_units[sample] = list_units(spike_bytes[own], units[own])


@kernel_with_fma
def add_feedback(later, weight, grad_spikes):
    """Add Wᵀ later to grad_spikes: the gradient through the recurrence.

    Two samples and four rows of weights at a time halve the reads of weights and quarter those of
    sums. An odd sample is paired with itself, so that sums do not depend on how tiles are cut.
    """
    n = weight.shape[0]
    spare = np.zeros(n, grad_spikes.dtype)
    for first in range(0, grad_spikes.size, 2 * n):
        second = first + n
        total_1, total_2 = grad_spikes[first : first + n], spare
        if second < grad_spikes.size:
            total_2 = grad_spikes[second : second + n]
        else:
            second = first
        g, h = later[first : first + n], later[second : second + n]
        for post in range(0, n - 3, 4):
            g0, g1, g2, g3 = g[post], g[post + 1], g[post + 2], g[post + 3]
            h0, h1, h2, h3 = h[post], h[post + 1], h[post + 2], h[post + 3]
            w0, w1, w2, w3 = weight[post], weight[post + 1], weight[post + 2], weight[post + 3]
            for i in range(n):
                total_1[i] += g0 * w0[i] + g1 * w1[i] + (g2 * w2[i] + g3 * w3[i])
                total_2[i] += h0 * w0[i] + h1 * w1[i] + (h2 * w2[i] + h3 * w3[i])
        for post in range(n - n % 4, n):
            row = weight[post]
            for i in range(n):
                total_1[i] += g[post] * row[i]
                total_2[i] += h[post] * row[i]


def weight_array(weight: Tensor | None, like: Tensor) -> np.ndarray:
    """Recurrent weights for a kernel; without recurrence, a placeholder of the same type."""
    return (like.new_empty(1, 1) if weight is None else weight.detach().contiguous()).numpy()


def tile_width(n_columns: int, weight: Tensor | None, widest: int = WIDEST_TILE) -> int:
    """Columns per tile: every thread gets one, and recurrent tiles hold whole samples."""
    unit = 16 if weight is None else len(weight)
    per_thread = -(-n_columns // (unit * torch.get_num_threads())) * unit
    return max(unit, min(per_thread, widest // unit * unit))


def columns(x: Tensor, batch_size: int) -> np.ndarray:
    """Repeat a parameter [N] for each sample: [B·N], like the columns of flattened arrays."""
    return x.detach().repeat(batch_size).numpy()


def recurrent_weight_gradient(grad_current: Tensor, events: SpikeEvents, delay: int) -> Tensor:
    """Gradient dLoss/dW[post, pre] = Σ gI[t, post] S[t − delay, pre]."""
    n = grad_current.shape[2]
    if delay >= len(grad_current):
        return grad_current.new_zeros(n, n)
    row_ptr, unit = events.row_ptr_and_unit
    later = grad_current[delay:].flatten(0, 1).numpy()
    return torch.from_numpy(event_weight_gradient(row_ptr, unit, later, 1, 0, n))[0].T
