"""Spike train metrics against elephant and against their formulas."""

import math
import warnings
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from scipy.sparse.csgraph import maximum_bipartite_matching

from blockspike.fitting.distance import Window, squared_distance
from blockspike.fitting.metrics import (
    etv_standard_error,
    explained_temporal_variance,
    gamma_coincidence,
    md_star,
    van_rossum_distance,
)

DT_MS = 0.1


def trains(*shape: int, rate: float = 0.02, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).random(shape) < rate).astype(float)


def with_silence(train: np.ndarray, n: int = 4000) -> torch.Tensor:
    """Append silence until the filter has decayed."""
    return torch.from_numpy(np.concatenate([train, np.zeros(n)]))


@pytest.mark.parametrize("tau_ms", [2.0, 10.0])
def test_van_rossum_matches_elephant(tau_ms):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # elephant's, at import
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


def test_van_rossum_gradient_matches_autograd():
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
def test_explained_temporal_variance_matches_its_formula(normalise):
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


def spike_times(train, dt_ms):
    """Times of a train of counts, one for each spike."""
    return np.repeat(np.arange(len(train)), train.astype(int)) * dt_ms


def most_coincidences(x, y, window_ms, dt_ms):
    """Largest matching in the graph of all pairs that are near enough."""
    apart = np.abs(spike_times(x, dt_ms)[:, None] - spike_times(y, dt_ms))
    near = scipy.sparse.csr_matrix(apart <= window_ms + 1e-6)
    return (maximum_bipartite_matching(near) >= 0).sum()


def gamma_by_matching(recorded, model, window_ms, dt_ms):
    n_model = model.sum()
    by_chance = 2 * window_ms * n_model / (len(model) * dt_ms)
    scores = []
    for trial in recorded:
        n, n_trial = most_coincidences(trial, model, window_ms, dt_ms), trial.sum()
        scores.append((n - by_chance * n_trial) / (0.5 * (n_trial + n_model) * (1 - by_chance)))
    return np.mean(scores)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.1, 0.3, 0.5, 1.0]), st.sampled_from([0.02, 0.3, 1.2])
)
def test_gamma_coincidence_matches_its_formula_with_one_to_one_pairs(seed, window_ms, rate):
    """In bursts, and with several spikes per step, each spike still counts once."""
    draw = np.random.default_rng(seed)
    recorded, model = draw.poisson(rate, (3, 500)), draw.poisson(0.02, 500)
    recorded[:, 0] = 1  # none is silent
    found = gamma_coincidence(recorded, model, window_ms, DT_MS)
    assert found == pytest.approx(gamma_by_matching(recorded, model, window_ms, DT_MS), abs=1e-9)
    assert found <= 1


def test_a_burst_coincides_with_one_predicted_spike_once():
    recorded, model = np.zeros((1, 200)), np.zeros(200)
    recorded[0, 50:55] = 1
    model[52] = 1
    by_chance = 2 * 2 / 200
    expected = (1 - 5 * by_chance) / (0.5 * 6 * (1 - by_chance))
    assert gamma_coincidence(recorded, model, 2.0, 1.0) == pytest.approx(expected)
    model[54] = 1  # the largest matching: 50-52 and 52-54, not 52-52 alone
    recorded[0, 53:] = recorded[0, 51] = 0
    assert gamma_coincidence(recorded, model, 2.0, 1.0) == pytest.approx(1)


def test_gamma_coincidence_of_perfect_unrelated_and_silent_predictions():
    recorded = trains(2, 100_000, rate=0.002)
    assert gamma_coincidence(recorded[:1], recorded[0], 4.0, 1.0) == pytest.approx(1)
    assert abs(gamma_coincidence(recorded[:1], recorded[1], 4.0, 1.0)) < 0.1
    assert gamma_coincidence(recorded, np.zeros(100_000), 4.0, 1.0) == 0
    assert math.isnan(gamma_coincidence(np.zeros((2, 50)), np.zeros(50), 4.0, 1.0))


