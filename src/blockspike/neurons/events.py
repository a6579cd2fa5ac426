"""Spikes as sorted events: the sparse batches that data loaders pass to layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.cpu.kernels import kernel
from blockspike.neurons.ops import is_traced


@dataclass(eq=False)  # not frozen: Lightning cannot convert frozen dataclasses to another precision
class EventBatch:
    """Spikes of a batch as events sorted by (time step, sample).

    Row ``r = t * B + b`` holds the spikes of sample ``b`` at step ``t``: the units
    ``unit[row_ptr[r]:row_ptr[r + 1]]``. A unit listed twice in a row spiked twice.

    Args:
        row_ptr: int64 ``[T * B + 1]``, non-decreasing from 0.
        unit: int32 ``[n_events]``, each in ``[0, K)``.
        shape: ``(T, B, K)`` = (time steps, batch, units).
        scale: ``[B]``, weight of each event of a sample; None = 1.

    Raises:
        ValueError: ``row_ptr`` or ``unit`` point outside the batch. On an accelerator only the
            length of ``row_ptr`` is checked, since reading values would wait for the device.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> spikes = torch.tensor([[[0.0, 1.0, 0.0]], [[1.0, 0.0, 1.0]]])  # [T, B, K]
        >>> events = bs.EventBatch.from_dense(spikes)
        >>> events.row_ptr.tolist(), events.unit.tolist(), events.shape
        ([0, 1, 3], [1, 0, 2], (2, 1, 3))
        >>> bool((events.dense() == spikes).all())
        True
    """

    row_ptr: Tensor
    unit: Tensor
    shape: tuple[int, int, int]
    scale: Tensor | None = None

    def __post_init__(self) -> None:
        # Kernels read and write wherever rows and units point.
        n_steps, batch_size, n_units = self.shape
        rows, n_rows, n_events = self.row_ptr, n_steps * batch_size, len(self.unit)
        on_cpu = rows.device.type == "cpu" and not is_traced(self.unit)
        is_right = len(rows) == n_rows + 1
        if on_cpu and is_right:
            is_right = int(rows[0]) == 0 and int(rows[-1]) == n_events
            is_right = is_right and bool((rows.diff() >= 0).all())
        if not is_right:
            raise ValueError(
                f"row_ptr: expected T * B + 1 = {n_rows + 1} non-decreasing numbers from 0 to "
                f"{n_events}, the number of events, got {len(rows)} others"
            )
        if on_cpu and n_events:
            low, high = (int(x) for x in torch.aminmax(self.unit))
            if low < 0 or high >= n_units:
                wrong = low if low < 0 else high
                raise ValueError(f"unit: expected 0 to {n_units - 1}, got {wrong}")

    @property
    def n_steps(self) -> int:
        """Number of time steps T."""
        return self.shape[0]

    @property
    def batch_size(self) -> int:
        """Number of samples B."""
        return self.shape[1]

    @property
    def n_units(self) -> int:
        """Number of units K."""
        return self.shape[2]

    @property
    def device(self) -> torch.device:
        """Device that holds the events."""
        return self.unit.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> EventBatch:
        """Copy the batch to ``device``; ``non_blocking`` as in `torch.Tensor.to`."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> EventBatch:
        """Copy the batch to page-locked memory, for asynchronous copies to a GPU."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Callable[[Tensor], Tensor]) -> EventBatch:
        scale = None if self.scale is None else change(self.scale)
        return EventBatch(change(self.row_ptr), change(self.unit), self.shape, scale)

    def steps(self, first: int, last: int) -> EventBatch:
        """Steps ``first`` … ``last − 1`` as a batch."""
        rows = self.row_ptr[first * self.batch_size : last * self.batch_size + 1]
        unit = self.unit[int(rows[0]) : int(rows[-1])]
        shape = (last - first, self.batch_size, self.n_units)
        return EventBatch(rows - rows[0], unit, shape, self.scale)

    def after(self, before: EventBatch) -> EventBatch:
        """The steps of ``before``, a batch of the same samples, and then these.

        The events of both get the scale of this batch.
        """
        rows = torch.cat([before.row_ptr, before.row_ptr[-1] + self.row_ptr[1:]])
        shape = (before.n_steps + self.n_steps, self.batch_size, self.n_units)
        return EventBatch(rows, torch.cat([before.unit, self.unit]), shape, self.scale)

    def scaled_to(self, n_events: float) -> EventBatch:
        """Scale events so that those of each sample add up to ``n_events``."""
        n_steps, batch_size, _ = self.shape
        own = self.row_ptr.diff().view(n_steps, batch_size).sum(0)
        return EventBatch(self.row_ptr, self.unit, self.shape, n_events / own.clamp(min=1).double())

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Sum the events of each step, sample and unit into a tensor ``[T, B, K]`` of ``dtype``."""
        n_steps, batch_size, n_units = self.shape
        counts = torch.zeros(n_steps * batch_size, n_units, dtype=dtype, device=self.device)
        row = torch.repeat_interleave(self.row_ptr.diff(), output_size=len(self.unit))
        one = torch.ones_like(self.unit, dtype=dtype)
        counts.view(-1).index_add_(0, row * n_units + self.unit, one)
        counts = counts.view(self.shape)
        return counts if self.scale is None else counts * self.scale[:, None].to(dtype)

    @classmethod
    def from_dense(cls, spikes: Tensor) -> EventBatch:
        """Convert dense spike counts to events.

        Args:
            spikes: ``[T, B, K]``, any dtype; each element an integer ≥ 0.

        Raises:
            ValueError: an element is negative, fractional or NaN.
        """
        n_steps, batch_size, n_units = spikes.shape
        counts = spikes.to(torch.int64)
        wrong = (counts != spikes) | (counts < 0)
        if bool(wrong.any()):
            raise ValueError(f"spikes: expected integers ≥ 0, got {spikes[wrong][0]}")
        row_ptr = torch.zeros(n_steps * batch_size + 1, dtype=torch.int64, device=spikes.device)
        torch.cumsum(counts.sum(dim=2).view(-1), dim=0, out=row_ptr[1:])
        where = counts.nonzero(as_tuple=True)
        unit = torch.repeat_interleave(where[2], counts[where])
        return cls(row_ptr, unit.to(torch.int32), (n_steps, batch_size, n_units))


