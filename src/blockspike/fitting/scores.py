"""Scores of fitted neurons: predicted spike trains against recorded ones."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.ndimage import binary_opening

from blockspike.data.parts import Part
from blockspike.fitting.fitted_neuron import FittedNeuron
from blockspike.fitting.metrics import (
    CoincidenceWindow,
    etv_of_each,
    etv_standard_error,
    explained_temporal_variance,
    gamma_of_steps,
    gamma_reliability,
    md_star_of_steps,
    spike_steps,
)

SIGMAS_MS = (5.0, 10.0, 15.0)
_GAMMA_MS, _GAMMA_A_MS, _MD_MS = 4.0, 2.0, 4.0
_BASELINE_MS = 5.0  # at the start of training, where a stimulus by steps is not yet on
_LEAST_BASELINE_STEPS = 20  # by which its noise is known
_PAUSE_MS = 20.0  # for which a stimulus is at least off; slow noise crosses its start in less
_LEAST_GAMMA = -1.0  # it falls without bound towards the rate at which all coincides by chance
_N_TRIALS = 100  # simulated of a neuron with noise; their mean is its prediction


class Prediction(NamedTuple):
    """Simulated spikes of one neuron on one current.

    Attributes:
        mean: mean spikes [T] over all trials with the neuron's noise.
        spike_steps: the steps of each trial's spikes, in order; one trial for a neuron without
            noise.
        noiseless: spikes [T] without noise.
    """

    mean: np.ndarray
    spike_steps: list[np.ndarray]
    noiseless: np.ndarray

    def trials(self, n: int | None = None) -> Iterator[np.ndarray]:
        """Spikes [T] of each of the first n trials, or of all."""
        for steps in self.spike_steps[:n]:
            yield np.bincount(steps, minlength=len(self.mean)).astype(np.uint8)


def predict(neuron: FittedNeuron, current_pa: np.ndarray, first: int = 0) -> Prediction:
    """Simulate a neuron on a current; the prediction begins at step `first`."""
    noiseless = neuron.simulate(current_pa)[first:].astype(np.uint8)
    trials = noiseless[None]
    if neuron.is_noisy:
        trials = neuron.simulate(current_pa, _N_TRIALS)[:, first:]
    return Prediction(trials.mean(0, dtype=np.float32), spike_steps(trials), noiseless)


def predictions_of(
    neurons: list[FittedNeuron], part: Part, scale_pa: np.ndarray
) -> list[list[Prediction]]:
    """Predictions for each cell and segment, over the steps that are scored.

    `scale_pa` is the scale of each cell's training current, by which its neuron's gain was divided.
    """
    return [
        [
            predict(neuron, current.astype(float) * scale, first)
            for (current, _), first in zip(part.segments(cell), part.first[cell], strict=True)
        ]
        for cell, (neuron, scale) in enumerate(zip(neurons, scale_pa, strict=True))
    ]


def scores_of_segments(
    part: Part, predictions: list[list[Prediction]], dt_ms: float
) -> list[pd.DataFrame]:
    """Scores of `segment_scores` for each cell: a row per segment."""
    return [
        pd.DataFrame(
            segment_scores(trains, x, dt_ms)
            for trains, x in zip(part.scored(cell), predicted, strict=True)
        )
        for cell, predicted in enumerate(predictions)
    ]


def scores_of_cells(part: Part, segments: list[pd.DataFrame]) -> pd.DataFrame:
    """Scores of `scores_of_segments`, averaged over segments: a row per cell.

    Rates are those of all segments together. Segments whose standard error is unknown, such as
    silent ones, count as the others do.
    """
    table = pd.DataFrame([scores.mean() for scores in segments])
    for name in ("rate_hz", "recorded_hz"):
        table[name] = [
            np.average(scores[name], weights=[x.shape[1] for x in part.scored(cell)])
            for cell, scores in enumerate(segments)
        ]
    table["etv_15ms_se"] = [
        np.sqrt((scores["etv_15ms_se"] ** 2).mean() / len(scores)) for scores in segments
    ]
    recorded_hz = table["recorded_hz"]
    table["rate_error"] = table["rate_hz"] / recorded_hz.where(recorded_hz > 0) - 1
    return table


def null_etv(train: Part, test: Part, cell: int, dt_ms: float, test_scale: float = 1.0) -> float:
    """Normalised ETV at 15 ms of a model that knows only when the stimulus is on.

    While the stimulus is on (see `_when_on`), the model predicts the mean rate that the cell then
    had in training; a fit that explains less has learnt nothing. The mean over the test segments.

    Args:
        train, test: parts of the recordings.
        cell: number of the cell.
        dt_ms: length of a step.
        test_scale: unit of the test current in that of the training current.
    """
    is_on = _when_on([current for current, _ in train.segments(cell)], dt_ms)

    def scored(part: Part, scale: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """When the stimulus is on, and the trains, of each segment."""
        for (current, _), trains in zip(part.segments(cell), part.scored(cell), strict=True):
            yield is_on(scale * current)[-trains.shape[1] :], trains

    fired = steps = 0.0
    for on, trains in scored(train, 1.0):
        fired += trains[:, on].mean(0).sum()
        steps += on.sum()
    rate = fired / max(steps, 1)
    scores = [_explained(x, rate * on, 15.0, dt_ms, True) for on, x in scored(test, test_scale)]
    return float(np.mean(scores))


def _when_on(segments: list[np.ndarray], dt_ms: float) -> Callable[[np.ndarray], np.ndarray]:
    """Function from a current [T] to whether the stimulus is on, by the training segments [T].

    It is off where the current stays for 20 ms or longer at its value at the start of training, and
    always on if it fluctuates within the first 5 ms, at least 20 steps, there.
    """
    n_start = max(_LEAST_BASELINE_STEPS, round(_BASELINE_MS / dt_ms))
    pause = np.ones(max(1, round(_PAUSE_MS / dt_ms)))
    starts = [current[:n_start] for current in segments]
    spread = float(np.ptp(np.concatenate(segments)))
    levels = [np.quantile(x, 0.5, method="lower") for x in starts]  # "lower": they occur
    base = np.quantile(levels, 0.5, method="lower")
    noise = np.sqrt(np.median([x.var() for x in starts]))
    if_white = np.sqrt(np.median([np.mean(np.diff(x) ** 2) for x in starts]) / 2)
    is_slow = noise > 0.01 * spread and if_white < 0.7 * noise
    if noise > 0.03 * spread or is_slow:
        return lambda current: np.ones(len(current), bool)
    least = max(0.01 * spread, 5 * noise)
    return lambda x: np.logical_not(binary_opening(np.abs(x - base) <= least, pause))


def _explained(
    trains: np.ndarray, prediction: np.ndarray, sigma_ms: float, dt_ms: float, normalise: bool
) -> float:
    """ETV; of silent trains, 1 − the number of predicted spikes, at least 0.

    A silent prediction of trains of which only some are silent explains nothing.
    """
    if not trains.any():
        return max(0.0, 1.0 - float(prediction.sum()))
    score = explained_temporal_variance(trains, prediction, sigma_ms, dt_ms, normalise)
    return 0.0 if np.isnan(score) else score


def _explained_by_each(
    trains: np.ndarray, predicted: Prediction, sigma_ms: float, dt_ms: float
) -> float:
    """Mean of the normalised `_explained` of each simulated trial."""
    if not trains.any():
        scores = [_explained(trains, x, sigma_ms, dt_ms, True) for x in predicted.trials()]
    else:
        scores = etv_of_each(trains, predicted.trials(), sigma_ms, dt_ms)
    return float(np.mean(np.where(np.isnan(scores), 0, scores)))


def segment_scores(trains: np.ndarray, predicted: Prediction, dt_ms: float) -> dict[str, float]:
    """Score a prediction against recorded trains [R, T].

    Returns:
        Rates in Hz; raw and normalised ETV of the trials' mean at three σ, at 15 ms with its
        standard error; Γ ± 4 ms of single trials, and ± 2 ms relative to the neuron's own
        reliability; Md* ± 4 ms; normalised ETV at 15 ms of single trials, of the neuron without
        noise, and of a recorded trial as a prediction of the others. What needs several
        recorded trials is NaN with one.
    """
    duration_s, mean = trains.shape[1] * dt_ms / 1000, predicted.mean
    row = {
        "rate_hz": mean.sum(dtype=float) / duration_s,
        "recorded_hz": trains.sum(1).mean() / duration_s,
    }
    for sigma in SIGMAS_MS:
        for name, normalise in (("etv", True), ("raw_etv", False)):
            value = _explained(trains, mean, sigma, dt_ms, normalise)
            row[f"{name}_{sigma:g}ms"] = value
    row["etv_15ms_se"] = etv_standard_error(trains, mean, 15.0, dt_ms)
    row["trial_etv_15ms"] = _explained_by_each(trains, predicted, 15.0, dt_ms)
    row["noiseless_etv_15ms"] = _explained(trains, predicted.noiseless, 15.0, dt_ms, True)
    steps, of_model = spike_steps(trains), predicted.spike_steps
    gamma, gamma_a, md = (
        CoincidenceWindow(x, dt_ms, len(mean)) for x in (_GAMMA_MS, _GAMMA_A_MS, _MD_MS)
    )
    row["gamma_4ms"] = _gamma(steps, of_model, gamma)
    row["gamma_a_2ms"] = _gamma_a(steps, of_model, gamma_a)
    row["md_star_4ms"] = row["reliability_etv_15ms"] = np.nan
    if len(trains) > 1:
        row["md_star_4ms"] = md_star_of_steps(steps, of_model, md)
        others = [
            _explained(np.delete(trains, i, 0), train, 15.0, dt_ms, True)
            for i, train in enumerate(trains)
        ]
        row["reliability_etv_15ms"] = np.mean(others)
    return {name: float(value) for name, value in row.items()}  # plain numbers, for JSON


def _gamma(recorded: list[np.ndarray], model: list[np.ndarray], window: CoincidenceWindow) -> float:
    """Mean Γ of the `spike_steps` of recorded trials with those of simulated ones.

    Each simulated trial has at least −1, and one with which all coincides by chance has −1. NaN if
    all recorded trials are silent, or if all coincides with them by chance.
    """
    n_spikes = float(np.mean([len(x) for x in recorded]))
    if n_spikes == 0 or window.share_by_chance(n_spikes) >= 1:
        return float("nan")
    scores = [
        max(_LEAST_GAMMA, gamma_of_steps(recorded, steps, window))
        if window.share_by_chance(len(steps)) < 1
        else _LEAST_GAMMA
        for steps in model
    ]
    return float(np.mean(scores))


def _gamma_a(
    recorded: list[np.ndarray], model: list[np.ndarray], window: CoincidenceWindow
) -> float:
    """`_gamma` relative to the neuron's reliability; NaN if that is not above 0."""
    try:
        reliability = gamma_reliability(recorded, window)
    except ValueError:  # a recorded trial is too frequent
        return float("nan")
    return _gamma(recorded, model, window) / reliability if reliability > 0 else float("nan")
