"""Traces of cells packed as text for the page of a fit: few levels, small differences, zlib."""

import base64
import zlib
from typing import Any

import numpy as np

_UNKNOWN = 65535


def pack_rows(values: np.ndarray, n_levels: int) -> dict[str, Any]:
    """Pack series [B, P], each rounded to so many levels between its least and largest value.

    The error of a value is at most half a level, and one in the sixth digit of `low` and `level`.

    Returns:
        `low` and `level` of each series [B], and `data` (see `pack_numbers`), uint16 [B, P];
        value = low + level · number, and 65535 is NaN.
    """
    values = np.asarray(values, float)
    known = ~np.isnan(values)
    low = np.where(known, values, np.inf).min(1, initial=np.inf)
    high = np.where(known, values, -np.inf).max(1, initial=-np.inf)
    low = _short(np.where(np.isfinite(low), low, 0.0))
    level = _short(np.maximum(high - low, 0.0) / (n_levels - 1))
    whole = np.round((values - low[:, None]) / np.where(level > 0, level, 1.0)[:, None]).clip(0)
    return {
        "low": low.tolist(),
        "level": level.tolist(),
        "data": pack_numbers(np.where(known, whole, _UNKNOWN).astype("<u2")),
    }


def _short(values: np.ndarray) -> np.ndarray:
    """Values with six digits, which are short as text."""
    return np.array([float(f"{value:.6g}") for value in values])


def pack_spikes(spikes: np.ndarray, n_trials: int, n_steps: int) -> str:
    """Pack spikes [n, 3] (segment, trial, step) as differences of their sorted places.

    The place of a spike is (segment · n_trials + trial) · n_steps + step; the differences, of which
    the first is a place, are uint32 (see `pack_numbers`).
    """
    segment, trial, step = spikes.T.astype(np.int64)
    places = np.sort((segment * n_trials + trial) * n_steps + step)
    return pack_numbers(np.diff(places, prepend=0).astype("<u4"))


def pack_numbers(numbers: np.ndarray) -> str:
    """Pack whole numbers as base64 of zlib: their first bytes, then their second ones, …"""
    planes = np.ascontiguousarray(numbers).view(np.uint8).reshape(-1, numbers.itemsize).T
    return base64.b64encode(zlib.compress(planes.tobytes(), 9)).decode()
