"""Scores of fitted neurons, beside a null and the neuron's own reliability."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from blockspike.data.parts import Part, beside, stacked
from blockspike.fitting.fitted_neuron import FittedNeuron
from blockspike.fitting.metrics import (
    explained_temporal_variance,
    gamma_coincidence,
    md_star,
    spike_steps,
)
from blockspike.fitting.scores import (
    Prediction,
    null_etv,
    predict,
    scores_of_cells,
    scores_of_segments,
    segment_scores,
)

DT_MS = 1.0


def prediction(*trials: np.ndarray) -> Prediction:
    rows = np.stack(trials).astype(np.uint8)
    return Prediction(rows.mean(0).astype(np.float32), spike_steps(rows), rows[0])


def fired(n_trials: int, seed: int = 0) -> np.ndarray:
    rate = np.where(np.arange(2000) % 100 < 10, 0.3, 0.002)
    return (np.random.default_rng(seed).random((n_trials, 2000)) < rate).astype(np.float32)


def test_the_neuron_itself_scores_as_well_as_another_trial():
    trains, own = fired(8), fired(1, seed=1)
    row = segment_scores(trains, prediction(*own), DT_MS)
    assert row["trial_etv_15ms"] == pytest.approx(row["reliability_etv_15ms"], abs=0.1)
    assert row["gamma_a_2ms"] == pytest.approx(1, abs=0.2)
    assert row["md_star_4ms"] > 0.6
    alone = segment_scores(trains[:1], prediction(*own), DT_MS)
    assert all(np.isnan(alone[x]) for x in ("reliability_etv_15ms", "gamma_a_2ms", "md_star_4ms"))


def test_each_simulated_trial_is_scored():
    neuron = FittedNeuron("a", 10.0, 100.0, 0.1, 0.02, 0.0, arp_ms=2.0, dt_ms=DT_MS, noise=0.3)
    current = np.random.default_rng(0).normal(40, 40, 2000)
    trains = neuron.simulate(current, 4, seed=1)
    found = predict(neuron, current)
    trials = np.stack(list(found.trials()))
    np.testing.assert_array_equal(trials, neuron.simulate(current, len(trials)))
    assert len(trials) == 100 and trials.any(1).all()
    row = segment_scores(trains, found, DT_MS)
    assert row["md_star_4ms"] == md_star(trains, trials, 4.0, DT_MS)
    etv = [explained_temporal_variance(trains, x, 15.0, DT_MS) for x in trials]
    assert row["trial_etv_15ms"] == pytest.approx(np.mean(etv), rel=1e-12)
    gamma = [gamma_coincidence(trains, x, 4.0, DT_MS) for x in trials]
    assert row["gamma_4ms"] == pytest.approx(np.mean(gamma), rel=1e-12)


def test_silence_is_predicted_or_not():
    silent, one = np.zeros((3, 500), np.float32), np.zeros(500)
    one[100] = 1
    assert segment_scores(silent, prediction(np.zeros(500)), DT_MS)["etv_15ms"] == 1
    assert segment_scores(silent, prediction(one), DT_MS)["etv_15ms"] == 0
    rarely = prediction(*np.stack([one, *np.zeros((9, 500))]))
    found = segment_scores(silent, rarely, DT_MS)
    assert found["etv_15ms"] == pytest.approx(0.9) and found["trial_etv_15ms"] == 0.9
    some = np.stack([one, np.zeros(500)]).astype(np.float32)
    missed = segment_scores(some, prediction(np.zeros(500)), DT_MS)
    assert missed["etv_15ms"] == missed["trial_etv_15ms"] == 0


def part(current: np.ndarray, trains: list[np.ndarray], first: int = 0) -> Part:
    return Part(torch.from_numpy(current.astype(np.float32)), [trains], [[first] * len(trains)])


def test_a_rate_during_a_step_is_a_null_that_a_fit_must_beat():
    current = np.zeros((2000, 1, 1))
    current[500:1500] = 1
    rate = np.where(current[:, 0, 0] > 0, 0.05, 0)
    draws = [np.random.default_rng(s).random((5, 2000)) for s in (0, 1)]
    trains = [(x < rate).astype(np.float32) for x in draws]
    train, test = part(current, trains[:1]), part(current, trains[1:], first=100)
    assert null_etv(train, test, 0, DT_MS) > 0.5
    inside = part(current[600:], [x[:, 600:] for x in trains[1:]], first=100)
    assert null_etv(train, inside, 0, DT_MS) > 0.5  # a test part that begins within the step
    noise = np.random.default_rng(2).normal(0, 1, (2000, 1, 1))
    noisy = part(noise, trains[:1])
    assert abs(null_etv(noisy, noisy, 0, DT_MS)) < 0.1  # always on: a constant explains nothing
    slow = np.zeros((2500, 1, 1))  # Ornstein-Uhlenbeck, τ = 50 ms: it hardly moves in 5 ms
    for t, x in enumerate(np.random.default_rng(0).normal(0, 0.14, 2500)):
        slow[t] = 0.99 * slow[t - 1] + x
    fired = np.random.default_rng(0).random((5, 2000)) < 0.01 * np.exp(slow[500:, 0, 0])
    wandering = part(slow[500:], [fired.astype(np.float32)])
    expected = explained_temporal_variance(fired, np.full(2000, fired.mean()), 15.0, 0.5)
    assert null_etv(wandering, wandering, 0, 0.5) == pytest.approx(expected, abs=1e-6)


def test_a_current_that_fluctuates_from_its_start_is_always_on():
    slow = gaussian_filter1d(np.random.default_rng(0).normal(size=4000), 3.0)[:, None, None]
    trains = (np.random.default_rng(1).random((2, 5, 4000)) < 0.05).astype(np.float32)
    train, test = part(slow, [trains[0]]), part(slow, [trains[1]])
    constant = [np.full(4000, trains[0].mean())]
    expected = explained_temporal_variance(trains[1], constant[0], 15.0, DT_MS)
    assert null_etv(train, test, 0, DT_MS) == pytest.approx(expected, abs=1e-6)


def test_a_current_that_crosses_its_baseline_does_not_pause():
    current = np.zeros((2000, 1, 1))
    time = np.arange(1500)
    current[500:, 0, 0] = np.cos(2 * np.pi * time / 100)
    trains = (np.random.default_rng(1).random((1, 5, 2000)) < 0.05).astype(np.float32)
    whole = part(current, [trains[0]], first=500)
    expected = explained_temporal_variance(
        trains[0][:, 500:], np.full(1500, trains[0][:, 500:].mean()), 15.0, DT_MS
    )
    assert null_etv(whole, whole, 0, DT_MS) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("pulses", ["steps", "brief", "from the middle of one"])
def test_noise_of_the_device_is_no_stimulus(pulses):
    is_on = np.arange(8000) % 2000 >= 1000
    if pulses == "brief":
        is_on = np.arange(8000) % 2000 < 25
    draws = np.random.default_rng(0).random((2, 5, 8000))
    trains = (draws < np.where(is_on, 0.05, 0)).astype(np.float32)
    current = np.where(is_on, 100, 0) + np.random.default_rng(1).normal(0, 1.5, 8000)
    cuts = [slice(500, 8000)]
    if pulses.startswith("from"):
        cuts += [slice(1500, 6000), slice(985, 4000)]
    currents = stacked([beside([current[x] for x in cuts])])
    train, test = (Part(currents, [[x[:, y] for y in cuts]], [[0] * len(cuts)]) for x in trains)
    rate = np.concatenate([trains[0][:, x][:, is_on[x]] for x in cuts], 1).mean()
    expected = [
        explained_temporal_variance(trains[1][:, x], rate * is_on[x], 15.0, DT_MS) for x in cuts
    ]
    assert null_etv(train, test, 0, DT_MS) == pytest.approx(np.mean(expected), abs=0.02)
    half = Part(test.current / 2, test.trains, test.first)
    assert null_etv(train, half, 0, DT_MS, 2.0) == null_etv(train, test, 0, DT_MS)


def test_segments_are_scored_from_their_own_first_step():
    current = np.random.default_rng(0).normal(size=(2000, 2, 1))
    trains = [fired(4, seed) for seed in (0, 1)]
    both = Part(torch.from_numpy(current.astype(np.float32)), [trains], [[100, 700]])
    predicted = [[prediction(x[0][first:]) for x, first in zip(trains, (100, 700), strict=True)]]
    (segments,) = scores_of_segments(both, predicted, DT_MS)
    for k, first in enumerate((100, 700)):
        alone = segment_scores(trains[k][:, first:], predicted[0][k], DT_MS)
        assert segments.iloc[k].to_dict() == pytest.approx(alone, nan_ok=True)
    null = [
        null_etv(both, part(current[:, k : k + 1], [trains[k]], first), 0, DT_MS)
        for k, first in enumerate((100, 700))
    ]
    assert null_etv(both, both, 0, DT_MS) == pytest.approx(np.mean(null))


def test_gamma_is_bounded_where_a_neuron_fires_always():
    trains, always = fired(4), np.ones(2000)
    often = np.tile([1, 0, 0, 0, 0, 0, 0, 0, 0], 223)[:2000]  # 111 Hz
    scores = [segment_scores(trains, prediction(x), DT_MS)["gamma_4ms"] for x in (often, always)]
    assert -1 <= scores[0] < 0 and scores[1] == -1
    both = segment_scores(np.ones((3, 2000), np.float32), prediction(always), DT_MS)
    assert np.isnan(both["gamma_4ms"]) and np.isnan(both["gamma_a_2ms"])


def test_pairs_of_two_silent_trials_do_not_count_for_gamma():
    fires, silent = fired(1)[0], np.zeros(2000, np.float32)
    recorded, simulated = np.stack([fires, silent]), (fires, silent)
    scores = segment_scores(recorded, prediction(*simulated), DT_MS)
    assert scores["gamma_4ms"] == pytest.approx((1 / 2 + 0) / 2)  # 1, 0; then 0 and none
    several = np.stack([fires, fires, silent, silent])
    reliability = np.mean([1 / 3, 1 / 3, 0, 0])
    found = segment_scores(several, prediction(fires), DT_MS)["gamma_a_2ms"]
    assert found == pytest.approx(np.mean([1, 1, 0, 0]) / reliability)
    for trials in ((silent, silent), simulated, (fires, fires)):
        nothing = segment_scores(np.zeros_like(recorded), prediction(*trials), DT_MS)
        assert np.isnan(nothing["gamma_4ms"]) and np.isnan(nothing["gamma_a_2ms"])


def test_a_wrong_rate_is_reported():
    trains = fired(4)
    doubled = np.clip(trains[0] + np.roll(trains[0], 3), 0, 1)
    test = part(np.zeros((2000, 1, 1)), [trains])
    table = scores_of_cells(test, scores_of_segments(test, [[prediction(doubled)]], DT_MS))
    expected = doubled.sum() / trains.sum(1).mean() - 1
    assert table["rate_error"][0] == pytest.approx(expected, abs=1e-3)


def test_a_rate_is_that_of_all_segments_together():
    long, short = np.zeros((1, 1800), np.float32), np.zeros((1, 200), np.float32)
    long[:, ::100], short[:, ::10] = 1, 1  # 18 and 20 spikes
    test = part(np.zeros((1800, 2, 1)), [long, short])
    segments = scores_of_segments(test, [[prediction(long[0] * 0), prediction(short[0])]], DT_MS)
    table = scores_of_cells(test, segments)
    assert table["recorded_hz"][0] == pytest.approx(38 / 2)
    assert table["rate_hz"][0] == pytest.approx(20 / 2)
    assert table["rate_error"][0] == pytest.approx(-18 / 38)


def test_scores_of_a_cell_are_means_over_its_segments():
    trains = [fired(4, seed) for seed in (0, 1)]
    test = part(np.zeros((2000, 2, 1)), trains)
    (segments,) = scores_of_segments(test, [[prediction(x[0]) for x in trains]], DT_MS)
    table = scores_of_cells(test, [segments])
    assert len(segments) == 2 and len(table) == 1
    expected = [segment_scores(x, prediction(x[0]), DT_MS)["gamma_4ms"] for x in trains]
    np.testing.assert_allclose(segments["gamma_4ms"], expected)
    assert table["gamma_4ms"][0] == pytest.approx(np.mean(expected))
