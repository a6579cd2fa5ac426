"""Speed against accuracy: one neuron driven by noise, at long and short time steps.

This is the trade-off in the paper's title: a longer step costs less and misplaces spikes. The
neuron and its current are the same at every step length; the current is averaged over each step.
"""

import math
from functools import partial

import numpy as np
import torch
from torch import Tensor

from blockspike.benchmark.timing import Turn, time_turn
from blockspike.neurons import Method, alif
from blockspike.neurons.readout import leaky_integrate

STEPS_MS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05, 0.025, 0.0125)
METHODS: tuple[Method, ...] = ("fused", "blocks", "standard")
_FINEST_MS = min(STEPS_MS)
_N_TRIALS = 8
_TAU_MEMBRANE_MS, _TAU_ADAPTATION_MS, _ARP_MS = 20.0, 100.0, 2.0
_RAISE = 0.1  # rise of the threshold per spike
_MEAN, _DEVIATION, _TAU_NOISE_MS = 0.9, 0.9, 5.0  # of the current, in thresholds at steady state


def noise(simulated_s: float) -> Tensor:
    """Trials of an Ornstein-Uhlenbeck current at the shortest step, [T, trials, 1], float32.

    Its unit is the steady membrane potential: a constant 1 would just reach the base threshold.

    Raises:
        ValueError: the duration is not a multiple of the longest step.
    """
    n_steps = round(simulated_s * 1000 / _FINEST_MS)
    if n_steps < 1 or n_steps % round(max(STEPS_MS) / _FINEST_MS):
        raise ValueError(
            f"simulated_s: expected a multiple of {max(STEPS_MS) / 1000} s, got {simulated_s}"
        )
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(n_steps, _N_TRIALS, 1, generator=generator, dtype=torch.float64)
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
        self.current = ((1 - beta) * averaged).requires_grad_()
        self.beta = torch.tensor([beta], requires_grad=True)
        self.p = torch.tensor([math.exp(-dt_ms / _TAU_ADAPTATION_MS)], requires_grad=True)
        self.b = torch.tensor([_RAISE], requires_grad=True)
        self.arp = round(_ARP_MS / dt_ms)

    def simulate(self, method: Method) -> Tensor:
        """Simulate the neuron; returns spikes [T, trials, 1]."""
        return alif(self.current, self.beta, self.p, self.b, arp=self.arp, method=method).spikes

    def turn(self, method: Method) -> Turn:
        """Time a simulation and its gradient."""
        turn = time_turn(partial(self.simulate, method), torch.device("cpu"))
        self.current.grad = self.beta.grad = self.p.grad = self.b.grad = None
        return turn

    def spike_times_ms(self, method: Method) -> list[np.ndarray]:
        """Spike times of each trial: the middles of the steps with a spike."""
        with torch.no_grad():
            spikes = self.simulate(method)[:, :, 0].numpy()
        return [(np.flatnonzero(s) + 0.5) * self.dt_ms for s in spikes.T]


def spike_time_error_ms(trials: list[np.ndarray], reference: list[np.ndarray]) -> float:
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
