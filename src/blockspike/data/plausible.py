"""Recordings that can be read but cannot be right: wrong units, swapped traces, merged trials."""

from __future__ import annotations

import warnings

import numpy as np

from blockspike.data.sweeps import CURRENT_RANGE_PA, peak_of

USUAL_PEAK_PA = (10.0, 20_000.0)
LEAST_INTERVAL_MS = 0.5  # no neuron fires twice in less; trials that were merged do
USUAL_WIDTH_MS = (0.1, 5.0)  # of spikes, at half height
MOST_RATE_HZ = 300.0
MOST_STEP_MS = 1.0  # between samples of a voltage, for spikes to be found in it
LEAST_SHARE = 0.1  # of a train, in time, that holds spikes; all are in less if the step is too long
ABORTED_MS = 10.0  # of exactly 0 mV, by which programs fill up a sweep that was stopped
REST_MV = (-110.0, -20.0)  # where a membrane is half of the time
_UNITS = {1e12: "A", 1e6: "µA", 1e3: "nA", 1e-3: "fA"}  # pA in each


def check_peak(where: str, current_pa: np.ndarray) -> None:
    """Refuse a current whose unit cannot be pA; warn of an unusual one. 0 is left to the user.

    Raises:
        ValueError: the peak is outside `CURRENT_RANGE_PA`; names the likely unit.
    """
    peak = peak_of(current_pa)
    low, high = CURRENT_RANGE_PA
    if peak and not low * (1 - 1e-6) <= peak <= high:
        least, most = USUAL_PEAK_PA
        likely = [unit for pa, unit in _UNITS.items() if least <= peak * pa <= most]
        hint = f"; it would be plausible in {likely[0]}" if likely else ""
        raise ValueError(
            f"{where}: current_pa: expected a peak of {low:g} to {high:,.0f} pA, got {peak:.3g} pA"
            + hint
        )
    least, most = USUAL_PEAK_PA
    if peak and not least <= peak <= most:
        warn(f"{where}: current_pa: the peak is {peak:.3g} pA, which is unusual; is the unit pA?")


def check_intervals(where: str, times_s: np.ndarray) -> None:
    """Refuse spikes of one train that no neuron fires; `times_s` are sorted.

    Raises:
        ValueError: two spikes are less than `LEAST_INTERVAL_MS` apart.
    """
    intervals_ms = 1e3 * np.diff(times_s)
    for i in np.flatnonzero(intervals_ms < LEAST_INTERVAL_MS * (1 - 1e-6))[:1]:
        raise ValueError(
            f"{where}: expected spikes of one trial at least {LEAST_INTERVAL_MS:g} ms apart, got "
            f"{intervals_ms[i]:.3g} ms at {times_s[i]:.6g} s; are trials merged?"
        )


def check_numbers(where: str, voltage_mv: np.ndarray) -> None:
    """Refuse a voltage that is NaN in places, which would be read as silence.

    Raises:
        ValueError: a value is NaN.
    """
    bad = np.flatnonzero(np.isnan(voltage_mv))
    if len(bad):
        raise ValueError(
            f"{where}: voltage: expected numbers, got NaN in {len(bad)} of {len(voltage_mv)} "
            f"samples, first in sample {bad[0]}"
        )


def check_traces(
    where: str, times_s: np.ndarray, widths_ms: np.ndarray, voltage_mv: np.ndarray, dt_ms: float
) -> None:
    """Warn if the spikes found in a voltage are too wide, too narrow or too many for `dt_ms`."""
    if dt_ms > MOST_STEP_MS:
        warn(
            f"{where}: spikes are missed in a voltage with a sample every {dt_ms:g} ms, expected "
            f"at most {MOST_STEP_MS:g} ms; is the time step right?"
        )
    low, high = USUAL_WIDTH_MS
    if len(widths_ms) and not low <= np.median(widths_ms) <= high:
        warn(
            f"{where}: the spikes are {np.median(widths_ms):.2g} ms wide at half height, expected "
            f"{low:g} to {high:g} ms; is the time step of {dt_ms:g} ms right?"
        )
    check_rate(where, times_s, len(voltage_mv) * dt_ms * 1e-3, dt_ms)


def check_rate(where: str, times_s: np.ndarray, duration_s: float, dt_ms: float) -> None:
    """Warn if a train has more spikes than neurons sustain."""
    if len(times_s) > 10 and len(times_s) > MOST_RATE_HZ * duration_s:
        warn(
            f"{where}: {len(times_s)} spikes in {duration_s:.3g} s, expected at most "
            f"{MOST_RATE_HZ:g} Hz; is the time step of {dt_ms:g} ms right?"
        )


def check_span(where: str, times_s: np.ndarray, current_pa: np.ndarray, dt_ms: float) -> None:
    """Warn if all spikes are at the start of a current that fluctuates to its end."""
    n_first = int(LEAST_SHARE * len(current_pa))
    if min(len(times_s), len(current_pa)) < 10 or times_s[-1] > (n_first + 1) * dt_ms * 1e-3:
        return
    if np.median(np.abs(np.diff(current_pa[n_first:]))) > 0:
        warn(
            f"{where}: all {len(times_s)} spikes are in the first {times_s[-1]:.3g} of "
            f"{len(current_pa) * dt_ms * 1e-3:.6g} s; is the time step of {dt_ms:g} ms right?"
        )


def check_rest(where: str, medians_mv: list[float]) -> None:
    """Warn if voltages of a cell, of these medians, are not those of a membrane."""
    median_mv = float(np.median(medians_mv)) if medians_mv else REST_MV[0]
    low, high = REST_MV
    if not low <= median_mv <= high:
        warn(
            f"{where}: the median of the voltage is {median_mv:.3g} mV, expected {low:g} to "
            f"{high:g} mV; are its unit and its offset right?"
        )


def aborted_at(current_pa: np.ndarray, voltage_mv: np.ndarray, dt_ms: float) -> int | None:
    """Sample from which a voltage is filled with zeros while the current continues, if it is."""
    other = np.flatnonzero(voltage_mv)
    end = int(other[-1]) + 1 if len(other) else len(voltage_mv)
    is_long = (len(voltage_mv) - end) * dt_ms >= ABORTED_MS
    return end if is_long and current_pa[end:].any() else None


def rests(voltage_mv: np.ndarray) -> bool:
    """Whether a voltage is that of a membrane for half of the time."""
    low, high = REST_MV
    return bool(low <= np.median(voltage_mv) <= high)


def swapped(where: str) -> ValueError:
    """Error for a current that has the rest and the spikes which the voltage lacks."""
    return ValueError(
        f"{where}: expected a membrane's rest and spikes in the voltage, got them in the current; "
        "are the two swapped?"
    )


def warn(text: str) -> None:
    """Warn the user of a recording that may be wrong."""
    warnings.warn(text, stacklevel=4)
