"""Networks in pieces: their state given on, and gradients in little memory."""

import pickle
import statistics
import time
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import blockspike as bs
from blockspike.networks.pieces import PiecewiseOutput, run_in_pieces

NETWORKS: dict[str, dict[str, Any]] = {
    "alif": {"arp_ms": 2.0},
    "blocks": {"arp_ms": 2.0, "method": "blocks"},
    "standard": {"arp_ms": 1.0, "method": "standard"},
    "delays": {"max_delay": 5},
    "through spikes": {"recurrent_delay": 7, "detach_spikes": False},
    "feed-forward": {"recurrent": False},
}


def network_of(name: str, **options: Any) -> bs.SpikingClassifier:
    torch.manual_seed(0)
    if name == "se_adlif":
        options["layer"] = partial(bs.EulerAdLIFLayer, recurrent_delay=2)
    else:
        options |= NETWORKS[name]
    network = bs.SpikingClassifier(12, 4, n_hidden=8, dt_ms=1.0, **options).double()
    with torch.no_grad():
        for layer in network.layers:
            layer.get_parameter("weight").mul_(3)
            if name == "delays":  # drawn next to the learned ones, so in each piece the same
                layer.get_buffer("delays.sigma").fill_(1e-9)
    return network


def spikes(n_steps: int = 48, density: float = 0.2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n_steps, 3, 12, generator=generator) < density).double()


