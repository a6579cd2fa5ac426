"""`simulate`: any neuron model, by the loop over time or by kernels."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, get_args

import torch
from torch import Tensor

from blockspike.memory import keep_freed_memory_if_large
from blockspike.neurons import ops
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.errors import NotFiniteError, check_finite, check_values
from blockspike.neurons.gpu.graphs import require_triton
from blockspike.neurons.loop import loop
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.precision import in_full_precision
from blockspike.neurons.state import State, start_of, state_after
from blockspike.neurons.surrogates import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace, needs_gradient

ExactMethod = Literal["standard", "fused"]
Detach = bool | Literal["reset", "recurrence"]
"""Where gradient stops at the spikes: in the reset and the recurrence (True), one, or neither."""

_COUNTED_BY_FLOAT32 = 2**24  # the largest number of steps from which 1 can be subtracted


@in_full_precision
def simulate(
    model: NeuronModel,
    current: Tensor,
    parameters: Mapping[str, Tensor],
    constants: tuple[float, ...] = (),
    *,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | RecurrentDelays = 1,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: Detach = True,
    state: State | None = None,
    membrane: bool = False,
    method: ExactMethod = "fused",
) -> SpikeTrace:
    """Simulate neurons of any model.

    Args:
        model: the neuron model.
        current: [T, B, N] input current, float32 or float64; never modified. "fused" on a GPU also
            takes bfloat16 with float32 parameters; spikes and the current's gradient are then
            bfloat16, the state is float32. Under autocast, a current in half precision is simulated
            in float32.
        parameters: tensors [N] by name, as the model names them.
        constants: numbers that `model.step` gets after 0 and 1.
        recurrent_weight: [N, N] (post, pre); None = no recurrence.
        recurrent_delay: delay of the recurrent synapses in steps, ≥ 1, or `RecurrentDelays` of each
            neuron's spikes.
        surrogate: derivative of the spike with respect to V − θ (docs/paper.md, Surrogates).
        detach_spikes: whether to stop the gradient through spikes in the reset and recurrence, or
            where alone: "reset" or "recurrence".
        state: the state at the start: `trace.state` of the simulation before, or values by name,
            the model's states and counters, each [B, N], [N] or a number, and "spikes" [D, B, N] of
            the D steps before, D the longest delay, where those left out are 0; None = 0.
        membrane: whether the trace has membrane and threshold, which are then differentiable.
        method: "standard", the loop over time, or "fused", one pass with the same spikes and
            gradients.

    Returns:
        SpikeTrace with spikes [T, B, N] and the state at the end.

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> from blockspike.neurons.euler_adlif import SE_ADLIF
        >>> parameters = {"alpha": 0.9, "beta": 0.99, "a": 0.5, "b": 1.0}
        >>> parameters = {name: torch.tensor([value]) for name, value in parameters.items()}
        >>> current = torch.full((100, 1, 1), 2.0)  # [T, B, N]
        >>> trace = bs.simulate(SE_ADLIF, current, parameters, constants=(120.0,))
        >>> trace.spikes.shape
        torch.Size([100, 1, 1])
    """
    if method not in get_args(ExactMethod):
        known = ", ".join(get_args(ExactMethod))
        raise ValueError(f"method: expected one of {known}, got {method!r}")
    constants = tuple(map(float, constants))
    if not all(map(math.isfinite, constants)):
        raise NotFiniteError(f"constants: expected finite numbers, got {constants}")
    check_tensors(current, parameters, recurrent_weight, recurrent_delay, surrogate, method)
    if set(parameters) != set(model.parameters):
        expected = ", ".join(model.parameters)
        raise ValueError(f"parameters: expected {expected}, got {', '.join(parameters)}")
    if current.device.type == "cpu" and not torch.compiler.is_compiling():
        keep_freed_memory_if_large(current.nbytes)
    values = tuple(parameters[name] for name in model.parameters)
    steps = span = None
    if isinstance(recurrent_delay, RecurrentDelays):
        recurrent_delay = replace(recurrent_delay)  # whole steps as they are now
        longest = recurrent_delay.longest
        if recurrent_weight is not None:
            steps = recurrent_delay.steps
            span = torch.as_tensor(recurrent_delay.span, device=steps.device)
    else:
        longest = recurrent_delay
    delay = None if recurrent_weight is None else longest
    start = start_of(state, model, current, values[0].dtype, delay)
    detach_reset, detach_recurrence = detached(detach_spikes)
    together = torch.stack(values)
    spike_bytes = None
    if method == "standard":
        spikes, last, *level = loop(
            model, current, values, constants, recurrent_weight, recurrent_delay, start, surrogate,
            detach_reset, detach_recurrence,
        )  # fmt: skip
        if not ops.is_traced(current, together):
            check_values(model, together, recurrent_weight, *start, steps)
            check_finite(last[: len(model.states)], current, model.states)
    else:
        keep = needs_gradient(current, together, recurrent_weight, *start, steps)
        spikes, last, *level, spike_bytes, _, _ = ops.simulate(
            current, together, recurrent_weight, *start, steps, span, model.key, constants,
            surrogate.key, surrogate.constants, longest, detach_reset, detach_recurrence,
            membrane, keep,
        )  # fmt: skip
    after = state_after(model, last, spikes, recurrent_weight, start, longest, detach_recurrence)
    events = SpikeEvents(spikes.detach() if spike_bytes is None else spike_bytes)
    if not membrane:
        return SpikeTrace(spikes, after, events=events)
    return SpikeTrace(spikes, after, level[0], level[1], events)


def detached(spikes: Detach) -> tuple[bool, bool]:
    """Whether spikes are detached in the reset, and in the recurrence.

    Raises:
        ValueError: `spikes` is none of True, False, "reset" and "recurrence".
    """
    if isinstance(spikes, bool):
        return spikes, spikes
    if spikes not in ("reset", "recurrence"):
        raise ValueError(
            f"detach_spikes: expected True, False, 'reset' or 'recurrence', got {spikes!r}"
        )
    return spikes == "reset", spikes == "recurrence"


def check_tensors(
    current: Tensor,
    parameters: Mapping[str, Tensor],
    recurrent_weight: Tensor | None,
    recurrent_delay: int | RecurrentDelays,
    surrogate: Surrogate,
    method: str,
) -> None:
    """Raise ValueError naming an argument that is invalid or does not match the current."""
    if not isinstance(current, Tensor) or current.ndim != 3 or 0 in current.shape:
        got = list(current.shape) if isinstance(current, Tensor) else type(current).__name__
        raise ValueError(f"current: expected a non-empty tensor [T, B, N], got {got}")
    half = [torch.bfloat16] if method == "fused" and current.device.type != "cpu" else []
    if current.dtype not in (torch.float32, torch.float64, *half):
        raise ValueError(
            "current: expected float32 or float64, or bfloat16 for 'fused' on a GPU; "
            f"got {current.dtype} for {method!r} on {current.device}"
        )
    if not isinstance(surrogate, Surrogate):
        raise ValueError(f"surrogate: expected one such as MultiGaussian(), got {surrogate!r}")
    n, given = current.shape[2], {name: (x, 1) for name, x in parameters.items()}
    longest = recurrent_delay
    if isinstance(recurrent_delay, RecurrentDelays):
        longest = recurrent_delay.longest
        given["recurrent_delay: steps"] = (recurrent_delay.steps, 1)
    if not isinstance(longest, int) or longest < 1:
        raise ValueError(f"recurrent_delay: expected an int ≥ 1 (steps), got {longest!r}")
    if recurrent_weight is not None:
        given["recurrent_weight"] = (recurrent_weight, 2)
    dtype = torch.float32 if current.dtype == torch.bfloat16 else current.dtype
    for name, (value, ndim) in given.items():
        if not isinstance(value, Tensor) or tuple(value.shape) != (n,) * ndim:
            got = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: expected a tensor {[n] * ndim}, got {got}")
        if value.dtype != dtype or value.device != current.device:
            raise ValueError(
                f"{name}: expected {dtype} on {current.device}, got {value.dtype} on {value.device}"
            )
    if half:
        require_triton("method='fused'", "current", current.device)


def check_arp(arp: int, n_steps: int, dtype: torch.dtype, name: str = "arp") -> None:
    """Raise ValueError unless `arp` is a number of steps that `dtype` can count exactly."""
    if isinstance(arp, bool) or not isinstance(arp, int) or arp < 0:
        raise ValueError(f"{name}: expected an int ≥ 0 (steps), got {arp!r}")
    if min(arp, n_steps) > _COUNTED_BY_FLOAT32 and dtype != torch.float64:
        raise ValueError(
            f"{name}: expected at most {_COUNTED_BY_FLOAT32} steps, which float32 counts exactly, "
            f"or a float64 current; got {arp}"
        )
