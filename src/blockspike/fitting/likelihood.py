"""Likelihood of recorded spikes under a fitted neuron with escape noise.

Gerstner et al. 2014, "Neuronal Dynamics", chapter 9; Pozzorini et al. 2015, "Automated
high-throughput characterization of single neurons by means of simplified spiking models".
"""

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from torch import Tensor

from blockspike.data.parts import Part, padded
from blockspike.fitting.escape import LOG_RATES, RATE_AT_THRESHOLD_HZ
from blockspike.fitting.parameters import NeuronParameters
from blockspike.neurons.derivative import compiled, given_spikes

_STEEPEST = 50.0  # e-folds of the rate per standard deviation of the margin


class EscapeNoise(NamedTuple):
    """A neuron fires at rate_hz · exp(margin / width), where its margin is V − θ.

    Attributes:
        rate_hz: rate at the threshold.
        width: change of the margin, in thresholds, by which the rate grows e-fold.
    """

    rate_hz: float
    width: float

    def log_likelihood(self, margins: np.ndarray, spikes: np.ndarray, dt_ms: float) -> float:
        """Logarithm of the probability of the spikes, given the margins, arrays of one shape."""
        per_step = np.log(self.rate_hz * dt_ms / 1000) + margins / self.width
        return _log_likelihood(per_step, spikes > 0)[0]


def margins_at(
    parameters: NeuronParameters, current: Tensor, trains: Tensor, dt_ms: float
) -> np.ndarray:
    """Margins V − θ [T, R, N] of neurons whose spikes are the recorded ones.

    Args:
        parameters: of N neurons.
        current: [T, R, N], what drives each neuron.
        trains: [T, R, N], recorded spikes, after each of which the neuron is reset.
        dt_ms: length of a step.

    Returns:
        The margin of each step before the neuron is reset there, float64; −inf within the
        refractory period.
    """
    c = parameters.coefficients(dt_ms, bool(parameters.coupling.any()))
    # Small arrays are faster in NumPy than in PyTorch.
    step = compiled(given_spikes(c.model, 2).step, where=np.where, maximum=np.maximum, exp=np.exp)
    drive = (c.drive.weight * current.double() + c.drive.bias).numpy()
    state = [np.zeros_like(drive[0]) for _ in (*c.model.states, *c.model.counters)]
    state[0] += c.drive.start.numpy()
    own, constants = tuple(x.numpy() for x in c.parameters.values()), (0.0, 1.0)
    margins = np.empty_like(drive)
    for t, spike in enumerate((trains > 0).double().numpy()):
        left = state[-1]
        *_, margin, state = step((drive[t], spike), own, constants, state)
        margins[t] = np.where(left > 0, -np.inf, margin)
    return margins


def fit_escape_noise(margins: np.ndarray, spikes: np.ndarray, dt_ms: float) -> EscapeNoise | None:
    """Escape noise of the greatest likelihood for the spikes, given the margins, of one shape.

    The logarithm of the likelihood is concave in its two numbers, so that it has one maximum.

    Returns:
        None where there is none: there are no spikes, the margin is not higher at spikes, or it
        tells them from all other steps, so that the noise would be 0.
    """
    free = np.isfinite(margins)
    margins, fired = margins[free], spikes[free] > 0
    if not len(margins):
        return None
    centre, spread = margins.mean(), margins.std()
    if not fired.any() or not spread > 0:
        return None
    scaled = (margins - centre) / spread
    if fired.all() or scaled[fired].min() > scaled[~fired].max():
        return None

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _log_likelihood(x[0] + x[1] * scaled, fired)
        return -value, -np.array([slope.sum(), (slope * scaled).sum()])

    constant = np.array([np.log(fired.mean()), 0.0])
    found = minimize(
        loss, constant, jac=True, method="L-BFGS-B", bounds=[LOG_RATES, (0.0, _STEEPEST)]
    )
    offset, slope = found.x
    if not 0 < slope < _STEEPEST or found.fun >= loss(constant)[0]:
        return None
    width = spread / slope
    return EscapeNoise(float(np.exp(offset - centre / width) * 1000 / dt_ms), float(width))


