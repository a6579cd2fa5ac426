"""`alif`: the ALIF neuron by one of three methods."""

from typing import Literal, get_args

from torch import Tensor

from blockspike.memory import keep_freed_memory_if_large
from blockspike.neurons.alif.blocks import blocks
from blockspike.neurons.alif.blocks_step import blocks_cpu
from blockspike.neurons.alif.fused import fused
from blockspike.neurons.alif.standard import standard
from blockspike.neurons.alif.step import ALIF, ALIF_ALWAYS_OPEN, check_arp
from blockspike.neurons.autograd import in_full_precision
from blockspike.neurons.simulate import (
    check_current,
    check_options,
    check_parameters_finite,
)
from blockspike.neurons.state import Start, State, start_of
from blockspike.neurons.surrogate import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace

Method = Literal["standard", "blocks", "fused"]


@in_full_precision
def alif(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None = None,
    b: Tensor | None = None,
    *,
    arp: int = 0,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | None = None,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: bool = True,
    state: State | None = None,
    membrane_gradient: bool = False,
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
        arp: absolute refractory period in steps, ≥ 0; in float32 at most 2²⁴ unless the simulation
            is shorter.
        recurrent_weight: [N, N] (post, pre), threshold units per spike; None = no recurrence.
        recurrent_delay: delay of the recurrent synapses in steps, ≥ 1; None = arp + 1, the only
            delay that "blocks" supports.
        surrogate: derivative of the spike with respect to V − θ (docs/paper.md, Surrogates).
        detach_spikes: whether to stop the gradient through spikes in the reset and recurrence.
        state: the state at the start: `trace.state` of the simulation before, or values by name
            ("membrane", "adaptation", "refractory_left" with arp > 0, each [B, N], [N] or a number,
            and "spikes" [recurrent_delay, B, N]), where those left out are 0; None = 0. "blocks"
            takes pieces whose lengths are multiples of arp + 1.
        membrane_gradient: whether `trace.membrane` is differentiable.
        method: "standard", "blocks" or "fused".

    Returns:
        SpikeTrace with spikes, membrane and threshold, each [T, B, N], and the state at the end.

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in the membrane (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((1000, 1, 1), 0.1)  # [T, B, N]
        >>> beta, p, b = torch.tensor([0.95]), torch.tensor([0.99]), torch.tensor([0.2])
        >>> trace = bs.alif(current, beta, p, b, arp=10)
        >>> int(trace.spikes.sum())
        29
    """
    delay = _check(current, beta, p, b, arp, recurrent_weight, recurrent_delay, surrogate, method)
    if current.device.type == "cpu":
        keep_freed_memory_if_large(current.nbytes)
    model = ALIF if arp else ALIF_ALWAYS_OPEN
    neurons = (model, current, beta, p, b)
    options = {
        "arp": arp,
        "recurrent_weight": recurrent_weight,
        "recurrent_delay": delay,
        "surrogate": surrogate,
        "detach_spikes": detach_spikes,
        "start": start_of(state, model, current, None if recurrent_weight is None else delay),
        "membrane_gradient": membrane_gradient,
    }
    if method == "standard":
        return standard(*neurons, **options)
    if method == "fused":
        return fused(*neurons, **options)
    _check_for_blocks(arp, delay, recurrent_weight, options["start"], p=p, b=b)
    if current.device.type == "cpu":
        return blocks_cpu(*neurons, **options)
    return blocks(*neurons, **options)


def _check(current, beta, p, b, arp, recurrent_weight, recurrent_delay, surrogate, method) -> int:
    """Check the arguments of `alif` and return the delay of the recurrence in steps."""
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    check_current(current, method)
    check_arp(arp, len(current), current.dtype)
    if (p is None) != (b is None):
        raise ValueError("p, b: expected both or neither, got only " + ("b" if p is None else "p"))
    parameters = {"beta": beta} | ({} if p is None else {"p": p, "b": b})
    delay = arp + 1 if recurrent_delay is None else recurrent_delay
    check_options(current, parameters, recurrent_weight, delay, surrogate, method)
    check_parameters_finite(parameters, recurrent_weight)
    return delay


def _check_for_blocks(
    arp: int, delay: int, recurrent_weight: Tensor | None, start: Start | None,
    **adaptation: Tensor | None,
) -> None:  # fmt: skip
    """Raise ValueError for arguments that a block cannot represent."""
    if start is not None and bool((start.values[1:2] < 0).any()):
        raise ValueError("state: adaptation: expected values ≥ 0 for 'blocks'")
    if start is not None and bool((start.values[2:] > arp).any()):
        raise ValueError(f"state: refractory_left: expected at most arp = {arp} for 'blocks'")
    if recurrent_weight is not None and delay != arp + 1:
        raise ValueError(f"recurrent_delay: expected arp + 1 = {arp + 1} for 'blocks', got {delay}")
    for name, value in adaptation.items():
        if value is not None and bool((value < 0).any()):
            raise ValueError(f"{name}: expected values ≥ 0 for 'blocks', got {value.min().item()}")
