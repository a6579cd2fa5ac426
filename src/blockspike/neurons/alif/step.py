"""One step of ALIF and its derivative, and what makes it a model for the kernels."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from blockspike.neurons.model import NeuronModel, Simulation, maximum, where
from blockspike.neurons.simulate import fused
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.trace import ALIFTrace, threshold_of


def step(drive, parameters, constants, state, fire):
    """SPEC section 1 without a refractory period."""
    beta, p, b = parameters
    _, one = constants
    membrane, adaptation = state
    membrane = beta * membrane + drive
    margin = membrane - (one + b * adaptation)
    spike, kept = fire(margin)
    return spike, margin, (membrane * kept, p * adaptation + spike)


def reverse_step(
    drive, parameters, constants, state, margin, slope, grad_spike, attached, grad_state
):
    """Backpropagation through `step`, see `NeuronModel`."""
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


def refractory_step(drive, parameters, constants, state, fire):
    """SPEC section 1; a masked step takes no input."""
    zero, one, arp = constants
    membrane, adaptation, silent_steps = state
    open_ = where(silent_steps > zero, zero, one)
    spike, margin, after = step(
        drive * open_, parameters, (zero, one), (membrane, adaptation), fire
    )
    silent_steps = where(margin > zero, arp, maximum(silent_steps - one, zero))
    return spike, margin, (after[0], after[1], silent_steps)


def reverse_refractory_step(
    drive, parameters, constants, state, margin, slope, grad_spike, attached, grad_state
):
    """Backpropagation through `refractory_step`, see `NeuronModel`."""
    zero, one, _ = constants
    membrane, adaptation, silent_steps = state
    to_drive, to_parameters, before = reverse_step(
        drive, parameters, (zero, one), (membrane, adaptation), margin, slope, grad_spike, attached,
        grad_state,
    )  # fmt: skip
    return to_drive * where(silent_steps > zero, zero, one), to_parameters, before


_NAMES: Any = {"parameters": ("beta", "p", "b"), "states": ("membrane", "adaptation")}
ALIF = NeuronModel(
    "alif",
    **_NAMES,
    counters=("silent_steps",),
    step=refractory_step,
    reverse_step=reverse_refractory_step,
)
ALIF_ALWAYS_OPEN = NeuronModel(
    "alif, refractory period 0", **_NAMES, step=step, reverse_step=reverse_step
)


_COUNTED_BY_FLOAT32 = 2**24  # the largest number of steps from which 1 can be subtracted


def check_arp(arp: int, n_steps: int, dtype: torch.dtype) -> None:
    """ValueError unless it is a number of steps that `dtype`, which counts them, holds exactly."""
    if isinstance(arp, bool) or not isinstance(arp, int) or arp < 0:
        raise ValueError(f"arp: expected an int ≥ 0 (steps), got {arp!r}")
    if min(arp, n_steps) > _COUNTED_BY_FLOAT32 and dtype != torch.float64:
        raise ValueError(
            f"arp: expected at most {_COUNTED_BY_FLOAT32} steps, which float32 counts exactly, or "
            f"a float64 current; got {arp}"
        )


def fused_alif(
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
) -> ALIFTrace:
    """Spikes and gradient of `standard`, in one pass; arguments as `alif`, already checked.

    A refractory period of 0 leaves nothing to count, and takes a tenth less time for it.
    """
    parameters = [beta, *(torch.zeros_like(beta) if x is None else x for x in (p, b))]
    model, arps = (ALIF, (float(min(arp, len(current))),)) if arp else (ALIF_ALWAYS_OPEN, ())
    what = Simulation(model, arps, recurrent_delay, surrogate, detach_spikes)
    raised = partial(threshold_of, p=p, b=b)
    return fused(what, current, parameters, recurrent_weight, threshold_of=raised)
