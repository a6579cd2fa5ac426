"""ALIF by a loop over time, the reference for every other method."""

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.loop import FedBack
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.state import NeuronState, Start
from blockspike.neurons.surrogate import Surrogate, spike
from blockspike.neurons.trace import SpikeTrace, check_finite


def standard(
    model: NeuronModel,
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
    start: Start | None,
    membrane_gradient: bool,
) -> SpikeTrace:
    """Simulate by the equations (docs/paper.md, The neuron); arguments as in `alif`, checked.

    `model` names the states only.
    """
    names = (*model.states, *model.counters)
    if start is None:
        start = Start(current.new_zeros(len(names), *current.shape[1:]), None)
    state, adaptation = start.values[0], start.values[1]  # V⁺, after reset, and a  [B, N]
    refractory_left = start.values[2].detach() if arp > 0 else torch.zeros_like(state)
    threshold = torch.ones_like(state) if b is None else 1 + b * adaptation  # θ
    input_mask = (refractory_left <= 0).to(current.dtype)  # 0 while refractory
    fed_back = FedBack(start.spikes, recurrent_delay, detach_spikes)
    spikes: list[Tensor] = []
    membranes: list[Tensor] = []
    thresholds: list[Tensor] = []

    for t, drive in enumerate(current.unbind()):  # drive becomes I′[t]
        if recurrent_weight is not None and (arriving := fed_back.at(t)) is not None:
            drive = drive + F.linear(arriving, recurrent_weight)
        if arp > 0:
            drive = drive * input_mask
        membrane = beta * state + drive
        s = spike(membrane - threshold, surrogate)
        reset = s.detach() if detach_spikes else s
        state = membrane * (1 - reset)

        spikes.append(s)
        fed_back.append(s)
        membranes.append(membrane if membrane_gradient else membrane.detach())
        thresholds.append(threshold.detach())
        adaptation = s if p is None else p * adaptation + s
        if b is not None:
            threshold = 1 + b * adaptation
        if arp > 0:
            with torch.no_grad():
                refractory_left = torch.where(s > 0, arp, (refractory_left - 1).clamp(min=0))
                input_mask = (refractory_left <= 0).to(current.dtype)

    check_finite(state, current)

    def last_state() -> NeuronState:
        values = torch.stack([state, adaptation, refractory_left][: len(names)])
        delayed = None if recurrent_weight is None else fed_back.last()
        return NeuronState(model.name, names, values, delayed)

    return SpikeTrace(
        torch.stack(spikes),
        lambda: (torch.stack(membranes), torch.stack(thresholds)),
        state=last_state,
        membrane=torch.stack(membranes) if membrane_gradient else None,
    )
