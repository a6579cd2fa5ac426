"""`alif`: the ALIF neuron by one of three methods."""

from functools import partial
from typing import Literal, get_args

from torch import Tensor

from blockspike.memory import keep_freed_memory_if_large
from blockspike.neurons.alif.blocks import blocks
from blockspike.neurons.alif.blocks_step import blocks_cpu
from blockspike.neurons.alif.fused import fused
from blockspike.neurons.alif.inputs import ALIFInputs, alif_inputs
from blockspike.neurons.alif.standard import standard
from blockspike.neurons.alif.step import check_arp
from blockspike.neurons.autograd import in_full_precision, refuse_tangents, refuse_transforms
from blockspike.neurons.recurrent_delays import RecurrentDelays
from blockspike.neurons.simulate import (
    check_current,
    check_options,
    check_parameters_finite,
)
from blockspike.neurons.spec import Detach
from blockspike.neurons.state import State
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
    recurrent_delay: int | RecurrentDelays | None = None,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: Detach = True,
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
        recurrent_delay: delay of the recurrent synapses in steps, ≥ 1, or `RecurrentDelays` of each
            neuron's spikes; None = arp + 1, the only delay that "blocks" supports.
        surrogate: derivative of the spike with respect to V − θ (docs/paper.md, Surrogates).
        detach_spikes: whether to stop the gradient through spikes in the reset and recurrence, or
            where alone: "reset" or "recurrence". To "blocks", where there is no reset within a
            block, the reset is what a block passes on through the time of its spike.
        state: the state at the start: `trace.state` of the simulation before, or values by name
            ("membrane", "adaptation", "refractory_left" with arp > 0, each [B, N], [N] or a number,
            and "spikes" [D, B, N], D the longest delay), where those left out are 0; None = 0.
            "blocks" takes pieces whose lengths are multiples of arp + 1.
        membrane_gradient: whether `trace.membrane` is differentiable.
        method: "standard", "blocks" or "fused".

    Returns:
        SpikeTrace with spikes, membrane and threshold, each [T, B, N], and the state at the end.

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
    _check(current, beta, p, b, arp, recurrent_weight, recurrent_delay, surrogate, method)
    if current.device.type == "cpu":
        keep_freed_memory_if_large(current.nbytes)
    x = alif_inputs(
        current, beta, p, b, arp=arp, recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay, surrogate=surrogate, detach_spikes=detach_spikes,
        state=state, membrane_gradient=membrane_gradient,
    )  # fmt: skip
    if method == "standard":
        return standard(x)
    if method == "fused":
        return fused(x)
    _check_for_blocks(x)
    trace = blocks_cpu(x) if current.device.type == "cpu" else blocks(x)
    return trace.with_check(partial(_check_whole_blocks, len(current), arp))


def _check(current, beta, p, b, arp, recurrent_weight, recurrent_delay, surrogate, method) -> None:
    """Check the arguments of `alif` other than the state."""
    if method not in get_args(Method):
        raise ValueError(f"method: expected one of {', '.join(get_args(Method))}, got {method!r}")
    refuse_transforms("alif", method)
    refuse_tangents("alif", current, beta, p, b, recurrent_weight)
    check_current(current, method)
    check_arp(arp, len(current), current.dtype)
    if (p is None) != (b is None):
        raise ValueError("p, b: expected both or neither, got only " + ("b" if p is None else "p"))
    parameters = {"beta": beta} | ({} if p is None else {"p": p, "b": b})
    delay = arp + 1 if recurrent_delay is None else recurrent_delay
    check_options(current, parameters, recurrent_weight, delay, surrogate, method)
    check_parameters_finite(parameters, recurrent_weight)


def _check_for_blocks(x: ALIFInputs) -> None:
    """Raise ValueError for arguments that a block cannot represent."""
    n, delay = x.arp + 1, x.spec.recurrent_delay  # RecurrentDelays are no number
    if x.recurrent_weight is not None and delay != n:
        raise ValueError(f"recurrent_delay: expected arp + 1 = {n} for 'blocks', got {delay}")
    at_least_0 = {"p": x.p, "b": x.b}
    if x.start is not None:
        at_least_0["state: adaptation"] = x.start.values[1]
        if bool((x.start.values[2:] > x.arp).any()):
            raise ValueError(
                f"state: refractory_left: expected at most arp = {x.arp} for 'blocks', "
                f"got {x.start.values[2].max().item()}"
            )
    for name, value in at_least_0.items():
        if value is not None and bool((value < 0).any()):
            raise ValueError(f"{name}: expected values ≥ 0 for 'blocks', got {value.min().item()}")


def _check_whole_blocks(n_steps: int, arp: int) -> None:
    """Raise ValueError unless the simulation ends with a block."""
    if n_steps % (arp + 1):
        raise ValueError(
            f"state: expected a number of steps that is a multiple of arp + 1 = {arp + 1} for "
            f"'blocks', got {n_steps}"
        )
