"""Spike train metrics against elephant, and against their formulas written out."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockspike.metrics import (
    explained_temporal_variance,
    gamma_coincidence,
    van_rossum_distance,
)

DT_MS = 0.1


def trains(*shape: int, rate: float = 0.02, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < rate).astype(float)


def with_silence(train: np.ndarray, n: int = 4000) -> torch.Tensor:
    """Long enough after the last spike for the filter to have decayed."""
    return torch.from_numpy(np.concatenate([train, np.zeros(n)]))


@pytest.mark.parametrize("tau_ms", [2.0, 10.0])
def test_van_rossum_is_elephants(tau_ms):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs, at import
        import neo
        import quantities as pq
        from elephant.spike_train_dissimilarity import van_rossum_distance as reference
    x, y = trains(2, 2000)
    made = [
        neo.SpikeTrain(np.flatnonzero(train) * DT_MS * pq.ms, t_stop=1000 * pq.ms)
        for train in (x, y)
    ]
    expected = reference(made, time_constant=tau_ms * pq.ms)[0, 1]
    found = van_rossum_distance(with_silence(x), with_silence(y), tau_ms, DT_MS).item()
    # elephant integrates where we sum over steps, and counts an unmatched spike as 1, we as √½
    steps = DT_MS / tau_ms
    assert found * math.sqrt((1 - math.exp(-2 * steps)) / steps) == pytest.approx(expected, 1e-6)


def test_van_rossum_of_one_spike_and_of_batches():
    train = with_silence(np.array([0.0, 1.0]), 20_000)
    one = van_rossum_distance(train, torch.zeros_like(train), tau_ms=100.0, dt_ms=DT_MS)
    assert one.item() == pytest.approx(math.sqrt(0.5), rel=1e-3) and one.shape == ()
    x = torch.from_numpy(trains(300, 2, 3))
    y = torch.from_numpy(trains(300, 2, 3, seed=1))
    together = van_rossum_distance(x, y, 10.0, 1.0)
    assert together.shape == (2, 3)
    for i, j in np.ndindex(2, 3):
        alone = van_rossum_distance(x[:, i, j], y[:, i, j], 10.0, 1.0)
        torch.testing.assert_close(together[i, j], alone)


def test_van_rossum_gradient_is_that_of_autograd():
    x = torch.from_numpy(trains(50, 3)).requires_grad_()
    y = torch.from_numpy(trains(50, 3, seed=1))
    assert torch.autograd.gradcheck(lambda x: van_rossum_distance(x, y, 10.0, 1.0), x)


def test_van_rossum_of_equal_trains_is_0_with_gradient_0():
    x = torch.from_numpy(trains(50, 2)).requires_grad_()
    y = x.detach().clone()
    y[3, 1] += 1
    distance = van_rossum_distance(x, y, 10.0, 1.0)
    distance.sum().backward()
    assert x.grad is not None
    assert distance[0] == 0 and distance[1] > 0
    assert not x.grad[:, 0].any() and x.grad[:, 1].any() and torch.isfinite(x.grad).all()


def smooth(train: np.ndarray, sigma_steps: float) -> np.ndarray:
    lag = np.arange(-4 * sigma_steps, 4 * sigma_steps + 1)
    kernel = np.exp(-0.5 * (lag / sigma_steps) ** 2)
    return np.convolve(train, kernel / kernel.sum(), mode="same")


@pytest.mark.parametrize("normalise", [True, False])
def test_explained_temporal_variance_is_its_formula(normalise):
    recorded, model = trains(4, 3000), trains(3000, seed=1)
    sigma = 20.0

    def etv(x, y):
        return (x.var() + y.var() - (x - y).var()) / (x.var() + y.var())

    rows, y = [smooth(trial, sigma) for trial in recorded], smooth(model, sigma)
    expected = np.mean([etv(x, y) for x in rows])
    if normalise:
        expected /= np.mean([etv(x, np.mean(rows, axis=0)) for x in rows])
    found = explained_temporal_variance(recorded, model, sigma * DT_MS, DT_MS, normalise)
    assert found == pytest.approx(expected, rel=1e-9)


def test_explained_temporal_variance_of_perfect_unrelated_and_silent_predictions():
    recorded = trains(4, 20_000)
    alike = np.repeat(recorded[:1], 4, axis=0)
    assert explained_temporal_variance(alike, alike[0], 15.0, 1.0) == pytest.approx(1)
    assert abs(explained_temporal_variance(alike, recorded[1], 15.0, 1.0)) < 0.15
    assert explained_temporal_variance(alike, np.zeros(20_000), 15.0, 1.0) == pytest.approx(0)
    assert math.isnan(explained_temporal_variance(np.zeros((2, 50)), np.zeros(50), 5.0, 1.0))


def brute_force_gamma(recorded, model, window_ms, dt_ms):
    t_model = np.flatnonzero(model) * dt_ms
    by_chance = 2 * window_ms * len(t_model) / (len(model) * dt_ms)
    scores = []
    for trial in recorded:
        t = np.flatnonzero(trial) * dt_ms
        n = sum(np.any(np.abs(t_model - s) <= window_ms + 1e-6) for s in t)
        scores.append((n - by_chance * len(t)) / (0.5 * (len(t) + len(t_model)) * (1 - by_chance)))
    return np.mean(scores)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.3, 0.5, 1.0]))
def test_gamma_coincidence_is_its_formula(seed, window_ms):
    recorded, model = trains(3, 500, seed=seed), trains(500, seed=seed + 1)
    recorded[:, 0] = 1  # none is silent
    found = gamma_coincidence(recorded, model, window_ms, DT_MS)
    assert found == pytest.approx(brute_force_gamma(recorded, model, window_ms, DT_MS), abs=1e-9)


def test_gamma_coincidence_of_perfect_unrelated_and_silent_predictions():
    recorded = trains(2, 100_000, rate=0.002)
    assert gamma_coincidence(recorded[:1], recorded[0], 4.0, 1.0) == pytest.approx(1)
    assert abs(gamma_coincidence(recorded[:1], recorded[1], 4.0, 1.0)) < 0.1
    assert gamma_coincidence(recorded, np.zeros(100_000), 4.0, 1.0) == 0
    assert math.isnan(gamma_coincidence(np.zeros((2, 50)), np.zeros(50), 4.0, 1.0))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: van_rossum_distance(torch.zeros(3), torch.zeros(4), 1.0, 1.0), "x, y: .*3.*4"),
        (lambda: van_rossum_distance(torch.zeros(3), torch.zeros(3), 0.0, 1.0), "tau_ms: .* 0.0"),
        (lambda: explained_temporal_variance(np.zeros(5), np.zeros(5), 1.0, 1.0), r"trials.*\[5\]"),
        (lambda: explained_temporal_variance(np.zeros((1, 5)), np.zeros(4), 1, 1), r"\[1, 5\].*4"),
        (lambda: explained_temporal_variance([[math.nan]], [0.0], 1.0, 1.0), "trials: .*NaN"),
        (lambda: explained_temporal_variance([[0.0]], [0.0], 1.0, -1.0), "dt_ms: .*-1.0"),
        (lambda: gamma_coincidence([[0.0]], [math.inf], 1.0, 1.0), "prediction: .*Inf"),
        (lambda: gamma_coincidence([[0.0, 1.0]], [0.0, 1.0], 1.0, 1.0), "window_ms: .* 1.0 at 1"),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
