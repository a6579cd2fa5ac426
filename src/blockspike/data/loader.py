"""Batches made on a second thread, in an order that depends only on seed and epoch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from blockspike.data.event_file import EventSplit
from blockspike.neurons.events import EventBatch, assemble_batch

NO_LABEL = -100
"""Label of a sample that does not count, which a process gets in place of an empty batch."""
_PREFETCH_BATCHES = 2

Binning = Callable[[np.ndarray], np.ndarray]
"""Times ``[n]`` as stored -> time steps int ``[n]``."""


class Gathered(NamedTuple):
    """Events of a batch as stored: those of sample b are offset[b] … offset[b + 1] − 1."""

    time: np.ndarray  # [n]
    unit: np.ndarray  # [n]
    offset: np.ndarray  # [B + 1]
    samples: np.ndarray  # [B], indices of the samples
    epoch: int


EventMap = Callable[[Gathered], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""Events -> time ``[n]``, unit int ``[n]``, keep ``[n]``."""


class EventDataset(Dataset):
    """Chosen samples of a split, served as whole batches.

    Args:
        split: the events.
        indices: int ``[n]``, the samples of ``split`` that belong to this data set.
        binning: turns stored times into steps.
        event_map: moves or drops events, or None.
        n_steps, n_units: T and K of the batches.
        n_views: copies of its samples in a batch, one whole set after another, for an `event_map`
            that changes each copy.
    """

    def __init__(
        self,
        split: EventSplit,
        indices: np.ndarray,
        binning: Binning,
        n_steps: int,
        n_units: int,
        event_map: EventMap | None = None,
        n_views: int = 1,
    ) -> None:
        self.split = split
        self.indices = indices
        self.binning = binning
        self.n_steps = n_steps
        self.n_units = n_units
        self.event_map = event_map
        self.n_views = n_views
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[EventBatch, int]:
        """Events ``(T, n_views, K)`` and the label of one sample; batches are made together."""
        n = len(self)
        if not -n <= position < n:
            raise IndexError(f"position: expected {-n} to {n - 1}, got {position}")
        events, labels = self.__getitems__([position % n])
        return events, int(labels[0])

    def __getitems__(self, positions: list[int]) -> tuple[EventBatch, torch.Tensor]:
        """Return the batch of some positions.

        Args:
            positions: indices into this data set. A negative one, ~i, is left out; if all are, the
                batch is sample i with the label `NO_LABEL`.

        Returns:
            Events ``(T, n_views · B, K)`` and labels int64 ``[B]``.
        """
        counted = [i for i in positions if i >= 0]
        own = self.indices[counted or [~positions[0]]]
        label = self.split.label[own] if counted else np.array([NO_LABEL])
        samples = np.tile(own, self.n_views)
        time, unit, offset = self.split.gather(samples)
        keep = None
        if self.event_map is not None:
            time, unit, keep = self.event_map(Gathered(time, unit, offset, samples, self.epoch))
        # Clipped before the cast to int32, so that a much later event cannot wrap around.
        step = np.minimum(self.binning(time), self.n_steps).astype(np.int32)
        if keep is not None:
            step[~keep] = -1
        batch = assemble_batch(step, unit, offset, self.n_steps, self.n_units)
        return batch, torch.from_numpy(label)


class EpochSampler(DistributedSampler):
    """Shuffles by (seed, epoch) and passes the epoch to the data set; Lightning calls `set_epoch`.

    Every process gets equally many positions. If the number of processes does not divide that of
    samples, the last position i of some belongs to another process, too; these get ~i, which the
    data set leaves out.
    """

    dataset: EventDataset

    def __iter__(self) -> Iterator[int]:
        positions = list(super().__iter__())
        last = self.rank + self.num_replicas * (self.num_samples - 1)  # its place in the order
        if last >= len(self.dataset):
            positions[-1] = ~positions[-1]
        return iter(positions)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass."""
        super().set_epoch(epoch)
        self.dataset.epoch = epoch


class PrefetchLoader(DataLoader):
    """A DataLoader that makes its batches on one thread, two ahead of the consumer.

    The thread starts with the first ``next()``, not with ``iter()``: Lightning calls ``iter()``
    before it sets the epoch of a resumed run. It ends with the pass, or when the iterator is closed
    or dropped. An error is raised by the ``next()`` that would return its batch.
    """

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        source = super().__iter__()
        pool = ThreadPoolExecutor(1, thread_name_prefix="blockspike-prefetch")
        try:
            ahead = deque(pool.submit(next, source, None) for _ in range(_PREFETCH_BATCHES))
            while (batch := ahead.popleft().result()) is not None:
                ahead.append(pool.submit(next, source, None))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)


def identity(batch: Any) -> Any:
    """Collate nothing: the data set already returns whole batches."""
    return batch
