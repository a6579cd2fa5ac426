"""Spikes of a recording: found in a voltage, checked and counted."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.signal import find_peaks

from blockspike.data.plausible import check_numbers, check_traces, rests, swapped, warn

# Least peak of a spike, its least rise above both sides, how far these reach, and the least time
# between peaks.
_MIN_PEAK_MV = -20.0
_MIN_RISE_MV = 20.0
_REACH_MS = 5.0
_MIN_INTERVAL_MS = 1.0
_BEFORE_MS, _AFTER_MS = 2.0, 10.0  # about a spike, where the voltage is that of the spike
_HEIGHT_MV = 20.0  # by which the voltage at a spike must exceed the median


def bin_spikes(times_s: np.ndarray, dt_ms: float, n_steps: int) -> np.ndarray:
    """Count spikes in steps of ``dt_ms``, float32 ``[n_steps]``; later spikes are dropped.

    Step k holds ``k·dt <= t < (k + 1)·dt``. A spike less than 1e-6 of a step before an edge counts
    after it, so that rounding does not move times on the grid.

    Raises:
        ValueError: ``dt_ms`` is not above 0, or a time is NaN or negative.
    """
    if not 0 < dt_ms < np.inf:
        raise ValueError(f"dt_ms: expected > 0, got {dt_ms}")
    times_s = as_double(np.asarray(times_s))
    for t in times_s[~(times_s >= 0)][:1]:
        raise ValueError(f"times_s: expected seconds >= 0, got {t}")
    step = np.floor(times_s * 1e3 / dt_ms + 1e-6)
    inside = step[step < n_steps].astype(np.int64)
    return np.bincount(inside, minlength=n_steps).astype(np.float32)


def as_double(times_s: np.ndarray) -> np.ndarray:
    """Times as float64; of float32, the shortest decimal numbers, so that 0.1 s is not less."""
    is_single = times_s.dtype.kind == "f" and times_s.dtype.itemsize == 4
    return (times_s.astype(str) if is_single else times_s).astype(np.float64)


def detect_spikes(voltage_mv: np.ndarray, dt_ms: float) -> np.ndarray:
    """Find the spikes of a membrane potential: its prominent peaks (`scipy.signal.find_peaks`).

    A spike peaks above −20 mV, at least 20 mV above the lowest potential of the 5 ms on either
    side. Its time is where the interpolated upstroke crosses half of that height, usually within
    1 ms of both its peak and its threshold. Spikes wider than about 5 ms are not found.

    Args:
        voltage_mv: ``[T]`` in mV.
        dt_ms: time between samples.

    Returns:
        Times in seconds from the first sample, float64 ``[n]``, sorted.
    """
    return _spikes_and_widths(voltage_mv, dt_ms)[0]


def _spikes_and_widths(voltage_mv: np.ndarray, dt_ms: float) -> tuple[np.ndarray, np.ndarray]:
    """Times in s of the spikes in a voltage, and their widths at half height in ms."""
    reach = max(1, round(_REACH_MS / dt_ms))
    # The height is measured within 5 ms, so that neither a later after-hyperpolarisation nor a
    # step of the stimulus enters it.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # peaks of no prominence
        _, found = find_peaks(
            np.asarray(voltage_mv, np.float64),
            height=_MIN_PEAK_MV,
            distance=max(1, round(_MIN_INTERVAL_MS / dt_ms)),
            prominence=_MIN_RISE_MV,
            width=0,
            rel_height=0.5,
            wlen=2 * reach + 1,
        )
    return found["left_ips"] * (dt_ms * 1e-3), found["widths"] * dt_ms


def spikes_of(
    where: str, current_pa: np.ndarray, voltage_mv: np.ndarray, dt_ms: float
) -> np.ndarray:
    """Check a voltage and return the times of its spikes in s; see `detect_spikes`."""
    check_numbers(where, voltage_mv)
    if not rests(voltage_mv) and rests(current_pa) and len(detect_spikes(current_pa, dt_ms)):
        raise swapped(where)
    times_s, widths_ms = _spikes_and_widths(voltage_mv, dt_ms)
    check_traces(where, times_s, widths_ms, voltage_mv, dt_ms)
    return times_s


def check_times(where: str, times_s: np.ndarray, duration_s: float) -> np.ndarray:
    """Return spike times, sorted; ValueError if one is NaN or outside the sweep."""
    # Comparisons with NaN are false, so this also finds NaN.
    for t in times_s[~((times_s >= 0) & (times_s < duration_s))][:1]:
        raise ValueError(
            f"{where}: expected spikes at 0 to {duration_s:g} s, the length of the sweep, got one "
            f"at {t:g} s"
        )
    return np.sort(times_s)


def check_shown(where: str, times_s: np.ndarray, voltage_mv: np.ndarray, dt_ms: float) -> None:
    """Warn if a voltage does not show the spikes that are stored beside it."""
    fired = bin_spikes(times_s, dt_ms, len(voltage_mv)) > 0
    if not shows_spikes(fired[:, None], voltage_mv[:, None], dt_ms):
        warn(
            f"{where}: the voltage is not high at the stored spikes; are they of another sweep, or "
            f"in another unit, or is the time step of {dt_ms:g} ms wrong?"
        )


def no_spikes(where: str) -> ValueError:
    """Error for a sweep with neither spike times nor a voltage."""
    return ValueError(f"{where}: expected spike times or a voltage to find spikes in, got neither")


def between_spikes(fired: np.ndarray, dt_ms: float) -> np.ndarray:
    """Steps ``[T, B]`` without a spike nearby, in which the voltage is that of the membrane.

    They are not within 2 ms before or 10 ms after a spike, nor among the first 10 ms, of which it
    is not known whether a spike preceded them.

    Args:
        fired: ``[T, B]``, whether there is a spike.
        dt_ms: length of a step.
    """
    before, after = round(_BEFORE_MS / dt_ms), round(_AFTER_MS / dt_ms)
    near = np.zeros(fired.shape, bool)
    near[:after] = True
    for shift in range(-before, after + 1):
        if shift < 0:
            near[:shift] |= fired[-shift:]
        else:
            near[shift:] |= fired[: len(fired) - shift]
    return ~near


def shows_spikes(fired: np.ndarray, voltage_mv: np.ndarray, dt_ms: float) -> bool:
    """Whether the voltage ``[T, B]`` is high where the spikes are: it may be of other trials."""
    known = np.isfinite(voltage_mv)
    fired = fired & known
    if not fired.any():
        return True
    n_after = round(_BEFORE_MS / dt_ms) + 1
    steps = np.argwhere(fired)
    peaks_mv = [np.fmax.reduce(voltage_mv[t : t + n_after, b]) for t, b in steps]
    return bool(np.median(peaks_mv) > np.median(voltage_mv[known]) + _HEIGHT_MV)
