"""The Blocks method step by step, for the CPU kernels of `neurons/cpu/`.

The kernels give the spikes of `standard.py` and the published gradient of `blocks.py` without
matrix products, so that the cost hardly depends on arp. Time is still divided into blocks of
n = arp + 1 steps, because the gradient depends on them: within a block, V continues without reset,
and θ ignores the block's own spike. Equations: docs/paper.md, Blocks.
"""

import torch
from torch import Tensor

from blockspike.neurons.alif.fused import fused
from blockspike.neurons.alif.inputs import ALIFInputs
from blockspike.neurons.alif.step import ALIF
from blockspike.neurons.cpu.fused import fused_cpu
from blockspike.neurons.model import NeuronModel, maximum, where
from blockspike.neurons.state import Start
from blockspike.neurons.trace import SpikeTrace, needs_gradient, trace_of


def step(drive, parameters, constants, state, fire):
    """One step of a block of n steps.

    `base` is the adaptation at the start of the block, which decays and sets θ. `closed` is the
    number of steps that are still masked by a spike in the block before, and `offset` the step in
    the block. `spiked` is 1 + the step at which the neuron spiked in this block, or 0, and `left`
    what is left in the adaptation of its last spike.
    """
    beta, p, b = parameters
    zero, one, n = constants
    membrane, adaptation, base, closed, offset, spiked, left = state
    membrane = beta * membrane + drive * where(closed > zero, zero, one)
    margin = membrane - (one + b * base)
    crossed, _ = fire(margin)
    spike = where(spiked > zero, zero, crossed)  # only the first crossing is a spike
    offset = offset + one
    spiked = where(spike > zero, offset, spiked)
    left = where(spike > zero, one, p * left)
    adaptation = p * adaptation + spike
    ends = offset >= n
    return (
        spike,
        margin,
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
    threshold_parameters=("b",),
    accumulators=("via_adaptation", "grad_sum", "ramp"),
    step=step,
    reverse_step=reverse_step,
)


def blocks_cpu(x: ALIFInputs) -> SpikeTrace:
    """Simulate with the spikes of `standard` and the gradient of `blocks`.

    If no gradient is needed, `fused` gives the same result.
    """
    if not needs_gradient(x.current, x.beta, x.p, x.b, x.recurrent_weight, *(x.start or ())):
        return fused(x)
    n = x.arp + 1
    spec = x.spec._replace(model=BLOCKS, constants=(float(n),))
    start = None if x.start is None else Start(_of_blocks(x.start.values), x.start.spikes)
    result = fused_cpu(
        spec, x.current, x.parameters, x.recurrent_weight, start, x.membrane_gradient
    )
    last = result.last[_ROWS_OF_ALIF if x.spec.model is ALIF else _ROWS_OF_ALIF[:2]]
    return trace_of(result._replace(spec=x.spec, last=last), x.threshold, n)


_ROWS_OF_ALIF = [0, 1, 3]  # at the start of a block, where `base` is the adaptation


def _of_blocks(values: Tensor) -> Tensor:
    """States of `BLOCKS` at the start of a block, of those of ALIF; both [K, B, N]."""
    membrane, adaptation, *counters = values.unbind()
    none = torch.zeros_like(membrane)
    refractory_left = counters[0] if counters else none
    return torch.stack([membrane, adaptation, adaptation, refractory_left, none, none, none])
