"""Squared van Rossum distance of many simulated trains to a few recorded ones.

van Rossum 2001, "A novel spike distance". `distance_cpu.py` computes it together with the neurons
in one pass; this is the reference it is tested against.
"""

import warnings
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from blockspike.neurons.readout import leaky_integrate

Trains = Tensor | ArrayLike
"""Spike trains as a tensor, an array or nested lists, of any real type."""


class Window(NamedTuple):
    """Steps that are compared: first … split − 1 are fitted, split … last − 1 are held out.

    ``split`` and ``last`` are numbers, or tensors [B, C] if segments are of different length; 0
    where there is no segment.
    """

    first: int
    split: int | Tensor
    last: int | Tensor

    @property
    def holds_out(self) -> bool:
        """Whether any segment has held-out steps."""
        return bool((torch.as_tensor(self.last) > torch.as_tensor(self.split)).any())

    def of_segments(self, batch_size: int, n_cells: int) -> tuple[Tensor, Tensor]:
        """``split`` and ``last`` of each segment and cell, int64 [B, C] on the CPU."""
        split, last = (
            torch.as_tensor(x, dtype=torch.int64, device="cpu").expand(batch_size, n_cells)
            for x in (self.split, self.last)
        )
        return split, last

    def masks(self, shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Whether each step is fitted, and whether it is held out, bool of shape [T, B, C] each."""
        n_steps, batch_size, n_cells = shape
        steps = torch.arange(n_steps, device=device).view(-1, 1, 1)
        split, last = (x.to(device) for x in self.of_segments(batch_size, n_cells))
        return (self.first <= steps) & (steps < split), (split <= steps) & (steps < last)

    def sums(self, values: Tensor, n_cells: int) -> tuple[Tensor, Tensor]:
        """Sums of values [T, B, N] over the fitted and over the held-out steps, [B, N] each.

        Only the first carries a gradient.
        """
        n_steps, batch_size, n = values.shape
        is_fitted, is_held_out = (
            x.repeat_interleave(n // n_cells, 2)
            for x in self.masks((n_steps, batch_size, n_cells), values.device)
        )
        zero = values.new_zeros(())
        held_out = torch.where(is_held_out, values.detach(), zero)
        return torch.where(is_fitted, values, zero).sum(0), held_out.sum(0)


def squared_distance(
    spikes: Trains, target: Trains, decay: float, window: Window
) -> tuple[Tensor, Tensor]:
    """Σ f[t]² with f[t] = decay · f[t−1] + spikes[t] − target[t], from f = 0.

    Multiplied by dt/τ, with decay = exp(−dt/τ), it is the square of the van Rossum distance. The
    target may be the mean over trials; the mean of the squared distances to the single trials
    differs from the distance to their mean only by a constant.

    Args:
        spikes: simulated trains [T, B, N], N = C · K: K consecutive trains for each of C targets.
        target: recorded trains [T, B, C].
        decay: decay factor of the filter per step.
        window: 0 ≤ first ≤ split ≤ last ≤ T, of each segment and target.

    Returns:
        Sums over the fitted and over the held-out steps, tensors [B, N]. Only the first carries a
        gradient, and only to the spikes.

    Raises:
        ValueError: shapes or the window do not fit.
    """
    spikes, target = float_tensors(spikes=spikes, target=target)
    check_target(target, spikes.shape, window)
    n_cells = target.shape[2]
    difference = (spikes.unflatten(2, (n_cells, -1)) - target.unsqueeze(3)).flatten(2)
    f = leaky_integrate(difference, difference.new_full(difference.shape[2:], decay))
    return window.sums(f.square(), n_cells)


def check_target(target: Tensor, shape: torch.Size, window: Window) -> None:
    """Raise ValueError unless `target` and `window` fit simulated trains of `shape` [T, B, N]."""
    if len(shape) != 3:
        raise ValueError(f"spikes: expected [T, B, N], got {list(shape)}")
    n_steps, batch_size, n = shape
    if target.ndim != 3 or target.shape[:2] != shape[:2] or n % max(target.shape[2], 1):
        raise ValueError(
            f"target: expected [{n_steps}, {batch_size}, a divisor of {n}], "
            f"got {list(target.shape)}"
        )
    split, last = window.of_segments(batch_size, target.shape[2])
    begins = (window.first <= split) | (last == 0)  # or there is no segment
    ordered = begins & (split >= 0) & (split <= last) & (last <= n_steps)
    if window.first < 0 or not ordered.all():
        raise ValueError(f"window: expected 0 ≤ first ≤ split ≤ last ≤ {n_steps}, got {window}")


def float_tensors(**trains: Trains) -> list[Tensor]:
    """Convert trains to tensors of one dtype, float32 or float64, on one device.

    The device is that of the first tensor, else the CPU. Integers and bools take the dtype of the
    other trains, or float64 if there is no other.

    Raises:
        ValueError: values are not real numbers, or rows differ in length; names the argument.
    """
    tensors = [_real_tensor(name, train) for name, train in trains.items()]
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors))
    if not dtype.is_floating_point:
        dtype = torch.float64
    dtype = torch.promote_types(dtype, torch.float32)  # half precision is too coarse for sums
    devices = [x.device for x in trains.values() if isinstance(x, Tensor)]
    return [x.to(devices[0] if devices else "cpu", dtype) for x in tensors]


def _real_tensor(name: str, train: Trains) -> Tensor:
    if isinstance(train, Tensor) and not train.is_complex():
        return train
    array = _array(train)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected real numbers in rows of one length, got {train!r:.80}")
    wide = np.float64 if array.itemsize > 4 else np.float32
    dtype = wide if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.array(array, dtype, order="C"))  # a copy: it may be read-only


def _array(train: Trains) -> np.ndarray:
    """Convert to a NumPy array; an array of objects if lengths differ.

    Some versions of NumPy warn of such rows, others raise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(train)
    except ValueError:
        return np.array(None)