COUNTS = trains(60, rate=0.3), trains(60, rate=0.3, seed=1)
KINDS = {
    "list": lambda train: train.astype(int).tolist(),
    "list of floats": lambda train: train.tolist(),
    "bool array": lambda train: train > 0,
    "uint8 array": lambda train: train.astype(np.uint8),
    "big-endian array": lambda train: train.astype(">i4"),
    "float16 array": lambda train: train.astype(np.float16),
    "reversed view": lambda train: train[..., ::-1].copy()[..., ::-1],
    "read-only array": lambda train: np.broadcast_to(train, train.shape),
    "bool tensor": lambda train: torch.from_numpy(train > 0),
    "int tensor": lambda train: torch.from_numpy(train).int(),
    "float tensor": lambda train: torch.from_numpy(train).float(),
    "bfloat16 tensor": lambda train: torch.from_numpy(train).bfloat16(),
    "differentiable tensor": lambda train: torch.from_numpy(train).requires_grad_(),
}
METRICS = {
    "van Rossum": lambda x, y: van_rossum_distance(x, y, 5.0, 1.0),
    "ETV": lambda x, y: explained_temporal_variance(x, y, 5.0, 1.0, False),
    "gamma": lambda x, y: gamma_coincidence(x, y, 0.5, 1.0),
    "squared": lambda x, y: squared_distance(x, y, 0.9, Window(3, 40, 60))[0],
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
def test_trains_of_any_type_are_accepted(kind, metric):
    shapes = {"ETV": ((1, -1), (-1,)), "gamma": ((1, -1), (-1,)), "squared": ((-1, 1, 1),) * 2}
    x, y = (
        train.reshape(shape)
        for train, shape in zip(COUNTS, shapes.get(metric, ((-1,), (-1,))), strict=True)
    )
    expected = METRICS[metric](x, y)
    is_tensor = metric == "squared" or (metric == "van Rossum" and "tensor" in kind)
    to = KINDS[kind]
    for pair in ((to(x), y), (x, to(y)), (to(x), to(y))):
        found: Any = METRICS[metric](*pair)
        assert isinstance(found, torch.Tensor if is_tensor else (float, np.floating))
        found = found.detach() if is_tensor else found  # pyright: ignore
        assert float(found) == pytest.approx(float(expected), rel=1e-6) and float(expected) != 0


def test_dtype_of_a_van_rossum_distance():
    x, y = (train.reshape(6, 5, 2) for train in COUNTS)
    assert isinstance(van_rossum_distance(x, y, 5.0, 1.0), np.ndarray)
    assert van_rossum_distance(x.astype(np.float32), y > 0, 5.0, 1.0).dtype == np.float32
    assert van_rossum_distance(x.astype(np.float32), y, 5.0, 1.0).dtype == np.float64
    assert van_rossum_distance(torch.from_numpy(x).float(), y, 5.0, 1.0).dtype == torch.float64
    assert van_rossum_distance(torch.from_numpy(x).half(), y > 0, 5, 1).dtype == torch.float32
    tensor = torch.from_numpy(x).requires_grad_()
    van_rossum_distance(tensor, y, 5.0, 1.0).sum().backward()
    assert tensor.grad is not None and tensor.grad.any()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: van_rossum_distance(torch.zeros(3), torch.zeros(4), 1.0, 1.0), "x, y: .*3.*4"),
        (lambda: van_rossum_distance(torch.zeros(3), torch.zeros(3), 0.0, 1.0), "tau_ms: .* 0.0"),
        (lambda: van_rossum_distance([0.0], [math.nan], 1.0, 1.0), "y: expected finite.*NaN"),
        (lambda: van_rossum_distance([[0.0], [1, 2]], [1], 1.0, 1.0), "x: expected real numbers"),
        (lambda: van_rossum_distance([0], ["a"], 1.0, 1.0), r"y: expected real.*got \['a'\]"),
        (lambda: van_rossum_distance([0], torch.zeros(1) * 1j, 1.0, 1.0), "y: expected real"),
        (lambda: gamma_coincidence([[0.5]], [0.0], 1.0, 1.0), "trials: expected whole .*got 0.5"),
        (lambda: gamma_coincidence([[1]], [-1], 1.0, 1.0), "prediction: expected whole .*got -1"),
        (lambda: explained_temporal_variance(np.zeros(5), np.zeros(5), 1.0, 1.0), r"trials.*\[5\]"),
        (lambda: explained_temporal_variance(np.zeros((1, 5)), np.zeros(4), 1, 1), r"\[1, 5\].*4"),
        (lambda: explained_temporal_variance([[math.nan]], [0.0], 1.0, 1.0), "trials: .*NaN"),
        (lambda: explained_temporal_variance([[0.0]], [0.0], 1.0, -1.0), "dt_ms: .*-1.0"),
        (lambda: explained_temporal_variance([[0.1]], [0.1], 1.0, 1.0), "trials: .*whole .*0.1"),
        (lambda: gamma_coincidence([[0.0]], [math.inf], 1.0, 1.0), "prediction: .*Inf"),
        (lambda: gamma_coincidence([[0.0, 1.0]], [0.0, 1.0], 1.0, 1.0), "window_ms: .* 1.0 at 1"),
        (
            lambda: gamma_coincidence([[0.0, 1.0]] * 2, [0.0, 0.0], 1.0, 1.0, normalise=True),
            "mean interval of a train, got 1.0 at 1 spikes",
        ),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_standard_error_without_the_only_spikes_is_unknown():
    recorded, model = np.zeros((2, 4000)), np.zeros(4000)
    recorded[0, 100] = recorded[1, 110] = model[105] = 1
    assert explained_temporal_variance(recorded, model, 15.0, 1.0) > 0.5
    assert math.isnan(etv_standard_error(recorded, model, 15.0, 1.0))


