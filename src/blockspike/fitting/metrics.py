"""Similarity of spike trains: van Rossum distance, explained temporal variance, Γ and Md*.

A spike train is an array, list or tensor of any real type with 0 or 1 (or a count) for each step,
time first.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.signal import oaconvolve
from torch import Tensor

from blockspike.fitting.distance import Trains, float_tensors
from blockspike.neurons import leaky_integrate

_ROUNDING = 1e-12  # of a convolution; a spike's smallest weight is 3e-4 of its largest


def van_rossum_distance(x: Trains, y: Trains, tau_ms: float, dt_ms: float) -> Any:
    """√(dt/τ · Σ_t f[t]²), f the difference of the trains filtered by exp(−t/τ).

    Normalised as in van Rossum 2001, "A novel spike distance": a single unmatched spike gives √½
    (for dt ≪ τ). Elephant's distance is √2 times as large.

    Args:
        x, y: trains [T, ...] of one shape.
        tau_ms, dt_ms: time constant of the filter and length of a step.

    Returns:
        Distances [...]: a tensor if either train is one, differentiable in both, with gradient 0 at
        distance 0; else an array, or a number for trains [T]. The dtype is float64, or float32 if
        no train is wider.

    Raises:
        ValueError: shapes differ, a value is not a finite number, or a time is not above 0.

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> train = np.zeros(1000)
        >>> train[500] = 1
        >>> round(float(bs.van_rossum_distance(train, np.zeros(1000), tau_ms=10.0, dt_ms=0.1)), 2)
        0.71
    """
    a, b = float_tensors(x=x, y=y)
    if a.shape != b.shape or a.ndim == 0 or not len(a):
        raise ValueError(
            "x, y: expected trains [T, ...] of one shape, T ≥ 1, "
            f"got {list(a.shape)} and {list(b.shape)}"
        )
    for name, train in (("x", a), ("y", b)):
        _require_finite(name, bool(torch.isfinite(train).all()))
    _require_positive(tau_ms=tau_ms, dt_ms=dt_ms)
    distance = _filtered_distance(a, b, tau_ms, dt_ms)
    are_tensors = isinstance(x, Tensor) or isinstance(y, Tensor)
    return distance if are_tensors else distance.numpy()[()]  # [()] turns a 0-d array into a number


def _filtered_distance(x: Tensor, y: Tensor, tau_ms: float, dt_ms: float) -> Tensor:
    difference = (x - y).reshape(len(x), 1, -1)
    decay = difference.new_full(difference.shape[2:], math.exp(-dt_ms / tau_ms))
    square = leaky_integrate(difference, decay).square().sum((0, 1)) * (dt_ms / tau_ms)
    apart = square > 0
    distance = torch.where(apart, square, 1).sqrt()  # √ has no gradient at 0
    return torch.where(apart, distance, 0).view(x.shape[1:])


def explained_temporal_variance(
    trials: Trains,
    prediction: Trains,
    sigma_ms: float,
    dt_ms: float,
    normalise: bool = True,
) -> float:
    """Share of the temporal variance of smoothed recorded trains that a prediction explains.

    ETV(x, y) = (var x + var y − var(x − y)) / (var x + var y), for trains smoothed by a Gaussian of
    `sigma_ms` (docs/paper.md, Fitting recordings; after the Allen Cell Types Database). The score
    is the mean of ETV(trial, prediction) over trials. The normalised score is divided by the mean
    of ETV(trial, mean of the trials), the best that a model without noise can reach.

    Args:
        trials: recorded trains [R, T].
        prediction: the model's train [T].
        sigma_ms, dt_ms: width of the Gaussian and length of a step.
        normalise: whether to normalise the score.

    Returns:
        1 for a perfect prediction. NaN where the prediction and at least one trial are silent; the
        normalised score also where all trials are.

    Raises:
        ValueError: shapes do not fit, a trial does not consist of spike counts, a value is not
            finite, or a time is not above 0.

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> train = np.zeros(1000)
        >>> train[[100, 400, 700]] = 1
        >>> bs.explained_temporal_variance(train[None], train, sigma_ms=15.0, dt_ms=1.0)
        1.0
    """
    return _score(*_smoothed(trials, prediction, sigma_ms, dt_ms), normalise)


def etv_of_each(
    trials: np.ndarray, predictions: Iterable[np.ndarray], sigma_ms: float, dt_ms: float
) -> list[float]:
    """The normalised ETV of each of several predictions [T], for trials [R, T] prepared once."""
    smoothed = _smooth(trials, sigma_ms, dt_ms)
    centred, variances = _centred(smoothed)
    best = _share(centred, variances, smoothed.mean(0))
    return [_share(centred, variances, _smooth(x, sigma_ms, dt_ms)) / best for x in predictions]


def etv_standard_error(
    trials: Trains, prediction: Trains, sigma_ms: float, dt_ms: float, n_pieces: int = 10
) -> float:
    """Standard error of the normalised explained temporal variance.

    From a jackknife over pieces of time: the score is computed without each of them (Efron &
    Tibshirani 1993, chapter 11). The noise of the trials and, for a prediction that is a mean of
    simulated trials, that of its draws are part of it.

    Args:
        trials, prediction, sigma_ms, dt_ms: see `explained_temporal_variance`.
        n_pieces: number of pieces, of equal length.

    Returns:
        NaN where the score without a piece is.

    Raises:
        ValueError: as in `explained_temporal_variance`.
    """
    smoothed, model = _smoothed(trials, prediction, sigma_ms, dt_ms)
    without = [
        _score(np.delete(smoothed, piece, 1), np.delete(model, piece), True)
        for piece in np.array_split(np.arange(len(model)), n_pieces)
    ]
    return float(np.sqrt(n_pieces - 1) * np.std(without))


def _smoothed(
    trials: Trains, prediction: Trains, sigma_ms: float, dt_ms: float
) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed trials [R, T] and prediction [T]."""
    recorded, model = _trains(trials, prediction)
    _require_counts(trials=recorded)
    _require_positive(sigma_ms=sigma_ms, dt_ms=dt_ms)
    return _smooth(recorded, sigma_ms, dt_ms), _smooth(model, sigma_ms, dt_ms)


