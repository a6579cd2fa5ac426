"""SE-adLIF and EF-adLIF: neurons whose adaptation couples to the membrane.

At the start u = w = s = 0 and θ = 1. For t = 0 … T−1:

    û[t] = α u[t−1] + (1 − α) (I[t] + W s[t−d] − w[t−1])
    s[t] = 1 if û[t] > θ else 0
    u[t] = û[t] (1 − s[t])
    w[t] = β w[t−1] + (1 − β) q (a u[t]   + b s[t])        SE-adLIF, symplectic Euler
    w[t] = β w[t−1] + (1 − β) q (a u[t−1] + b s[t−1])      EF-adLIF, forward Euler

| symbol | code | shape | unit |
|---|---|---|---|
| I | `current` | [T, B, N] | threshold units |
| û | `trace.membrane` | [T, B, N] | threshold units, before reset |
| s | `trace.spikes` | [T, B, N] | 0 or 1 |
| α = exp(−dt/τ_u) | `alpha` | [N] | per step |
| β = exp(−dt/τ_w) | `beta` | [N] | per step |
| a | `a` | [N] | coupling to the membrane |
| b | `b` | [N] | threshold units per spike |
| q | `q` | number | 120 by default |
| w | state `adaptation` | [B, N] | threshold units |
| W | `recurrent_weight` | [N, N] (post, pre) | threshold units per spike |
| d | `recurrent_delay` | int ≥ 1, or `RecurrentDelays` | steps |

Below threshold u and w oscillate. With X = (1 − α)(1 − β) q a the oscillation grows by forward
Euler once αβ + X > 1. By symplectic Euler, at the same cost, it grows only once
X > (1 + α)(1 + β): with long steps and short time constants. With τ_u = 5 ms, τ_w = 60 ms, a = 1
and q = 120 that happens at steps of 4 ms (4.3 > 2.8), not at 2 ms (1.3 < 3.3).

Source: Baronig et al., Nature Communications 2025, and their code,
github.com/IGITUGraz/SE-adlif. In their experiments τ_u is 5 to 25 and τ_w 60 to 300 steps, a is in
[0, 1] and b in [0, 2]. By default only the reset is detached, as in their code, whose surrogate is
`SLAYER()`.
"""

from typing import Literal

from torch import Tensor

from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.simulate import Detach, ExactMethod, simulate
from blockspike.neurons.state import State
from blockspike.neurons.surrogates import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace

Euler = Literal["symplectic", "forward"]


def step_symplectic(drive, parameters, constants, state, fire):
    """One step of SE-adLIF: adaptation follows the membrane and spike of the same step."""
    alpha, beta, a, b = parameters
    _, one, q = constants
    membrane, adaptation = state
    before = alpha * membrane + (one - alpha) * (drive - adaptation)
    spike, not_spiked = fire(before, one)
    membrane = before * not_spiked
    adaptation = beta * adaptation + (one - beta) * q * (a * membrane + b * spike)
    return spike, before, one, (membrane, adaptation)


def step_forward(drive, parameters, constants, state, fire):
    """One step of EF-adLIF: adaptation follows the membrane and spike of the previous step."""
    alpha, beta, a, b = parameters
    _, one, q = constants
    membrane, last_spike, adaptation = state
    before = alpha * membrane + (one - alpha) * (drive - adaptation)
    spike, not_spiked = fire(before, one)
    adaptation = beta * adaptation + (one - beta) * q * (a * membrane + b * last_spike)
    return spike, before, one, (before * not_spiked, spike, adaptation)


_PARAMETERS = ("alpha", "beta", "a", "b")
SE_ADLIF = NeuronModel(
    "SE-adLIF",
    parameters=_PARAMETERS,
    states=("membrane", "adaptation"),
    step=step_symplectic,
)
EF_ADLIF = NeuronModel(
    "EF-adLIF",
    parameters=_PARAMETERS,
    states=("membrane", "last_spike", "adaptation"),
    step=step_forward,
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
    membrane: bool = False,
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
        recurrent_weight, recurrent_delay, surrogate, state, membrane, method: see
            `simulate`. The states are "membrane", "adaptation" and, with forward Euler,
            "last_spike".

    Returns:
        SpikeTrace with spikes [T, B, N] and the state at the end.

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
    return simulate(
        MODELS[euler],
        current,
        {"alpha": alpha, "beta": beta, "a": a, "b": b},
        (q,),
        recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay,
        surrogate=surrogate,
        detach_spikes=detach_spikes,
        state=state,
        membrane=membrane,
        method=method,
    )
