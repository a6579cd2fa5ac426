"""Event-driven currents against the dense product."""

from functools import partial

import pytest
import torch
from synapse_cases import (
    assert_all_close,
    events_of,
    make_parameters,
    make_spikes,
    reference,
    value_and_gradients,
)

from blockspike.networks import synapses
from blockspike.networks.synapses import (
    MAX_EVENT_DENSITY,
    MAX_EVENT_DENSITY_OF_BATCH,
    synaptic_current,
)
from blockspike.neurons.events import EventBatch

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rf_len", [1, 2, 5, 25])
@pytest.mark.parametrize("mode", ["events", "dense", "auto"])
def test_binary_spikes(mode, rf_len, dtype):
    spikes, parameters = make_spikes(dtype=dtype), make_parameters(rf_len, dtype=dtype)
    expected = value_and_gradients(reference, spikes, *parameters)
    ours = value_and_gradients(
        synaptic_current, spikes, *parameters, events=events_of(spikes), mode=mode
    )
    assert len(ours) == 4 and spikes.sum() > 0
    assert_all_close(ours, expected, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rf_len", [1, 2, 5, 25])
@pytest.mark.parametrize("mode", ["events", "dense", "auto"])
def test_event_batch_with_repeated_events(mode, rf_len, dtype):
    spikes, parameters = make_spikes(most=3, dtype=dtype), make_parameters(rf_len, dtype=dtype)
    assert spikes.max() == 3
    expected = value_and_gradients(reference, spikes, *parameters)[:3]
    events = EventBatch.from_dense(spikes)
    ours = value_and_gradients(synaptic_current, events, *parameters, mode=mode)
    assert len(ours) == 3
    assert_all_close(ours, expected, dtype)


@pytest.mark.parametrize("mode", ["events", "dense", "auto"])
def test_events_with_a_scale(mode):
    spikes, parameters = make_spikes(most=3), make_parameters(2)
    events = EventBatch.from_dense(spikes).scaled_to(100.0)
    expected = value_and_gradients(reference, events.dense(torch.float64), *parameters)[:3]
    ours = value_and_gradients(synaptic_current, events, *parameters, mode=mode)
    assert_all_close(ours, expected, torch.float32)
    assert not torch.allclose(ours[0], value_and_gradients(reference, spikes, *parameters)[0])


def test_repeated_events_by_hand():
    row_ptr, unit = torch.tensor([0, 3, 4, 4]), torch.tensor([1, 1, 0, 0], dtype=torch.int32)
    weight = torch.tensor([[[2.0, 3.0]], [[20.0, 50.0]]])  # two taps, one neuron, two inputs
    events = EventBatch(row_ptr, unit, (3, 1, 2))
    for mode in ("events", "dense"):
        current = synaptic_current(events, weight, torch.tensor([9.0]), mode=mode)
        assert current.flatten().tolist() == [9 + 2 * 3 + 2, 9 + 2 + 2 * 50 + 20, 9 + 20]


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", ["spikes", "weight", "bias"])
def test_one_differentiable_argument_is_enough(name, binary):
    weight, bias = make_parameters(2)
    spikes = make_spikes()
    arguments = {"spikes": spikes, "weight": weight.detach(), "bias": bias.detach()}
    grads = []
    events = events_of(spikes) if binary else None
    for function in (reference, partial(synaptic_current, events=events)):
        leaf = arguments[name].clone().requires_grad_()
        function(*(arguments | {name: leaf}).values()).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-11, atol=1e-11)


@pytest.fixture
def chosen(monkeypatch):
    """Names of the functions that were called, in order."""
    chosen = []
    for name in ("event_currents", "_dense"):
        original = getattr(synapses, name)

        def spy(*args, name=name, original=original):
            chosen.append(name)
            return original(*args)

        monkeypatch.setattr(synapses, name, spy)
    return chosen


