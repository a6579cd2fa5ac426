"""Time steps of times in whole microseconds, in exact integer arithmetic."""

from fractions import Fraction

import numpy as np


def exact_us(dt_ms: float) -> Fraction:
    """Return a step in microseconds; repr() gives the shortest decimal, so 0.1 ms is 100 µs."""
    return (Fraction(repr(float(dt_ms))) * 1000).limit_denominator(1_000_000)


def whole_steps(time_us: np.ndarray, dt_us: Fraction) -> np.ndarray:
    """Return ``floor(t / dt)`` of times int ``[n]``, int64 ``[n]``."""
    return time_us.astype(np.int64) * dt_us.denominator // dt_us.numerator
