"""Input currents from spikes, by a dense matrix product or, where spikes are sparse, by events.

With 1-6 % of the units active, adding one row of weights per event is far cheaper on a CPU than
the dense product, both forward and for the weight gradient. The gradient to the spikes is always
dense.
"""

import math
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.cpu.events import SpikeEvents, event_currents, event_weight_gradient
from blockspike.neurons.events import EventBatch
from blockspike.neurons.gpu.graphs import has_triton, require_triton
from blockspike.neurons.ops import Operator, is_compiled, is_transformed

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
        spikes: EventBatch of shape (T, B, K), or a dense tensor [T, B, K], which is converted to
            the weight's dtype.
        weight: [n_taps, N, K] (post, pre); tap k acts k steps later (the temporal receptive field).
            Half precision becomes float32 on a CPU; on a GPU, only dense products take it.
        bias: [N].
        events: the events of a dense `spikes` whose values are all 0 or `events.scale`; with them,
            the current can be summed by events.
        mode: "events", "dense", or "auto": by events if they are sparse. On a GPU, "auto" treats
            dense tensors as dense, since counting their spikes would make the CPU wait. In every
            mode, dense `spikes` without `events` take the dense product.

    Returns:
        Current [T, B, N], differentiable in weight, bias and dense spikes. Under autocast, dense
        products are in half precision; all else, including the current, is in float32.

    Raises:
        ValueError: shapes do not match, or mode "events" cannot be used.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> spikes = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])  # [T, B, K]
        >>> weight, bias = torch.tensor([[[0.5, 2.0]]]), torch.zeros(1)  # [n_taps, N, K], [N]
        >>> bs.synaptic_current(spikes, weight, bias).flatten()
        tensor([0.5000, 2.0000])
    """
    weight, bias, spikes = matched(weight, bias, spikes, events)
    if isinstance(spikes, EventBatch):
        if spikes.scale is not None:
            unscaled = replace(spikes, scale=None)
            current = synaptic_current(unscaled, weight, torch.zeros_like(bias), mode=mode)
            return torch.addcmul(bias, current, spikes.scale[:, None].to(current.dtype))
        if is_transformed() or not _use_events(mode, spikes, MAX_EVENT_DENSITY_OF_BATCH):
            return _dense(spikes.dense(weight.dtype), weight, bias)
        return _of_sparse(
            weight, bias, None, spikes.row_ptr, spikes.unit, spikes.n_steps, 1.0, mode
        )
    is_auto_on_gpu = mode == "auto" and spikes.device.type != "cpu"
    if events is None or is_transformed() or mode == "dense" or is_auto_on_gpu:
        return _dense(spikes, weight, bias)
    found = None, None
    if not is_compiled(spikes):  # to a compiler, the number of events is unknown
        batch = _events_in(events)
        if not _use_events(mode, batch, MAX_EVENT_DENSITY):
            return _dense(spikes, weight, bias)
        found = batch.row_ptr, batch.unit
    return _of_sparse(weight, bias, spikes, *found, len(spikes), events.scale, mode)


def presynaptic_first(weight: Tensor) -> Tensor:
    """Lay out weights [..., post, pre] with those of a presynaptic unit side by side in memory.

    Events read them in this order; from another layout, each call would make a transposed copy.
    """
    return weight.transpose(-1, -2).contiguous().transpose(-1, -2)


def matched(
    weight: Tensor, bias: Tensor, spikes: SpikesT, events: SpikeEvents | None, n_dims: int = 3
) -> tuple[Tensor, Tensor, SpikesT]:
    """Weight of `n_dims` dimensions, bias and spikes in the dtype of their product.

    Raises:
        ValueError: shapes do not match.
    """
    shapes = [list(x.shape) for x in (weight, bias, spikes)]
    like = shapes[2][:2] if events is None else list(events.array.shape[:2])
    fits = len(shapes[0]) == n_dims and shapes[1] == shapes[0][-2:-1]
    if not fits or shapes[2] != [*like, shapes[0][-1]]:
        raise ValueError(
            f"input: expected [T, B, {shapes[0][-1]}], as the weight has inputs (and T, B as in "
            f"events), got {shapes[2]}; weight {shapes[0]}, bias {shapes[1]}"
        )
    dtype = weight.dtype
    if weight.device.type == "cpu":
        dtype = torch.promote_types(dtype, torch.float32)
    if isinstance(spikes, Tensor):
        spikes = spikes.to(dtype)
    return weight.to(dtype), bias.to(dtype), spikes


def _events_in(spikes: SpikeEvents) -> EventBatch:
    if spikes.array.device.type != "cpu":
        return EventBatch.from_dense(spikes.array)
    n_steps, batch_size, n_units = spikes.array.shape
    row_ptr, unit = (torch.from_numpy(x) for x in spikes.row_ptr_and_unit)
    return EventBatch(row_ptr, unit, (n_steps, batch_size, n_units))


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
        batch = _events_in(_spiked(spikes))
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


def _spiked(spikes: Tensor) -> SpikeEvents:
    return SpikeEvents((spikes.detach() != 0).view(torch.uint8))


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
        batch = _events_in(_spiked(spikes))
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
