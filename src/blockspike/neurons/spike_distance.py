"""Squared van Rossum distance of many simulated trains to a few recorded ones.

van Rossum 2001, "A novel spike distance". `alif/fitting_cpu.py` computes the same in one pass with
the neurons; this is what it is checked against.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from blockspike.neurons.readout import leaky_integrate


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
    check_target(target, spikes.shape, window)
    n_cells = target.shape[2]
    difference = (spikes.unflatten(2, (n_cells, -1)) - target.unsqueeze(3)).flatten(2)
    f = leaky_integrate(difference, difference.new_full(difference.shape[2:], decay))
    fitted = f[window.first : window.split].square().sum(0)
    return fitted, f.detach()[window.split : window.last].square().sum(0)


def check_target(target: Tensor, shape: torch.Size, window: Window) -> None:
    """Raise ValueError unless `target` and `window` fit simulated trains of `shape` [T, B, N]."""
    n_steps, batch_size, n = shape
    if target.ndim != 3 or target.shape[:2] != shape[:2] or n % target.shape[2]:
        raise ValueError(
            f"target: expected [{n_steps}, {batch_size}, a divisor of {n}], "
            f"got {list(target.shape)}"
        )
    if not 0 <= window.first <= window.split <= window.last <= n_steps:
        raise ValueError(f"window: expected 0 ≤ first ≤ split ≤ last ≤ {n_steps}, got {window}")
