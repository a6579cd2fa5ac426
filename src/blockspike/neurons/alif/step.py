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


def step_always_open(drive, parameters, constants, state, fire):
    """`step` with a refractory period of 0: nothing to count, and a tenth faster for it."""
    beta, p, b = parameters
    _, one = constants
    membrane, adaptation = state
    membrane = beta * membrane + drive
    margin = membrane - (one + b * adaptation)
    spike, kept = fire(margin)
    return spike, margin, (membrane * kept, p * adaptation + spike)


def reverse_step_always_open(
    drive, parameters, constants, state, margin, slope, grad_spike, attached, grad_state
):
    """Backpropagation through `step_always_open`, see `NeuronModel`."""
    beta, p, b = parameters
    zero, one = constants
    before, adaptation = state
    grad_membrane, grad_adaptation = grad_state
    membrane = margin + (one + b * adaptation)
    kept = where(margin > zero, zero, one)
    grad_spike = grad_spike + grad_adaptation - attached * membrane * grad_membrane
    grad_margin = grad_spike * slope
    grad_membrane = grad_membrane * kept + grad_margin
    return (
        grad_membrane,
        (grad_membrane * before, grad_adaptation * adaptation, -grad_margin * adaptation),
        (beta * grad_membrane, p * grad_adaptation - b * grad_margin),
    )


_NAMES: Any = {"parameters": ("beta", "p", "b"), "states": ("membrane", "adaptation")}
ALIF = NeuronModel(
    "alif", **_NAMES, counters=("silent_steps",), step=step, reverse_step=reverse_step
)
ALIF_ALWAYS_OPEN = NeuronModel(
    "alif, refractory period 0",
    **_NAMES,
    step=step_always_open,
    reverse_step=reverse_step_always_open,
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
    raised = partial(threshold_of, p=p, b=b)
    model, arps = (ALIF, (float(min(arp, len(current))),)) if arp else (ALIF_ALWAYS_OPEN, ())
    return fused(model, current, parameters, arps, threshold_of=raised, **options)
