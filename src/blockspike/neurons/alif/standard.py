"""ALIF by a loop over time, the reference for every other method."""

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.surrogate import Surrogate, spike
from blockspike.neurons.trace import SpikeTrace, check_finite


def standard(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None,
    b: Tensor | None,
    *,
    arp: int,
    recurrent_weight: Tensor | None,
    recurrent_delay: int,
    surrogate: Surrogate,
    detach_spikes: bool,
) -> SpikeTrace:
    """Simulate by the equations (docs/paper.md, The neuron); arguments as in `alif`, checked."""
    spikes: list[Tensor] = []
    fed_back: list[Tensor] = []
    membranes: list[Tensor] = []
    thresholds: list[Tensor] = []
    state = current.new_zeros(current.shape[1:])  # V⁺, after reset  [B, N]
    adaptation = torch.zeros_like(state)  # a
    threshold = torch.ones_like(state)  # θ
    refractory_left = torch.zeros_like(state)  # refractory steps left
    input_mask = torch.ones_like(state)  # 0 while refractory

    for t, drive in enumerate(current.unbind()):  # drive becomes I′[t]
        if recurrent_weight is not None and t >= recurrent_delay:
            drive = drive + F.linear(fed_back[t - recurrent_delay], recurrent_weight)
        if arp > 0:
            drive = drive * input_mask
        membrane = beta * state + drive
        s = spike(membrane - threshold, surrogate)
        reset = s.detach() if detach_spikes else s
        state = membrane * (1 - reset)

        spikes.append(s)
        fed_back.append(reset)
        membranes.append(membrane.detach())
        thresholds.append(threshold.detach())
        if p is not None and b is not None:
            adaptation = p * adaptation + s
            threshold = 1 + b * adaptation
        if arp > 0:
            with torch.no_grad():
                refractory_left = torch.where(s > 0, arp, refractory_left - 1)
                input_mask = (refractory_left <= 0).to(current.dtype)

    check_finite(state, current)
    return SpikeTrace(
        torch.stack(spikes), lambda: (torch.stack(membranes), torch.stack(thresholds))
    )
