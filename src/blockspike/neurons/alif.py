"""The adaptive leaky integrate-and-fire neuron (ALIF) of the paper.

At the start V⁺ = 0, a = 0, θ = 1, and no neuron is refractory. For t = 0 … T−1:

    I'[t] = I[t] + W S[t−L−1]            with recurrence, once t ≥ L+1
    I'[t] = 0                            if a spike happened in t−L … t−1
    V[t]  = β V⁺[t−1] + I'[t]
    S[t]  = 1 if V[t] > θ[t] else 0      strictly greater
    V⁺[t] = V[t] (1 − S[t])
    a[t]  = p a[t−1] + S[t]
    θ[t+1] = 1 + b a[t]

The refractory period masks all input, also the recurrent one. L = 0 masks nothing. There is no
factor (1 − β) on the current.

| symbol | code | shape | unit |
|---|---|---|---|
| I | `current` | [T, B, N] | threshold units per step |
| V | `trace.membrane` | [T, B, N] | threshold units: rest 0, base threshold 1; before reset |
| S | `trace.spikes` | [T, B, N] | 0 or 1 |
| θ | `trace.threshold` | [T, B, N] | threshold units, in force at step t |
| β = exp(−dt/τ_m) | `beta` | [N] | per step |
| p = exp(−dt/τ_a) | `p` | [N] | per step; None (with `b`): no adaptation |
| b | `b` | [N] | threshold units per spike |
| a | state `adaptation` | [B, N] | spikes, decaying |
| L | `arp` | int ≥ 0 | steps; the shortest interval between spikes is L + 1 |
| W | `recurrent_weight` | [N, N] (post, pre) | threshold units per spike |

Source: Taylor, King & Harper, NeurIPS 2023. Its block-parallel method is `blocks.py`.
"""

from typing import Literal

import torch
from torch import Tensor

from blockspike.neurons.blocks import simulate_blocks
from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.model import NeuronModel, maximum, where
from blockspike.neurons.simulate import Detach, check_arp, simulate
from blockspike.neurons.state import State
from blockspike.neurons.surrogates import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace

Method = Literal["standard", "blocks", "fused"]


def step(drive, parameters, constants, state, fire):
    """One step without a refractory period."""
    beta, p, b = parameters
    _, one, *_ = constants
    membrane, adaptation = state
    membrane = beta * membrane + drive
    threshold = one + b * adaptation
    spike, not_spiked = fire(membrane, threshold)
    return spike, membrane, threshold, (membrane * not_spiked, p * adaptation + spike)


def refractory_step(drive, parameters, constants, state, fire):
    """One step in which a refractory neuron gets no input."""
    zero, one, arp = constants
    *own, refractory_left = state
    drive = drive * where(refractory_left > zero, zero, one)
    spike, membrane, threshold, after = step(drive, parameters, constants, own, fire)
    refractory_left = where(membrane - threshold > zero, arp, maximum(refractory_left - one, zero))
    return spike, membrane, threshold, (*after, refractory_left)


_PARAMETERS, _STATES = ("beta", "p", "b"), ("membrane", "adaptation")
ALIF = NeuronModel("alif", _PARAMETERS, _STATES, refractory_step, ("refractory_left",))
ALIF_WITHOUT_ARP = NeuronModel("alif, refractory period 0", _PARAMETERS, _STATES, step)
"""Without the counter, a tenth faster."""


def alif(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None = None,
    b: Tensor | None = None,
    *,
    arp: int = 0,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | RecurrentDelays | None = None,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: Detach = True,
    state: State | None = None,
    membrane: bool = False,
    method: Method = "fused",
) -> SpikeTrace:
    """Simulate adaptive leaky integrate-and-fire neurons (docs/paper.md, The neuron).

    The three methods give equal spikes. "standard" and "fused" have the gradient of the loop over
    time; "blocks" has that of Taylor, King & Harper (NeurIPS 2023; docs/paper.md, Blocks).

    Args:
        current: [T, B, N] input current in threshold units per step, float32 or float64; never
            modified. "fused" on a GPU also takes bfloat16 with float32 parameters; spikes and the
            current's gradient are then bfloat16, the state is float32. Under autocast, a current in
            half precision is simulated in float32.
        beta: [N] membrane decay per step, exp(−dt/τ_m).
        p: [N] adaptation decay per step, exp(−dt/τ_a); None (with b) = no adaptation.
        b: [N] rise of the threshold with each spike, in threshold units. "blocks" needs p ≥ 0 and
            b ≥ 0: with negative values, a neuron can spike within its refractory period, which a
            block cannot represent.
        arp: absolute refractory period in steps, ≥ 0.
        recurrent_weight: [N, N] (post, pre), threshold units per spike; None = no recurrence.
        recurrent_delay: delay of the recurrent synapses in steps, ≥ 1, or `RecurrentDelays` of each
            neuron's spikes; None = arp + 1, the only delay that "blocks" supports.
        surrogate: derivative of the spike with respect to V − θ (docs/paper.md, Surrogates).
        detach_spikes: whether to stop the gradient through spikes in the reset and recurrence, or
            where alone: "reset" or "recurrence". To "blocks", where there is no reset within a
            block, the reset is what a block passes on through the time of its spike.
        state: the state at the start: `trace.state` of the simulation before, or values by name
            ("membrane", "adaptation", "refractory_left" with arp > 0, each [B, N], [N] or a number,
            and "spikes" [D, B, N], D the longest delay), where those left out are 0; None = 0.
            "blocks" takes pieces whose lengths are multiples of arp + 1; after others, the state is
            NaN.
        membrane: whether the trace has membrane and threshold, which are then differentiable; of
            "blocks", only the membrane is.
        method: "standard", "blocks" or "fused".

    Returns:
        SpikeTrace with spikes [T, B, N] and the state at the end.

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((1000, 1, 1), 0.1)  # [T, B, N]
        >>> beta, p, b = torch.tensor([0.95]), torch.tensor([0.99]), torch.tensor([0.2])
        >>> trace = bs.alif(current, beta, p, b, arp=10)
        >>> int(trace.spikes.sum())
        29
    """
    if (p is None) != (b is None):
        raise ValueError("p, b: expected both or neither, got only " + ("b" if p is None else "p"))
    check_arp(arp)
    if p is None or b is None:
        p = b = torch.zeros_like(beta)
    parameters = {"beta": beta, "p": p, "b": b}
    model, constants = (ALIF, (float(arp),)) if arp else (ALIF_WITHOUT_ARP, ())
    options = {
        "recurrent_weight": recurrent_weight,
        "recurrent_delay": arp + 1 if recurrent_delay is None else recurrent_delay,
        "surrogate": surrogate,
        "detach_spikes": detach_spikes,
        "state": state,
        "membrane": membrane,
    }
    if method == "blocks":
        return simulate_blocks(model, current, parameters, arp, **options)
    return simulate(model, current, parameters, constants, **options, method=method)
