from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from blockspike.neurons.events import EventBatch, assemble_batch

counts_3d = hnp.arrays(
    np.int64, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6), elements=st.integers(0, 3)
)


@given(counts_3d)
def test_dense_and_back(counts):
    spikes = torch.from_numpy(counts).float()
    batch = EventBatch.from_dense(spikes)
    assert (batch.n_steps, batch.batch_size, batch.n_units) == counts.shape
    assert batch.unit.numel() == counts.sum()
    assert torch.equal(batch.dense(), spikes)
    for dtype in (torch.float64, torch.float16):
        assert torch.equal(batch.dense(dtype), spikes.to(dtype))


@given(counts_3d)
def test_rows_hold_the_units_of_a_step_and_sample(counts):
    batch = EventBatch.from_dense(torch.from_numpy(counts))
    n_steps, batch_size, n_units = counts.shape
    for t in range(n_steps):
        for b in range(batch_size):
            start, stop = batch.row_ptr[t * batch_size + b : t * batch_size + b + 2]
            row = np.bincount(batch.unit[start:stop].numpy(), minlength=n_units)
            assert (row == counts[t, b]).all()


@settings(deadline=None)
@given(st.data())
def test_assembly_equals_add_at(data):
    n_steps, n_units = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 5))
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=5))
    offset = np.concatenate([[0], np.cumsum(lengths)])
    n = int(offset[-1])
    step = data.draw(hnp.arrays(np.int32, n, elements=st.integers(-2, n_steps + 2)))
    unit = data.draw(hnp.arrays(np.uint16, n, elements=st.integers(0, n_units - 1)))
    expected = np.zeros((n_steps, len(lengths), n_units), np.float32)
    for b in range(len(lengths)):
        events = slice(offset[b], offset[b + 1])
        inside = (step[events] >= 0) & (step[events] < n_steps)
        np.add.at(expected, (step[events][inside], b, unit[events][inside]), 1)
    batch = assemble_batch(step, unit, offset, n_steps, n_units)
    assert (batch.dense().numpy() == expected).all()


def test_assembly_keeps_the_stored_order_within_a_row():
    batch = assemble_batch(np.zeros(4, np.int32), np.array([3, 1, 3, 0]), np.array([0, 4]), 2, 4)
    assert batch.unit.tolist() == [3, 1, 3, 0]


@pytest.mark.parametrize("unit", [5, -1])
def test_assembly_names_a_unit_out_of_range(unit):
    with pytest.raises(ValueError, match=rf"^unit: expected 0 to 4, got {unit}$"):
        assemble_batch(np.zeros(2, np.int32), np.array([0, unit]), np.array([0, 2]), 1, 5)


def test_assembly_of_half_a_million_events_is_fast():
    rng = np.random.default_rng(0)
    step = np.sort(rng.integers(0, 600, (64, 8000), dtype=np.int32), axis=1).ravel()
    unit = rng.integers(0, 700, step.size, dtype=np.int32)
    offset = np.arange(65) * 8000
    durations = []
    for _ in range(10):
        start = time.perf_counter()
        assemble_batch(step, unit, offset, 600, 700)
        durations.append(time.perf_counter() - start)
    # About 3 ms on a laptop core; a Python loop or a sort takes over 50 ms.
    assert min(durations) < 0.025


@pytest.mark.parametrize(
    ("row_ptr", "unit", "message"),
    [
        ([0, 1, 2], [0, 8], "^unit: expected 0 to 7, got 8$"),
        ([0, 1, 2], [-1, 3], "^unit: expected 0 to 7, got -1$"),
        ([1, 1, 2], [0, 3], "^row_ptr: expected"),
        ([0, 3, 2], [0, 3], "^row_ptr: expected"),
        ([0, 1, 3], [0, 3], r"^row_ptr: expected T \* B \+ 1 = 3 non-decreasing .* from 0 to 2,"),
        ([0, 2], [0, 3], "^row_ptr: expected .*, got 2 others$"),
        ([0, 1, 1, 2], [0, 3], "^row_ptr: expected .*, got 4 others$"),
    ],
)
def test_events_outside_the_batch_never_reach_a_kernel(row_ptr, unit, message):
    with pytest.raises(ValueError, match=message):
        EventBatch(torch.tensor(row_ptr), torch.tensor(unit, dtype=torch.int32), (2, 1, 8))


def test_to_moves_both_tensors():
    batch = EventBatch.from_dense(torch.ones(2, 1, 3)).to("meta")
    assert batch.device.type == batch.row_ptr.device.type == "meta"
    assert batch.shape == (2, 1, 3)


@pytest.mark.parametrize("value", [-1.0, 0.5, float("nan")])
def test_from_dense_refuses_values_that_are_not_counts(value):
    with pytest.raises(ValueError, match="integers ≥ 0"):
        EventBatch.from_dense(torch.full((1, 1, 2), value))


def test_scale_weights_the_events_of_each_sample():
    spikes = torch.tensor([[[1, 2], [0, 0]], [[0, 1], [3, 3]]])  # 4 and 6 events
    events = EventBatch.from_dense(spikes)
    scaled = events.scaled_to(12)
    assert scaled.scale is not None and scaled.scale.tolist() == [3, 2]
    assert torch.equal(scaled.dense(), spikes * torch.tensor([3, 2])[:, None])
    assert torch.equal(scaled.to("cpu").dense(), scaled.dense())
    assert scaled.to("meta").scale is not None and events.to("meta").scale is None


def test_steps_outside_a_batch_are_refused():
    batch = EventBatch.from_dense(torch.ones(2, 1, 1))
    with pytest.raises(ValueError, match=r"^row_ptr: expected T \* B \+ 1 = 6"):
        batch.steps(0, 5)


def test_steps_of_the_same_samples_come_before():
    batch = EventBatch.from_dense(torch.ones(2, 1, 1))
    assert batch.scaled_to(6.0).after(batch).dense().flatten().tolist() == [3.0] * 4
    with pytest.raises(ValueError, match="^row_ptr: expected"):
        batch.after(EventBatch.from_dense(torch.ones(2, 2, 1)))


def test_large_numbers_do_not_wrap_around():
    offset, columns = np.array([0, 2]), (np.array([1, 2**32 + 1]), np.array([0, 1]))
    assert assemble_batch(*columns, offset, n_steps=3, n_units=2).unit.tolist() == [0]
    with pytest.raises(ValueError, match="^unit: expected 0 to 1, got 2$"):
        assemble_batch(columns[1], columns[0], offset, n_steps=3, n_units=2)
