"""Generalised leaky integrate-and-fire neurons (GLIF) with the parts that are given.

At the start V = w = h = u = 0 (or what `state=` says). For t = 0 … T−1, with k = 1, 2:

    V[t] = β V⁺[t−1] + I[t] + W s[t−d] − Σ A_k w_k[t−1]   if the last spike is more than R steps ago
    V[t] = V⁺[t−1]                                        else: refractory, V stays at its reset
    θ[t] = 1 + Σ b_k h_k[t−1] + c u[t−1]
    s[t] = 1 if V[t] > θ[t] else 0
    V⁺[t] = f V[t] if s[t] else V[t]
    w_k[t] = q_k w_k[t−1] + s[t]                            after-spike currents
    h_k[t] = p_k h_k[t−1] + s[t]                            threshold kernels
    u[t] = r(V⁺[t] − o) + d_u (u[t−1] − r(V⁺[t] − o))       what the threshold follows
    r(x) = 0 below −g, (x + g)² / 4g between, x above g     a bend of half-width g at 0

| symbol | code | shape | unit |
|---|---|---|---|
| I | `current` | [T, B, N] | threshold units per step |
| V | `trace.membrane` | [T, B, N] | threshold units, before reset |
| θ | `trace.threshold` | [T, B, N] | threshold units |
| β = exp(−dt/τ_m) | `beta` | [N] | per step |
| f | `reset_share` | [N] | share of V; 0 by default |
| R | `refractory` | number or [N] | steps; has no gradient |
| A_k, q_k = exp(−dt/τ) | `after_spike_currents` | pairs of [N] | threshold per step, per step |
| b_k, p_k = exp(−dt/τ) | `threshold_kernels` | pairs of [N] | threshold units; per step |
| c, d_u, o, g | `threshold_coupling` | [N] each | 1, per step, threshold units (both) |
| W, d | `recurrent_weight`, `recurrent_delay` | [N, N], steps | threshold units per spike |

V = 0 is the level to which a full reset leads (f = 0), and 1 the threshold of a neuron at rest. The
resting potential is part of I, as (1 − β) rest, so a level of reset would be one parameter too
many. A partial reset V⁺ = f V + const is measured from the level that it leaves unchanged. If f V
is above the threshold, the neuron fires again within its refractory period.

Mensi et al. let the threshold follow a softplus of V. The bend r replaces it by polynomials, which
every processor rounds in the same way, so that spikes of the loop and the kernels are equal. With
g = 4 ln 2 · Δ it has the softplus's value at the onset and lies within 0.03 g of it everywhere.

| neuron | parts |
|---|---|
| LIF, GLIF1 | none |
| ALIF | one threshold kernel |
| GLIF2 | `reset_share`, one threshold kernel |
| GLIF3 | two after-spike currents |
| GLIF4 | `reset_share`, one threshold kernel, two after-spike currents |
| near GLIF5 | as GLIF4, and `threshold_coupling`; in GLIF5 the threshold follows V linearly |
| GIF | two after-spike currents, two threshold kernels |
| GIF with a coupled threshold | as GIF, and `threshold_coupling` |

Sources: GLIF, Teeter et al., Nature Communications 2018; GIF, Mensi et al., Journal of
Neurophysiology 2012, and Pozzorini et al., PLOS Computational Biology 2015, whose currents and
thresholds after a spike have any form, here that of two exponentials each; the coupled threshold,
Mensi et al., PLOS Computational Biology 2016. The GIF's escape noise is not part of `glif`
(fitting/escape.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.model import NeuronModel, maximum, where
from blockspike.neurons.ops import is_traced
from blockspike.neurons.simulate import Detach, ExactMethod, simulate
from blockspike.neurons.state import State
from blockspike.neurons.surrogates import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace

N_KERNELS = 2
"""After-spike currents, and threshold kernels, that a neuron may have."""


def advance(drive, parameters, constants, state, coupled, fire):
    """One step with `coupled` added to the threshold, its part that follows the membrane."""
    (
        beta, reset_share, refractory, current_1, current_decay_1, current_2, current_decay_2,
        threshold_1, threshold_decay_1, threshold_2, threshold_decay_2,
    ) = parameters  # fmt: skip
    zero, one = constants
    membrane, in_current_1, in_current_2, in_threshold_1, in_threshold_2, refractory_left = state
    drive = drive - current_1 * in_current_1 - current_2 * in_current_2
    input_mask = where(refractory_left > zero, zero, one)
    # Sums and not a choice, so that a NaN in the drive is never lost.
    membrane = (beta * membrane + drive) * input_mask + membrane * (one - input_mask)
    threshold = one + threshold_1 * in_threshold_1 + threshold_2 * in_threshold_2 + coupled
    spike, not_spiked = fire(membrane, threshold)
    after = membrane * not_spiked + reset_share * membrane * (one - not_spiked)
    refractory_left = where(spike > zero, refractory, maximum(refractory_left - one, zero))
    return spike, membrane, threshold, (
        after,
        current_decay_1 * in_current_1 + spike,
        current_decay_2 * in_current_2 + spike,
        threshold_decay_1 * in_threshold_1 + spike,
        threshold_decay_2 * in_threshold_2 + spike,
        refractory_left,
    )  # fmt: skip


def step(drive, parameters, constants, state, fire):
    """One step of GLIF whose threshold depends on its spikes alone."""
    return advance(drive, parameters, constants, state, constants[0], fire)


def follow(membrane, following, decay, onset, width, quarter_of_inverse_width):
    """Let what the threshold follows decay to the rectified membrane after a reset."""
    above = membrane - onset
    bend = maximum(above + width, 0.0)
    rectified = where(above > width, above, quarter_of_inverse_width * bend * bend)
    return rectified + decay * (following - rectified)


def coupled_step(drive, parameters, constants, state, fire):
    """One step of GLIF whose threshold also follows the membrane."""
    coupling, coupling_decay, onset, width, quarter_of_inverse_width = parameters[11:]
    following = state[5]
    own = (state[0], state[1], state[2], state[3], state[4], state[6])
    coupled = coupling * following
    spike, membrane, threshold, after = advance(
        drive, parameters[:11], constants, own, coupled, fire
    )
    following = follow(after[0], following, coupling_decay, onset, width, quarter_of_inverse_width)
    return spike, membrane, threshold, (
        after[0], after[1], after[2], after[3], after[4], following, after[5],
    )  # fmt: skip


_PARAMETERS = (
    "beta", "reset_share", "refractory", "current_1", "current_decay_1", "current_2",
    "current_decay_2", "threshold_1", "threshold_decay_1", "threshold_2", "threshold_decay_2",
)  # fmt: skip
_STATES = ("membrane", "in_current_1", "in_current_2", "in_threshold_1", "in_threshold_2")
GLIF = NeuronModel(
    "glif",
    parameters=_PARAMETERS,
    states=_STATES,
    counters=("refractory_left",),
    step=step,
)
COUPLED_GLIF = NeuronModel(
    "glif, threshold coupled",
    parameters=(
        *_PARAMETERS, "coupling", "coupling_decay", "coupling_onset", "coupling_width",
        "quarter_of_inverse_width",
    ),
    states=(*_STATES, "following"),
    counters=("refractory_left",),
    step=coupled_step,
)  # fmt: skip


Kernel = tuple[Tensor, Tensor]
"""Amplitude and decay per step of what a spike leaves behind, [N] each."""


class ThresholdCoupling(NamedTuple):
    """How the threshold follows the membrane; equations: neurons/glif.py.

    Attributes:
        coupling: [N] rise of the threshold per rise of V above the onset.
        decay: [N] decay per step of what follows the membrane, exp(−dt/τ).
        onset: [N] V around which the threshold begins to rise.
        width: [N] half the width of the bend around the onset, above 0.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> values = (torch.tensor([x]) for x in (0.5, 0.9, 0.3, 0.2))
        >>> follows = bs.ThresholdCoupling(*values)
        >>> current = torch.full((200, 1, 1), 0.1)  # [T, B, N]
        >>> beta = torch.tensor([0.95])
        >>> trace = bs.glif(current, beta, threshold_coupling=follows, membrane=True)
        >>> bool(trace.threshold[-1] > 1)
        True
    """

    coupling: Tensor
    decay: Tensor
    onset: Tensor
    width: Tensor


def glif(
    current: Tensor,
    beta: Tensor,
    *,
    reset_share: Tensor | None = None,
    refractory: int | Tensor = 0,
    after_spike_currents: Sequence[Kernel] = (),
    threshold_kernels: Sequence[Kernel] = (),
    threshold_coupling: ThresholdCoupling | None = None,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | RecurrentDelays = 1,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: Detach = True,
    state: State | None = None,
    membrane: bool = False,
    method: ExactMethod = "fused",
) -> SpikeTrace:
    """Simulate generalised leaky integrate-and-fire neurons (neurons/glif.py).

    With no part this is the LIF neuron, and with one threshold kernel ALIF. GLIF1 to GLIF4 of
    Teeter et al. 2018 are choices of the parts, and so is the GIF of Mensi et al. 2012 and
    Pozzorini et al. 2015, without its escape noise and with kernels that are sums of exponentials.

    Args:
        current: [T, B, N] input current in threshold units per step, see `simulate`; never
            modified.
        beta: [N] membrane decay per step, exp(−dt/τ_m).
        reset_share: [N] share of V that a reset leaves; None = 0, a reset to 0.
        refractory: steps after a spike in which V stays at its reset, ≥ 0, one number or [N].
        after_spike_currents: up to two pairs (amplitude, decay), [N] each: a spike adds the
            amplitude to a current that is subtracted from the input and decays each step.
        threshold_kernels: up to two pairs (amplitude, decay), [N] each: a spike adds the amplitude
            to the threshold, where it decays each step.
        threshold_coupling: how the threshold follows the membrane; None = it does not.
        recurrent_weight, recurrent_delay, surrogate, detach_spikes, membrane, method: see
            `simulate`.
        state: see `simulate`; the states are "membrane", "in_current_1", "in_current_2",
            "in_threshold_1", "in_threshold_2", "following" with a coupling, "refractory_left".

    Returns:
        SpikeTrace with spikes [T, B, N] and the state at the end.

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((1000, 1, 1), 0.1)  # [T, B, N]
        >>> slow = (torch.tensor([0.02]), torch.tensor([0.99]))
        >>> fast = (torch.tensor([0.5]), torch.tensor([0.9]))
        >>> trace = bs.glif(
        ...     current, torch.tensor([0.95]), refractory=4,
        ...     after_spike_currents=[slow], threshold_kernels=[fast],
        ... )
        >>> int(trace.spikes.sum())
        24
    """  # fmt: skip
    parameters = {"beta": beta}
    parameters["reset_share"] = torch.zeros_like(beta) if reset_share is None else reset_share
    parameters["refractory"] = _steps(refractory, beta)
    parameters |= _kernels("current", after_spike_currents, beta)
    parameters |= _kernels("threshold", threshold_kernels, beta)
    model = GLIF
    if threshold_coupling is not None:
        model = COUPLED_GLIF
        coupling, decay, onset, width = threshold_coupling
        own = (coupling, decay, onset, width, 0.25 / width)
        parameters |= zip(COUPLED_GLIF.parameters[-5:], own, strict=True)
    return simulate(
        model, current, parameters, recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay, surrogate=surrogate, detach_spikes=detach_spikes,
        state=state, membrane=membrane, method=method,
    )  # fmt: skip


def _steps(refractory: int | Tensor, like: Tensor) -> Tensor:
    """Refractory steps of each neuron, [N]."""
    steps = torch.as_tensor(refractory, dtype=like.dtype, device=like.device)
    if not is_traced(steps) and bool(((steps < 0) | (steps % 1 != 0)).any()):
        raise ValueError(f"refractory: expected whole steps ≥ 0, got {refractory}")
    return steps.expand(like.shape)


def _kernels(of: str, kernels: Sequence[Kernel], like: Tensor) -> dict[str, Tensor]:
    """Amplitudes and decays by the model's names for them; 0 for kernels that are not given."""
    if len(kernels) > N_KERNELS:
        raise ValueError(f"{of} kernels: expected up to {N_KERNELS} pairs, got {len(kernels)}")
    absent = (torch.zeros_like(like), torch.zeros_like(like))
    pairs = enumerate([*kernels, absent, absent][:N_KERNELS], 1)
    return {
        name: value
        for i, (amplitude, decay) in pairs
        for name, value in ((f"{of}_{i}", amplitude), (f"{of}_decay_{i}", decay))
    }
