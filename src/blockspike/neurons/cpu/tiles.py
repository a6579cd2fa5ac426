"""Tiles: the columns of [T, B·N] that one thread takes through time, and recurrence within them.

Kernels treat [T, B, N] as T rows of B·N columns. Columns without recurrence do not depend on each
other, so a tile is any range of them. With recurrence a tile holds whole samples, here two of N
neurons each, since a spike reaches all neurons of its sample:

    columns   | sample 0: 0 … N−1 | sample 1: 0 … N−1 |  next tile …
    step t    | current + weight rows of the units that spiked at t − delay |

Each spike adds one row of weights after the delay. This needs no matrix product, and the cost does
not depend on the delay. The gradient is not sparse, so backward does use dense products.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.cpu.events import list_units, sum_rows
from blockspike.neurons.cpu.kernels import kernel_part, kernel_with_fma
from blockspike.neurons.cpu.lane_memory import BLOCK, load_block, store_lanes
from blockspike.neurons.cpu.lanes import LANES_BYTES, n_lanes

WIDEST_TILE = 2048  # columns of a tile, few enough that a chunk stays in the L2 cache


@kernel_part
def add_recurrent(row, units, n_units, weight_t, drive):
    """Set drive = row + weights of the listed units, sample by sample of [N] neurons."""
    n_neurons, rows = weight_t.shape[1], weight_t.ravel()
    for sample in range(n_units.size):
        first = sample * n_neurons
        at, last = np.uintp(first), first + n_units[sample]
        sum_rows(row, at, rows, units, first, last, drive, at, n_neurons)


@kernel_part
def list_spikes(spike_bytes, n_neurons, units, n_units):
    """Write the units that spiked to `units` and their counts to `n_units`, sample by sample."""
    for sample in range(n_units.size):
        at = np.uintp(sample * n_neurons)
        n_units[sample] = list_units(spike_bytes, at, n_neurons, units, at)


@kernel_part
def _arrives(spike_bytes, before, step, column):
    """Whether a column spiked at `step`, which is negative before the first; 0 or 1.

    An empty `before` [D, B·N] holds no spikes.
    """
    if step >= 0:
        return spike_bytes[step, column]
    if before.size > 0:
        return before[before.shape[0] + step, column]
    return np.uint8(0)


@kernel_part
def list_arriving(spike_bytes, before, t, start, delays, units, n_units):
    """List the units whose spikes arrive at step t, each after its delay, sample by sample.

    `spike_bytes` [T, B·N] and `before` [D, B·N], of the steps before the first, may be read from
    column `start` on.
    """
    n_neurons = delays.size
    for sample in range(n_units.size):
        first, count = sample * n_neurons, 0
        for n in range(n_neurons):
            units[first + count] = n  # overwritten unless it spiked, as in `list_units`
            fired = _arrives(spike_bytes, before, t - delays[n], start + first + n)
            count += np.int64(fired)
        n_units[sample] = count


@kernel_part
def add_arriving(fed, t, n_steps, delays, grad_spikes):
    """Add to grad_spikes of step t what `fed` holds of the steps at which its spikes arrive.

    `fed` [R, B·N] are the last R rows of Wᵀ gI; step t has row t mod R.
    """
    n_neurons = delays.size
    for n in range(n_neurons):
        step = t + delays[n]
        if step < n_steps:
            row = fed[step % fed.shape[0]]
            for column in range(n, grad_spikes.size, n_neurons):
                grad_spikes[column] += row[column]


@kernel_with_fma
def add_feedback(later, panels, n_neurons, grad_spikes):
    """Add Wᵀ later to grad_spikes: the gradient through the recurrence.

    Both hold samples of [N] neurons; `panels` are the weights as `weight_panels` cuts them. Four
    samples share each load of weights, and the last one stands in for missing ones. A sample's sums
    do not depend on the others.
    """
    n_samples, n = later.size // n_neurons, np.uintp(n_neurons)
    width = np.uintp(BLOCK * n_lanes(later))
    for panel in range(panels.shape[0]):
        # The panel stays in the cache for all samples. Sums of four samples are in registers; the
        # inner loop loads a block of weights and does four multiply-adds with it.
        weights, start = panels[panel].ravel(), np.uintp(panel) * width
        left = min(width, n - start)
        for sample in range(0, n_samples, 4):
            at0 = np.uintp(sample) * n
            at1 = np.uintp(min(sample + 1, n_samples - 1)) * n
            at2 = np.uintp(min(sample + 2, n_samples - 1)) * n
            at3 = np.uintp(min(sample + 3, n_samples - 1)) * n
            total0 = load_block(grad_spikes, at0 + start, left)
            total1 = load_block(grad_spikes, at1 + start, left)
            total2 = load_block(grad_spikes, at2 + start, left)
            total3 = load_block(grad_spikes, at3 + start, left)
            for post in range(n):
                row = load_block(weights, post * width, width)
                total0 = total0 + later[at0 + post] * row
                total1 = total1 + later[at1 + post] * row
                total2 = total2 + later[at2 + post] * row
                total3 = total3 + later[at3 + post] * row
            store_lanes(total0, grad_spikes, at0 + start, left, False)
            store_lanes(total1, grad_spikes, at1 + start, left, False)
            store_lanes(total2, grad_spikes, at2 + start, left, False)
            store_lanes(total3, grad_spikes, at3 + start, left, False)


def weight_panels(weight: Tensor | None, like: Tensor) -> np.ndarray:
    """Cut recurrent weights [N, N] (post, pre) into panels of columns: [panels, post, width].

    A panel is as wide as a block of vectors and lies in one piece of memory, in the order in which
    `add_feedback` reads it. The last one is filled up with zeros. Without weights, an empty array.

        weights      a a a a b b b b c c        panels    a a a a    b b b b    c c 0 0
                     a a a a b b b b c c                  a a a a    b b b b    c c 0 0
    """
    if weight is None:
        return like.new_empty(0, 0, 0).numpy()
    width = BLOCK * LANES_BYTES // like.itemsize
    n = len(weight)
    padded = F.pad(weight.detach().T, (0, 0, 0, -n % width))  # (pre, post), as layers keep them
    return padded.reshape(-1, width, n).transpose(1, 2).contiguous().numpy()


def tile_width(n_columns: int, weight: Tensor | None, widest: int = WIDEST_TILE) -> int:
    """Columns per tile: every thread gets one, and recurrent tiles hold whole samples."""
    # 16 columns fill at least a line of the cache, so threads do not write to the same one.
    unit = 16 if weight is None else len(weight)
    per_thread = -(-n_columns // (unit * torch.get_num_threads())) * unit
    return max(unit, min(per_thread, widest // unit * unit))


def columns(x: Tensor, batch_size: int) -> np.ndarray:
    """Repeat parameters [..., N] for each sample: [..., B·N], as in flattened arrays."""
    values = x.detach().numpy()  # copied, since the parameters may change before backward
    return np.array(values, order="C") if batch_size == 1 else np.tile(values, batch_size)
