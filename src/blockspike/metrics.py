"""How alike spike trains are: van Rossum distance, explained temporal variance, gamma coincidence.

A spike train is an array of steps, 0 or 1 (or counts), time first.
"""

import math

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter1d, maximum_filter1d
from torch import Tensor

from blockspike.neurons import leaky_integrate


def van_rossum_distance(x: Tensor, y: Tensor, tau_ms: float, dt_ms: float) -> Tensor:
    """√(dt/τ · Σ_t f[t]²), f the difference of the trains filtered by exp(−t/τ).

    van Rossum 2001, "A novel spike distance", without its factor of 2: a spike that the other
    train lacks alone gives √½ (for dt ≪ τ).

    Args:
        x, y: trains [T, ...] of one shape and dtype, float32 or float64.
        tau_ms, dt_ms: time constant of the filter and length of a step.

    Returns:
        Distances [...], differentiable in both trains; at distance 0 the gradient is 0.

    Raises:
        ValueError: shapes or dtypes differ, or a time is not above 0.
    """
    if x.shape != y.shape or x.dtype != y.dtype or x.ndim == 0:
        raise ValueError(
            "x, y: expected trains [T, ...] of one shape and dtype, got "
            f"{list(x.shape)} {x.dtype} and {list(y.shape)} {y.dtype}"
        )
    _require_positive(tau_ms=tau_ms, dt_ms=dt_ms)
    difference = (x - y).reshape(len(x), 1, -1)
    decay = difference.new_full(difference.shape[2:], math.exp(-dt_ms / tau_ms))
    square = leaky_integrate(difference, decay).square().sum((0, 1)) * (dt_ms / tau_ms)
    apart = square > 0
    distance = torch.where(apart, square, 1).sqrt()  # √ has no gradient at 0
    return torch.where(apart, distance, 0).view(x.shape[1:])


def explained_temporal_variance(
    trials: ArrayLike,
    prediction: ArrayLike,
    sigma_ms: float,
    dt_ms: float,
    normalise: bool = True,
) -> float:
    """How much of the variance over time of smoothed recorded trains a prediction explains.

    ETV(x, y) = (var x + var y − var(x − y)) / (var x + var y), trains smoothed by a Gaussian of
    `sigma_ms` (Taylor, King & Harper 2023, after the Allen Cell Types Database). The score is the
    mean of ETV(trial, prediction) over trials; normalised, it is divided by the mean of
    ETV(trial, mean of the trials), the best that a model without noise can reach.

    Args:
        trials: recorded trains [R, T].
        prediction: the model's train [T].
        sigma_ms, dt_ms: width of the Gaussian and length of a step.

    Returns:
        1 for a perfect prediction; NaN where neither train has a spike.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a time is not above 0.
    """
    recorded, model = _trains(trials, prediction)
    _require_positive(sigma_ms=sigma_ms, dt_ms=dt_ms)
    smoothed = gaussian_filter1d(recorded, sigma_ms / dt_ms, axis=1, mode="constant")
    score = _etv(smoothed, gaussian_filter1d(model, sigma_ms / dt_ms, mode="constant"))
    return score / _etv(smoothed, smoothed.mean(0)) if normalise else score


def _etv(trials: np.ndarray, prediction: np.ndarray) -> float:
    """Mean over smoothed trials [R, T] of the share of variance that `prediction` [T] explains."""
    total = trials.var(axis=1) + prediction.var()
    if not total.all():
        return math.nan
    return float(np.mean((total - (trials - prediction).var(axis=1)) / total))


def gamma_coincidence(
    trials: ArrayLike, prediction: ArrayLike, window_ms: float, dt_ms: float
) -> float:
    """Coincidences of recorded and predicted spikes beyond chance, as a mean over trials.

    Γ = (N_coinc − 2νΔ N_trial) / (½ (N_trial + N_model) (1 − 2νΔ)), where N_coinc is the number
    of recorded spikes with a predicted one within ±Δ and ν the rate of the prediction (Kistler,
    Gerstner & van Hemmen 1997; Jolivet et al. 2008).

    Args:
        trials: recorded trains [R, T].
        prediction: the model's train [T].
        window_ms: Δ, half the width of the window; usually 2 to 4.
        dt_ms: length of a step.

    Returns:
        1 for equal trains, about 0 for trains that have nothing to do with each other; NaN where
        neither has a spike.

    Raises:
        ValueError: shapes do not fit, a value is not finite, a time is not above 0, or spikes are
            so frequent that every spike coincides by chance (2νΔ ≥ 1).
    """
    recorded, model = _trains(trials, prediction)
    _require_positive(window_ms=window_ms, dt_ms=dt_ms)
    half_width = int(window_ms / dt_ms + 1e-9)
    by_chance = 2 * window_ms * model.sum() / (len(model) * dt_ms)
    if by_chance >= 1:
        raise ValueError(
            f"window_ms: expected less than half the mean interval of the prediction, "
            f"got {window_ms} at {model.sum():g} spikes in {len(model) * dt_ms:g} ms"
        )
    near = maximum_filter1d((model > 0).astype(float), 2 * half_width + 1, mode="constant")
    coinciding = (recorded * near).sum(1) - by_chance * recorded.sum(1)
    either = (recorded.sum(1) + model.sum()) / 2
    if not either.all():
        return math.nan
    return float(np.mean(coinciding / (either * (1 - by_chance))))


def _trains(trials: ArrayLike, prediction: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    recorded, model = np.asarray(trials, float), np.asarray(prediction, float)
    if recorded.ndim != 2 or model.shape != recorded.shape[1:] or not recorded.size:
        raise ValueError(
            f"trials, prediction: expected [R, T] and [T], got {list(recorded.shape)} and "
            f"{list(model.shape)}"
        )
    for name, values in (("trials", recorded), ("prediction", model)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: expected finite values, got NaN or Inf")
    return recorded, model


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: expected a number > 0, got {value}")