def assemble_batch(
    step: np.ndarray, unit: np.ndarray, offset: np.ndarray, n_steps: int, n_units: int
) -> EventBatch:
    """Sort the events of samples into a batch.

    Args:
        step: int ``[n]``, time step of each event; events outside ``[0, n_steps)`` are dropped.
        unit: int ``[n]``, unit of each event.
        offset: int ``[B + 1]``; sample ``b`` has the events ``offset[b]:offset[b + 1]``.
        n_steps: number of time steps of the batch.
        n_units: number of units.

    Returns:
        Batch ``(n_steps, B, n_units)``; events in one row keep their stored order.

    Raises:
        ValueError: a kept event has a unit outside ``[0, n_units)``.
    """
    steps, units = _as_int32(step, n_steps), _as_int32(unit, n_units)
    row_ptr, sorted_unit = _counting_sort(steps, units, offset.astype(np.int64), n_steps)
    shape = (n_steps, len(offset) - 1, n_units)
    return EventBatch(torch.from_numpy(row_ptr), torch.from_numpy(sorted_unit), shape)


def _as_int32(column: np.ndarray, end: int) -> np.ndarray:
    """The numbers as int32; of wider ones, those outside [0, end) as −1 or `end`."""
    if not np.can_cast(column.dtype, np.int32):  # else they could wrap around into the range
        column = np.clip(column.astype(np.int64), -1, end)
    return np.ascontiguousarray(column, dtype=np.int32)


# Serial on purpose: it runs in loader threads and forked workers, where a parallel Numba kernel
# would abort the process.
@kernel
def _counting_sort(step, unit, offset, n_steps):  # pragma: no cover
    n_samples = len(offset) - 1
    row_ptr = np.zeros(n_steps * n_samples + 1, np.int64)
    for b in range(n_samples):
        for e in range(offset[b], offset[b + 1]):
            if 0 <= step[e] < n_steps:
                row_ptr[step[e] * n_samples + b + 1] += 1
    for r in range(n_steps * n_samples):
        row_ptr[r + 1] += row_ptr[r]
    cursor = row_ptr[:-1].copy()
    sorted_unit = np.empty(row_ptr[-1], np.int32)
    for b in range(n_samples):
        for e in range(offset[b], offset[b + 1]):
            if 0 <= step[e] < n_steps:
                row = step[e] * n_samples + b
                sorted_unit[cursor[row]] = unit[e]
                cursor[row] += 1
    return row_ptr, sorted_unit
