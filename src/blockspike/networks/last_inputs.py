"""Last steps of a layer's input, which synapses with delays have yet to deliver."""

from dataclasses import replace

import torch
from torch import Tensor

from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.events import EventBatch
from blockspike.neurons.ops import is_traced


def join_inputs(
    before: Tensor, x: EventBatch | Tensor, events: SpikeEvents | None
) -> tuple[EventBatch | Tensor, SpikeEvents | None]:
    """Return the input of the steps before, and then `x` [T, B, n_inputs], with its events."""
    if isinstance(x, EventBatch):
        return x.after(EventBatch.from_dense(before)), None
    if events is not None and not bool(((before == 0) | (before == events.scale)).all()):
        events = None  # dropout has been switched on or off in between
    if events is not None:
        spiked = torch.cat([(before.detach() != 0).view(torch.uint8), events.array.to(torch.uint8)])
        events = SpikeEvents(spiked, events.scale)
    return torch.cat([before, x]), events


def last_inputs(
    x: EventBatch | Tensor, before: Tensor | None, n_steps: int, dtype: torch.dtype
) -> Tensor:
    """The last steps of the input, of those before and of `x`, as a copy.

    Events are counted without their scale, by which those of the next piece are scaled again.
    """
    first = max(0, x.shape[0] - n_steps)
    if isinstance(x, EventBatch) and is_traced(x.unit):
        last = _dense_from(first, x, dtype)
    elif isinstance(x, EventBatch):
        last = replace(x.steps(first, x.n_steps), scale=None).dense(dtype)
    else:
        last = x[first:].to(dtype, copy=True)
    return last if before is None else torch.cat([before, last])[-n_steps:]


def _dense_from(first: int, x: EventBatch, dtype: torch.dtype) -> Tensor:
    """Steps from `first` on, where the number of their events is unknown."""
    n_steps, batch_size, n_units = x.shape
    row = torch.repeat_interleave(x.row_ptr.diff(), output_size=x.unit.numel()) - first * batch_size
    last = torch.zeros((n_steps - first) * batch_size * n_units, dtype=dtype, device=x.device)
    last.index_add_(0, row.clamp(min=0) * n_units + x.unit, (row >= 0).to(dtype))
    return last.view(n_steps - first, batch_size, n_units)
