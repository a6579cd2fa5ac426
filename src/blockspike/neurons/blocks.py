"""ALIF in blocks of arp + 1 steps, as in Taylor, King & Harper (NeurIPS 2023), section 3.

A neuron spikes at most once in a block, and recurrent input arrives one block later. So T steps
take T / (arp + 1) sequential stages. The gradient is the published one, which differs from the
standard gradient. Equations: docs/paper.md, Blocks.

`_Blocks` is the method as published, in numbered steps, for any device. Its arrays are [N, n, B],
where n is the number of steps in a block: one small matrix product per neuron. Forward and backward
are written out by hand, since autograd would need twice as many passes. On a CPU, where few stages
can run at once, the model `BLOCKS` gives the same spikes and gradient in one pass over time.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.errors import check_finite, check_values
from blockspike.neurons.model import NeuronModel, maximum, where
from blockspike.neurons.precision import in_full_precision
from blockspike.neurons.readout import leaky_integrate
from blockspike.neurons.simulate import Detach, check_tensors, detached, of_any_size, simulate
from blockspike.neurons.state import NeuronState, Start, State, start_of, state_after
from blockspike.neurons.surrogates import Surrogate
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
    beta, p, b = parameters.values()
    check_values(model, torch.stack([beta, p, b]), weight, *start, None)
    n_steps, delay, n = len(current), n, min(n, len(current))
    if n_steps % n:  # the last block is whole, too; what comes of its further steps is cut off
        current = F.pad(current, (0, 0, 0, 0, 0, -n_steps % n))
    powers = p[:, None] ** torch.arange(n + 1, device=beta.device)  # p^0 … p^n  [N, n+1]
    matrix = _margin_matrix(beta, powers, b)
    how = (surrogate, *detached(detach_spikes))
    spikes, last, *margins = _Blocks.apply(  # pyright: ignore
        current, weight, beta, powers, matrix, *start, how
    )
    spikes, last = spikes[:n_steps], last[: len(model.all_states)]
    check_finite(last[: len(model.states)], current, model.states)
    after = state_after(model, last, spikes, weight, start, delay, how[2])
    if not membrane:
        return SpikeTrace(spikes, after)
    margin = torch.cat([margin.movedim(0, 2) for margin in margins])[:n_steps]
    first = torch.zeros_like(spikes[0]) if start.values is None else start.values[1]
    fixed = spikes.detach()
    adaptation = torch.cat([first[None], leaky_integrate(fixed[:-1], p, first)])
    threshold = (1 + b * adaptation).detach()
    # V continues without reset up to the end of a block: set it to 0 after a spike.
    is_before = torch.cat([s + 1 - s.cumsum(0) for s in fixed.split(n)])
    level = (margin + threshold) * is_before  # its gradient is that of V
    return SpikeTrace(spikes, after, level, threshold)


def _neurons_first(x: Tensor) -> Tensor:
    """Copy x [n, B, N] to [N, n, B], as a matrix transpose, which PyTorch copies in tiles."""
    copy = x.flatten(0, 1).t().clone(memory_format=torch.contiguous_format)
    return copy.view(x.shape[2], *x.shape[:2])


def _write_time_first(x: Tensor, out: Tensor) -> None:
    """Write x [N, n, B] to out [n, B, N]."""
    out.flatten(0, 1).copy_(x.flatten(1).t())


def _margin_matrix(beta: Tensor, powers: Tensor, b: Tensor) -> Tensor:
    """Matrix [N, n, n+2] from a block's currents, a and 1 to V − θ: columns β^(t−k), −b p^t, −1."""
    n = powers.shape[1] - 1
    offset = torch.arange(n, device=beta.device)
    lag = offset[:, None] - offset
    decay = (beta[:, None, None] ** lag.clamp(min=0)).tril()
    threshold_raise = (b[:, None] * powers[:, :n])[:, :, None]
    return torch.cat([decay, -threshold_raise, -torch.ones_like(threshold_raise)], dim=2)


