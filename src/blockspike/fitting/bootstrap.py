"""Intervals of fitted parameters: the fit is repeated on resampled trials and segments.

Efron & Tibshirani 1993, "An Introduction to the Bootstrap". The voltage of one trial is
resampled by blocks of time; Carlstein 1986, Annals of Statistics 14, 1171.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blockspike.data.parts import Part, beside, n_steps_of, stacked
from blockspike.fitting.parameters import NeuronParameters, simulate
from blockspike.fitting.voltage import RecordedVoltage

_LEAST_SEGMENTS = 5  # of a cell, to resample them, or blocks of its voltage
_BLOCK_MS = 500.0  # much longer than a membrane remembers
_VOLTAGE = "blocks of the voltage"
_Z = 1.645  # of a normal distribution, whose 90 % lie within ± z standard deviations
# Replicates stay nearer to the fit than fits to new data would be: by these factors, found on cells
# with known parameters (docs/howto/fit_your_own_neuron.md).
OF_RESAMPLED, OF_SIMULATED = 1.4, 2.1  # the second by the van Rossum distance alone
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
        how: of each cell: "trials", "segments", "trials and segments" or "simulated trials", with
            "and blocks of the voltage" if those were drawn; "" where nothing could be.
        voltage: recorded voltage of the replicates, if there is one.
    """

    current: Tensor
    target: Tensor
    n_steps: int | Tensor
    trains: list[list[np.ndarray]]
    inflation: np.ndarray
    how: list[str]
    voltage: RecordedVoltage | None


def resample(
    part: Part,
    parameters: NeuronParameters,
    n: int,
    dt_ms: float,
    seed: int,
    first_trial_only: bool = False,
    voltage: RecordedVoltage | None = None,
) -> Resampled:
    """Draw n replicates of the training data of each cell.

    Trials are drawn with replacement within each segment, and segments too if there are at least
    five. A cell with fewer, of which one has a single trial, gets as many trials simulated by its
    fitted neuron, if that has noise.

    The voltage, which is that of one trial, comes with its segment where segments are drawn.
    Elsewhere its blocks of 0.5 s are drawn, apart from the trials: a step then counts as often as
    its block was drawn. With less than five such blocks nothing is resampled.

    Args:
        part: the training part.
        parameters: fitted neurons [C], for the current of the part.
        n: number of replicates.
        dt_ms: length of a step.
        seed: seed of the draws.
        first_trial_only: whether the neurons were fitted to first trials and not to means.
        voltage: recorded voltage of the part, if the neurons were fitted to it, too.
    """
    random, random_of_blocks = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    currents, targets, lengths, drawn, inflation, how = [], [], [], [], [], []
    voltages: list[list[np.ndarray]] = []
    for cell, trains in enumerate(part.trains):
        trains = [x[:1] for x in trains] if first_trial_only else trains
        current = beside([current for current, _ in part.segments(cell)])
        by_likelihood = float(parameters.escape_width[cell]) > 0
        recorded = [x[:, : len(trains), cell].numpy() for x in voltage or ()]
        block = _blocks(recorded[1], part.first[cell][0], dt_ms) if recorded else None
        has_noise = by_likelihood or float(parameters.noise[cell]) > 0
        counts = _to_draw(trains, has_noise, None if block is None else int(block.max()) + 1)
        trains_of = None
        if "simulated trials" in counts:
            trains_of = _simulated(parameters, cell, part, trains, n, dt_ms, seed)
        for replicate in range(n):
            segments = np.arange(len(trains))
            if "segments" in counts:
                segments = random.integers(len(trains), size=len(trains))
            trials = [
                trains_of[replicate][s] if trains_of is not None
                else trains[s][random.integers(len(trains[s]), size=len(trains[s]))]
                for s in segments
            ]  # fmt: skip
            currents.append(current[:, segments])
            targets.append(beside([x.mean(0) for x in trials]))
            lengths.append(trials)
            if by_likelihood:
                drawn.append(trials)
            if block is not None:
                mv, weight, spikes = (x[:, segments] for x in recorded)
                if _VOLTAGE in counts:
                    weight = weight * _times_drawn(block, random_of_blocks)
                voltages.append([mv, weight, spikes])
        inflation.append(_inflation(counts, by_likelihood))
        how.append(" and ".join(counts))
    return Resampled(
        stacked(currents), stacked(targets), n_steps_of(lengths), drawn, np.array(inflation), how,
        RecordedVoltage(*map(stacked, zip(*voltages, strict=True))) if voltages else None,
    )  # fmt: skip


def _to_draw(trains: list[np.ndarray], has_noise: bool, n_blocks: int | None) -> dict[str, int]:
    """Kinds of data that are drawn for a cell, and from how many; simulated trials are from 0.

    Args:
        trains: [R, T] of each segment.
        has_noise: whether the fitted neuron has noise.
        n_blocks: of the voltage; None without.
    """
    counts = {"trials": min(map(len, trains)), "segments": len(trains)}
    least = {"trials": 2, "segments": _LEAST_SEGMENTS}
    counts = {name: n for name, n in counts.items() if n >= least[name]}
    if not counts and has_noise:
        counts = {"simulated trials": 0}
    if not counts or n_blocks is None or "segments" in counts:
        return counts
    return counts | {_VOLTAGE: n_blocks} if n_blocks >= _LEAST_SEGMENTS else {}


def _inflation(counts: dict[str, int], by_likelihood: bool) -> float:
    if not counts:
        return np.nan
    n = counts.get("segments") or min((n for n in counts.values() if n), default=0)
    few = np.sqrt(n / (n - 1)) if n else 1.0
    simulated = "simulated trials" in counts and not by_likelihood
    return few * (OF_SIMULATED if simulated else OF_RESAMPLED)


def _blocks(weight: np.ndarray, first: int, dt_ms: float) -> np.ndarray:
    """Number of the block of each step [T, B], of those in which a voltage is fitted; else −1.

    Steps before the first one that is scored are not fitted.
    """
    n_steps, n_segments = weight.shape
    of_segment = np.arange(n_steps)[:, None] // round(_BLOCK_MS / dt_ms)
    block = of_segment * n_segments + np.arange(n_segments)
    fitted = weight > 0
    fitted[:first] = False
    there = np.unique(block[fitted])
    return np.where(np.isin(block, there), np.searchsorted(there, block), -1)


def _times_drawn(block: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """How often the block of each step is drawn, [T, B]."""
    n = block.max() + 1
    return np.append(np.bincount(random.integers(n, size=n), minlength=n), 0)[block]


def _simulated(
    parameters: NeuronParameters,
    cell: int,
    part: Part,
    trains: list[np.ndarray],
    n: int,
    dt_ms: float,
    seed: int,
) -> list[list[np.ndarray]]:
    """Trains [R, T] of each segment, as many as recorded, n times, by a cell's fitted neuron."""
    own = parameters[torch.tensor([cell])]
    n_trials, n_steps = np.max([x.shape for x in trains], 0)
    current = part.current[:n_steps, : len(trains), cell : cell + 1]
    generator = torch.Generator().manual_seed(seed + cell)
    draws = torch.randn(*current.shape[:2], n * n_trials, generator=generator)
    trials = simulate(own, current, dt_ms, draws)[..., 0].numpy()  # [T, B, n · R]
    firsts = range(0, n * n_trials, n_trials)
    return [
        [trials[: x.shape[1], s, k : k + len(x)].T for s, x in enumerate(trains)] for k in firsts
    ]


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
