"""Intervals of fitted parameters: the fit is repeated on resampled trials and segments.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blockspike.data.parts import Part, beside, n_steps_of, stacked
from blockspike.fitting.parameters import NeuronParameters, simulate

_LEAST_SEGMENTS = 5  # of a cell, to resample them
_Z = 1.645  # of a normal distribution, whose 90 % lie within ± z standard deviations
# Replicates stay nearer to the fit than fits to new data would be: by these factors, found on cells
# with known parameters (docs/howto/fit_your_own_neuron.md).
# First by the van Rossum distance, then by the likelihood.
OF_RESAMPLED, OF_SIMULATED = (1.4, 1.2), (2.1, 1.2)
_WIDE = 0.5  # share of a value by which an interval may reach beyond it, where data constrain it


@dataclass(frozen=True)
class Resampled:
    """Data of the replicates of C cells, those of a cell one after another.

    Attributes:
        current, target: [T, B, C · n], as in `RecordingsDataModule.batch`.
        n_steps: of all segments, or of each, [B, C · n].
        trains: [R, T] of each replicate and segment, whose means are the target; none of neurons
            that were not fitted by the likelihood.
        inflation: [C], by which the spread of a cell's replicates is too small, since they stay
            near the fit, and since few trials or segments were resampled; NaN where nothing could
            be.
        how: of each cell: "trials", "segments", "trials and segments", "simulated trials" or "".
    """

    current: Tensor
    target: Tensor
    n_steps: int | Tensor
    trains: list[list[np.ndarray]]
    inflation: np.ndarray
    how: list[str]


def resample(
    part: Part,
    parameters: NeuronParameters,
    n: int,
    dt_ms: float,
    seed: int,
    first_trial_only: bool = False,
) -> Resampled:
    """Draw n replicates of the training data of each cell.

    Trials are drawn with replacement within each segment, and segments too if there are at least
    five. A cell with neither gets trials simulated by its fitted neuron, if that has noise.

    Args:
        part: the training part.
        parameters: fitted neurons [C], for the current of the part.
        n: number of replicates.
        dt_ms: length of a step.
        seed: seed of the draws.
        first_trial_only: whether the neurons were fitted to first trials and not to means.
    """
    random = np.random.default_rng(seed)
    currents, targets, lengths, drawn, inflation, how = [], [], [], [], [], []
    for cell, trains in enumerate(part.trains):
        trains = [x[:1] for x in trains] if first_trial_only else trains
        current = beside([current for current, _ in part.segments(cell)])
        most = max(len(x) for x in trains)
        has_segments, has_trials = len(trains) >= _LEAST_SEGMENTS, most > 1
        words = [w for w, has in (("trials", has_trials), ("segments", has_segments)) if has]
        n_drawn = len(trains) if has_segments else most
        by_likelihood = float(parameters.escape_width[cell]) > 0
        if not words and (by_likelihood or float(parameters.noise[cell]) > 0):
            trains_of = _simulated(parameters, cell, part, n, dt_ms, seed)
            words, n_drawn = ["simulated trials"], 0
        else:
            trains_of = None
        for replicate in range(n):
            segments = np.arange(len(trains))
            if has_segments:
                segments = random.integers(len(trains), size=len(trains))
            trials = [
                trains_of[replicate][s][None] if trains_of is not None
                else trains[s][random.integers(len(trains[s]), size=len(trains[s]))]
                for s in segments
            ]  # fmt: skip
            currents.append(current[:, segments])
            targets.append(beside([x.mean(0) for x in trials]))
            lengths.append(trials)
            if by_likelihood:
                drawn.append(trials)
        few = np.sqrt(n_drawn / (n_drawn - 1)) if n_drawn > 1 else 1.0
        factor = (OF_RESAMPLED if n_drawn else OF_SIMULATED)[by_likelihood]
        inflation.append(few * factor if words else np.nan)
        how.append(" and ".join(words))
    return Resampled(
        stacked(currents), stacked(targets), n_steps_of(lengths), drawn, np.array(inflation), how
    )


def _simulated(
    parameters: NeuronParameters, cell: int, part: Part, n: int, dt_ms: float, seed: int
) -> list[list[np.ndarray]]:
    """Trains [T] of one trial of each segment, n times, by the fitted neuron of a cell."""
    own = parameters[torch.tensor([cell])]
    steps = [trains.shape[1] for trains in part.trains[cell]]
    current = part.current[: max(steps), : len(steps), cell : cell + 1]
    generator = torch.Generator().manual_seed(seed + cell)
    draws = torch.randn(*current.shape[:2], n, generator=generator)
    trials = simulate(own, current, dt_ms, draws)[..., 0].numpy()  # [T, B, n]
    return [[trials[:n_steps, s, k] for s, n_steps in enumerate(steps)] for k in range(n)]


def intervals(
    values: Mapping[str, np.ndarray], replicates: Mapping[str, np.ndarray], inflation: np.ndarray
) -> dict[str, np.ndarray]:
    """90 % intervals of fitted values [C], from those of their replicates [C, n].

    A value and its interval are its estimate ± 1.645 root mean squared differences of the
    replicates from it, on the scale of the logarithm for a time constant.

    Returns:
        `<name>_low` and `<name>_high` [C] for every name; NaN where nothing was resampled.
    """
    found = {}
    for name, value in values.items():
        repeated = replicates[name]
        is_positive = name.startswith("tau_")
        if is_positive:
            value, repeated = np.log(value), np.log(repeated)
        spread = np.sqrt(np.nanmean((repeated - value[:, None]) ** 2, 1)) * inflation * _Z
        low, high = value - spread, value + spread
        if is_positive:
            low, high = np.exp(low), np.exp(high)
        found |= {f"{name}_low": low, f"{name}_high": high}
    return found


def unconstrained(
    values: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray], cell: int
) -> list[str]:
    """Names of the values of a cell whose interval reaches beyond half and one and a half of it."""
    names = []
    for name, value in values.items():
        low, high = found[f"{name}_low"][cell], found[f"{name}_high"][cell]
        middle = abs(value[cell])
        if high - low > 2 * _WIDE * middle:
            names.append(name)
    return names
