"""ALIF by a loop over time, the reference for every other method."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.alif.inputs import ALIFInputs
from blockspike.neurons.loop import FedBack
from blockspike.neurons.state import Start, last_state
from blockspike.neurons.surrogate import spike
from blockspike.neurons.trace import SpikeTrace, check_finite


def standard(x: ALIFInputs) -> SpikeTrace:
    """Simulate by the equations (docs/paper.md, The neuron)."""
    spec, current, beta, p, b, arp, weight, start, membrane_gradient = x
    if start is None:
        n_states = len(spec.model.states) + len(spec.model.counters)
        start = Start(current.new_zeros(n_states, *current.shape[1:]), None)
    state, adaptation = start.values[0], start.values[1]  # V⁺, after reset, and a  [B, N]
    refractory_left = start.values[2].detach() if arp > 0 else torch.zeros_like(state)
    threshold = torch.ones_like(state) if b is None else 1 + b * adaptation  # θ
    input_mask = (refractory_left <= 0).to(current.dtype)  # 0 while refractory
    fed_back = FedBack(start.spikes, spec.recurrent_delay, spec.detach_recurrence)
    spikes: list[Tensor] = []
    membranes: list[Tensor] = []
    thresholds: list[Tensor] = []

    for t, drive in enumerate(current.unbind()):  # drive becomes I′[t]
        if weight is not None and (arriving := fed_back.at(t)) is not None:
            drive = drive + F.linear(arriving, weight)
        if arp > 0:
            drive = drive * input_mask
        membrane = beta * state + drive
        s = spike(membrane - threshold, spec.surrogate)
        reset = s.detach() if spec.detach_reset else s
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

    last = torch.stack([state, adaptation, refractory_left][: len(start.values)])
    check_finite(last[: len(spec.model.states)], current, spec.model.states)
    of_all = torch.stack(spikes)
    return SpikeTrace(
        of_all,
        lambda: (torch.stack(membranes), torch.stack(thresholds)),
        state=partial(last_state, spec, weight is not None, last, of_all, start.spikes),
        membrane=torch.stack(membranes) if membrane_gradient else None,
    )
