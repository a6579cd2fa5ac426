"""One step of ALIF and its derivative, with and without a refractory period, as models."""

from typing import Any

import torch

from blockspike.neurons.model import NeuronModel, maximum, where


def step(drive, parameters, constants, state, fire):
    """One step of ALIF without a refractory period (docs/paper.md, The neuron)."""
    beta, p, b = parameters
    _, one = constants
    membrane, adaptation = state
    membrane = beta * membrane + drive
    margin = membrane - (one + b * adaptation)
    spike, not_spiked = fire(margin)
    return spike, margin, (membrane * not_spiked, p * adaptation + spike)


def reverse_step(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    """Backpropagate through `step`; see `NeuronModel`."""
    beta, p, b = parameters
    zero, one = constants
    before, adaptation = state
    grad_membrane, grad_adaptation = grad_state
    membrane = margin + (one + b * adaptation)
    not_spiked = where(margin > zero, zero, one)
    grad_spike = grad_spike + grad_adaptation - reset_has_grad * membrane * grad_membrane
    grad_margin = grad_spike * slope
    grad_membrane = grad_membrane * not_spiked + grad_margin
    return (
        grad_membrane,
        (grad_membrane * before, grad_adaptation * adaptation, -grad_margin * adaptation),
        (beta * grad_membrane, p * grad_adaptation - b * grad_margin),
    )


def refractory_step(drive, parameters, constants, state, fire):
    """One step of ALIF, without input while refractory (docs/paper.md, The neuron)."""
    zero, one, arp = constants
    membrane, adaptation, refractory_left = state
    input_mask = where(refractory_left > zero, zero, one)
    spike, margin, after = step(
        drive * input_mask, parameters, (zero, one), (membrane, adaptation), fire
    )
    refractory_left = where(margin > zero, arp, maximum(refractory_left - one, zero))
    return spike, margin, (after[0], after[1], refractory_left)


def reverse_refractory_step(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    """Backpropagate through `refractory_step`; see `NeuronModel`."""
    zero, one, _ = constants
    membrane, adaptation, refractory_left = state
    to_drive, to_parameters, before = reverse_step(
        drive, parameters, (zero, one), (membrane, adaptation), margin, slope, grad_spike,
        reset_has_grad, grad_state,
    )  # fmt: skip
    return to_drive * where(refractory_left > zero, zero, one), to_parameters, before


_NAMES: Any = {
    "parameters": ("beta", "p", "b"),
    "states": ("membrane", "adaptation"),
    "threshold_parameters": ("b",),
}
ALIF = NeuronModel(
    "alif",
    **_NAMES,
    counters=("refractory_left",),
    step=refractory_step,
    reverse_step=reverse_refractory_step,
)
ALIF_ALWAYS_OPEN = NeuronModel(
    "alif, refractory period 0", **_NAMES, step=step, reverse_step=reverse_step
)


_COUNTED_BY_FLOAT32 = 2**24  # the largest number of steps from which 1 can be subtracted


def check_arp(arp: int, n_steps: int, dtype: torch.dtype, name: str = "arp") -> None:
    """Raise ValueError unless `arp` is a number of steps that `dtype` can count exactly."""
    if isinstance(arp, bool) or not isinstance(arp, int) or arp < 0:
        raise ValueError(f"{name}: expected an int ≥ 0 (steps), got {arp!r}")
    if min(arp, n_steps) > _COUNTED_BY_FLOAT32 and dtype != torch.float64:
        raise ValueError(
            f"{name}: expected at most {_COUNTED_BY_FLOAT32} steps, which float32 counts exactly, "
            f"or a float64 current; got {arp}"
        )