@pytest.mark.parametrize("density", [0.0, 0.1, 0.2, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["events", "binary"])
def test_auto_chooses_by_density(chosen, kind, density):
    spikes = make_spikes((100, 1, 100), density)
    spikes[50] = spikes[51]
    given = EventBatch.from_dense(spikes) if kind == "events" else spikes
    events = events_of(spikes) if kind == "binary" else None
    synaptic_current(given, *make_parameters(n_inputs=100), events=events)
    most = {"binary": MAX_EVENT_DENSITY, "events": MAX_EVENT_DENSITY_OF_BATCH}[kind]
    assert chosen == ["_dense" if density > most else "event_currents"]


@pytest.mark.parametrize("kind", ["events", "binary"])
@pytest.mark.parametrize(("mode", "used"), [("dense", "_dense"), ("events", "event_currents")])
def test_the_requested_mode_is_used_at_any_density(chosen, mode, used, kind):
    for density in (0.05, 0.9):
        spikes = make_spikes((20, 1, 100), density)
        given = EventBatch.from_dense(spikes) if kind == "events" else spikes
        events = events_of(spikes) if kind == "binary" else None
        synaptic_current(given, *make_parameters(n_inputs=100), events=events, mode=mode)
    assert chosen == [used, used]


def test_dense_spikes_that_are_not_binary_keep_their_values():
    spikes = make_spikes() * 0.5
    weight, bias = make_parameters()
    ours = synaptic_current(spikes, weight, bias)
    torch.testing.assert_close(ours, reference(spikes, weight, bias))


@pytest.mark.parametrize("mode", ["events", "dense"])
def test_memory_layouts_without_modifying_inputs(mode):
    spikes, (weight, bias) = make_spikes(), make_parameters(2)
    expected = value_and_gradients(reference, spikes, weight, bias)
    other = spikes.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    weight = weight.detach().transpose(1, 2).contiguous().transpose(1, 2)
    bias = torch.stack([bias.detach(), bias.detach() + 1], 1)[:, 0]
    before = [x.clone() for x in (other, weight, bias)]
    ours = value_and_gradients(
        synaptic_current, other, weight, bias, events=events_of(other), mode=mode
    )
    assert_all_close(ours, expected, torch.float64)
    assert all(torch.equal(x, y) for x, y in zip((other, weight, bias), before, strict=True))


@pytest.mark.parametrize("mode", ["events", "dense"])
def test_bitwise_equal_with_any_number_of_threads(mode):
    events, parameters = EventBatch.from_dense(make_spikes()), make_parameters(2)
    before = torch.get_num_threads()
    results = []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            results.append(value_and_gradients(synaptic_current, events, *parameters, mode=mode))
    finally:
        torch.set_num_threads(before)
    exact = mode == "events"
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert torch.equal(a, b) if exact else torch.allclose(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": torch.zeros(4, 5)}, r"got \[6, 2, 5\]; weight \[4, 5\], bias \[4\]"),
        ({"bias": torch.zeros(5)}, r"weight \[1, 4, 5\], bias \[5\]"),
        ({"spikes": torch.zeros(6, 2, 4)}, r"\[T, B, 5\], .* got \[6, 2, 4\]"),
        ({"spikes": torch.zeros(6, 5)}, r"got \[6, 5\]"),
        ({"events": events_of(torch.zeros(6, 1, 5))}, r"T, B as in events\), got \[6, 2, 5\]"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {
        "spikes": torch.zeros(6, 2, 5),
        "weight": torch.zeros(1, 4, 5),
        "bias": torch.zeros(4),
    }
    with pytest.raises(ValueError, match=f"^input: expected .*{message}"):
        synaptic_current(**(arguments | change))


def test_events_on_another_device_are_refused():
    events = EventBatch.from_dense(torch.ones(6, 2, 5)).to("meta")
    with pytest.raises(ValueError, match="^mode='events': expected spikes on .*cpu, .*, got meta"):
        synaptic_current(events, torch.zeros(1, 4, 5), torch.zeros(4), mode="events")


@pytest.mark.parametrize("kind", ["events", "binary", "dense"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_single_on_a_cpu(dtype, kind):
    """The current is float32, and half parameters get gradients in half precision."""
    weight, bias = (x.detach().to(dtype) for x in make_parameters(2))
    spikes = make_spikes(dtype=torch.float32)
    given = EventBatch.from_dense(spikes) if kind == "events" else spikes.to(dtype)
    events = events_of(spikes) if kind == "binary" else None
    found = value_and_gradients(synaptic_current, given, weight, bias, events=events)
    single = value_and_gradients(reference, spikes, weight.float(), bias.float())
    assert found[0].dtype == torch.float32 and {x.dtype for x in found[1:]} == {dtype}
    torch.testing.assert_close(found[0], single[0])
    for ours, expected in zip(found[1:], single[1:], strict=False):
        torch.testing.assert_close(ours, expected.to(dtype), rtol=0.01, atol=0.01)


def test_spikes_take_the_dtype_of_the_weight():
    spikes, (weight, bias) = make_spikes(), make_parameters()
    expected = synaptic_current(spikes, weight, bias)
    for dtype in (torch.bool, torch.int64, torch.float32, torch.float16):
        assert torch.equal(synaptic_current(spikes.to(dtype), weight, bias), expected)