def _log_likelihood(log_rate: np.ndarray, fired: np.ndarray) -> tuple[float, np.ndarray]:
    """Sum of log P of all steps, P(spike) = 1 − exp(−rate), and its slope in each log rate.

    The rate is bounded by 20 per step, so that no step that is wrongly predicted rules all others.
    """
    low, high = LOG_RATES
    rate = np.exp(np.clip(log_rate, low, high))
    chance = -np.expm1(-rate)
    value = np.where(fired, np.log(chance), -rate).sum()
    slope = np.where(fired, rate * np.exp(-rate) / chance, -rate)
    return float(value), np.where((log_rate > low) & (log_rate < high), slope, 0.0)


def bits_per_spike(
    noise: EscapeNoise, margins: np.ndarray, spikes: np.ndarray, rate_hz: float, dt_ms: float
) -> float:
    """Log-likelihood of spikes beyond that of a constant rate, in bits per spike; NaN of none.

    The rate of the refractory period, where the margin is −inf, is bounded as in a fit, so that a
    spike in it costs 87 bits.
    """
    fired = spikes > 0
    if not fired.any():
        return float("nan")
    constant = np.full(fired.shape, np.log(rate_hz * dt_ms / 1000))
    gain = noise.log_likelihood(margins, spikes, dt_ms) - _log_likelihood(constant, fired)[0]
    return float(gain / (np.log(2) * fired.sum()))


def likelihoods_of_cells(
    parameters: NeuronParameters, train: Part, test: Part, dt_ms: float
) -> pd.DataFrame:
    """Score of the spikes in training and on test data, by their likelihood.

    Neurons without escape noise get the one of the greatest likelihood in training.

    Args:
        parameters: of the cells, for the current of the parts.
        train, test: parts of the recordings.
        dt_ms: length of a step.

    Returns:
        A row per cell: train_ and test_bits_per_spike, how much more likely the spikes are than at
        the mean rate of training. NaN where there is no maximum.
    """
    trained, tested = (_with_margins(parameters, part, dt_ms) for part in (train, test))
    rows = []
    widths = parameters.escape_width.tolist()
    for (margins, spikes), new, width in zip(trained, tested, widths, strict=True):
        if width > 0:
            noise = EscapeNoise(RATE_AT_THRESHOLD_HZ, width)
        else:
            noise = fit_escape_noise(margins, spikes, dt_ms)
        if noise is None:
            rows.append({})
            continue
        rate_hz = 1000 * spikes.mean() / dt_ms
        rows.append({
            "train_bits_per_spike": bits_per_spike(noise, margins, spikes, rate_hz, dt_ms),
            "test_bits_per_spike": bits_per_spike(noise, *new, rate_hz, dt_ms),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=["train_bits_per_spike", "test_bits_per_spike"])


def _with_margins(
    parameters: NeuronParameters, part: Part, dt_ms: float
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Margins and recorded spikes of each cell, [n] of all scored steps, trials and segments."""
    trains, _ = padded(part.trains)
    trains = trains.transpose(1, 2)  # [T, B, R, C]
    current = part.current.unsqueeze(2).expand_as(trains)
    margins = margins_at(parameters, current.flatten(1, 2), trains.flatten(1, 2), dt_ms)
    margins = margins.reshape(trains.shape)
    found = []
    for cell, of_cell in enumerate(part.trains):
        there = [
            margins[first : own.shape[1], segment, : len(own), cell]
            for segment, (own, first) in enumerate(zip(of_cell, part.first[cell], strict=True))
        ]
        recorded = [own.T for own in part.scored(cell)]
        found.append((_in_a_row(there), _in_a_row(recorded)))
    return found


def share_while_refractory(trains: list[np.ndarray], arp_ms: float, dt_ms: float) -> float:
    """Share of the intervals between spikes in which a neuron with this period cannot fire.

    Args:
        trains: recorded trains [R, T] of each segment.
        arp_ms: absolute refractory period, a whole number of steps.
        dt_ms: length of a step.
    """
    intervals = [np.diff(np.flatnonzero(train)) for x in trains for train in x]
    too_short = np.concatenate(intervals) <= round(arp_ms / dt_ms)
    return float(too_short.mean()) if len(too_short) else 0.0


def _in_a_row(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([x.ravel() for x in arrays])
