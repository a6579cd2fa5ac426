"""Stimulus and response of a sweep, sampled by clocks of their own, on one clock."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from blockspike.data.plausible import warn
from blockspike.data.sweeps import dt_ms_of

_MOST_DEVIATION = 0.1  # of a sample from a regular clock, in steps
_SAME = 1e-6  # relative difference of two rates that is rounding
_MOST_CUT = 0.1  # of a stimulus or response, without a warning


class Clock(NamedTuple):
    """When a series was sampled.

    Attributes:
        start_s: time of the first sample.
        dt_ms: time between samples.
    """

    start_s: float
    dt_ms: float


def clock_of_timestamps(where: str, times_s: np.ndarray) -> Clock:
    """Find the clock of samples that are stored with their times.

    Raises:
        ValueError: fewer than two times, a time that is no finite number, times that deviate from a
            regular clock by more than a tenth of a step, or an implausible rate.
    """
    if times_s.ndim != 1 or times_s.dtype.kind not in "fiu" or len(times_s) < 2:
        raise ValueError(
            f"{where}: timestamps: expected at least two numbers [T], got shape {times_s.shape} "
            f"and {times_s.dtype}"
        )
    with np.errstate(all="ignore"):
        times_s = times_s.astype(np.float64)
        step_s = float(times_s[-1] - times_s[0]) / (len(times_s) - 1)
        deviation_s = np.abs(times_s - (times_s[0] + step_s * np.arange(len(times_s))))
    if not np.isfinite(deviation_s).all():
        raise ValueError(f"{where}: timestamps: expected finite numbers, got NaN or infinity")
    most = int(deviation_s.argmax())
    if not deviation_s[most] <= _MOST_DEVIATION * step_s:
        raise ValueError(
            f"{where}: timestamps: expected a regular clock, got steps of {1e3 * step_s:.6g} ms on "
            f"average and sample {most} {1e3 * deviation_s[most]:.3g} ms off"
        )
    rate_hz = 1 / step_s if step_s else 0.0
    if math.isfinite(rate_hz) and abs(rate_hz - round(rate_hz)) <= _SAME * rate_hz:
        rate_hz = round(rate_hz)  # without the rounding of the times
    return Clock(float(times_s[0]), dt_ms_of(where, rate_hz))


def without_padding(values: np.ndarray) -> np.ndarray:
    """Cut off NaN at the end; values that are all NaN are left."""
    if values.ndim != 1 or values.dtype.kind != "f" or not len(values) or not np.isnan(values[-1]):
        return values
    known = np.flatnonzero(~np.isnan(values))
    return values[: known[-1] + 1] if len(known) else values


def on_one_clock(
    where: str,
    current: np.ndarray,
    current_clock: Clock,
    voltage: np.ndarray,
    voltage_clock: Clock,
) -> tuple[np.ndarray, np.ndarray]:
    """Cut a current and a voltage to their common time, the current in steps of the voltage.

    A current is constant between its samples. One that is sampled faster is averaged over each step
    of the voltage, one that is sampled more slowly is repeated, so that charge is conserved. If the
    two do not begin together, a warning says so.

    Args:
        where: file and sweep, for errors.
        current, current_clock: ``[T]`` in any unit, and when it was sampled.
        voltage, voltage_clock: ``[U]`` in any unit, and when it was sampled.

    Returns:
        Current and voltage, both ``[V]`` with V <= U.

    Raises:
        ValueError: neither rate is a multiple of the other, the two have as many samples at
            different rates, they do not begin a whole number of steps apart, or they have no time
            in common.
    """
    step_ms = min(current_clock.dt_ms, voltage_clock.dt_ms)
    per_current, per_voltage = (
        _multiple(where, clock.dt_ms, step_ms, current_clock, voltage_clock)
        for clock in (current_clock, voltage_clock)
    )
    if len(current) == len(voltage) > 1 and per_current != per_voltage:
        raise ValueError(
            f"{where}: expected one rate of a stimulus and a response of {len(current)} samples "
            f"each, got {_rates(current_clock, voltage_clock)}"
        )
    offset = _offset(where, current_clock, voltage_clock, step_ms)
    first = max(0, -(offset // per_voltage))  # before it, the current is not known
    begin = offset + first * per_voltage  # in steps of the faster clock, from the current's start
    n = min(len(voltage) - first, (len(current) * per_current - begin) // per_voltage)
    if n < 1:
        spans = (
            f"{clock.start_s:.6g} to {clock.start_s + len(x) * clock.dt_ms * 1e-3:.6g} s"
            for clock, x in ((current_clock, current), (voltage_clock, voltage))
        )
        raise ValueError(
            f"{where}: expected a stimulus and a response at the same time, got them at "
            f"{' and '.join(spans)}"
        )
    common_s = n * voltage_clock.dt_ms * 1e-3
    pairs = (current, current_clock), (voltage, voltage_clock)
    durations_s = [len(x) * clock.dt_ms * 1e-3 for x, clock in pairs]
    cut = f"both are cut to the {common_s:.6g} s that they have in common"
    if offset:
        warn(f"{where}: the response begins {offset * step_ms:+.6g} ms after the stimulus; {cut}")
    elif common_s < (1 - _MOST_CUT) * max(durations_s):
        lengths = " and ".join(f"{x:.6g}" for x in durations_s)
        warn(f"{where}: stimulus and response take {lengths} s; {cut}")
    if per_current > 1:
        current = current[(begin + np.arange(n)) // per_current]
    else:
        current = current[begin : begin + n * per_voltage].reshape(n, per_voltage).mean(1)
    return current, voltage[first : first + n]


def _multiple(where: str, dt_ms: float, step_ms: float, current: Clock, voltage: Clock) -> int:
    ratio = dt_ms / step_ms
    if abs(ratio - round(ratio)) > _SAME * ratio:
        raise ValueError(
            f"{where}: expected rates of stimulus and response of which one is a multiple of the "
            f"other, got {_rates(current, voltage)}"
        )
    return round(ratio)


def _rates(current: Clock, voltage: Clock) -> str:
    return f"{1e3 / current.dt_ms:.9g} and {1e3 / voltage.dt_ms:.9g} Hz"


def _offset(where: str, current: Clock, voltage: Clock, step_ms: float) -> int:
    """Steps from the start of the current to that of the voltage."""
    offset = (voltage.start_s - current.start_s) * 1e3 / step_ms
    if not math.isfinite(offset) or abs(offset - round(offset)) > _MOST_DEVIATION:
        raise ValueError(
            f"{where}: expected a stimulus and a response that begin a whole number of steps "
            f"({step_ms:g} ms) apart, got starts at {current.start_s:.9g} and "
            f"{voltage.start_s:.9g} s"
        )
    return round(offset)
