"""Spikes as sorted events: the sparse batches that data loaders pass to layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.cpu.events import add_events
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
        ValueError: a tensor has the wrong dtype, number of elements, device or values. On an
            accelerator, values are not checked, since reading them would wait for the device.

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
        if len(self.shape) != 3 or any(n < 0 for n in self.shape):
            raise ValueError(f"shape: expected (T, B, K), each ≥ 0, got {self.shape}")
        _require_vector("row_ptr", self.row_ptr, torch.int64)
        _require_vector("unit", self.unit, torch.int32)
        n_rows = self.shape[0] * self.shape[1]
        if self.row_ptr.numel() != n_rows + 1:
            raise ValueError(
                f"row_ptr: expected T * B + 1 = {n_rows + 1} elements, got {self.row_ptr.numel()}"
            )
        if self.scale is not None and self.scale.shape != (self.shape[1],):
            raise ValueError(
                f"scale: expected shape [{self.shape[1]}], got {list(self.scale.shape)}"
            )
        if self.row_ptr.device != self.unit.device:
            raise ValueError(
                f"unit: expected device {self.row_ptr.device} like row_ptr, got {self.unit.device}"
            )
        if self.row_ptr.device.type == "cpu" and not is_traced(self.unit):
            self._check_values()

    def _check_values(self) -> None:
        """Check what kernels rely on: they read and write wherever rows and units point."""
        n_events, n_units = self.unit.numel(), self.shape[2]
        if int(self.row_ptr[-1]) != n_events:
            raise ValueError(
                f"row_ptr: expected last element {n_events}, the number of events, "
                f"got {int(self.row_ptr[-1])}"
            )
        if int(self.row_ptr[0]) != 0 or bool((self.row_ptr.diff() < 0).any()):
            raise ValueError("row_ptr: expected non-decreasing numbers from 0, got others")
        if n_events:
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
        """Steps ``first`` … ``last − 1`` as a batch.

        Raises:
            ValueError: they are not among those of the batch.
        """
        if not 0 <= first <= last <= self.n_steps:
            raise ValueError(f"steps: expected some of 0 … {self.n_steps}, got {first} … {last}")
        rows = self.row_ptr[first * self.batch_size : last * self.batch_size + 1]
        unit = self.unit[int(rows[0]) : int(rows[-1])]
        shape = (last - first, self.batch_size, self.n_units)
        return EventBatch(rows - rows[0], unit, shape, self.scale)

    def after(self, before: EventBatch) -> EventBatch:
        """The steps of ``before``, a batch of the same samples, and then these.

        The events of both get the scale of this batch.

        Raises:
            ValueError: ``before`` has a scale, or other numbers of samples or units.
        """
        if before.shape[1:] != self.shape[1:] or before.scale is not None:
            raise ValueError(
                f"before: expected B and K of {list(self.shape[1:])} and no scale, got "
                f"{list(before.shape[1:])} and {before.scale}"
            )
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
        by_kernel = self.device.type == "cpu" and dtype in (torch.float32, torch.float64)
        if by_kernel and not is_traced(self.unit):
            add_events(self.row_ptr, self.unit, counts)
        else:
            row = torch.repeat_interleave(self.row_ptr.diff(), output_size=self.unit.numel())
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
            ValueError: not three-dimensional, or an element is negative, fractional or NaN.
        """
        if spikes.ndim != 3:
            raise ValueError(f"spikes: expected shape [T, B, K], got {list(spikes.shape)}")
        counts = spikes.to(torch.int64)
        wrong = (counts != spikes) | (counts < 0)
        if bool(wrong.any()):
            raise ValueError(f"spikes: expected integers ≥ 0, got {spikes[wrong][0]}")
        n_steps, batch_size, n_units = spikes.shape
        row_ptr = torch.zeros(n_steps * batch_size + 1, dtype=torch.int64, device=spikes.device)
        torch.cumsum(counts.sum(dim=2).view(-1), dim=0, out=row_ptr[1:])
        where = counts.nonzero(as_tuple=True)
        unit = torch.repeat_interleave(where[2], counts[where])
        return cls(row_ptr, unit.to(torch.int32), (n_steps, batch_size, n_units))


def _require_vector(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.ndim != 1 or tensor.dtype != dtype:
        raise ValueError(
            f"{name}: expected one dimension of {dtype}, "
            f"got shape {list(tensor.shape)} of {tensor.dtype}"
        )


def assemble_batch(
    step: np.ndarray,
    unit: np.ndarray,
    offset: np.ndarray,
    samples: np.ndarray,
    n_steps: int,
    n_units: int,
) -> EventBatch:
    """Sort the events of selected samples into a batch.

    Args:
        step: int ``[n]``, time step of each event; events outside ``[0, n_steps)`` are dropped.
        unit: int ``[n]``, unit of each event.
        offset: int ``[n_samples + 1]``; sample ``i`` has the events ``offset[i]:offset[i + 1]``.
        samples: int ``[B]``, indices of the samples, in the order of the batch.
        n_steps: number of time steps of the batch.
        n_units: number of units.

    Returns:
        Batch ``(n_steps, B, n_units)``; events in one row keep their stored order.

    Raises:
        ValueError: a kept event has a unit outside ``[0, n_units)``, or a sample does not exist.
    """
    chosen = np.ascontiguousarray(samples, dtype=np.int64)
    if len(chosen) and not 0 <= chosen.min() <= chosen.max() < len(offset) - 1:
        raise ValueError(f"samples: expected 0 to {len(offset) - 2}, got {chosen.tolist()}")
    steps, units = _as_int32(step, n_steps), _as_int32(unit, n_units)
    bounds = np.ascontiguousarray(offset, dtype=np.int64)
    row_ptr, sorted_unit, bad = _counting_sort(steps, units, bounds, chosen, n_steps, n_units)
    if bad >= 0:
        raise ValueError(f"unit: expected 0 to {n_units - 1}, got {int(unit[bad])} (event {bad})")
    shape = (n_steps, len(chosen), n_units)
    return EventBatch(torch.from_numpy(row_ptr), torch.from_numpy(sorted_unit), shape)


def _as_int32(column: np.ndarray, end: int) -> np.ndarray:
    """The numbers as int32; of wider ones, those outside [0, end) as −1 or `end`."""
    if not np.can_cast(column.dtype, np.int32):  # else they could wrap around into the range
        column = np.clip(column.astype(np.int64), -1, end)
    return np.ascontiguousarray(column, dtype=np.int32)


# Serial on purpose: it runs in loader threads and forked workers, where a parallel Numba kernel
# would abort the process.
@kernel
def _counting_sort(step, unit, offset, samples, n_steps, n_units):  # pragma: no cover
    n_samples = len(samples)
    row_ptr = np.zeros(n_steps * n_samples + 1, np.int64)
    for b in range(n_samples):
        for e in range(offset[samples[b]], offset[samples[b] + 1]):
            t = step[e]
            if 0 <= t < n_steps:
                if unit[e] < 0 or unit[e] >= n_units:
                    return row_ptr, np.empty(0, np.int32), e
                row_ptr[t * n_samples + b + 1] += 1
    for r in range(n_steps * n_samples):
        row_ptr[r + 1] += row_ptr[r]
    cursor = row_ptr[:-1].copy()
    sorted_unit = np.empty(row_ptr[-1], np.int32)
    for b in range(n_samples):
        for e in range(offset[samples[b]], offset[samples[b] + 1]):
            t = step[e]
            if 0 <= t < n_steps:
                row = t * n_samples + b
                sorted_unit[cursor[row]] = unit[e]
                cursor[row] += 1
    return row_ptr, sorted_unit, -1