def gradients(network: bs.SpikingClassifier, output: Any) -> dict[str, Tensor]:
    network.zero_grad()
    loss = torch.nn.functional.cross_entropy(output.scores, torch.tensor([0, 1, 2]))
    (loss + 10 * sum(rate * rate for rate in output.rates)).backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def total(outputs: list[bs.ClassifierOutput]) -> PiecewiseOutput:
    """The scores (a sum over time) and rates of the whole from those of its parts."""
    scores = torch.stack([output.scores for output in outputs]).sum(0)
    spikes = [torch.cat([output.spikes[k] for output in outputs]) for k in range(2)]
    return PiecewiseOutput(scores, [x.mean() for x in spikes])


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Those of delays are differences, which do not reach beyond a piece, and so only similar."""
    assert actual.keys() == expected.keys()
    for name, grad in expected.items():
        if name.endswith("delays.delay"):
            pair = actual[name].flatten(), grad.flatten()
            assert torch.nn.functional.cosine_similarity(*pair, dim=0) > 0.9
        else:
            torch.testing.assert_close(actual[name], grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("as_events", [True, False])
@pytest.mark.parametrize("name", [*NETWORKS, "se_adlif"])
def test_the_whole_from_its_parts(name, as_events):
    network, x = network_of(name), spikes()
    given = bs.EventBatch.from_dense(x) if as_events else x
    whole = network(given)
    state, outputs = None, []
    for first, last in ((0, 3), (3, 24), (24, 48)):
        piece = given.steps(first, last) if isinstance(given, bs.EventBatch) else x[first:last]
        outputs.append(network(piece, state))
        state = outputs[-1].state if last < 48 else None
    for k in range(2):
        pieces = torch.cat([output.spikes[k] for output in outputs])
        assert torch.equal(pieces, whole.spikes[k]) and pieces.mean() > 0.005
    assert_equal(gradients(network, total(outputs)), gradients(network, whole))


@pytest.mark.parametrize("as_events", [True, False])
@pytest.mark.parametrize("scores", ["sum", "mean", "softmax"])
@pytest.mark.parametrize("name", [*NETWORKS, "se_adlif"])
def test_gradients_of_simulating_again_are_exact(name, scores, as_events):
    network, x = network_of(name, scores=scores), spikes()
    given = bs.EventBatch.from_dense(x) if as_events else x
    whole = network(given)
    pieces = run_in_pieces(network, given, 9)
    torch.testing.assert_close(pieces.scores, whole.scores)
    torch.testing.assert_close(torch.stack(pieces.rates), torch.stack(whole.rates))
    assert_equal(gradients(network, pieces), gradients(network, whole))
    with torch.no_grad():
        torch.testing.assert_close(run_in_pieces(network, given, 9).scores, whole.scores)


def test_truncated_gradients_are_those_of_detached_states():
    network, x = network_of("through spikes"), spikes()
    state, outputs = None, []
    for piece in x.split(9):
        outputs.append(network(piece, state))
        state = outputs[-1].state.detach()
    expected = gradients(network, total(outputs))
    assert_equal(gradients(network, run_in_pieces(network, x, 9, truncate=True)), expected)
    exact = gradients(network, network(x))
    assert not torch.allclose(exact["layers.0.weight"], expected["layers.0.weight"])


@pytest.mark.parametrize("scores", ["sum", "mean", "softmax"])
def test_pieces_skip_the_steps_that_the_whole_skips(scores):
    network, x = network_of("alif", scores=scores, skip_steps=5), spikes()
    whole, pieces = network(x), run_in_pieces(network, x, 9)
    torch.testing.assert_close(pieces.scores, whole.scores)
    assert_equal(gradients(network, pieces), gradients(network, whole))


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.4}, {"recurrent_dropout": 0.4}, {"max_delay": 5}, {"recurrent_max_delay": 5}],
)
def test_what_is_drawn_is_drawn_again_when_simulated_again(options):
    network = network_of("through spikes", **options)
    torch.manual_seed(3)
    grads = gradients(network, run_in_pieces(network, spikes(), 12))
    torch.manual_seed(3)
    state, outputs = None, []
    for piece in spikes().split(12):
        outputs.append(network(piece, state))
        state = outputs[-1].state
    assert_equal(grads, gradients(network, total(outputs)))


def test_pieces_of_blocks_are_whole_blocks():
    with pytest.raises(ValueError, match="state: expected finite values, got nan"):
        run_in_pieces(network_of("blocks"), spikes(), 10)


def test_what_does_not_run_in_pieces_is_refused():
    scaled = network_of("alif", input_events=100)
    with pytest.raises(ValueError, match="input_events: expected null for a network that runs in"):
        run_in_pieces(scaled, spikes(), 10)
    with pytest.raises(ValueError, match="n_steps: expected an integer ≥ 1, got 0"):
        run_in_pieces(network_of("alif"), spikes(), 0)


def test_samples_of_a_state():
    network, x = network_of("delays"), spikes()
    state = network(x[:10]).state
    expected = network(x[10:], state).scores
    torch.testing.assert_close(network(x[10:, 1:2], state[1]).scores, expected[1:2])
    torch.testing.assert_close(network(x[10:, [2, 0]], state[[2, 0]]).scores, expected[[2, 0]])
    assert not state.detach().readout.requires_grad and state.clone().readout.requires_grad
    assert state.to(torch.float32).layers[0].values.dtype == torch.float32


def test_steps_of_an_event_batch():
    x = spikes(7)
    events = bs.EventBatch.from_dense(x)
    assert torch.equal(events.steps(2, 5).dense(torch.float64), x[2:5])
    joined = events.steps(4, 7).after(events.steps(0, 4))
    assert torch.equal(joined.dense(torch.float64), x)
    assert torch.equal(joined.row_ptr, events.row_ptr) and torch.equal(joined.unit, events.unit)


def first_layer(name: str) -> Any:
    return network_of(name).layers[0]


def test_a_state_without_inputs_is_refused():
    layer, x = first_layer("delays"), spikes()
    state = replace(layer.trace(x).state, inputs=None)
    with pytest.raises(ValueError, match="expected inputs, for synapses with delays, got none"):
        layer.trace(x, state=state)


def test_scaled_events_in_parts():
    layer = first_layer("delays").eval()
    events = replace(
        bs.EventBatch.from_dense(spikes()), scale=torch.tensor([0.5, 1.5, 2.0]).double()
    )
    whole = layer.trace(events, membrane=True).membrane
    first = layer.trace(events.steps(0, 20), membrane=True)
    second = layer.trace(events.steps(20, 48), first.state, membrane=True)
    torch.testing.assert_close(torch.cat([first.membrane, second.membrane]), whole)


def test_a_state_does_not_change_with_the_input():
    x = spikes()
    trace = first_layer("delays").trace(x)
    expected = trace.state.inputs.clone()
    assert expected.any()
    x.zero_()
    assert torch.equal(trace.state.inputs, expected)


def test_dropout_that_is_switched_off_in_between():
    network = network_of("delays", dropout=0.5, synapses="auto")
    x = spikes()
    state = network(x[:20]).state
    output = network.eval()(x[20:], state)
    dense = network_of("delays", synapses="dense").eval()
    dense.load_state_dict(network.state_dict())
    torch.testing.assert_close(output.scores, dense(x[20:], state).scores)


def test_a_network_that_changed_before_backward_is_refused():
    network = network_of("alif", dropout=0.3)
    loss = run_in_pieces(network, spikes(), 12).scores.square().sum()
    network.eval()
    with pytest.raises(RuntimeError, match=r"in the mode of the forward pass.* got another; call"):
        loss.backward()
    network = network_of("delays")
    loss = run_in_pieces(network, spikes(), 12).scores.square().sum()
    network.anneal_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_frozen_networks_and_changed_inputs():
    network, x = network_of("alif"), spikes()
    output = run_in_pieces(network, x, 9)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.scores.sum().backward()
    network.requires_grad_(False)
    assert not run_in_pieces(network, spikes(), 9).scores.requires_grad


def test_outputs_are_pickled():
    with torch.no_grad():
        output = network_of("alif")(spikes())
    copied = pickle.loads(pickle.dumps(output))
    assert torch.equal(copied.scores, output.scores)
    assert torch.equal(copied.state.layers[0].values, output.state.layers[0].values)


@pytest.mark.slow
def test_a_stream_keeps_up_with_its_time():
    """10 ms of 2 × 256 neurons, one recording, one thread; `-s` prints how long they take."""
    torch.manual_seed(0)
    network = bs.SpikingClassifier(700, 20, n_hidden=256, dt_ms=2.0).eval()
    with torch.no_grad():
        for layer, factor in zip(network.layers, (15, 25), strict=True):
            layer.get_parameter("weight").mul_(factor)
    events = bs.EventBatch.from_dense((torch.rand(3000, 1, 700) < 0.02).float())
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        state, scores, times_ms = None, torch.zeros(1, 20), []
        with torch.inference_mode():
            for first in range(0, 3000, 5):
                begin = time.perf_counter()
                output = network(events.steps(first, first + 5), state)
                state, scores = output.state, scores + output.scores
                times_ms.append(1000 * (time.perf_counter() - begin))
            whole = network(events)
    finally:
        torch.set_num_threads(n_threads)
    torch.testing.assert_close(scores, whole.scores, rtol=1e-4, atol=1e-2)
    assert all(0.01 < rate < 0.2 for rate in whole.rates)
    print(f"a piece of 10 ms takes {statistics.median(times_ms):.2f} ms")
    assert statistics.median(times_ms) < 10
