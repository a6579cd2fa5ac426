"""Input currents from spikes, by a dense matrix product or, where spikes are sparse, by events.

With 1-6 % of the units active, adding one row of weights per event is far cheaper on a CPU than
the dense product, both forward and for the weight gradient. The gradient to the spikes is always
dense.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.cpu.events import SpikeEvents, event_currents, event_weight_gradient
from blockspike.neurons.events import EventBatch
from blockspike.neurons.gpu.graphs import has_triton, require_triton
from blockspike.neurons.ops import Operator, is_compiled, is_transformed
from blockspike.neurons.precision import in_full_precision, is_autocast_on

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
    if is_compiled(spikes):  # where the number of events is not known
        return _summed(weight, bias, spikes, None, len(spikes), events.scale, mode)
    batch = events_of_spikes(events) if on_cpu else EventBatch.from_dense(events.array)
    if not _use_events(mode, batch, MAX_EVENT_DENSITY):
        return _dense(spikes, weight, bias)
    return _summed(weight, bias, spikes, batch, len(spikes), events.scale, mode)


def presynaptic_first(weight: Tensor) -> Tensor:
    """Lay out weights [..., post, pre] with those of a presynaptic unit side by side in memory.

    Events read them in this order; from another layout, each call would make a transposed copy.
    """
    return weight.transpose(-1, -2).contiguous().transpose(-1, -2)


@in_full_precision
def _summed(
    weight: Tensor, bias: Tensor, spikes: Tensor | None, events: EventBatch | None, n_steps: int,
    scale: float, mode: str,
) -> Tensor:  # fmt: skip
    """Current by events; `spikes`, the same spikes as a tensor, get a gradient."""
    given = (None, None) if events is None else (events.row_ptr, events.unit)
    return _of_sparse(weight, bias, spikes, *given, n_steps, scale, mode)


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
        return _summed(weight, bias, None, events, events.shape[0], 1.0, mode)
    return _dense(events.dense(weight.dtype), weight, bias)


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


def _event_currents(
    weight: Tensor, bias: Tensor, spikes: Tensor | None, row_ptr: Tensor | None,
    unit: Tensor | None, n_steps: int, scale: float, mode: str,
) -> Tensor:  # fmt: skip
    """Current [T, B, N] of events, or of the spikes that are not 0 where events are not given.

    Args:
        weight, bias: see `synaptic_current`.
        spikes: [T, B, K], each 0 or `scale`.
        row_ptr, unit: the events; see `EventBatch`.
        n_steps: T.
        scale: weight of each event.
        mode: without events, "auto" chooses a dense product where spikes are many.
    """
    if row_ptr is None or unit is None:
        assert spikes is not None
        batch = _events_in(spikes)
        if not _use_events(mode, batch, MAX_EVENT_DENSITY):
            return _dense(spikes, weight, bias)
        row_ptr, unit = batch.row_ptr, batch.unit
    batch_size = (len(row_ptr) - 1) // n_steps
    weight_t = (weight.detach() if scale == 1 else scale * weight.detach()).transpose(1, 2)
    out = weight_t.new_empty(n_steps * batch_size, weight_t.shape[2])
    given: Any = [x.detach().contiguous() for x in (row_ptr, unit, weight_t, bias)]
    if out.device.type == "cpu":
        arrays: Any = [x.numpy() for x in given]
        event_currents(*arrays, batch_size, out.numpy())  # pyright: ignore
    else:
        from blockspike.neurons.gpu import events as events_gpu

        events_gpu.event_currents(*given, batch_size, out)  # pyright: ignore
    return out.view(n_steps, batch_size, -1)


def _events_in(spikes: Tensor) -> EventBatch:
    """Events of spikes [T, B, K], those that are not 0."""
    fired = (spikes.detach() != 0).view(torch.uint8)
    on_cpu = spikes.device.type == "cpu"
    return events_of_spikes(SpikeEvents(fired)) if on_cpu else EventBatch.from_dense(fired)


def _fake_event_currents(weight, bias, spikes, row_ptr, unit, n_steps, scale, mode):
    n_rows = spikes.shape[0] * spikes.shape[1] if row_ptr is None else row_ptr.shape[0] - 1
    return weight.new_empty(n_steps, n_rows // n_steps, weight.shape[1])


def _setup(ctx, inputs, output):
    weight, _, spikes, row_ptr, unit, _, ctx.scale, _ = inputs
    kept = spikes if row_ptr is None else None
    ctx.save_for_backward(weight, kept, row_ptr, unit)


def _backward(ctx, grad):
    weight, spikes, row_ptr, unit = ctx.saved_tensors
    grad_spikes = grad_weight = grad_bias = None
    if ctx.needs_input_grad[2]:
        grad_spikes = grad @ weight[0]
        for tap in range(1, min(len(weight), len(grad))):
            grad_spikes[:-tap] += grad[tap:] @ weight[tap]
    if ctx.needs_input_grad[0]:
        grad_weight = _weight_gradient(grad, weight, spikes, row_ptr, unit, ctx.scale)
    if ctx.needs_input_grad[1]:
        grad_bias = grad.sum((0, 1))
    return grad_weight, grad_bias, grad_spikes, None, None, None, None, None


def _gradient_of_weight(
    grad: Tensor, weight: Tensor, spikes: Tensor | None, row_ptr: Tensor | None,
    unit: Tensor | None, scale: float,
) -> Tensor:  # fmt: skip
    """Gradient of the weight [n_taps, N, K] from that of the current; see `_event_currents`."""
    if row_ptr is None or unit is None:
        assert spikes is not None
        batch = _events_in(spikes)
        row_ptr, unit = batch.row_ptr, batch.unit
    sizes = (len(weight), grad.shape[1], weight.shape[2])
    rows = grad.detach().contiguous().flatten(0, 1)
    if grad.device.type == "cpu":
        arrays = row_ptr.numpy(), unit.numpy(), rows.numpy()
        grad_weight = torch.from_numpy(event_weight_gradient(*arrays, *sizes)).transpose(1, 2)
    else:
        from blockspike.neurons.gpu import events as events_gpu

        grad_weight = events_gpu.event_weight_gradient(row_ptr, unit, rows, *sizes).transpose(1, 2)
    return grad_weight if scale == 1 else scale * grad_weight


_weight_gradient = Operator(
    "event_weight_gradient",
    _gradient_of_weight,
    lambda grad, weight, *_: grad.new_empty(weight.transpose(1, 2).shape).transpose(1, 2),
)
_of_sparse = Operator("event_currents", _event_currents, _fake_event_currents, _setup, _backward)
