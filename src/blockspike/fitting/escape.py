"""Neurons with escape noise, readable: the likelihood of recorded spikes, and a simulation.

A neuron fires at 1 kHz · exp((V − θ) / width): Gerstner et al. 2014, "Neuronal Dynamics", chapter
9. `escape_cpu.py` does the same in one pass; this is the reference it is tested against, and what
runs elsewhere.
"""

import math

import torch
from torch import Tensor

from blockspike.fitting.distance import Window
from blockspike.fitting.distance_cpu import Drive
from blockspike.neurons.derivative import given_spikes, on_tensors
from blockspike.neurons.model import NeuronModel

RATE_AT_THRESHOLD_HZ = 1000.0
LOG_RATES = (-60.0, 3.0)
"""Bounds of the logarithm of a step's rate; at the upper one, a spike is all but certain."""
CERTAIN = math.log(2)
"""Expected spikes at which a neuron without noise fires: the median of those with noise."""


def log_rate_at_threshold(dt_ms: float) -> float:
    """Logarithm of the rate of a step at the threshold."""
    return math.log(RATE_AT_THRESHOLD_HZ * dt_ms / 1000)


def log_rates(margin: Tensor, left: Tensor, drive: Drive, at_threshold: float) -> Tensor:
    """Logarithms of the rate of a step, given V − θ and the steps `left` of the refractory period.

    During that period they are the lowest.
    """
    free = (margin * drive.noise + at_threshold).clamp(*LOG_RATES)
    return torch.where(left > 0, LOG_RATES[0], free)


def _start(
    model: NeuronModel, driven: Tensor, drive: Drive
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    """Constants of the steps, 0 and 1, and the states before the first one."""
    state = [torch.zeros_like(driven[0]) for _ in (*model.states, *model.counters)]
    state[0] = state[0] + drive.start
    return (driven.new_zeros(()), driven.new_ones(())), state


def escape_likelihood(
    current: Tensor, trains: Tensor, is_there: Tensor, model: NeuronModel,
    parameters: tuple[Tensor, ...], drive: Drive, *, at_threshold: float, window: Window,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-likelihoods of recorded spikes; arguments and results as in `escape_cpu`."""
    n_cells, n = current.shape[2], len(drive.weight)
    step = on_tensors(given_spikes(model, 2).step)
    spikes = trains.to(drive.weight).repeat_interleave(n // n_cells, 3).flatten(1, 2)
    driven = current.to(drive.weight).repeat_interleave(n // n_cells, 2) * drive.weight + drive.bias
    driven = driven.unsqueeze(1).expand(-1, trains.shape[1], -1, -1).flatten(1, 2)
    constants, state, values = *_start(model, driven, drive), []
    for input_, spike in zip(driven, spikes, strict=True):
        left = state[-1]
        *_, margin, state = step((input_, spike), parameters, constants, state)
        rate = log_rates(margin, left, drive, at_threshold).exp()
        values.append(torch.where(spike > 0, torch.log(-torch.expm1(-rate)), -rate))
    total = torch.stack(values).unflatten(1, trains.shape[1:3])
    total = (total * is_there.to(total).repeat_interleave(n // n_cells, 2)).sum(1)
    return window.sums(total, n_cells)


def escape_spikes(
    driven: Tensor, draws: Tensor, model: NeuronModel, parameters: tuple[Tensor, ...],
    drive: Drive, at_threshold: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Simulated spikes, membrane before a reset and margin; arguments as in `escape_cpu`."""
    step = on_tensors(given_spikes(model, 2).step)
    constants, state = _start(model, driven, drive)
    zero = constants[0]
    expected, limit, rows = torch.zeros_like(driven[0]), draws[0], []
    for input_, next_limit in zip(driven, draws, strict=True):
        left = state[-1]
        _, _, _, margin, silent = step((input_, zero), parameters, constants, state)
        expected = expected + log_rates(margin, left, drive, at_threshold).exp()
        spike = (expected >= limit).to(driven)
        *_, margin, state = step((input_, spike), parameters, constants, state)
        expected = torch.where(spike > 0, zero, expected)
        limit = torch.where(spike > 0, next_limit, limit)
        rows.append((spike, silent[0], margin))
    spikes, membrane, margin = (torch.stack(x) for x in zip(*rows, strict=True))
    return spikes, membrane, margin
