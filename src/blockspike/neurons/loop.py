"""Simulation of any model by a loop over time, the reference for its kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.model import SimulationSpec
from blockspike.neurons.surrogate import spike
from blockspike.neurons.trace import SpikeTrace, check_finite


def loop(
    spec: SimulationSpec,
    current: Tensor,
    parameters: Sequence[Tensor],
    recurrent_weight: Tensor | None,
) -> SpikeTrace:
    """Run the model step by step; arguments as in `fused_cpu`, already checked."""
    model, constants, delay, surrogate, detach_spikes = spec
    spikes: list[Tensor] = []
    fed_back: list[Tensor] = []
    margins: list[Tensor] = []
    state = (torch.zeros_like(current[0]),) * (len(model.states) + len(model.counters))
    numbers = (0.0, 1.0, *constants)

    def fire(margin: Tensor) -> tuple[Tensor, Tensor]:
        s = spike(margin, surrogate)
        return s, 1 - (s.detach() if detach_spikes else s)

    for t, drive in enumerate(current.unbind()):
        if recurrent_weight is not None and t >= delay:
            drive = drive + F.linear(fed_back[t - delay], recurrent_weight)
        s, margin, state = model.step(drive, parameters, numbers, state, fire)
        spikes.append(s)
        fed_back.append(s.detach() if detach_spikes else s)
        margins.append(margin.detach())

    check_finite(state[0], current)

    def membrane_and_threshold() -> tuple[Tensor, Tensor]:
        threshold = torch.ones_like(current.detach())
        return torch.stack(margins) + threshold, threshold

    return SpikeTrace(torch.stack(spikes), membrane_and_threshold)