def _ramp(n: int, like: Tensor) -> Tensor:
    """Ramp t − k + 1 for k ≤ t, else 0; [N, n, n], expanded over neurons."""
    offset = torch.arange(n, device=like.device)
    return (offset[:, None] - offset + 1).tril().to(like.dtype).expand(like.shape[2], n, n)


@dataclass
class _Block:
    """Values of a block saved for backward; [N, n, B] unless another shape is given."""

    x: Tensor  # currents, a and 1  [N, n+2, B]
    start: Tensor  # V0  [N, 1, B]
    margin: Tensor  # V − θ as if no neuron spiked in the block
    spikes: Tensor
    resting: Tensor  # 1 for neurons without a spike in the block  [N, 1, B]
    input_mask: Tensor  # 0 where the current is masked


class _Blocks(torch.autograd.Function):
    """Blocks method with its published gradient (docs/paper.md, Blocks).

    Inputs: current [T, B, N], where T is a multiple of n, recurrent_weight [N, N] or None, beta
    [N], powers p^0 … p^n [N, n+1], the margin matrix [N, n, n+2] made from them, and the states
    [K, B, N] and spikes [≥ n, B, N] before, or None.

    Outputs: spikes [T, B, N], the states at the end, of which the third is the number of masked
    steps, and, for each block, V − θ [N, n, B] as if no neuron spiked in it, with the gradient of
    V.
    """

    @staticmethod
    def forward(ctx, current, weight, beta, powers, matrix, values, before, how):
        n = matrix.shape[1]
        n_steps, batch_size, n_neurons = current.shape
        ramp, count = _ramp(n, current), powers[:, :-1].flip(1)[:, None]
        spikes = current.new_empty(current.shape)
        start = current.new_zeros(n_neurons, 1, batch_size)  # V0
        adaptation = torch.zeros_like(start)  # a at the end of the previous block
        input_mask = current.new_ones(n_neurons, n, batch_size)
        if values is not None:
            start, adaptation, *closed = _neurons_first(values.detach())[:, :, None].unbind(1)
            if closed:
                offset = torch.arange(n, device=current.device)
                input_mask = (offset[:, None] >= closed[0]).to(input_mask)
        earlier = None if before is None else _neurons_first(before[:n].detach())  # spikes
        blocks: list[_Block] = []

        for first in range(0, n_steps, n):
            drive = _neurons_first(current[first : first + n])
            if weight is not None and earlier is not None:
                drive.flatten(1).addmm_(weight, earlier.flatten(1))
            x = drive.new_empty(n_neurons, n + 2, batch_size)
            torch.mul(drive, input_mask, out=x[:, :n])
            x[:, :1] += beta[:, None, None] * start
            x[:, n:-1] = adaptation
            x[:, -1] = 1
            # 1., 2. the membrane without reset, minus the threshold
            margin = torch.bmm(matrix, x)
            # 3. z = Σ_{k≤t} (t−k+1) [V > θ]: 0 before the first crossing, 1 at it, ≥ 2 after
            crossings = torch.gt(margin, 0, out=torch.empty_like(margin))
            z = torch.bmm(ramp, crossings)
            # 4. only the first crossing is a spike
            s = torch.eq(z, 1, out=crossings)
            _write_time_first(s, spikes[first : first + n])
            resting = (z[:, -1:] == 0).to(z.dtype)
            blocks.append(_Block(x, start, margin, s, resting, input_mask))
            # state of the next block
            earlier = s
            start = (margin[:, -1:] + 1 - matrix[:, -1:, n : n + 1] * adaptation) * resting
            # refractory in the next block until the offset of this block's spike
            input_mask = z.clamp_(max=1).add_(resting)
            adaptation = powers[:, -1:, None] * adaptation + torch.bmm(count, s)

        ctx.save_for_backward(spikes, weight, beta, powers, matrix, values, before)
        ctx.blocks, (ctx.surrogate, ctx.detach_reset, ctx.detach_recurrence) = blocks, how
        ctx.set_materialize_grads(False)
        closed = (1 - input_mask).sum(1, True)
        last = torch.stack([x.squeeze(1).T for x in (start, adaptation, closed)])
        # not the blocks' own tensors, which as outputs would refer to this context and back
        return spikes, last, *[block.margin.detach() for block in blocks]

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        spikes, weight, beta, powers, matrix, values, before = ctx.saved_tensors
        grad_spikes, grad_last_states, *grad_margins = grads
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(spikes)
        n, blocks = matrix.shape[1], ctx.blocks
        ramp, count = _ramp(n, grad_spikes), powers[:, :-1].flip(1)[:, None]
        grad_current = grad_spikes.new_empty(grad_spikes.shape)
        grad_beta, grad_powers = torch.zeros_like(beta), torch.zeros_like(powers)
        grad_matrix = torch.zeros_like(matrix)
        grad_start = grad_adaptation = torch.zeros_like(blocks[0].start)
        if grad_last_states is not None:
            grad_start, grad_adaptation = _neurons_first(grad_last_states[:2])[:, :, None].unbind(1)
        grad_drive = None  # of the next block

        for i in reversed(range(len(blocks))):
            block = blocks[i]
            a, steps = block.x[:, -2:-1], slice(i * n, i * n + n)
            g = _neurons_first(grad_spikes[steps])  # gradient of the spikes
            # gradient from the next block
            if grad_drive is not None and weight is not None and not ctx.detach_recurrence:
                g.flatten(1).addmm_(weight.T, grad_drive.flatten(1))
            grad_powers[:, :-1] += torch.bmm(block.spikes, grad_adaptation.mT)[:, :, 0].flip(1)
            grad_powers[:, -1] += (a * grad_adaptation).sum((1, 2))
            if not ctx.detach_reset:
                left = torch.bmm(count, block.spikes)  # p^(steps after the spike)
                g.baddbmm_(powers[:, 1:, None], a * left * grad_adaptation)
            # 4., 3. straight-through gradient of z: Σ_{t≥k} (t−k+1) gS[t]
            g = torch.bmm(ramp.mT, g)
            # 2., 1.
            g *= ctx.surrogate.derivative(block.margin)
            of_margin = grad_margins[i]
            of_membrane = torch.zeros_like(g) if of_margin is None else of_margin.clone()
            of_membrane[:, -1:] += grad_start * block.resting  # where the next block starts
            g += of_membrane
            grad_rows = torch.bmm(g, block.x.mT)
            grad_rows[:, :, n] -= (of_membrane * a).sum(2)  # no θ in V
            grad_matrix += grad_rows
            grad_x = torch.bmm(matrix.mT, g)
            grad_beta += (grad_x[:, :1] * block.start).sum((1, 2))
            grad_start = beta[:, None, None] * grad_x[:, :1]
            grad_adaptation = powers[:, -1:, None] * grad_adaptation + grad_x[:, n : n + 1]
            grad_adaptation -= torch.bmm(matrix[:, :, n : n + 1].mT, of_membrane)
            grad_drive = grad_x[:, :n] * block.input_mask
            _write_time_first(grad_drive, grad_current[steps])

        grad_weight = grad_values = grad_before = None
        first = grad_current[:n]
        if ctx.needs_input_grad[1]:  # spikes of the previous block
            earlier, after = (x.flatten(0, 1) for x in (spikes[:-n], grad_current[n:]))
            grad_weight = after.T @ earlier
            if before is not None:
                grad_weight += first.flatten(0, 1).T @ before[:n].flatten(0, 1)
        if ctx.needs_input_grad[5]:
            grad_values = torch.zeros_like(values)
            grad_values[0], grad_values[1] = grad_start.squeeze(1).T, grad_adaptation.squeeze(1).T
        if weight is not None and before is not None and not ctx.detach_recurrence:
            grad_before = torch.zeros_like(before)
            grad_before[:n] = first @ weight
        return (
            grad_current, grad_weight, grad_beta, grad_powers, grad_matrix, grad_values,
            grad_before, None,
        )  # fmt: skip


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
