"""Stimulus and response on one clock: charge is conserved and nothing is shifted."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from blockspike.data.clocks import Clock, clock_of_timestamps, on_one_clock, without_padding

TIMES_S = 12.5 + np.arange(1000) / 20_000


def test_the_clock_of_regular_times():
    assert clock_of_timestamps("x", TIMES_S) == Clock(12.5, 0.05)
    jitter_s = np.random.default_rng(0).uniform(-2e-6, 2e-6, 1000)
    assert clock_of_timestamps("x", TIMES_S + jitter_s).dt_ms == pytest.approx(0.05, rel=1e-4)
    assert clock_of_timestamps("x", np.arange(5)) == Clock(0.0, 1000.0)


@pytest.mark.parametrize(
    ("times_s", "words"),
    [
        (
            np.delete(TIMES_S, 400),
            "got steps of 0.0500501 ms on average and sample 400 0.03 ms off",
        ),
        (TIMES_S + 0.2e-4 * (np.arange(1000) == 7), "sample 7 0.02 ms off"),
        (TIMES_S[::-1], "a regular clock"),
        (np.full(9, 1.0), "a sampling rate"),
        (TIMES_S[:1], "at least two numbers"),
        (np.array([[0.0, 1.0]]), "at least two numbers"),
        (np.array(["a", "b"]), "at least two numbers"),
        (np.array([0.0, np.nan, 2.0]), "finite numbers"),
        (np.array([-1e308, 1e308]), "finite numbers"),
        (np.array([0.0, 1e9]), "a sampling rate"),
    ],
)
def test_irregular_times_are_refused(times_s, words):
    with pytest.raises(ValueError, match=f"^x: .*{words}"):
        clock_of_timestamps("x", times_s)


def test_padding_is_cut_off_at_the_end_only():
    nan = np.nan
    np.testing.assert_array_equal(without_padding(np.array([nan, 1, nan, 2, nan, nan])),
                                  [nan, 1, nan, 2])  # fmt: skip
    for values in (np.array([1.0, 2.0]), np.array([nan, nan]), np.array([]), np.array([1, 2])):
        assert without_padding(values) is values


def test_clocks_that_agree_change_nothing():
    current, voltage = np.arange(5.0), -np.arange(5.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = on_one_clock("x", current, Clock(3.0, 0.1), voltage, Clock(3.0, 0.1))
    np.testing.assert_array_equal(found, [current, voltage])


def test_a_faster_current_is_averaged_and_a_slower_one_repeated():
    current = np.array([1.0, 3.0, 10.0, 20.0, 7.0])
    with pytest.warns(UserWarning, match="in common"):
        found, voltage = on_one_clock("x", current, Clock(0, 0.05), np.arange(9.0), Clock(0, 0.1))
    assert found.tolist() == [2, 15] and voltage.tolist() == [0, 1]
    with pytest.warns(UserWarning, match="in common"):
        found, voltage = on_one_clock("x", current, Clock(0, 0.1), np.arange(7.0), Clock(0, 0.05))
    assert found.tolist() == [1, 1, 3, 3, 10, 10, 20] and voltage.tolist() == list(range(7))


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 7), st.booleans(), st.integers(-30, 30)
)
def test_charge_is_conserved_and_samples_keep_their_time(n, m, factor, is_slower, offset):
    """Against the integral of the current, which is constant between its samples."""
    rng = np.random.default_rng(n)
    dt_c, dt_v = (0.1 * factor, 0.1) if is_slower else (0.1, 0.1 * factor)
    current, first_s = rng.normal(size=n), 5.0
    voltage = np.arange(float(m))
    clock_c, clock_v = Clock(first_s, dt_c), Clock(first_s + offset * 1e-4, dt_v)
    edges = clock_v.start_s + np.arange(m + 1) * dt_v * 1e-3 - first_s
    inside = (edges[:-1] > -1e-9) & (edges[1:] < n * dt_c * 1e-3 + 1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if n == m > 1 and factor > 1:
            with pytest.raises(ValueError, match=f"^x: expected one rate .* {n} samples each"):
                on_one_clock("x", current, clock_c, voltage, clock_v)
            return
        if not inside.any():
            with pytest.raises(ValueError, match="^x: expected a stimulus and a response at the"):
                on_one_clock("x", current, clock_c, voltage, clock_v)
            return
        found, kept = on_one_clock("x", current, clock_c, voltage, clock_v)
    assert kept.tolist() == voltage[inside].tolist()
    charge = np.interp(edges, np.arange(n + 1) * dt_c * 1e-3, np.r_[0, np.cumsum(current) * dt_c])
    np.testing.assert_allclose(found * dt_v, np.diff(charge)[inside], atol=1e-9)


@pytest.mark.parametrize(
    ("current", "voltage", "words"),
    [
        (Clock(0, 0.1), Clock(0, 0.15), "of which one is a multiple of the other, got 10000 and"),
        (Clock(0, 0.1), Clock(5e-5, 0.1), "a whole number of steps"),
        (Clock(0, 0.1), Clock(123.4, 0.1), "at 0 to 0.0005 s and 123.4 to 123.4"),
        (Clock(np.nan, 0.1), Clock(0, 0.1), "a whole number of steps"),
        (Clock(1e300, 0.1), Clock(0, 1e-4), "at 1e\\+300"),
    ],
)
def test_clocks_that_do_not_fit_are_refused(current, voltage, words):
    with pytest.raises(ValueError, match=f"^x: .*{words}"):
        on_one_clock("x", np.ones(5), current, np.ones(6), voltage)


@pytest.mark.parametrize(("n", "m", "words"), [(10, 8, "0.001 and 0.0008"), (8, 10, "0.0008 and")])
def test_a_stimulus_that_is_much_longer_or_shorter_than_the_response_is_warned_of(n, m, words):
    clock = Clock(0, 0.1)
    with pytest.warns(UserWarning, match=f"^x: stimulus and response take {words}.* cut to the 0"):
        found, _ = on_one_clock("x", np.ones(n), clock, np.ones(m), clock)
    assert len(found) == min(n, m)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        on_one_clock("x", np.ones(10), clock, np.ones(9), clock)


@pytest.mark.parametrize(("start_s", "words"), [(2e-4, r"\+0.2"), (-2e-4, "-0.2")])
def test_different_starts_are_warned_of(start_s, words):
    with pytest.warns(UserWarning, match=f"x: the response begins {words} ms after the stimulus"):
        found, _ = on_one_clock("x", np.ones(5), Clock(0, 0.1), np.ones(5), Clock(start_s, 0.1))
    assert len(found) == 3
