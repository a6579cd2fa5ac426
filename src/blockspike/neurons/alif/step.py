"""One step of ALIF and its derivative, and what makes it a model for the kernels."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from blockspike.neurons.model import NeuronModel, maximum, where
from blockspike.neurons.simulate import fused
from blockspike.neurons.trace import ALIFTrace, threshold_of


def step(drive, parameters, constants, state, fire):
    """SPEC section 1; a masked step takes no input."""
    beta, p, b = parameters
    zero, one, arp = constants
    membrane, adaptation, silent_steps = state
    open_ = where(silent_steps > zero, zero, one)
    membrane = beta * membrane + drive * open_
    margin = membrane - (one + b * adaptation)
    spike, kept = fire(margin)
    silent_steps = where(margin > zero, arp, maximum(silent_steps - one, zero))
    return spike, margin, (membrane * kept, p * adaptation + spike, silent_steps)


def reverse_step(
    drive, parameters, constants, state, margin, slope, grad_spike, attached, grad_state
):
    """Backpropagation through `step`, see `NeuronModel`."""
    beta, p, b = parameters
    zero, one, _ = constants
    before, adaptation, silent_steps = state
    grad_membrane, grad_adaptation = grad_state
    membrane = margin + (one + b * adaptation)
    kept = where(margin > zero, zero, one)
    grad_spike = grad_spike + grad_adaptation - attached * membrane * grad_membrane
    grad_margin = grad_spike * slope
    grad_membrane = grad_membrane * kept + grad_margin
    open_ = where(silent_steps > zero, zero, one)
    return (
        grad_membrane * open_,
        (grad_membrane * before, grad_adaptation * adaptation, -grad_margin * adaptation),
        (beta * grad_membrane, p * grad_adaptation - b * grad_margin),
    )


ALIF = NeuronModel(
    "alif",
    parameters=("beta", "p", "b"),
    states=("membrane", "adaptation"),
    counters=("silent_steps",),
    step=step,
    reverse_step=reverse_step,
)


def fused_alif(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None,
    b: Tensor | None,
    *,
    arp: int,
    **options: Any,
) -> ALIFTrace:
    """Spikes and gradient of `standard`, in one pass; arguments as `alif`, already checked."""
    parameters = [beta, *(torch.zeros_like(beta) if x is None else x for x in (p, b))]
    arps = (float(min(arp, len(current))),)
    raised = partial(threshold_of, p=p, b=b)
    return fused(ALIF, current, parameters, arps, threshold_of=raised, **options)
