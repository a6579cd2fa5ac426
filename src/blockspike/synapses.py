"""Input currents from spikes: a dense matrix product, or event-driven where spikes are sparse.

At 1-6 % active units, adding one row of weights per event costs far less than the dense product,
forward and for the weight gradient. The gradient to the spikes is dense either way.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.data.events import EventBatch
from blockspike.neurons.events_cpu import Fired, event_currents, event_weight_gradient

SynapseMode = Literal["auto", "events", "dense"]
MAX_EVENT_DENSITY = 0.15  # active share of (step, unit) pairs above which dense is chosen


def synaptic_current(
    spikes: EventBatch | Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    fired: Fired | None = None,
    mode: SynapseMode = "auto",
) -> Tensor:
    """I[t] = bias + Σ_k weight[k] spikes[t − k].

    Args:
        spikes: EventBatch of shape (T, B, K), or a dense tensor [T, B, K].
        weight: [n_taps, N, K] (post, pre); tap k acts k steps later (the temporal receptive field).
        bias: [N].
        fired: the same as a dense `spikes`, if those are only 0 and 1: they may then be treated
            as events.
        mode: "events", "dense", or "auto": events on the CPU where they are sparse.

    Returns:
        Current [T, B, N], differentiable in weight, bias and dense spikes.

    Raises:
        ValueError: shapes do not match, or events are asked for where they cannot be had.
    """
    _check(spikes, weight, bias, mode)
    if isinstance(spikes, EventBatch):
        if _use_events(mode, spikes.device, len(spikes.unit), spikes.shape):
            return _EventCurrents.apply(None, weight, bias, spikes)  # pyright: ignore
        return _dense(spikes.dense(weight.dtype), weight, bias)
    if mode == "events" and fired is None:
        raise ValueError("mode: 'events' needs an EventBatch or `fired`, got a dense tensor")
    if fired is None or mode == "dense" or spikes.device.type != "cpu":
        return _dense(spikes, weight, bias)
    if fired.array.shape != spikes.shape:
        raise ValueError(
            f"fired: expected shape {list(spikes.shape)} like spikes, got {list(fired.array.shape)}"
        )
    row_ptr, unit = fired.events
    if not _use_events(mode, spikes.device, len(unit), spikes.shape):
        return _dense(spikes, weight, bias)
    shape = (spikes.shape[0], spikes.shape[1], spikes.shape[2])
    events = EventBatch(torch.from_numpy(row_ptr), torch.from_numpy(unit), shape)
    return _EventCurrents.apply(spikes, weight, bias, events)  # pyright: ignore


def _check(spikes: EventBatch | Tensor, weight: Tensor, bias: Tensor, mode: str) -> None:
    if mode not in ("auto", "events", "dense"):
        raise ValueError(f"mode: expected 'auto', 'events' or 'dense', got {mode!r}")
    if weight.ndim != 3 or bias.shape != weight.shape[1:2]:
        raise ValueError(
            "weight, bias: expected [n_taps, N, K] and [N], "
            f"got {list(weight.shape)} and {list(bias.shape)}"
        )
    if len(spikes.shape) != 3 or spikes.shape[2] != weight.shape[2]:
        raise ValueError(
            f"spikes: expected [T, B, {weight.shape[2]}] to fit the weight, "
            f"got {list(spikes.shape)}"
        )


def _use_events(mode: str, device: torch.device, n_events: int, shape: tuple[int, ...]) -> bool:
    if device.type != "cpu":
        if mode == "events":
            raise ValueError(f"mode: 'events' runs on cpu, got spikes on {device}")
        return False
    return mode == "events" or n_events <= MAX_EVENT_DENSITY * shape[0] * shape[1] * shape[2]


def _dense(spikes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    current = F.linear(spikes, weight[0], bias)
    for tap in range(1, min(len(weight), len(spikes))):
        current[tap:] += F.linear(spikes[:-tap], weight[tap])
    return current


class _EventCurrents(torch.autograd.Function):
    @staticmethod
    def forward(ctx, spikes: Tensor | None, weight: Tensor, bias: Tensor, events: EventBatch):
        n_steps, batch_size, _ = events.shape
        out = weight.new_empty(n_steps * batch_size, weight.shape[1])
        event_currents(
            events.row_ptr.numpy(),
            events.unit.numpy(),
            weight.detach().transpose(1, 2).contiguous().numpy(),
            bias.detach().numpy(),
            batch_size,
            out.numpy(),
        )
        ctx.save_for_backward(events.row_ptr, events.unit, weight)
        ctx.batch_size = batch_size
        return out.view(n_steps, batch_size, -1)

    @staticmethod
    @torch.autograd.function.once_differentiable
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
            grad_t = event_weight_gradient(
                row_ptr.numpy(),
                unit.numpy(),
                rows.numpy(),
                len(weight),
                ctx.batch_size,
                weight.shape[2],
            )
            grad_weight = torch.from_numpy(grad_t).transpose(1, 2)
        if ctx.needs_input_grad[2]:
            grad_bias = rows.sum(0)
        return grad_spikes, grad_weight, grad_bias, None
