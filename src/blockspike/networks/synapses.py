"""Input currents from spikes, by a dense matrix product or, where spikes are sparse, by events.

With 1-6 % of the units active, adding one row of weights per event is far cheaper on a CPU than
the dense product, both forward and for the weight gradient. The gradient to the spikes is always
dense.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.autograd import (
    differentiable_once,
    in_full_precision,
    is_autocast_on,
    is_transformed,
    run_as_it_is,
)
from blockspike.neurons.cpu.events import SpikeEvents, event_currents, event_weight_gradient
from blockspike.neurons.events import EventBatch
from blockspike.neurons.gpu.graphs import has_triton, require_triton

SpikesT = TypeVar("SpikesT", EventBatch, Tensor, EventBatch | Tensor)
SynapseMode = Literal["auto", "events", "dense"]
# Active share of (step, unit) pairs above which "auto" chooses the dense product. The limit is
# higher for an EventBatch, whose dense tensor has to be made first.
MAX_EVENT_DENSITY, MAX_EVENT_DENSITY_OF_BATCH = 0.15, 0.25
# The same limit on a GPU; not measured. An event fetches a row of weights, while the dense product
# computes from registers: at 1 %, each weight fetched saves 100 multiplications.
MAX_EVENT_DENSITY_GPU = 0.01


def synaptic_current(
    spikes: EventBatch | Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    events: SpikeEvents | None = None,
    mode: SynapseMode = "auto",
) -> Tensor:
    """Compute the synaptic current I[t] = bias + Σ_k weight[k] spikes[t − k].

    Args:
        spikes: EventBatch of shape (T, B, K), or a dense tensor [T, B, K] in the weight's dtype; a
            bool or integer tensor is converted.
        weight: [n_taps, N, K] (post, pre); tap k acts k steps later (the temporal receptive field).
            float32 or float64; dense products on a GPU also take half precision.
        bias: [N].
        events: the events of a dense `spikes` whose values are all 0 or `events.scale`; with them,
            the current can be summed by events.
        mode: "events", "dense", or "auto": by events if they are sparse. On a GPU, "auto" treats
            dense tensors as dense, since counting their spikes would make the CPU wait.

    Returns:
        Current [T, B, N], differentiable in weight, bias and dense spikes. Under autocast, dense
        products are in half precision; all else, including the current, is in float32.

    Raises:
        ValueError: shapes or dtypes do not match, or mode "events" cannot be used.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # [T, B, K]
        >>> weight, bias = torch.tensor([[[0.5, 2.0]]]), torch.zeros(1)  # [n_taps, N, K], [N]
        >>> bs.synaptic_current(spikes, weight, bias).flatten()
        tensor([0.5000, 2.0000])
    """
    check_synapses(spikes, weight, bias, mode, events)
    spikes = with_type_of(weight, spikes)
    if isinstance(spikes, EventBatch):
        return current_of_batch(spikes, bias, partial(_of_events, weight=weight, mode=mode))
    if mode == "events" and events is None:
        raise ValueError(
            "mode: expected 'auto' or 'dense' for dense spikes without `events`, got 'events'"
        )
    on_cpu = spikes.device.type == "cpu"
    if events is None or is_transformed() or mode == "dense" or (mode == "auto" and not on_cpu):
        return _dense(spikes, weight, bias)
    batch = events_of_spikes(events) if on_cpu else EventBatch.from_dense(events.array)
    if not _use_events(mode, batch, MAX_EVENT_DENSITY):
        return _dense(spikes, weight, bias)
    return _of_sparse(spikes, weight, bias, batch, events.scale)


def presynaptic_first(weight: Tensor) -> Tensor:
    """Lay out weights [..., post, pre] with those of a presynaptic unit side by side in memory.

    Events read them in this order; from another layout, each call would make a transposed copy.
    """
    return weight.transpose(-1, -2).contiguous().transpose(-1, -2)


@in_full_precision
def _of_sparse(
    spikes: Tensor | None, weight: Tensor, bias: Tensor, events: EventBatch, scale: float
) -> Tensor:
    """Current of `events`; `spikes`, the same spikes as a tensor, only receives a gradient."""
    return _EventCurrents.apply(spikes, weight, bias, events, scale)  # pyright: ignore


def current_of_batch(
    events: EventBatch, bias: Tensor, current_of: Callable[[EventBatch, Tensor], Tensor]
) -> Tensor:
    """Apply `current_of(events, bias)` [T, B, N], with events weighted by `events.scale`."""
    if events.scale is None:
        return current_of(events, bias)
    current = current_of(replace(events, scale=None), torch.zeros_like(bias))
    return torch.addcmul(bias, current, events.scale[:, None].to(current.dtype))


def _of_events(events: EventBatch, bias: Tensor, *, weight: Tensor, mode: str) -> Tensor:
    if not is_transformed() and _use_events(mode, events, MAX_EVENT_DENSITY_OF_BATCH):
        return _of_sparse(None, weight, bias, events, 1.0)
    return _dense(events.dense(weight.dtype), weight, bias)


@run_as_it_is
def events_of_spikes(events: SpikeEvents) -> EventBatch:
    """Convert to an EventBatch on the CPU."""
    n_steps, batch_size, n_units = events.array.shape
    row_ptr, unit = (torch.from_numpy(x) for x in events.row_ptr_and_unit)
    return EventBatch(row_ptr, unit, (n_steps, batch_size, n_units))


def check_synapses(
    spikes: EventBatch | Tensor,
    weight: Tensor,
    bias: Tensor,
    mode: str = "auto",
    events: SpikeEvents | None = None,
) -> None:
    """Raise ValueError if the arguments of `synaptic_current` do not match."""
    if not isinstance(spikes, EventBatch | Tensor):
        got = type(spikes).__name__
        raise ValueError(f"spikes: expected an EventBatch or a tensor [T, B, K], got {got}")
    if mode not in ("auto", "events", "dense"):
        raise ValueError(f"mode: expected 'auto', 'events' or 'dense', got {mode!r}")
    if weight.ndim != 3 or bias.shape != weight.shape[1:2]:
        raise ValueError(
            "weight, bias: expected [n_taps, N, K] and [N], "
            f"got {list(weight.shape)} and {list(bias.shape)}"
        )
    if bias.dtype != weight.dtype and not is_autocast_on(weight.device.type):
        raise ValueError(f"bias: expected {weight.dtype} like the weight, got {bias.dtype}")
    if len(spikes.shape) != 3 or spikes.shape[2] != weight.shape[2]:
        raise ValueError(
            f"spikes: expected [T, B, {weight.shape[2]}] to match the weight, "
            f"got {list(spikes.shape)}"
        )
    if events is not None and events.array.shape != spikes.shape:
        raise ValueError(
            f"events: expected shape {list(spikes.shape)} like spikes, "
            f"got {list(events.array.shape)}"
        )


def with_type_of(weight: Tensor, spikes: SpikesT) -> SpikesT:
    """Convert bool or integer spikes to the dtype of the weight; leave others as they are.

    Raises:
        ValueError: the weight is in half precision on a CPU; the spikes have another float dtype.
    """
    if weight.device.type == "cpu" and weight.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"weight: expected float32 or float64 on a CPU, got {weight.dtype}")
    if isinstance(spikes, EventBatch) or spikes.dtype == weight.dtype:
        return spikes
    if not (spikes.is_floating_point() or spikes.is_complex()):
        return spikes.to(weight.dtype)
    half = spikes.dtype in (torch.float16, torch.bfloat16)
    if not (half and is_autocast_on(spikes.device.type)):
        raise ValueError(
            f"spikes: expected {weight.dtype} like the weight, or a bool or integer dtype, "
            f"got {spikes.dtype}"
        )
    return spikes


def _use_events(mode: str, events: EventBatch, most_on_cpu: float) -> bool:
    device = events.device
    on_cpu = device.type == "cpu"
    if mode == "events":
        if not on_cpu:
            require_triton("mode='events'", "spikes", device)
        return True
    if mode == "dense" or not (on_cpu or has_triton(device)):
        return False
    most = most_on_cpu if on_cpu else MAX_EVENT_DENSITY_GPU
    return len(events.unit) <= most * math.prod(events.shape)


def _dense(spikes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Not conv1d: rounding of its weight gradient depends on the number of threads.
    current = F.linear(spikes, weight[0], bias).to(weight.dtype)  # half under autocast
    for tap in range(1, min(len(weight), len(spikes))):
        current[tap:] += F.linear(spikes[:-tap], weight[tap])
    return current


def _add_events(events: EventBatch, weight_t: Tensor, bias: Tensor) -> Tensor:
    """Current [T·B, N] of events for weight_t [n_taps, K, N]."""
    n_steps, batch_size, _ = events.shape
    out = weight_t.new_empty(n_steps * batch_size, weight_t.shape[2])
    row_ptr, unit, weight_t, bias = (
        x.contiguous() for x in (events.row_ptr, events.unit, weight_t, bias)
    )
    if out.device.type == "cpu":
        event_currents(
            row_ptr.numpy(), unit.numpy(), weight_t.numpy(), bias.numpy(), batch_size, out.numpy()
        )
    else:
        from blockspike.neurons.gpu import events as events_gpu

        events_gpu.event_currents(row_ptr, unit, weight_t, bias, batch_size, out)
    return out


def _weight_gradient(
    row_ptr: Tensor, unit: Tensor, grad: Tensor, n_taps: int, batch_size: int, n_units: int
) -> Tensor:
    """Gradient dLoss/dweight_t [n_taps, K, N] from the current's gradient, grad [T·B, N]."""
    sizes = (n_taps, batch_size, n_units)
    if grad.device.type == "cpu":
        arrays = row_ptr.numpy(), unit.numpy(), grad.numpy()
        return torch.from_numpy(event_weight_gradient(*arrays, *sizes))
    from blockspike.neurons.gpu import events as events_gpu

    return events_gpu.event_weight_gradient(row_ptr, unit, grad, *sizes)


class _EventCurrents(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, spikes: Tensor | None, weight: Tensor, bias: Tensor, events: EventBatch, scale: float
    ):
        ctx.save_for_backward(events.row_ptr, events.unit, weight)
        ctx.batch_size = events.shape[1]
        ctx.scale = scale
        weight_t = weight.detach().transpose(1, 2)
        out = _add_events(events, weight_t if scale == 1 else scale * weight_t, bias.detach())
        return out.view(events.shape[0], events.shape[1], -1)

    @staticmethod
    @differentiable_once("event-driven synapses", instead="synapses='dense'")
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        row_ptr, unit, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        grad_spikes = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_spikes = grad @ weight[0]
            for tap in range(1, min(len(weight), len(grad))):
                grad_spikes[:-tap] += grad[tap:] @ weight[tap]
        rows = grad.flatten(0, 1)
        if ctx.needs_input_grad[1]:
            sizes = (len(weight), ctx.batch_size, weight.shape[2])
            grad_weight = _weight_gradient(row_ptr, unit, rows, *sizes).transpose(1, 2)
            if ctx.scale != 1:
                grad_weight = ctx.scale * grad_weight
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_spikes, grad_weight, grad_bias, None, None
