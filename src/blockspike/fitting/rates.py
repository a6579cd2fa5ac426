"""Firing rates against the current: f-I curves of recordings by steps, and mean rates of others."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_EDGE_MS = 5.0  # at either end of a current, where a step is not on
_SHORTEST_MS = 50.0
_FLAT = 0.1  # largest standard deviation within a step, and share of other times off rest
_NOISE = 0.02  # of the largest range of all currents: less is noise


class Segment(NamedTuple):
    """A current [T] in pA, its recorded trains [R, T], and the model's mean train [T]."""

    current_pa: np.ndarray
    recorded: np.ndarray
    model: np.ndarray


def step_of(current_pa: np.ndarray, dt_ms: float, least_pa: float = 0.0) -> slice | None:
    """Find the time, in steps of `dt_ms`, during which a current [T] is at another constant level.

    Its rest is the smaller of its values at either end, since a segment may begin or end within the
    step. A current that never differs from it by more than `least_pa` is constant as a whole.

    Returns:
        None if the current is no single step of at least 50 ms, give or take a short test pulse.
    """
    n_edge = max(1, round(_EDGE_MS / dt_ms))
    rest = min(current_pa[:n_edge].mean(), current_pa[-n_edge:].mean(), key=abs)
    height = np.abs(current_pa - rest)
    if height.max() <= least_pa:
        return slice(0, len(current_pa))
    off = np.flatnonzero(np.diff(np.pad(height > _FLAT * height.max(), 1).astype(np.int8)))
    first, last = max(off.reshape(-1, 2), key=lambda run: run[1] - run[0])
    level = current_pa[first:last]
    is_flat = level.std() <= _FLAT * abs(level.mean() - rest)
    n_elsewhere = np.diff(off.reshape(-1, 2)).sum() - (last - first)
    is_alone = n_elsewhere <= _FLAT * len(current_pa)
    is_long = (last - first) * dt_ms >= _SHORTEST_MS
    return slice(int(first), int(last)) if is_flat and is_alone and is_long else None


def rates_by_current(segments: Sequence[Segment], dt_ms: float) -> tuple[np.ndarray, bool]:
    """Current in pA, recorded rate and model rate in Hz, float32 [B, 3]; and whether all are steps.

    If all are, current and rates are those during the step; otherwise those of whole segments.
    """
    least_pa = _NOISE * max(np.ptp(segment.current_pa) for segment in segments)
    parts = [step_of(segment.current_pa, dt_ms, least_pa) for segment in segments]
    are_steps = None not in parts
    rows = []
    for segment, step in zip(segments, parts, strict=True):
        part = step if are_steps else slice(None)
        per_hz = 1000 / dt_ms
        rows.append(
            (
                segment.current_pa[part].mean(),
                segment.recorded[:, part].mean() * per_hz,
                segment.model[part].mean() * per_hz,
            )
        )
    return np.array(rows, np.float32), are_steps
