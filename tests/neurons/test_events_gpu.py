"""Event-driven currents by Triton (on a GPU or interpreted) against dense products."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from gpu_cases import DEVICE, INTERPRETED, triton_kernels  # noqa: F401
from synapse_cases import (
    assert_all_close,
    events_of,
    make_parameters,
    make_spikes,
    reference,
    value_and_gradients,
)

from blockspike.networks import synapses
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.events import EventBatch
from blockspike.neurons.gpu import events as events_gpu

pytestmark = pytest.mark.usefixtures("triton_kernels")
SHAPE = (7, 2, 20) if INTERPRETED else (70, 12, 200)
N_UNITS = 19 if INTERPRETED else 301


def by_triton(row_ptr, unit, weight_t, bias, lag_rows, out):
    """`events_cpu.event_currents`, computed by `events_gpu`."""
    row_ptr, unit, weight_t, bias, out = map(torch.from_numpy, (row_ptr, unit, weight_t, bias, out))
    events_gpu.event_currents(row_ptr, unit, weight_t, bias, lag_rows, out)


def gradient_by_triton(row_ptr, unit, grad, n_taps, lag_rows, n_units):
    """`events_cpu.event_weight_gradient`, computed by `events_gpu`."""
    row_ptr, unit, grad = map(torch.from_numpy, (row_ptr, unit, grad))
    return events_gpu.event_weight_gradient(row_ptr, unit, grad, n_taps, lag_rows, n_units).numpy()


@pytest.fixture(autouse=True)
def synapses_use_triton(monkeypatch):
    if DEVICE.type == "cpu":
        monkeypatch.setattr(synapses, "event_currents", by_triton)
        monkeypatch.setattr(synapses, "event_weight_gradient", gradient_by_triton)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rf_len", [1, 3])
@pytest.mark.parametrize("kind", ["repeated events", "binary"])
def test_currents_and_gradients(kind, rf_len, dtype):
    binary = kind == "binary"
    spikes = make_spikes(SHAPE, 0.15, most=1 if binary else 3, dtype=dtype).to(DEVICE)
    parameters = [
        x.detach().to(DEVICE) for x in make_parameters(rf_len, N_UNITS, SHAPE[2], dtype=dtype)
    ]
    expected = value_and_gradients(reference, spikes, *parameters)
    given = spikes if binary else EventBatch.from_dense(spikes)
    events = events_of(spikes) if binary else None
    ours = value_and_gradients(
        synapses.synaptic_current, given, *parameters, events=events, mode="events"
    )
    assert len(ours) == (4 if binary else 3) and spikes.sum() > 20
    assert_all_close(ours, expected[: len(ours)], dtype)


@pytest.mark.parametrize("density", [0.0, 0.5])
def test_no_events_and_more_taps_than_steps(density):
    spikes = make_spikes((2, 1, 5), density).to(DEVICE)
    parameters = [x.detach().to(DEVICE) for x in make_parameters(4, 3, 5)]
    expected = value_and_gradients(reference, spikes, *parameters)
    ours = value_and_gradients(
        synapses.synaptic_current, EventBatch.from_dense(spikes), *parameters, mode="events"
    )
    assert_all_close(ours, expected[:3], torch.float64)


def test_output_is_overwritten_and_sums_have_a_fixed_order():
    spikes = make_spikes(SHAPE, 0.3, dtype=torch.float32).to(DEVICE)
    events = EventBatch.from_dense(spikes)
    weight, bias = (x.detach().to(DEVICE) for x in make_parameters(1, N_UNITS, SHAPE[2]))
    weight_t, bias = weight.transpose(1, 2).float().contiguous(), bias.float()
    outs = [weight_t.new_full((SHAPE[0] * SHAPE[1], N_UNITS), x) for x in (float("nan"), 7.0)]
    for out in outs:
        events_gpu.event_currents(events.row_ptr, events.unit, weight_t, bias, SHAPE[1], out)
    assert torch.isfinite(outs[0]).all() and torch.equal(outs[0], outs[1])
    sizes = (1, SHAPE[1], SHAPE[2])
    grads = [
        events_gpu.event_weight_gradient(events.row_ptr, events.unit, outs[0], *sizes)
        for _ in range(2)
    ]
    assert torch.equal(grads[0], grads[1])


def on_a_gpu(n_events: int) -> Any:
    """Stand-in for an EventBatch on a GPU with 1000 pairs of step and unit."""
    return SimpleNamespace(device=torch.device("cuda"), unit=range(n_events), shape=(10, 1, 100))


@pytest.mark.parametrize(("n_events", "chosen"), [(0, True), (10, True), (11, False)])
def test_auto_on_a_gpu_chooses_by_density(monkeypatch, n_events, chosen):
    assert synapses._use_events("auto", on_a_gpu(n_events), 0.25) == chosen
    monkeypatch.setattr(synapses, "has_triton", lambda device: False)
    assert not synapses._use_events("auto", on_a_gpu(n_events), 0.25)


def test_auto_does_not_count_the_spikes_of_a_dense_tensor_on_a_gpu():
    meta = torch.zeros(6, 2, 5, device="meta")
    parameters = torch.zeros(1, 4, 5, device="meta"), torch.zeros(4, device="meta")
    assert synapses.synaptic_current(meta, *parameters, events=SpikeEvents(meta)).shape == (6, 2, 4)


def test_events_without_triton(monkeypatch):
    assert synapses._use_events("events", on_a_gpu(900), 0.25)
    monkeypatch.setattr("blockspike.neurons.gpu.graphs._triton_is_new_enough", lambda: False)
    with pytest.raises(
        ValueError, match="^mode='events': expected spikes on one of .*Triton ≥ 3.3"
    ):
        synapses._use_events("events", on_a_gpu(1), 0.25)
