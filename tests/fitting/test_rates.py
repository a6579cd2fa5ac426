"""Rates against the current: steps are found, and rates are those during the step."""

import numpy as np
import pytest

from blockspike.fitting.rates import Segment, rates_by_current, step_of

DT_MS = 0.5


def stepped(level_pa: float, start: int = 200, stop: int = 1200, rest_pa: float = 0.0):
    current = np.full(1500, rest_pa)
    current[start:stop] = level_pa
    return current


@pytest.mark.parametrize(
    ("current", "expected"),
    [
        (stepped(100), (200, 1200)),
        (stepped(-100), (200, 1200)),
        (stepped(80, rest_pa=-20), (200, 1200)),
        (stepped(100, start=0), (0, 1200)),  # a segment that begins within the step
        (stepped(100, stop=1500), (200, 1500)),  # or ends within it
        (np.full(1500, 30.0), (0, 1500)),
        (np.zeros(1500), (0, 1500)),
    ],
)
def test_a_step_is_found(current, expected):
    step = step_of(current, DT_MS)
    assert step is not None and (step.start, step.stop) == expected
    noisy = step_of(current + np.random.default_rng(0).normal(0, 0.5, 1500), DT_MS, least_pa=5)
    assert noisy is not None and (noisy.start, noisy.stop) == pytest.approx(expected, abs=2)


def test_a_test_pulse_is_not_the_step():
    current = stepped(20)
    current[20:40] = -50  # 10 ms
    step = step_of(current, DT_MS)
    assert step is not None and (step.start, step.stop) == (200, 1200)


@pytest.mark.parametrize(
    "current",
    [
        np.random.default_rng(0).normal(0, 50, 1500),
        np.linspace(0, 100, 1500),
        50 + 50 * np.sin(np.arange(1500) / 100),
        stepped(100, stop=250),  # 25 ms
        np.where(np.arange(1500) % 400 < 200, 0.0, 100.0),
        stepped(100) + stepped(50, start=600),
    ],
    ids=["noise", "ramp", "sine", "pulse", "pulses", "stairs"],
)
def test_other_currents_are_no_steps(current):
    assert step_of(current, DT_MS) is None


def trains(step: slice, every: int) -> np.ndarray:
    found = np.zeros((2, 1500), np.float32)
    found[:, step.start : step.stop : every] = 1
    return found


def test_rates_are_those_during_the_steps():
    step = slice(200, 1200)
    segments = [
        Segment(stepped(level), trains(step, every), trains(step, 2 * every)[0])
        for level, every in ((50, 100), (100, 50))
    ]
    rows, are_steps = rates_by_current(segments, DT_MS)
    assert are_steps
    np.testing.assert_allclose(rows, [[50, 20, 10], [100, 40, 20]])
    ramp = Segment(np.linspace(0, 100, 1500), trains(step, 100), trains(step, 100)[0])
    rows, are_steps = rates_by_current([*segments, ramp], DT_MS)
    assert not are_steps
    np.testing.assert_allclose(rows[:, 0], [50 * 1000 / 1500, 100 * 1000 / 1500, 50], rtol=1e-6)
    np.testing.assert_allclose(rows[0, 1:], [20 * 1000 / 1500, 10 * 1000 / 1500], rtol=1e-6)


def test_a_sweep_without_a_step_belongs_to_a_family_of_steps():
    rng = np.random.default_rng(0)
    none = np.zeros((2, 1500), np.float32)
    segments = [
        Segment(stepped(level) + rng.normal(0, 0.5, 1500), none, none[0]) for level in (0, 100)
    ]
    rows, are_steps = rates_by_current(segments, DT_MS)
    assert are_steps
    np.testing.assert_allclose(rows[:, 0], [0, 100], atol=1)
