"""`simulate`: any neuron model, by the loop over time or by kernels."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from blockspike.memory import keep_freed_memory_if_large
from blockspike.neurons import ops
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.errors import check_finite, check_values
from blockspike.neurons.gpu.graphs import require_triton
from blockspike.neurons.loop import loop
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.precision import in_full_precision
from blockspike.neurons.state import NeuronState, State, start_of, state_after
from blockspike.neurons.surrogates import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace, needs_gradient

ExactMethod = Literal["standard", "fused"]
Detach = bool | Literal["reset", "recurrence"]
"""Where gradient stops at the spikes: in the reset and the recurrence (True), one, or neither."""


def of_any_size(function: Callable[..., SpikeTrace]) -> Callable[..., Any]:
    """Let a simulation of currents [T, B, N] take any [T, …, N], and parameters that broadcast."""

    @wraps(function)
    def reshaped(
        model: NeuronModel,
        current: Tensor,
        parameters: Mapping[str, Tensor],
        *args: Any,
        state: State | None = None,
        **options: Any,
    ) -> SpikeTrace:
        if not isinstance(current, Tensor) or current.ndim == 3 or 0 in current.shape:
            return function(model, current, parameters, *args, state=state, **options)
        sizes = current.shape[1:]
        if max(x.ndim for x in parameters.values()) > 1:  # such as [C, 1, 1] for [T, B, C, H, W]
            parameters = {k: x.expand(sizes[1:]).flatten() for k, x in parameters.items()}
        n = next(iter(parameters.values())).numel()

        def flat(x: Tensor) -> Tensor:
            return x.reshape(-1, sizes.numel() // n, n)

        if isinstance(state, NeuronState):
            state = state.map(flat)
        elif state is not None:
            given = {name: torch.as_tensor(x) for name, x in state.items()}
            spikes = {"spikes": flat(given.pop("spikes"))} if "spikes" in given else {}
            state = {name: flat(x.expand(sizes))[0] for name, x in given.items()} | spikes
        trace = function(model, flat(current), parameters, *args, state=state, **options)
        return trace.map(lambda x: x.reshape(len(x), *sizes), of_state=True)

    return reshaped


@in_full_precision
@of_any_size
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
        current: [T, B, N] input current, or any [T, …, N], float32 or float64; never modified.
            Half precision becomes float32 on a CPU and under autocast. "fused" on a GPU also takes
            bfloat16 with float32 parameters; spikes and the current's gradient are then bfloat16,
            the state is float32.
        parameters: tensors [N] by name, as the model names them; for more dimensions also what
            broadcasts, such as [C, 1, 1] for a current [T, B, C, H, W].
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
        SpikeTrace with spikes in the current's shape, and the state at the end.

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
        raise ValueError(f"method: expected one of {known}, or blocks for ALIF, got {method!r}")
    constants = tuple(map(float, constants))
    check_tensors(current, parameters, recurrent_weight, recurrent_delay, surrogate, method)
    if current.device.type == "cpu" and not torch.compiler.is_compiling():
        keep_freed_memory_if_large(current.nbytes)
    if parameters.keys() != {*model.parameters}:
        expected = ", ".join(model.parameters)
        raise ValueError(f"parameters: expected {expected}, got {', '.join(parameters)}")
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
            membrane, keep, is_used=keep,
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
    on_gpu = method == "fused" and current.device.type != "cpu"
    half = [torch.bfloat16] if on_gpu else []
    if current.dtype not in (torch.float32, torch.float64, *half):
        raise ValueError(f"current: expected float32 or float64, got {current.dtype}")
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
        found: Any = value
        if isinstance(value, Tensor):
            found = (list(value.shape), value.dtype, value.device)
        if found != (expected := ([n] * ndim, dtype, current.device)):
            raise ValueError(f"{name}: expected a tensor {expected}, got {found}")
    if on_gpu:
        require_triton("method='fused'", "current", current.device)


def check_arp(arp: int) -> None:
    """Raise ValueError unless `arp` is a number of steps."""
    if not isinstance(arp, int) or arp < 0:
        raise ValueError(f"arp: expected an int ≥ 0 (steps), got {arp!r}")
