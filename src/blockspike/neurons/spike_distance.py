"""Squared van Rossum distance of many simulated trains to a few recorded ones, in one pass.

van Rossum 2001, "A novel spike distance". The readable twin is `blockspike.metrics.
van_rossum_distance`, which a test compares with this.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.kernels import borrowed, kernel, run
from blockspike.neurons.readout import leaky_integrate

_TILE = (
    128  # columns of a tile: its state stays in the L1 cache, and there are enough for all threads
)


class Window(NamedTuple):
    """Steps that count: first … split − 1 are fitted to, split … last − 1 are held out."""

    first: int
    split: int
    last: int


def squared_distance(
    spikes: Tensor, target: Tensor, decay: float, window: Window
) -> tuple[Tensor, Tensor]:
    """Σ f[t]² with f[t] = decay · f[t−1] + spikes[t] − target[t], from f = 0.

    Times dt/τ, with decay = exp(−dt/τ), it is the square of the van Rossum distance. The target
    may be the mean over trials: the mean over trials of the squared distance differs from that by
    a constant.

    Args:
        spikes: [T, B, N], N = C · K: K simulated trains after another for each of C targets.
        target: [T, B, C] recorded trains.
        decay: of the filter, per step.
        window: 0 ≤ first ≤ split ≤ last ≤ T.

    Returns:
        Sums over the fitted and over the held-out steps, [B, N] each. Only the first carries
        gradient, and only to the spikes.

    Raises:
        ValueError: shapes or the window do not fit.
    """
    n_steps, batch_size, n = spikes.shape
    if target.shape[:2] != spikes.shape[:2] or n % target.shape[2]:
        raise ValueError(
            f"target: expected [{n_steps}, {batch_size}, a divisor of {n}], "
            f"got {list(target.shape)}"
        )
    if not 0 <= window.first <= window.split <= window.last <= n_steps:
        raise ValueError(f"window: expected 0 ≤ first ≤ split ≤ last ≤ {n_steps}, got {window}")
    if spikes.device.type != "cpu":
        return _by_whole_arrays(spikes, target, decay, window)
    fitted, held_out = _SquaredDistance.apply(spikes, target, decay, window)  # pyright: ignore
    return fitted, held_out


def _by_whole_arrays(
    spikes: Tensor, target: Tensor, decay: float, window: Window
) -> tuple[Tensor, Tensor]:
    difference = spikes - target.repeat_interleave(spikes.shape[2] // target.shape[2], 2)
    f = leaky_integrate(difference, difference.new_full(difference.shape[2:], decay))
    square = f.square()
    fitted = square[window.first : window.split].sum(0)
    return fitted, square[window.split : window.last].sum(0).detach()


class _SquaredDistance(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spikes: Tensor, target: Tensor, decay: float, window: Window):
        n_steps, batch_size, n = spikes.shape
        flat = spikes.detach().reshape(n_steps, -1).contiguous()
        n_columns = flat.shape[1]
        sums = torch.zeros(2, n_columns, dtype=torch.float64)
        filtered = torch.empty_like(flat)
        repeated = target.to(flat.dtype).reshape(n_steps, -1).contiguous()
        run(
            _filter, -(-n_columns // _TILE), flat.numpy(), repeated.numpy(),
            n // target.shape[2], flat.numpy().dtype.type(decay), *window, filtered.numpy(),
            sums.numpy(),
        )  # fmt: skip
        ctx.save_for_backward(filtered)
        ctx.decay, ctx.window, ctx.shape = decay, window, spikes.shape
        fitted, held_out = sums.to(flat.dtype).view(2, batch_size, n)
        ctx.mark_non_differentiable(held_out)
        return fitted, held_out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (filtered,) = ctx.saved_tensors
        scale = 2 * grads[0].reshape(-1).contiguous()
        out = torch.empty_like(filtered)
        run(
            _adjoint, -(-filtered.shape[1] // _TILE), filtered.numpy(), scale.numpy(),
            filtered.numpy().dtype.type(ctx.decay), *ctx.window, out.numpy(),
        )  # fmt: skip
        return out.view(ctx.shape), None, None, None


@kernel
def _filter(
    first_tile, last_tile, spikes, target, n_starts, decay, first, split, last, filtered, sums
):
    n_steps, n_columns = spikes.shape
    spikes, target, filtered = borrowed(spikes), borrowed(target), borrowed(filtered)
    for start in range(first_tile * _TILE, min(n_columns, last_tile * _TILE), _TILE):
        width = min(n_columns, start + _TILE) - start
        state = np.zeros(width, spikes.dtype)
        total = np.zeros(width, spikes.dtype)
        of_cell = np.empty(width, np.int64)
        for i in range(width):
            of_cell[i] = (start + i) // n_starts
        wanted = np.empty(width, spikes.dtype)
        for t in range(n_steps):
            row, out = spikes[t, start : start + width], filtered[t, start : start + width]
            if n_starts == 1:
                wanted = target[t, start : start + width]
            else:
                _spread(target[t], of_cell, wanted)
            _filter_step(row, wanted, decay, state, out)
            if first <= t < last:
                _add_squares(state, total)
            if (t + 1) % 1024 == 0 or t + 1 == split or t + 1 == n_steps:
                _flush(total, sums[0 if t < split else 1, start : start + width])


@kernel
def _spread(target, of_cell, wanted):
    for i in range(wanted.size):
        wanted[i] = target[of_cell[i]]


@kernel
def _filter_step(row, wanted, decay, state, out):
    for i in range(row.size):
        state[i] = decay * state[i] + (row[i] - wanted[i])
        out[i] = state[i]


@kernel
def _add_squares(state, total):
    for i in range(state.size):
        total[i] += state[i] * state[i]


@kernel
def _flush(total, out):
    """To float64, so that long recordings lose nothing."""
    for i in range(total.size):
        out[i] += total[i]
        total[i] = 0


@kernel
def _adjoint(first_tile, last_tile, filtered, scale, decay, first, split, last, out):
    n_steps, n_columns = filtered.shape
    filtered, out = borrowed(filtered), borrowed(out)
    for start in range(first_tile * _TILE, min(n_columns, last_tile * _TILE), _TILE):
        stop = min(n_columns, start + _TILE)
        state = np.zeros(stop - start, filtered.dtype)
        own_scale = scale[start:stop]
        for t in range(n_steps - 1, -1, -1):
            counts = filtered.dtype.type(1 if first <= t < split else 0)
            _adjoint_step(
                filtered[t, start:stop], own_scale, decay, counts, state, out[t, start:stop]
            )


@kernel
def _adjoint_step(filtered, scale, decay, counts, state, out):
    for i in range(filtered.size):
        state[i] = decay * state[i] + counts * scale[i] * filtered[i]
        out[i] = state[i]