def _smooth(trains: np.ndarray, sigma_ms: float, dt_ms: float) -> np.ndarray:
    """Trains [..., T], smoothed by a Gaussian cut at 4 σ; no spikes before and after them."""
    sigma = sigma_ms / dt_ms
    half = round(4 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).reshape((1,) * (trains.ndim - 1) + (-1,))
    smoothed = oaconvolve(trains.astype(float), kernel, mode="same", axes=-1)
    smoothed[np.abs(smoothed) < _ROUNDING] = 0  # silence has no variance
    return smoothed


def _score(smoothed: np.ndarray, model: np.ndarray, normalise: bool) -> float:
    score = _etv(smoothed, model)
    return score / _etv(smoothed, smoothed.mean(0)) if normalise else score


def _etv(trials: np.ndarray, prediction: np.ndarray) -> float:
    """Mean over smoothed trials [R, T] of the share of variance that `prediction` [T] explains."""
    return _share(*_centred(trials), prediction)


def _centred(trials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Trials [R, T] without their means, and their variances [R]."""
    return trials - trials.mean(axis=1, keepdims=True), trials.var(axis=1)


def _share(centred: np.ndarray, variances: np.ndarray, prediction: np.ndarray) -> float:
    """`_etv` of `_centred` trials: twice the covariance by the sum of the variances."""
    total = variances + prediction.var()
    if not total.all():
        return math.nan
    return float(np.mean(2 * (centred @ prediction) / len(prediction) / total))


def gamma_coincidence(
    trials: Trains, prediction: Trains, window_ms: float, dt_ms: float, normalise: bool = False
) -> float:
    """Coincidences of recorded and predicted spikes beyond chance, as a mean over trials.

    Γ = (N_coinc − 2νΔ N_trial) / (½ (N_trial + N_model) (1 − 2νΔ)), where N_coinc is the number
    of coincidences and ν the rate of the prediction (Kistler, Gerstner & van Hemmen 1997; Jolivet
    et al. 2008). A recorded and a predicted spike at most Δ apart may coincide. Each spike takes
    part in at most one coincidence, and N_coinc is the largest possible number of pairs. So N_coinc
    is the same with the two trains exchanged, and Γ never exceeds 1.

    Args:
        trials: recorded trains [R, T], whole numbers of spikes.
        prediction: the model's train [T], also whole numbers.
        window_ms: Δ, half the width of the window; usually 2 to 4.
        dt_ms: length of a step.
        normalise: whether to divide by the reliability of the neuron, the mean Γ of a recorded
            trial and another. With Δ = 2 ms, this is Γ_A of the competition of 2007 (Jolivet et
            al. 2008).

    Returns:
        1 for equal trains, about 0 for unrelated trains. A silent trial does not count beside a
        silent prediction; NaN if all are silent. With `normalise`, also NaN if there is one trial
        only or the trials do not coincide beyond chance.

    Raises:
        ValueError: shapes do not fit, a value is not a whole number ≥ 0, a time is not above 0, or
            spikes are so frequent that every spike coincides by chance (2νΔ ≥ 1).

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> train = np.zeros(1000)
        >>> train[[100, 400, 700]] = 1
        >>> shifted = np.roll(train, 2)
        >>> round(bs.gamma_coincidence(train[None], shifted, window_ms=4.0, dt_ms=1.0), 3)
        1.0
    """
    recorded, model = _trains(trials, prediction)
    _require_counts(trials=recorded, prediction=model)
    _require_positive(window_ms=window_ms, dt_ms=dt_ms)
    window, steps = CoincidenceWindow(window_ms, dt_ms, len(model)), spike_steps(recorded)
    score = gamma_of_steps(steps, spike_steps([model])[0], window)
    if not normalise:
        return score
    reliability = gamma_reliability(steps, window)
    return score / reliability if reliability > 0 else math.nan


class CoincidenceWindow(NamedTuple):
    """Spikes at most `half_ms` apart may coincide, in trains of `n_steps` steps."""

    half_ms: float
    dt_ms: float
    n_steps: int

    @property
    def half_steps(self) -> int:
        """`half_ms` in steps, rounded down."""
        return int(self.half_ms / self.dt_ms + 1e-9)

    def share_by_chance(self, n_spikes: float) -> float:
        """2νΔ, the share of spikes that coincide with so many by chance; from 1 on, all do."""
        return 2 * self.half_ms * n_spikes / (self.n_steps * self.dt_ms)


def spike_steps(trains: Iterable[np.ndarray]) -> list[np.ndarray]:
    """The step of each spike, in order, of each train [T] of counts."""
    return [np.repeat(np.arange(len(x)), x.astype(int)) for x in trains]


def gamma_reliability(recorded: list[np.ndarray], window: CoincidenceWindow) -> float:
    """Mean Γ of one recorded trial and another, of their `spike_steps`; NaN with one trial."""
    others = [
        gamma_of_steps(recorded[:i] + recorded[i + 1 :], steps, window)
        for i, steps in enumerate(recorded)
        if len(recorded) > 1
    ]
    found = [x for x in others if not math.isnan(x)]
    return float(np.mean(found)) if found else math.nan


def gamma_of_steps(
    recorded: list[np.ndarray], model: np.ndarray, window: CoincidenceWindow
) -> float:
    """`gamma_coincidence` of the `spike_steps` of trials and of a prediction."""
    by_chance = window.share_by_chance(len(model))
    if by_chance >= 1:
        raise ValueError(
            "window_ms: expected less than half the mean interval of a train, "
            f"got {window.half_ms} at {len(model)} spikes in {window.n_steps * window.dt_ms:g} ms"
        )
    predicted = model.tolist()
    found = np.array([_coincidences(x.tolist(), predicted, window.half_steps) for x in recorded])
    n_recorded = np.array([len(x) for x in recorded])
    either = (n_recorded + len(model)) / 2
    beyond_chance = found - by_chance * n_recorded
    counts = either > 0
    scores = beyond_chance[counts] / (either[counts] * (1 - by_chance))
    return float(scores.mean()) if counts.any() else math.nan


def md_star(
    trials: Trains, predictions: Trains, window_ms: float = 4.0, dt_ms: float = 1.0
) -> float:
    """Md*: how well trials of a model match recorded trials, without a bias from their number.

    Md* = 2 n_dm / (n_dd + n_mm), where n is the mean number of pairs of spikes at most Δ apart,
    over all pairs of a recorded and a simulated trial, of two recorded trials, and of two simulated
    trials (Naud, Gerhard, Mensi & Gerstner 2011, "Improved similarity measures for small sets of
    spike trains"). A single simulated trial is compared with itself: it would always be the same.

    Args:
        trials: recorded trains [R, T], R ≥ 2.
        predictions: the model's trains [M, T], or one train [T].
        window_ms: Δ.
        dt_ms: length of a step.

    Returns:
        1 where the two sets cannot be told apart, 0 where no spikes coincide; NaN where no two
        trials of either coincide.

    Raises:
        ValueError: shapes do not fit, there are fewer than two trials, a train does not consist of
            spike counts, a value is not finite, or a time is not above 0.

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> trials = np.zeros((2, 1000))
        >>> trials[:, [100, 400, 700]] = 1
        >>> bs.md_star(trials, np.roll(trials, 3, axis=1), window_ms=4.0, dt_ms=1.0)
        1.0
    """
    recorded, model = (
        x.detach().cpu().double().numpy()
        for x in float_tensors(trials=trials, predictions=predictions)
    )
    model = np.atleast_2d(model)
    are_matrices = recorded.ndim == model.ndim == 2
    if not are_matrices or model.shape[1] != recorded.shape[1] or not model.size:
        raise ValueError(
            "trials, predictions: expected [R, T] and [M, T], none empty, "
            f"got {list(recorded.shape)} and {list(model.shape)}"
        )
    if len(recorded) < 2:
        raise ValueError(f"trials: expected at least 2 recorded trials, got {len(recorded)}")
    for name, values in (("trials", recorded), ("predictions", model)):
        _require_finite(name, bool(np.isfinite(values).all()))
    _require_counts(trials=recorded, predictions=model)
    _require_positive(window_ms=window_ms, dt_ms=dt_ms)
    window = CoincidenceWindow(window_ms, dt_ms, recorded.shape[1])
    return md_star_of_steps(spike_steps(recorded), spike_steps(model), window)


def md_star_of_steps(
    recorded: list[np.ndarray], model: list[np.ndarray], window: CoincidenceWindow
) -> float:
    """`md_star` of the `spike_steps` of trials."""
    within = window.half_steps
    all_recorded, all_model = (np.sort(np.concatenate(x)) for x in (recorded, model))
    of_both = _n_pairs(all_recorded, all_model, within) / (len(recorded) * len(model))
    total = _between_trials(recorded, within) + _between_trials(model, within)
    return 2 * of_both / total if total > 0 else math.nan


def _between_trials(trials: list[np.ndarray], within: int) -> float:
    """Mean number of pairs of spikes of two different trials; of a single trial with itself."""
    n, pooled = len(trials), np.sort(np.concatenate(trials))
    of_own = sum(_n_pairs(x, x, within) for x in trials)
    return (_n_pairs(pooled, pooled, within) - of_own) / (n * (n - 1)) if n > 1 else float(of_own)


def _n_pairs(x: np.ndarray, y: np.ndarray, within: int) -> int:
    """Number of pairs of a step in x and one in y, both in order, at most `within` apart."""
    first, last = np.searchsorted(y, x - within), np.searchsorted(y, x + within, "right")
    return int((last - first).sum())


def _coincidences(x: list[int], y: list[int], half_width: int) -> int:
    """Largest number of one-to-one pairs of spikes at most `half_width` steps apart.

    The earliest two spikes left are paired if they are close enough; if not, the earlier one has no
    partner. As all windows have one width, no other pairing finds more.
    """
    i = j = n_pairs = 0
    while i < len(x) and j < len(y):
        apart = x[i] - y[j]
        n_pairs += abs(apart) <= half_width
        i += apart <= half_width
        j += apart >= -half_width
    return n_pairs


def _trains(trials: Trains, prediction: Trains) -> tuple[np.ndarray, np.ndarray]:
    """Trains [R, T] and [T] as float64 arrays."""
    tensors = float_tensors(trials=trials, prediction=prediction)
    recorded, model = (x.detach().cpu().double().numpy() for x in tensors)
    if recorded.ndim != 2 or model.shape != recorded.shape[1:] or not recorded.size:
        raise ValueError(
            f"trials, prediction: expected [R, T] and [T], got {list(recorded.shape)} and "
            f"{list(model.shape)}"
        )
    for name, values in (("trials", recorded), ("prediction", model)):
        _require_finite(name, bool(np.isfinite(values).all()))
    return recorded, model


def _require_counts(**trains: np.ndarray) -> None:
    for name, values in trains.items():
        wrong = values[(values < 0) | (values % 1 != 0)]
        if wrong.size:
            raise ValueError(f"{name}: expected whole numbers of spikes ≥ 0, got {wrong[0]}")


def _require_finite(name: str, is_finite: bool) -> None:
    if not is_finite:
        raise ValueError(f"{name}: expected finite values, got NaN or Inf")


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a number > 0, got {value}")
