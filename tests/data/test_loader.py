from __future__ import annotations

import gc
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from blockspike.data.event_file import EventSplit
from blockspike.data.loader import (
    NO_LABEL,
    EpochSampler,
    EventDataset,
    PrefetchLoader,
    identity,
)


class Numbers(Dataset):
    """Batches of positions; fails from position ``bad`` on; records requests and threads."""

    def __init__(self, n: int, bad: int | None = None) -> None:
        self.n, self.bad = n, bad
        self.asked: list[int] = []
        self.threads: set[str] = set()

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, positions: list[int]) -> torch.Tensor:
        self.asked.append(positions[0])
        self.threads.add(threading.current_thread().name)
        if self.bad is not None and self.bad in positions:
            raise OSError(f"position {self.bad} is unreadable")
        return torch.tensor(positions)


def loader(dataset: Dataset, **changes) -> PrefetchLoader:
    return PrefetchLoader(dataset, batch_size=3, collate_fn=identity, **changes)


def prefetch_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("blockspike-prefetch")]


def test_every_sample_comes_once_in_order_with_an_incomplete_last_batch():
    batches = list(loader(Numbers(8)))
    assert [b.tolist() for b in batches] == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_a_loader_can_be_iterated_again():
    numbers = loader(Numbers(8))
    assert [b.tolist() for b in numbers] == [b.tolist() for b in numbers]


def test_batches_are_made_off_the_calling_thread():
    dataset = Numbers(8)
    list(loader(dataset))
    assert all(name.startswith("blockspike-prefetch") for name in dataset.threads)


def test_nothing_is_read_before_the_first_batch_is_requested():
    dataset = Numbers(8)
    batches = iter(loader(dataset))
    time.sleep(0.05)
    assert dataset.asked == []
    next(batches)
    assert dataset.asked[0] == 0


def test_at_most_two_batches_ahead():
    dataset = Numbers(300)
    batches = iter(loader(dataset))
    next(batches)
    time.sleep(0.1)
    assert dataset.asked == [0, 3, 6]


def test_an_error_reaches_the_consumer_at_its_batch():
    batches = iter(loader(Numbers(9, bad=7)))
    assert next(batches).tolist() == [0, 1, 2]
    assert next(batches).tolist() == [3, 4, 5]
    with pytest.raises(OSError, match="position 7 is unreadable"):
        next(batches)
    assert prefetch_threads() == []


def test_an_abandoned_pass_ends_its_thread():
    batches = iter(loader(Numbers(300)))
    next(batches)
    assert len(prefetch_threads()) == 1
    del batches
    gc.collect()
    assert prefetch_threads() == []


def test_a_finished_pass_ends_its_thread():
    list(loader(Numbers(9)))
    assert prefetch_threads() == []


def events() -> EventSplit:
    return EventSplit(
        time=np.array([0, 1, 9, 2, 0], np.uint32),
        unit=np.array([0, 1, 2, 3, 3], np.uint16),
        offset=np.array([0, 3, 4, 5]),
        label=np.array([7, 8, 9]),
        speaker=None,
        unit_s=1.0,
    )


def test_a_batch_holds_the_requested_samples():
    dataset = EventDataset(events(), np.array([2, 0]), lambda t: t, n_steps=4, n_units=4)
    batch, labels = dataset.__getitems__([1, 0])
    expected = torch.zeros(4, 2, 4)
    expected[0, 0, 0] = expected[1, 0, 1] = expected[0, 1, 3] = 1  # the event at 9 is dropped
    assert torch.equal(batch.dense(), expected)
    assert labels.tolist() == [7, 9]
    assert labels.dtype == torch.int64


def test_samples_of_another_process_are_left_out_or_unlabelled():
    dataset = EventDataset(events(), np.array([2, 0]), lambda t: t, n_steps=4, n_units=4)
    batch, labels = dataset.__getitems__([1, ~0])
    assert torch.equal(batch.dense(), dataset.__getitems__([1])[0].dense())
    assert labels.tolist() == [7]
    batch, labels = dataset.__getitems__([~0])
    assert torch.equal(batch.dense(), dataset.__getitems__([0])[0].dense())
    assert (labels.tolist(), labels.dtype) == ([NO_LABEL], torch.int64)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(
    ("n", "n_processes", "batch_size"),
    [(9, 2, 4), (9, 2, 6), (8, 2, 4), (10, 3, 3), (11, 4, 4), (1, 2, 2), (2, 3, 3)],
)
def test_processes_share_the_batches_of_one(n, n_processes, batch_size, shuffle):
    split = EventSplit(
        np.zeros(0, np.uint32), np.zeros(0, np.uint16), np.zeros(n + 1, int), np.arange(n), None, 1
    )
    dataset = EventDataset(split, np.arange(n), lambda t: t, n_steps=1, n_units=1)

    def labels(processes: int, process: int) -> list[list[int]]:
        sampler = EpochSampler(dataset, processes, process, shuffle, seed=3)
        own = batch_size // processes
        loaded = PrefetchLoader(dataset, batch_size=own, sampler=sampler, collate_fn=identity)
        return [batch.tolist() for _, batch in loaded]

    parts = zip(*(labels(n_processes, i) for i in range(n_processes)), strict=True)
    shared = [[y for part in batch for y in part if y != NO_LABEL] for batch in parts]
    assert [sorted(batch) for batch in shared] == [sorted(batch) for batch in labels(1, 0)]


def test_a_time_beyond_int32_does_not_wrap_into_the_run():
    dataset = EventDataset(
        events(), np.array([0]), lambda t: t + (1.0 * 2**32), n_steps=4, n_units=4
    )
    assert dataset.__getitems__([0])[0].unit.numel() == 0


def test_an_event_map_moves_and_drops():
    def event_map(given):
        assert (given.offset.tolist(), given.samples.tolist(), given.epoch) == (
            [0, 3, 4],
            [0, 1],
            5,
        )
        return given.time, given.unit.astype(int) - 1, given.unit > 0

    dataset = EventDataset(events(), np.arange(3), lambda t: t, 4, 3, event_map)
    dataset.epoch = 5
    assert dataset.__getitems__([0, 1])[0].unit.tolist() == [0, 2]


def test_sampler_order_is_a_function_of_seed_and_epoch():
    dataset = EventDataset(events(), np.arange(3).repeat(20), lambda t: t, 4, 4)

    def order(seed, epoch):
        torch.manual_seed(np.random.default_rng().integers(1 << 30))
        sampler = EpochSampler(dataset, 1, 0, shuffle=True, seed=seed)
        sampler.set_epoch(epoch)
        assert dataset.epoch == epoch
        return list(sampler)

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(9, 3)
    assert sorted(order(0, 3)) == list(range(60))


def test_a_data_set_is_indexed():
    dataset = EventDataset(events(), np.array([2, 0]), lambda t: t, n_steps=4, n_units=4)
    batch, labels = dataset.__getitems__([0, 1])
    recordings = [dataset[i] for i in range(len(dataset))]
    for i, (recording, label) in enumerate(recordings):
        assert torch.equal(recording.dense(), batch.dense()[:, i : i + 1]) and label == labels[i]
    assert dataset[-1][1] == 7
    with pytest.raises(IndexError, match="position: expected -2 to 1, got 2"):
        dataset[2]
