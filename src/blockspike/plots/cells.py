"""Test recordings and their fitted neurons, stored with a fit for its figure and its page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

SIGMA_MS = 15.0
"""Width of the Gaussian that smooths rates."""
_RATE_STEP_MS = 5.0  # a third of the width: no more is left to resolve
_SERIES_POINTS = 6_000_000  # of all cells: at two bytes each, at most 16 MB of a page
_SERIES = 6  # current, membrane, threshold, voltage and two rates
_FEWEST_POINTS = 200


@dataclass(frozen=True)
class CellTraces:
    """Scored test segments of one cell: B segments of T steps, with the fitted neuron's answer.

    Attributes:
        name: the cell.
        titles: title of each segment [B].
        dt_ms, n_steps: length of a step, and T.
        n_recorded: recorded trials of each segment [B].
        recorded, model: spikes, int32 [n, 3]: segment, trial, step; of the recording, and of the
            first trials of the model.
        n_model: trials of the model.
        current_pa, membrane, threshold, voltage_mv: series [B, P] (see `thinned`); membrane and
            threshold of the neuron without noise, in thresholds; voltage of the first recorded
            trial, NaN where there is none, or None.
        recorded_hz, model_hz: rates smoothed by a Gaussian of `SIGMA_MS` [B, Q], every `rate_steps`
            steps; of the model, the mean of all its trials.
        etv_15ms, gamma_4ms: scores of each segment [B].
        rates: float32 [n, 4], a row per training and test segment: current in pA, recorded and
            model rate in Hz, whether it is a test segment.
        are_steps: whether `rates` are those during a step of the current, whose level is given;
            otherwise those of whole segments, with their mean current.
    """

    name: str
    titles: Sequence[str]
    dt_ms: float
    n_steps: int
    n_recorded: np.ndarray
    recorded: np.ndarray
    model: np.ndarray
    n_model: int
    current_pa: np.ndarray
    membrane: np.ndarray
    threshold: np.ndarray
    recorded_hz: np.ndarray
    model_hz: np.ndarray
    rate_steps: int
    etv_15ms: np.ndarray
    gamma_4ms: np.ndarray
    rates: np.ndarray
    are_steps: bool
    voltage_mv: np.ndarray | None = None


def arrays_of(cells: Sequence[CellTraces]) -> dict[str, np.ndarray]:
    """Arrays of an `.npz`, as `cells_of` reads them."""
    return {
        f"cell{k}_{name}": np.asarray(value)
        for k, cell in enumerate(cells)
        for name, value in vars(cell).items()
        if value is not None
    }


def cells_of(arrays: Mapping[str, np.ndarray]) -> list[CellTraces]:
    """Cells of the arrays that `arrays_of` made."""
    names = [field.name for field in fields(CellTraces)]
    cells = []
    while any(key.startswith(f"cell{len(cells)}_") for key in arrays):
        start = f"cell{len(cells)}_"
        own = {name: arrays[start + name] for name in names if start + name in arrays}
        plain: dict[str, Any] = {k: x.item() if x.ndim == 0 else x for k, x in own.items()}
        cells.append(CellTraces(**{**plain, "titles": plain["titles"].tolist()}))
    return cells


def n_points(n_cells: int, n_segments: int) -> int:
    """Points of a series [P] for so many cells and segments that a page stays small."""
    return max(_FEWEST_POINTS, _SERIES_POINTS // (n_cells * n_segments * _SERIES))


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Series [B, P] of values [B, T], evenly spaced in time: all of them, or at most `most`.

    If they are too many, the least and the largest value of each of P / 2 equal pieces of time, so
    that no peak is lost.
    """
    n_steps = values.shape[1]
    if n_steps <= most:
        return values
    starts = np.linspace(0, n_steps, most // 2, endpoint=False).astype(np.int64)
    pairs = [extreme.reduceat(values, starts, axis=1) for extreme in (np.fmin, np.fmax)]
    return np.stack(pairs, 2).reshape(len(values), -1)


def spikes_of(trials: Sequence[np.ndarray]) -> np.ndarray:
    """Spikes, int32 [n, 3]: segment, trial, step; of counts [R, T] of each segment."""
    rows = []
    for segment, counts in enumerate(trials):
        trial, step = np.nonzero(counts)
        n_times = counts[trial, step].astype(np.int64)
        found = np.stack([np.full(len(step), segment), trial, step], 1)
        rows.append(np.repeat(found, n_times, axis=0))
    return np.concatenate(rows).astype(np.int32)


def rate_steps(dt_ms: float, n_steps: int, most: int) -> int:
    """Steps between two values of a smoothed rate, of which there are at most `most`."""
    return max(1, round(_RATE_STEP_MS / dt_ms), math.ceil(n_steps / most))


def smoothed_hz(spikes: np.ndarray, dt_ms: float, every: int) -> np.ndarray:
    """Smoothed rate in Hz at every so many steps, float32 [Q], of spikes or their mean [T]."""
    smooth = gaussian_filter1d(np.asarray(spikes, float), SIGMA_MS / dt_ms)
    return np.asarray(smooth, np.float32)[::every] * np.float32(1000 / dt_ms)