def test_md_star_by_its_formula():
    recorded, model = trains(3, 3000), trains(4, 3000, seed=1)
    recorded[:, ::50] = 1  # shared spikes
    model[:, 2::100] = 1
    width = 4

    def n_pairs(x: np.ndarray, y: np.ndarray) -> int:
        a, b = np.flatnonzero(x), np.flatnonzero(y)
        return int((np.abs(a[:, None] - b) <= width).sum())

    def between(rows: np.ndarray) -> float:
        n = range(len(rows))
        return float(np.mean([n_pairs(rows[i], rows[j]) for i in n for j in n if i != j]))

    of_both = np.mean([n_pairs(x, y) for x in recorded for y in model])
    expected = 2 * of_both / (between(recorded) + between(model))
    found = md_star(recorded, model, window_ms=width * DT_MS, dt_ms=DT_MS)
    assert found == pytest.approx(expected) and 0.1 < found < 1
    assert md_star(torch.from_numpy(recorded), model.tolist(), width * DT_MS, DT_MS) == found
    alone = md_star(recorded, model[0], width * DT_MS, DT_MS)
    single = n_pairs(model[0], model[0])
    expected = 2 * np.mean([n_pairs(x, model[0]) for x in recorded]) / (between(recorded) + single)
    assert alone == pytest.approx(expected)


def test_md_star_of_the_neuron_itself_is_1_whatever_the_number_of_trials():
    rate = 0.02 + 0.3 * (np.arange(40_000) % 200 < 8)
    draw = np.random.default_rng(0)
    for n in (2, 20):
        recorded, model = (draw.random((n, 40_000)) < rate for _ in range(2))
        assert md_star(recorded, model, 0.4, DT_MS) == pytest.approx(1, abs=0.03)
    assert math.isnan(md_star(np.zeros((2, 50)), np.zeros(50)))


@pytest.mark.parametrize(
    ("recorded", "model", "words"),
    [
        (np.zeros((1, 50)), np.zeros(50), "trials: expected at least 2 recorded trials, got 1"),
        (np.zeros((2, 50)), np.zeros((3, 40)), r"expected \[R, T\] and \[M, T\]"),
        (np.zeros(50), np.zeros(50), r"expected \[R, T\] and \[M, T\]"),
        (
            np.zeros((2, 50)),
            np.zeros((0, 50)),
            r"expected \[R, T\] and \[M, T\], none empty, got .*\[0, 50\]",
        ),
        (np.full((2, 50), np.nan), np.zeros(50), "trials: expected finite values"),
        (-np.ones((2, 50)), np.zeros(50), "trials: expected whole numbers of spikes"),
        (np.zeros((2, 50)), np.full(50, 0.5), "predictions: expected whole numbers of spikes"),
    ],
)
def test_md_star_refuses_other_input(recorded, model, words):
    with pytest.raises(ValueError, match=words):
        md_star(recorded, model)
    with pytest.raises(ValueError, match="window_ms: expected a number > 0"):
        md_star(np.zeros((2, 9)), np.zeros(9), window_ms=0.0)


def test_gamma_relative_to_the_neurons_reliability():
    recorded, model = trains(3, 5000), trains(5000, seed=4)
    recorded[:, ::100], model[::100] = 1, 1
    others = [
        gamma_coincidence(np.delete(recorded, i, 0), train, 0.2, DT_MS)
        for i, train in enumerate(recorded)
    ]
    raw = gamma_coincidence(recorded, model, 0.2, DT_MS)
    found = gamma_coincidence(recorded, model, 0.2, DT_MS, normalise=True)
    assert found == pytest.approx(raw / np.mean(others)) and 0.5 < found < 1.5
    assert math.isnan(gamma_coincidence(recorded[:1], model, 0.2, DT_MS, normalise=True))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_standard_error_of_etv_is_the_spread_over_recordings(share):
    scores, errors = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        smooth = np.asarray(gaussian_filter1d(random.normal(size=6000), 20), float)
        rate = 0.06 * (smooth > 0.02)
        trials = random.random((4, 6000)) < rate
        model = (random.random((20, 6000)) < share * rate + 0.01).mean(0)
        scores.append(explained_temporal_variance(trials, model, 15.0, 0.5))
        errors.append(etv_standard_error(trials, model, 15.0, 0.5))
    assert 0.7 < np.mean(errors) / np.std(scores, ddof=1) < 1.5


def test_the_standard_error_of_silence_is_unknown():
    assert np.isnan(etv_standard_error(np.zeros((2, 100)), np.zeros(100), 5.0, 1.0))
