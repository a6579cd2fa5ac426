"""Speed against accuracy: one neuron driven by noise, at long and short time steps.

This is the trade-off in the paper's title: a longer step costs less and misplaces spikes. The
neuron and its current are the same at every step length; the current is averaged over each step.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor

from benchmarks.table import Options, Piece
from benchmarks.timing import Row, Turn, cost, median_ratio, take_turns, time_turn
from blockspike.neurons import Method, alif
from blockspike.neurons.readout import leaky_integrate

STEPS_MS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.0125)
METHODS: tuple[Method, ...] = ("fused", "blocks", "standard")
SIMULATED_S = 2.0  # of each trial; a multiple of the longest step
_FINEST_MS = 0.0125
_USUAL = "standard 1.0"  # the cost of the loop at 1 ms, by which others are divided
_N_TRIALS = 8
_TAU_MEMBRANE_MS, _TAU_ADAPTATION_MS, _ARP_MS = 20.0, 100.0, 2.0
_RAISE = 0.1  # rise of the threshold per spike
_MEAN, _DEVIATION, _TAU_NOISE_MS = 0.9, 0.9, 5.0  # of the current, in thresholds at steady state


def noise(simulated_s: float) -> Tensor:
    """Trials of an Ornstein-Uhlenbeck current at the shortest step, [T, trials, 1], float32.

    Its unit is the steady membrane potential: a constant 1 would just reach the base threshold.
    """
    shape = (round(simulated_s * 1000 / _FINEST_MS), _N_TRIALS, 1)
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(shape, generator=generator, dtype=torch.float64)
    decay = math.exp(-_FINEST_MS / _TAU_NOISE_MS)
    scale = _DEVIATION * math.sqrt(1 - decay**2)
    coloured = leaky_integrate(scale * white, torch.tensor([decay], dtype=torch.float64))
    return (_MEAN + coloured).float()


class Neuron:
    """The neuron at one step length: its input current and parameters per step.

    Args:
        current: current from `noise`.
        dt_ms: length of a step, a multiple of the shortest.
    """

    def __init__(self, current: Tensor, dt_ms: float):
        self.dt_ms = dt_ms
        beta = math.exp(-dt_ms / _TAU_MEMBRANE_MS)
        averaged = current.unflatten(0, (-1, round(dt_ms / _FINEST_MS))).mean(1)
        per_step = (beta, math.exp(-dt_ms / _TAU_ADAPTATION_MS), _RAISE)
        inputs = [(1 - beta) * averaged, *(torch.tensor([x]) for x in per_step)]
        self.inputs = [x.requires_grad_() for x in inputs]
        self.arp = round(_ARP_MS / dt_ms)

    def simulate(self, method: Method) -> Tensor:
        """Spikes [T, trials, 1]."""
        return alif(*self.inputs, arp=self.arp, method=method).spikes

    def turn(self, method: Method) -> Turn:
        """Time a simulation and its gradient."""
        turn = time_turn(partial(self.simulate, method), torch.device("cpu"))
        for x in self.inputs:
            x.grad = None
        return turn

    def spike_times_ms(self, method: Method) -> list[np.ndarray]:
        """Spike times of each trial: the middles of the steps with a spike."""
        with torch.no_grad():
            spikes = self.simulate(method)[:, :, 0].numpy()
        return [(np.flatnonzero(s) + 0.5) * self.dt_ms for s in spikes.T]


def spike_time_error_ms(trials: Sequence[np.ndarray], reference: Sequence[np.ndarray]) -> float:
    """Mean distance in ms from a spike to the nearest one of the other train, in both directions.

    It is infinite if one train of a pair is silent and the other is not.
    """
    distances: list[np.ndarray] = []
    for mine, wanted in zip(trials, reference, strict=True):
        for times, others in ((mine, wanted), (wanted, mine)):
            if len(times) and not len(others):
                return math.inf
            if len(times):
                distances.append(np.abs(times[:, None] - others[None, :]).min(axis=1))
    return float(np.concatenate(distances).mean()) if distances else 0.0


def measure(methods: Sequence[Method], options: Options) -> list[Row]:
    """Cost and error of every method at every step length, compared with `fused` at the shortest.

    Raises:
        RuntimeError: a method's spikes differ from those of `fused`.
    """
    current = noise(SIMULATED_S)
    neurons = {dt_ms: Neuron(current, dt_ms) for dt_ms in STEPS_MS}
    times = {dt_ms: neuron.spike_times_ms("fused") for dt_ms, neuron in neurons.items()}
    for method, (dt_ms, neuron) in product(methods, neurons.items()):
        if not all(map(np.array_equal, neuron.spike_times_ms(method), times[dt_ms])):
            raise RuntimeError(f"spikes of {method} differ at {dt_ms} ms: no time is reported")
    contenders = {
        f"{method} {dt_ms}": partial(neuron.turn, method)
        for method, (dt_ms, neuron) in product(methods, neurons.items())
    }
    turns = take_turns(contenders, options.rounds, options.longest_turn_s)
    rows = []
    for method, dt_ms in product(methods, STEPS_MS):
        found, usual = turns[f"{method} {dt_ms}"], turns.get(_USUAL)
        row: Row = {"contender": method, "dt_ms": dt_ms, "n_spikes": sum(map(len, times[dt_ms]))}
        row["spike_time_error_ms"] = spike_time_error_ms(times[dt_ms], times[min(STEPS_MS)])
        row |= cost(found, turns.get(f"fused {dt_ms}"))
        if isinstance(found, list) and isinstance(usual, list):
            ratio = median_ratio([t.total for t in found], [t.total for t in usual])
            row["total_by_standard_at_1_ms"] = round(ratio, 5)
        rows.append(row)
    return rows


def pieces(options: Options) -> Iterator[Piece]:
    """One neuron at every step length, simulated by every method."""
    methods: list[Method] = [name for name in METHODS if name in options.choose(METHODS)]
    yield Piece({"simulated_s": SIMULATED_S}, methods, partial(measure, methods, options))
