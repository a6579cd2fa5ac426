"""`simulate`, which runs any neuron model by its loop or its kernels, and checks of arguments."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from blockspike.memory import keep_freed_memory_if_large
from blockspike.neurons.autograd import (
    in_full_precision,
    is_transformed,
    refuse_tangents,
    refuse_transforms,
)
from blockspike.neurons.cpu.fused import fused_cpu
from blockspike.neurons.derivative import derived
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.gpu.graphs import require_triton
from blockspike.neurons.loop import loop
from blockspike.neurons.model import NeuronModel, check_names, check_step
from blockspike.neurons.recurrent_delays import RecurrentDelays, longest_delay, of_now
from blockspike.neurons.spec import Detach, SimulationSpec, detached
from blockspike.neurons.state import Start, State, start_of
from blockspike.neurons.surrogate import MultiGaussian, Surrogate, check_surrogate
from blockspike.neurons.trace import (
    Simulation,
    SpikeTrace,
    needs_gradient,
    ones_like_margin,
    trace_of,
)

ExactMethod = Literal["standard", "fused"]


def run_kernels(spec: SimulationSpec, current: Tensor, *args: Any) -> Simulation:
    """Simulate with the kernels for the current's device; arguments as in `fused_cpu`."""
    if current.device.type == "cpu":
        return fused_cpu(spec, current, *args)
    from blockspike.neurons.gpu.fused import fused_gpu  # Triton is needed only here

    return fused_gpu(spec, current, *args)


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
    membrane_gradient: bool = False,
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
        surrogate: derivative of the spike with respect to V − 1 (docs/paper.md, Surrogates).
        detach_spikes: whether to stop the gradient through spikes in the reset and recurrence, or
            where alone: "reset" or "recurrence".
        state: the state at the start: `trace.state` of the simulation before, or values by name,
            the model's states and counters, each [B, N], [N] or a number, and "spikes" [D, B, N] of
            the D steps before, D the longest delay, where those left out are 0; None = 0.
        membrane_gradient: whether `trace.membrane` is differentiable.
        method: "standard", the loop over time, or "fused", one pass with the same spikes and
            gradients.

    Returns:
        SpikeTrace with spikes, membrane and threshold, each [T, B, N], and the state at the end.

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> from blockspike.neurons.euler_adlif.step import SE_ADLIF
        >>> parameters = {"alpha": 0.9, "beta": 0.99, "a": 0.5, "b": 1.0}
        >>> parameters = {name: torch.tensor([value]) for name, value in parameters.items()}
        >>> current = torch.full((100, 1, 1), 2.0)  # [T, B, N]
        >>> trace = bs.simulate(SE_ADLIF, current, parameters, constants=(120.0,))
        >>> trace.spikes.shape
        torch.Size([100, 1, 1])
    """
    if set(parameters) != set(model.parameters):
        expected = ", ".join(model.parameters)
        raise ValueError(f"parameters: expected {expected}, got {', '.join(parameters)}")
    return run_model(
        model, current, parameters, constants, recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay, surrogate=surrogate, detach_spikes=detach_spikes,
        state=state, membrane_gradient=membrane_gradient, method=method,
    )  # fmt: skip


def run_model(
    model: NeuronModel,
    current: Tensor,
    parameters: Mapping[str, Tensor],
    constants: tuple[float, ...] = (),
    *,
    recurrent_weight: Tensor | None,
    recurrent_delay: int | RecurrentDelays,
    surrogate: Surrogate,
    detach_spikes: Detach,
    state: State | None,
    membrane_gradient: bool,
    method: ExactMethod,
    compute_threshold: Callable[[Start | None, Tensor, Tensor], Tensor] | None = None,
) -> SpikeTrace:
    """Check and run a model; `parameters` have the model's names.

    Arguments and errors are those of `simulate`, and `compute_threshold`: (start, spikes, V − θ) →
    θ [T, B, N] of a model whose threshold is not always 1.
    """
    known = get_args(ExactMethod)
    if method not in known:
        raise ValueError(f"method: expected one of {', '.join(known)}, got {method!r}")
    refuse_transforms(model.name, method)
    refuse_tangents(model.name, current, recurrent_weight, *parameters.values())
    try:
        constants = tuple(map(float, constants))
    except (TypeError, ValueError):
        raise ValueError(f"constants: expected a tuple of numbers, got {constants!r}") from None
    if not all(map(math.isfinite, constants)):
        raise NotFiniteError(f"constants: expected finite numbers, got {constants}")
    check_current(current, method)
    check_options(current, parameters, recurrent_weight, recurrent_delay, surrogate, method)
    check_parameters_finite(parameters, recurrent_weight)
    if current.device.type == "cpu":
        keep_freed_memory_if_large(current.nbytes)
    delay = None if recurrent_weight is None else longest_delay(recurrent_delay)
    start = start_of(state, model, current, delay)
    own = [parameters[name] for name in model.parameters]
    if not is_transformed():
        check_step(model, current, own, constants)
    if method == "fused":
        check_names(model)
    if method == "fused" and model.reverse_step is None:
        steps = recurrent_delay.steps if isinstance(recurrent_delay, RecurrentDelays) else None
        inputs = (current, recurrent_weight, steps, *parameters.values(), *(start or ()))
        model = _with_derivative(model, 2 + len(constants), needs_gradient(*inputs))
    delays = of_now(recurrent_delay)
    spec = SimulationSpec(model, constants, delays, surrogate, *detached(detach_spikes))
    arguments = (spec, current, own, recurrent_weight, start, membrane_gradient)
    threshold = None if compute_threshold is None else partial(compute_threshold, start)
    if method == "standard":
        return loop(*arguments, threshold)
    if threshold is None and model.threshold_parameters:
        threshold = partial(_threshold_of_loop, arguments[:-1])
    return trace_of(run_kernels(*arguments), threshold or ones_like_margin)


@torch.no_grad()
def _threshold_of_loop(arguments: tuple[Any, ...], spikes: Tensor, margin: Tensor) -> Tensor:
    """Threshold [T, B, N] of a model whose own threshold only its step knows."""
    return loop(*arguments, given=spikes).threshold


def _with_derivative(model: NeuronModel, n_constants: int, is_needed: bool) -> NeuronModel:
    """The model with its derivative; without, if that cannot be derived and is not needed."""
    try:
        return derived(model, n_constants)
    except ValueError:
        if is_needed:
            raise
        return model


def check_current(current: Tensor, method: str) -> None:
    """Raise ValueError unless `current` is a tensor [T, B, N] of a dtype that the method takes."""
    if not isinstance(current, Tensor) or current.ndim != 3 or 0 in current.shape:
        got = list(current.shape) if isinstance(current, Tensor) else type(current).__name__
        raise ValueError(f"current: expected a non-empty tensor [T, B, N], got {got}")
    half = [torch.bfloat16] if method == "fused" and current.device.type != "cpu" else []
    if current.dtype not in (torch.float32, torch.float64, *half):
        raise ValueError(
            "current: expected float32 or float64, or bfloat16 for 'fused' on a GPU; "
            f"got {current.dtype} for {method!r} on {current.device}"
        )


def check_options(
    current: Tensor,
    parameters: Mapping[str, Tensor],
    recurrent_weight: Tensor | None,
    recurrent_delay: int | RecurrentDelays,
    surrogate: Surrogate,
    method: str,
) -> None:
    """Raise ValueError naming an argument that is invalid or does not match the current."""
    check_surrogate(surrogate)
    n = current.shape[2]
    if isinstance(recurrent_delay, RecurrentDelays):
        _check_delays(recurrent_delay, n, current)
    elif not _is_count(recurrent_delay):
        raise ValueError(f"recurrent_delay: expected an int ≥ 1 (steps), got {recurrent_delay!r}")
    for name, value in parameters.items():
        check_like(name, value, (n,), current)
    if recurrent_weight is not None:
        check_like("recurrent_weight", recurrent_weight, (n, n), current)
    if method == "fused" and current.device.type != "cpu":
        require_triton("method='fused'", "current", current.device)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_delays(delays: RecurrentDelays, n: int, current: Tensor) -> None:
    for name, value in (("longest", delays.longest), ("span", delays.span)):
        if not _is_count(value):
            raise ValueError(f"recurrent_delay: {name}: expected an int ≥ 1 (steps), got {value!r}")
    check_like("recurrent_delay: steps", delays.steps, (n,), current)
    if not is_transformed() and not bool(delays.steps.isfinite().all()):
        raise NotFiniteError("recurrent_delay: steps: expected finite values, got NaN or Inf")


def check_like(name: str, value: object, shape: tuple[int, ...], current: Tensor) -> None:
    """Raise ValueError unless a value is a tensor of a shape, and otherwise like the current."""
    if not isinstance(value, Tensor):
        raise ValueError(f"{name}: expected a tensor {list(shape)}, got {type(value).__name__}")
    if tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    dtype = torch.float32 if current.dtype == torch.bfloat16 else current.dtype
    if value.dtype != dtype:
        raise ValueError(
            f"{name}: expected {dtype} with current of {current.dtype}, got {value.dtype}"
        )
    if value.device != current.device:
        raise ValueError(f"{name}: expected device {current.device}, got {value.device}")


def check_parameters_finite(
    parameters: Mapping[str, Tensor], recurrent_weight: Tensor | None
) -> None:
    """Raise NotFiniteError for a NaN or Inf in the parameters or the recurrent weight.

    The check of the membrane would miss these: with a NaN in the threshold, a neuron just does not
    spike.
    """
    if is_transformed():
        return
    given = {name: value.detach() for name, value in parameters.items()}
    if recurrent_weight is not None:
        given["recurrent_weight"] = recurrent_weight.detach()
    total = torch.stack([x.detach() for x in parameters.values()]).sum()
    if recurrent_weight is not None:
        total = total + recurrent_weight.detach().sum()
    if math.isfinite(total):
        return  # one test for all, since it waits for the GPU; only a sum of huge values continues
    for name, value in given.items():
        bad = value[~torch.isfinite(value)]
        if len(bad):
            raise NotFiniteError(
                f"{name}: expected finite values, got {bad[0].item()} ({len(bad)} such values)"
            )
