"""ALIF in blocks of arp + 1 steps, as in Taylor, King & Harper (NeurIPS 2023), section 3.

A neuron spikes at most once in a block, and recurrent input arrives one block later. So T steps
take T / (arp + 1) sequential stages. The gradient is the published one, which differs from the
standard gradient. Equations: docs/paper.md, Blocks.

`_by_stages` is the method as published, in numbered steps, for any device. On a CPU, where few
stages can run at once, the model `BLOCKS` gives the same spikes and gradient in one pass over time.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.errors import check_finite, check_values
from blockspike.neurons.model import NeuronModel, maximum, where
from blockspike.neurons.precision import in_full_precision
from blockspike.neurons.readout import leaky_integrate
from blockspike.neurons.simulate import Detach, check_tensors, detached, of_any_size, simulate
from blockspike.neurons.state import NeuronState, Start, State, start_of, state_after
from blockspike.neurons.surrogates import Surrogate, spike
from blockspike.neurons.trace import SpikeTrace, needs_gradient


@in_full_precision
@of_any_size
def simulate_blocks(
    model: NeuronModel,
    current: Tensor,
    parameters: dict[str, Tensor],
    arp: int,
    *,
    recurrent_weight: Tensor | None,
    recurrent_delay: int | RecurrentDelays,
    surrogate: Surrogate,
    detach_spikes: Detach,
    state: State | None,
    membrane: bool,
) -> SpikeTrace:
    """Simulate ALIF with the published gradient; arguments and errors as in `alif`."""
    n = arp + 1
    if recurrent_weight is not None and recurrent_delay != n:
        raise ValueError(
            f"recurrent_delay: expected arp + 1 = {n} for 'blocks', got {recurrent_delay}"
        )
    check_tensors(current, parameters, recurrent_weight, n, surrogate, "blocks")
    delay = None if recurrent_weight is None else n
    start = start_of(state, model, current, current.dtype, delay)
    _check_values(parameters, start, arp)
    options: dict[str, Any] = {"recurrent_weight": recurrent_weight, "recurrent_delay": n}
    options |= {"surrogate": surrogate, "detach_spikes": detach_spikes}
    on_cpu = current.device.type == "cpu" and not membrane
    if on_cpu and not needs_gradient(current, *parameters.values(), recurrent_weight, *start):
        constants = (float(arp),) if arp else ()
        trace = simulate(model, current, parameters, constants, state=state, **options)
    elif on_cpu:
        begin = None if start.values is None else _begin(start)
        trace = simulate(BLOCKS, current, parameters, (float(n),), state=begin, **options)
        values = trace.state.values[_ROWS_OF_ALIF[: len(model.all_states)]]
        after = NeuronState(model.name, model.all_states, values, trace.state.spikes)
        trace = SpikeTrace(trace.spikes, after, events=trace.events)
    else:
        trace = _by_stages(
            model, current, parameters, n, recurrent_weight, start, surrogate, detach_spikes,
            membrane,
        )  # fmt: skip
    if len(current) % n:  # the state within a block has more parts
        trace = replace(trace, state=trace.state.map(lambda x: x * torch.nan))
    return trace


def _check_values(parameters: dict[str, Tensor], start: Start, arp: int) -> None:
    """Raise ValueError for values that a block cannot represent."""
    at_least_0 = {"p": parameters["p"], "b": parameters["b"]}
    if start.values is not None:
        at_least_0["state: adaptation"] = start.values[1]
        at_least_0["state: arp - refractory_left"] = arp - start.values[2:]
    for name, value in at_least_0.items():
        if bool((value < 0).any()):
            raise ValueError(f"{name}: expected values ≥ 0 for 'blocks', got {value.min().item()}")


def _by_stages(
    model: NeuronModel, current: Tensor, parameters: dict[str, Tensor], n: int,
    weight: Tensor | None, start: Start, surrogate: Surrogate, detach_spikes: Detach,
    membrane: bool,
) -> SpikeTrace:  # fmt: skip
    """The method as published, by PyTorch's operations, whose derivative is the gradient.

    Arrays of a block are [N, n, B]: a small matrix product for each neuron.
    """
    beta, p, b = (x[:, None, None] for x in parameters.values())
    check_values(model, torch.stack([*parameters.values()]), weight, *start, None)
    detach_reset, detach_recurrence = detached(detach_spikes)
    n_steps, delay, n = len(current), n, min(n, len(current))
    offset = torch.arange(n, device=current.device)
    lag = offset[:, None] - offset
    decay = (beta ** lag.clamp(min=0)).tril()  # β^(t−k) for k ≤ t  [N, n, n]
    ramp = (lag + 1).tril().to(current.dtype)  # t − k + 1 for k ≤ t  [n, n]
    until, after = p ** (offset[:, None] + 1), p ** (n - 1 - offset[:, None])  # [N, n, 1]
    raised = b * p ** offset[:, None]  # the threshold's rise, for each spike in a  [N, n, 1]

    values = current.new_zeros(3, *current.shape[1:])
    if start.values is not None:
        values = F.pad(start.values, (0, 0, 0, 0, 0, 3 - len(start.values)))
    v0, adaptation, closed = values.transpose(1, 2)[:, :, None].unbind()  # [N, 1, B]
    input_mask = (offset[:, None] >= closed).to(current)
    before = None if start.spikes is None else start.spikes[:n].permute(2, 0, 1)
    # The last block is whole, too; what comes of its further steps is cut off.
    padded = F.pad(current, (0, 0, 0, 0, 0, -n_steps % n))
    spikes, membranes = [], []
    for drive in padded.unflatten(0, (-1, n)).permute(0, 3, 1, 2):
        if weight is not None and before is not None:
            arriving = before.detach() if detach_recurrence else before
            drive = drive + (weight @ arriving.flatten(1)).view_as(drive)
        drive = drive * input_mask
        drive = torch.cat([drive[:, :1] + beta * v0, drive[:, 1:]], 1)
        # 1. the membrane without reset
        v = decay @ drive
        # 2. candidate spikes, with the surrogate's derivative
        crossings = spike(v - (1 + raised * adaptation), surrogate)
        # 3. z = Σ_{k≤t} (t−k+1) [V > θ]: 0 before the first crossing, 1 at it, ≥ 2 after
        z = ramp @ crossings
        # 4. only the first crossing is a spike, with the gradient of z
        s = z + ((z == 1).to(z) - z).detach()
        spikes.append(s)
        membranes.append(v * (z.detach() < 2))
        # the next block: refractory until the offset of this block's spike
        before, fixed, z = s, s.detach(), z.detach()
        resting = (z[:, -1:] == 0).to(z)
        v0 = v[:, -1:] * resting
        input_mask = z.clamp(max=1) + resting
        next_adaptation = p**n * adaptation + (after * fixed).sum(1, True)
        if not detach_reset:  # a at the spike, which then decays
            left = (after * fixed).sum(1, True).detach()
            at_spike = (until.detach() * (s - fixed)).sum(1, True) * adaptation.detach()
            next_adaptation = next_adaptation + left * at_spike
        adaptation = next_adaptation
    closed = (1 - input_mask).sum(1, True)
    last = torch.stack([x[:, 0].T for x in (v0, adaptation, closed)])[: len(model.all_states)]
    check_finite(last[: len(model.states)], current, model.states)
    whole, level = (torch.cat(x, 1)[:, :n_steps].permute(1, 2, 0) for x in (spikes, membranes))
    state = state_after(model, last, whole, weight, start, delay, detach_recurrence)
    if not membrane:
        return SpikeTrace(whole, state)
    first, fixed = values[1:2], whole.detach()
    adaptation = torch.cat([first, leaky_integrate(fixed[:-1], parameters["p"], first[0])])
    return SpikeTrace(whole, state, level, (1 + parameters["b"] * adaptation).detach())


def step(drive, parameters, constants, state, fire):
    """One step of a block of n = arp + 1 steps.

    `base` is the adaptation at the start of the block, which decays and sets θ. `closed` is the
    number of steps that are still masked by a spike in the block before, and `offset` the step in
    the block. `spiked` is 1 + the step at which the neuron spiked in this block, or 0, and `left`
    what is left in the adaptation of its last spike.
    """
    beta, p, b = parameters
    zero, one, n = constants
    membrane, adaptation, base, closed, offset, spiked, left = state
    membrane = beta * membrane + drive * where(closed > zero, zero, one)
    threshold = one + b * base
    crossed, _ = fire(membrane, threshold)
    spike = where(spiked > zero, zero, crossed)  # only the first crossing is a spike
    offset = offset + one
    spiked = where(spike > zero, offset, spiked)
    left = where(spike > zero, one, p * left)
    adaptation = p * adaptation + spike
    ends = offset >= n
    return (
        spike,
        membrane,
        threshold,
        (
            membrane * where(ends & (spiked > zero), zero, one),  # NaN and Inf × 0 = NaN
            adaptation,
            where(ends, adaptation, p * base),
            where(ends, maximum(spiked - one, zero), maximum(closed - one, zero)),
            where(ends, zero, offset),
            where(ends, zero, spiked),
            left,
        ),
    )


def reverse_step(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    """Backpropagate through `step`; see `NeuronModel`.

    The gradient of z is straight-through: slope · Σ_{t≥k} (t−k+1) gS[t] over the block.
    `grad_sum` sums gS, and `ramp` sums `grad_sum`. `via_adaptation` is the gradient through "a at
    the spike"; it is 0 if spikes are detached.
    """
    beta, p, b = parameters
    zero, one, n = constants
    before, adaptation, base, closed, offset, spiked, left = state
    grad_membrane, grad_adaptation, grad_base, via_adaptation, grad_sum, ramp = grad_state
    spikes_now = (margin > zero) & (spiked <= zero)
    has_spiked = spikes_now | (spiked > zero)
    ends = offset + one >= n
    # from the next block, at whose start `base` is set to `adaptation`
    grad_adaptation = grad_adaptation + where(ends, grad_base, zero)
    grad_base = where(ends, zero, grad_base)
    decayed = where(has_spiked, where(spikes_now, one, p * left), zero)
    via_adaptation = where(ends, reset_has_grad * decayed * grad_adaptation, via_adaptation)
    grad_sum = where(ends, zero, grad_sum) + grad_spike + p * base * via_adaptation
    ramp = where(ends, zero, ramp) + grad_sum
    grad_margin = slope * ramp
    grad_membrane = where(ends & has_spiked, zero, grad_membrane) + grad_margin
    return (
        grad_membrane * where(closed > zero, zero, one),
        (
            grad_membrane * before,
            grad_adaptation * adaptation + grad_base * base,
            -grad_margin * base,
        ),
        (
            beta * grad_membrane,
            p * grad_adaptation,
            p * grad_base - b * grad_margin,
            via_adaptation,
            grad_sum,
            ramp,
        ),
    )


BLOCKS = NeuronModel(
    "alif in blocks",
    parameters=("beta", "p", "b"),
    states=("membrane", "adaptation", "base"),
    counters=("closed", "offset", "spiked", "left"),
    accumulators=("via_adaptation", "grad_sum", "ramp"),
    step=step,
    reverse_step=reverse_step,
)

_ROWS_OF_ALIF = [0, 1, 3]  # at the start of a block, where `base` is the adaptation


def _begin(start: Start) -> dict[str, Tensor]:
    """State of `BLOCKS` at the start of a block, of that of ALIF."""
    values, spikes = start
    assert values is not None
    begin: dict[str, Tensor] = dict(zip(("membrane", "adaptation", "closed"), values, strict=False))
    begin["base"] = begin["adaptation"]
    return begin if spikes is None else begin | {"spikes": spikes}
