"""`simulate`: any neuron model, by its loop or its kernels; and the checks of its arguments."""

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from blockspike.neurons.autograd import in_full_precision
from blockspike.neurons.cpu.fused import fused_cpu
from blockspike.neurons.gpu.graphs import require_triton
from blockspike.neurons.loop import loop
from blockspike.neurons.model import NeuronModel, SimulationSpec
from blockspike.neurons.surrogate import MultiGaussian, Surrogate
from blockspike.neurons.trace import NotFiniteError, SpikeTrace

ExactMethod = Literal["standard", "fused"]


def run_kernels(spec: SimulationSpec, current: Tensor, *args: Any, **options: Any) -> SpikeTrace:
    """Simulate by the kernels of the current's device; arguments as in `fused_cpu`."""
    if current.device.type == "cpu":
        return fused_cpu(spec, current, *args, **options)
    from blockspike.neurons.gpu.fused import fused_gpu  # Triton is needed only here

    return fused_gpu(spec, current, *args, **options)


@in_full_precision
def simulate(
    model: NeuronModel,
    current: Tensor,
    parameters: Mapping[str, Tensor],
    constants: tuple[float, ...] = (),
    *,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int = 1,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: bool = True,
    method: ExactMethod = "fused",
) -> SpikeTrace:
    """Simulate neurons of any model whose threshold is 1.

    Args:
        model: what a step does.
        current: [T, B, N] input current, float32 or float64; never modified. "fused" on a GPU also
            takes bfloat16 beside float32 parameters, and then gives spikes (and the current's
            gradient) in bfloat16; the state is float32 all the same. Under autocast a current of
            half precision is simulated in float32.
        parameters: [N] each, by the model's names.
        constants: what `model.step` gets of numbers behind its 0 and 1.
        recurrent_weight: [N, N] (post, pre).
        recurrent_delay: of these synapses, in steps ≥ 1.
        surrogate: the derivative of the spike with respect to V − 1.
        detach_spikes: no gradient through the spike in the reset and in the recurrence.
        method: "standard", the loop over time, or "fused", one pass with the same spikes and
            gradients.

    Returns:
        SpikeTrace with spikes, membrane and threshold, each [T, B, N].

    Raises:
        ValueError: a bad argument; NotFiniteError, which is one, a NaN or Inf in any of them.
    """
    known = get_args(ExactMethod)
    if method not in known:
        raise ValueError(f"method: expected one of {', '.join(known)}, got {method!r}")
    if not all(map(math.isfinite, constants)):
        raise NotFiniteError(f"constants: expected finite numbers, got {constants}")
    if set(parameters) != set(model.parameters):
        expected = ", ".join(model.parameters)
        raise ValueError(f"parameters: expected {expected}, got {', '.join(parameters)}")
    check_current(current, method)
    check_options(current, parameters, recurrent_weight, recurrent_delay, surrogate, method)
    check_parameters_finite(parameters, recurrent_weight)
    run = loop if method == "standard" else run_kernels
    spec = SimulationSpec(model, constants, recurrent_delay, surrogate, detach_spikes)
    return run(spec, current, [parameters[name] for name in model.parameters], recurrent_weight)


def check_current(current: Tensor, method: str) -> None:
    """ValueError unless it is a tensor [T, B, N] of a type that the method takes."""
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
    recurrent_delay: int,
    surrogate: Surrogate,
    method: str,
) -> None:
    """ValueError for what does not go with the current or has no sense; named."""
    if not isinstance(surrogate, get_args(Surrogate)):
        names = ", ".join(kind.__name__ for kind in get_args(Surrogate))
        raise ValueError(f"surrogate: expected one of {names}, got {surrogate!r}")
    is_int = isinstance(recurrent_delay, int) and not isinstance(recurrent_delay, bool)
    if not is_int or recurrent_delay < 1:
        raise ValueError(f"recurrent_delay: expected an int ≥ 1 (steps), got {recurrent_delay!r}")
    n = current.shape[2]
    for name, value in parameters.items():
        _check_like(name, value, (n,), current)
    if recurrent_weight is not None:
        _check_like("recurrent_weight", recurrent_weight, (n, n), current)
    if method == "fused" and current.device.type != "cpu":
        require_triton("method: 'fused'", "current", current.device)


def _check_like(name: str, value: object, shape: tuple[int, ...], current: Tensor) -> None:
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
    """The membrane does not tell of these: a NaN in the threshold is just no spike."""
    given = dict(parameters)
    if recurrent_weight is not None:
        given["recurrent_weight"] = recurrent_weight
    if torch.stack([torch.isfinite(value).all() for value in given.values()]).all():
        return  # asked once: a GPU has to be waited for
    for name, value in given.items():
        bad = value[~torch.isfinite(value)]
        if len(bad):
            raise NotFiniteError(
                f"{name}: expected finite values, got {bad[0].item()} ({len(bad)} such values)"
            )
