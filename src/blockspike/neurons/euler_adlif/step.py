"""`euler_adlif`, the steps of SE-adLIF and EF-adLIF, and their derivatives: README.md."""

import math
from typing import Literal

from torch import Tensor

from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.model import NeuronModel, where
from blockspike.neurons.recurrent_delays import RecurrentDelays
from blockspike.neurons.simulate import ExactMethod, simulate
from blockspike.neurons.spec import Detach
from blockspike.neurons.state import State
from blockspike.neurons.surrogate import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace

Euler = Literal["symplectic", "forward"]


def step_symplectic(drive, parameters, constants, state, fire):
    """One step of SE-adLIF: adaptation follows the membrane and spike of the same step."""
    alpha, beta, a, b = parameters
    _, one, q = constants
    membrane, adaptation = state
    before = alpha * membrane + (one - alpha) * (drive - adaptation)
    margin = before - one
    spike, not_spiked = fire(margin)
    membrane = before * not_spiked
    adaptation = beta * adaptation + (one - beta) * q * (a * membrane + b * spike)
    return spike, margin, (membrane, adaptation)


def reverse_step_symplectic(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    """Backpropagate through `step_symplectic`; see `NeuronModel`."""
    alpha, beta, a, b = parameters
    zero, one, q = constants
    membrane, adaptation = state
    grad_membrane, grad_adaptation = grad_state
    spike = where(margin > zero, one, zero)
    not_spiked, before = one - spike, margin + one
    after = before * not_spiked
    scaled = (one - beta) * q * grad_adaptation
    grad_membrane = grad_membrane + a * scaled
    grad_spike = grad_spike + b * scaled - reset_has_grad * before * grad_membrane
    grad_before = grad_membrane * not_spiked + grad_spike * slope
    to_drive = (one - alpha) * grad_before
    return (
        to_drive,
        (
            grad_before * (membrane - (drive - adaptation)),
            grad_adaptation * (adaptation - q * (a * after + b * spike)),
            scaled * after,
            scaled * spike,
        ),
        (alpha * grad_before, beta * grad_adaptation - to_drive),
    )


def step_forward(drive, parameters, constants, state, fire):
    """One step of EF-adLIF: adaptation follows the membrane and spike of the previous step."""
    alpha, beta, a, b = parameters
    _, one, q = constants
    membrane, last_spike, adaptation = state
    before = alpha * membrane + (one - alpha) * (drive - adaptation)
    margin = before - one
    spike, not_spiked = fire(margin)
    adaptation = beta * adaptation + (one - beta) * q * (a * membrane + b * last_spike)
    return spike, margin, (before * not_spiked, spike, adaptation)


def reverse_step_forward(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    """Backpropagate through `step_forward`; see `NeuronModel`."""
    alpha, beta, a, b = parameters
    zero, one, q = constants
    membrane, last_spike, adaptation = state
    grad_membrane, grad_last, grad_adaptation = grad_state
    before = margin + one
    not_spiked = where(margin > zero, zero, one)
    grad_spike = grad_spike + grad_last - reset_has_grad * before * grad_membrane
    grad_before = grad_membrane * not_spiked + grad_spike * slope
    scaled = (one - beta) * q * grad_adaptation
    to_drive = (one - alpha) * grad_before
    return (
        to_drive,
        (
            grad_before * (membrane - (drive - adaptation)),
            grad_adaptation * (adaptation - q * (a * membrane + b * last_spike)),
            scaled * membrane,
            scaled * last_spike,
        ),
        (
            alpha * grad_before + a * scaled,
            b * scaled,
            beta * grad_adaptation - to_drive,
        ),
    )


_PARAMETERS = ("alpha", "beta", "a", "b")
SE_ADLIF = NeuronModel(
    "SE-adLIF",
    parameters=_PARAMETERS,
    states=("membrane", "adaptation"),
    step=step_symplectic,
    reverse_step=reverse_step_symplectic,
)
EF_ADLIF = NeuronModel(
    "EF-adLIF",
    parameters=_PARAMETERS,
    states=("membrane", "last_spike", "adaptation"),
    step=step_forward,
    reverse_step=reverse_step_forward,
)

MODELS = {"symplectic": SE_ADLIF, "forward": EF_ADLIF}
"""The model of each form of Euler's method."""


def euler_adlif(
    current: Tensor,
    alpha: Tensor,
    beta: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    q: float = 120.0,
    euler: Euler = "symplectic",
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | RecurrentDelays = 1,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: Detach = "reset",
    state: State | None = None,
    membrane_gradient: bool = False,
    method: ExactMethod = "fused",
) -> SpikeTrace:
    """Simulate neurons with threshold 1 whose adaptation is coupled to the membrane.

    The equations of Baronig et al. 2025 are integrated by symplectic Euler (SE-adLIF) or, at the
    same cost, by forward Euler (EF-adLIF). The neurons of Bittar & Garner 2022 are `adlif`.

    Args:
        current: [T, B, N] input current in threshold units, see `simulate`; never modified.
        alpha: [N] membrane decay per step, exp(−dt/τ_u).
        beta: [N] adaptation decay per step, exp(−dt/τ_w).
        a: [N] coupling of the adaptation to the membrane.
        b: [N] coupling of the adaptation to the spike.
        q: scale of both couplings.
        euler: "symplectic" or "forward".
        detach_spikes: see `simulate`; "reset" as in the authors' code.
        recurrent_weight, recurrent_delay, surrogate, state, membrane_gradient, method: see
            `simulate`. The states are "membrane", "adaptation" and, with forward Euler,
            "last_spike".

    Returns:
        SpikeTrace with spikes, membrane before reset and threshold, each [T, B, N].

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((1000, 1, 1), 2.0)  # [T, B, N]
        >>> alpha, beta = torch.tensor([0.9]), torch.tensor([0.99])
        >>> a, b = torch.tensor([0.5]), torch.tensor([1.0])
        >>> trace = bs.euler_adlif(current, alpha, beta, a, b)
        >>> trace.spikes.shape
        torch.Size([1000, 1, 1])
    """
    if euler not in MODELS:
        raise ValueError(f"euler: expected one of {', '.join(MODELS)}, got {euler!r}")
    if not math.isfinite(q):
        raise NotFiniteError(f"q: expected a finite number, got {q}")
    return simulate(
        MODELS[euler],
        current,
        {"alpha": alpha, "beta": beta, "a": a, "b": b},
        (float(q),),
        recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay,
        surrogate=surrogate,
        detach_spikes=detach_spikes,
        state=state,
        membrane_gradient=membrane_gradient,
        method=method,
    )
