"""Layers and the classifier: initial values, bounds, errors, and agreement of the methods."""

import copy
import json
import math
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch

from blockspike.networks.classifier import (
    ClassifierOutput,
    ClassifierState,
    SpikingClassifier,
    drop_spikes,
    run_layers,
)
from blockspike.networks.layer import decay
from blockspike.networks.layers import AdLIFLayer, ALIFLayer, CSiLIFLayer, EulerAdLIFLayer
from blockspike.networks.readout import LeakyReadout
from blockspike.neurons import Boxcar, MultiGaussian
from blockspike.neurons.euler_adlif import euler_adlif
from blockspike.neurons.events import EventBatch

METHODS = ["standard", "blocks", "fused"]


def make_classifier(**options) -> Any:
    """Small classifier with weights large enough that both layers spike."""
    torch.manual_seed(0)
    settings: dict[str, Any] = {"dt_ms": 1.0, "arp_ms": 5.0} | options
    net: Any = SpikingClassifier(30, 4, 16, **settings)
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.mul_(4)
    return net


def by_pickle(net: SpikingClassifier) -> SpikingClassifier:
    return pickle.loads(pickle.dumps(net))


def make_spikes(n_steps=50, density=0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n_steps, 3, 30, generator=generator) < density).float()


def test_initial_values_are_those_of_the_paper():
    torch.manual_seed(0)
    net: Any = SpikingClassifier(1156, 10, dt_ms=1.0, arp_ms=10.0)
    assert [(layer.weight.shape, layer.arp) for layer in net.layers] == [
        ((256, 1156), 10),
        ((256, 256), 10),
    ]
    assert net.readout.weight.shape == (10, 256)
    for layer in [*net.layers, net.readout]:
        bound = 1 / math.sqrt(layer.weight.shape[1])
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()
        assert layer.beta.tolist() == pytest.approx([math.exp(-1 / 20)] * len(layer.bias))
    for layer in net.layers:
        assert torch.equal(layer.recurrent_weight, torch.eye(256))
        assert layer.p.tolist() == pytest.approx([math.exp(-1 / 150)] * 256)
        assert layer.b.tolist() == [1.0] * 256
        assert (layer.beta.requires_grad, layer.p.requires_grad) == (True, True)
        assert not layer.b.requires_grad
        assert layer.options.detach_spikes and layer.options.surrogate == MultiGaussian()


@pytest.mark.parametrize(("arp_ms", "dt_ms", "arp"), [(2, 0.1, 20), (2, 4, 0), (30, 2, 15)])
def test_arp_in_steps(arp_ms, dt_ms, arp):
    layer = ALIFLayer(3, 2, dt_ms=dt_ms, arp_ms=arp_ms, tau_adaptation_ms=None)
    assert layer.arp == arp


def test_decay():
    assert decay(20.0, 2.0) == pytest.approx(0.904837418)
    for tau_ms, dt_ms in ((0, 1), (1, 0), (-1, 1), (float("nan"), 1), (0.02, 1)):
        with pytest.raises(ValueError, match="tau_ms: expected ms"):
            decay(tau_ms, dt_ms)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("events", [True, False])
def test_any_number_of_steps(events, method):
    net = make_classifier(method=method)
    for n_steps in (1, 4, 6, 50):
        spikes = make_spikes(n_steps)
        output = net(EventBatch.from_dense(spikes) if events else spikes)
        assert output.scores.shape == (3, 4)
        assert [s.shape for s in output.spikes] == [(n_steps, 3, 16)] * 2
        assert output.readout.shape == (n_steps, 3, 4)


@pytest.mark.parametrize("options", [{}, {"tau_adaptation_ms": None}, {"recurrent": False}])
def test_the_methods_give_equal_spikes(options):
    nets = [make_classifier(method=method, **options).double() for method in METHODS]
    outputs = [net(make_spikes().double()) for net in nets]
    assert all(spikes.sum() > 0 for spikes in outputs[0].spikes)
    for other in outputs[1:]:
        for spikes, expected in zip(other.spikes, outputs[0].spikes, strict=True):
            assert torch.equal(spikes, expected)
        torch.testing.assert_close(other.scores, outputs[0].scores)


def test_fused_and_standard_train_alike():
    grads = []
    for method in ("standard", "fused"):
        net = make_classifier(method=method, train_b=True).double()
        net(make_spikes().double()).scores.square().sum().backward()
        grads.append({name: value.grad for name, value in net.named_parameters()})
    for name, expected in grads[0].items():
        assert expected is not None and expected.any(), name
        torch.testing.assert_close(grads[1][name], expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("synapses", ["events", "dense"])
def test_events_and_dense_give_the_same_network(synapses):
    expected = make_classifier().double()(make_spikes().double())
    net = make_classifier(synapses=synapses).double()
    output = net(EventBatch.from_dense(make_spikes()))
    assert torch.equal(output.spikes[1], expected.spikes[1])
    torch.testing.assert_close(output.scores, expected.scores)


def test_scores_are_the_sum_of_the_readout_or_its_mean():
    spikes = make_spikes()
    summed = make_classifier()(spikes)
    mean = make_classifier(scores="mean")(spikes)
    assert torch.equal(summed.scores, summed.readout.sum(0))
    torch.testing.assert_close(mean.scores, summed.scores / len(spikes))


@pytest.mark.parametrize("scores", ["sum", "mean", "softmax"])
def test_skipped_steps_do_not_count_for_the_scores(scores):
    net, spikes = make_classifier(scores=scores, skip_steps=12), make_spikes()
    output = net(spikes)
    counted = output.readout[12:]
    counted = counted.softmax(-1) if scores == "softmax" else counted
    assert torch.equal(output.scores, counted.mean(0) if scores == "mean" else counted.sum(0))
    assert len(output.readout) == 50
    later = net(spikes[20:], net(spikes[:20]).state)  # which continues, and skips nothing
    if scores == "sum":
        torch.testing.assert_close(later.scores, output.readout[20:].sum(0))
    with pytest.raises(ValueError, match="x: expected more than skip_steps = 12 steps, got 12"):
        net(spikes[:12])


def test_scores_from_a_softmax_at_each_step():
    output = make_classifier(scores="softmax")(make_spikes())
    assert torch.equal(output.scores, output.readout.softmax(-1).sum(0))
    assert output.scores.sum(-1).tolist() == pytest.approx([50.0] * 3)


def test_dropout_drops_spikes_in_training_only():
    net, spikes = make_classifier(dropout=0.4), make_spikes(1000, density=0.4)
    trace = next(net.run_layers(spikes))
    x, fired = drop_spikes(trace, 0.4)
    assert x.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert not x[trace.spikes == 0].any()
    share = (x.count_nonzero() / trace.spikes.sum()).item()
    assert trace.spikes.sum() > 1000 and share == pytest.approx(0.6, abs=0.06)
    torch.testing.assert_close(fired.scale * fired.array.float(), x.detach())
    expected, output = make_classifier()(spikes), net(spikes)
    assert torch.equal(output.spikes[0], expected.spikes[0])
    assert not torch.equal(output.spikes[1], expected.spikes[1])  # gets fewer input spikes
    traces = list(run_layers(net.layers, spikes))
    assert not torch.equal(net.read(traces).readout, expected.readout)  # so does the readout
    assert torch.equal(net.eval()(spikes).scores, expected.scores)


@pytest.mark.parametrize("kind", [ALIFLayer, EulerAdLIFLayer, AdLIFLayer, CSiLIFLayer])
def test_recurrent_dropout_drops_neurons_from_the_recurrence_in_training_only(kind):
    torch.manual_seed(0)
    options: dict[str, Any] = {"dt_ms": 1.0, "recurrent": True, "batch_norm": False}
    if kind in (AdLIFLayer, CSiLIFLayer):
        options["random_start"] = False
    layer: Any = kind(30, 16, recurrent_dropout=0.4, **options)
    whole: Any = kind(30, 16, **options)
    whole.load_state_dict(layer.state_dict())
    for one in (layer, whole):
        one.weight.data.mul_(4)
        one.recurrent_weight.data.uniform_(-2, 2, generator=torch.Generator().manual_seed(1))
    x = make_spikes()
    torch.manual_seed(2)
    spikes = layer.trace(x).spikes
    torch.manual_seed(2)
    kept = torch.nn.functional.dropout(torch.ones(16), 0.4)
    assert kept.unique().tolist() == pytest.approx([0, 1 / 0.6])
    weight = whole.recurrent_weight.detach().clone()
    whole.recurrent_weight.data.mul_(kept)
    assert torch.equal(spikes, whole.trace(x).spikes)
    whole.recurrent_weight.data.copy_(weight)
    assert not torch.equal(spikes, whole.trace(x).spikes)
    spikes.sum().backward()
    grad = layer.recurrent_weight.grad
    assert not grad[:, kept == 0].any() and grad[:, kept > 0].any()
    assert not torch.equal(layer.trace(x).spikes, layer.trace(x).spikes)  # drawn for each call
    assert torch.equal(layer.eval().trace(x).spikes, whole.eval().trace(x).spikes)


@pytest.mark.parametrize("method", ["fused", "standard"])
@pytest.mark.parametrize("kind", [ALIFLayer, EulerAdLIFLayer, AdLIFLayer, CSiLIFLayer])
def test_each_neuron_learns_the_delay_of_its_recurrent_spikes(kind, method):
    torch.manual_seed(0)
    options: dict[str, Any] = {"dt_ms": 1.0, "recurrent": True, "batch_norm": False}
    if kind in (AdLIFLayer, CSiLIFLayer):
        options["random_start"] = False
    layer: Any = kind(30, 16, recurrent_delay=2, recurrent_max_delay=9, method=method, **options)
    layer.weight.data.mul_(4)
    layer.recurrent_weight.data.uniform_(-2, 2, generator=torch.Generator().manual_seed(1))
    x, learned = make_spikes(), layer.recurrent_delays
    layer.eval()
    trace = layer.trace(x)
    assert trace.state.spikes.shape == (11, *trace.spikes.shape[1:])
    whole: Any = kind(30, 16, recurrent_delay=5, method=method, **options).eval()
    with torch.no_grad():
        learned.delay.fill_(3 / 9)  # 2 + 3 steps
        own = {k: v for k, v in layer.state_dict().items() if "recurrent_delays" not in k}
    whole.load_state_dict(own)
    assert torch.equal(layer.trace(x).spikes, whole.trace(x).spikes)
    assert not torch.equal(layer.trace(x).spikes, trace.spikes)
    layer.train()
    spikes = layer.trace(x).spikes
    assert not torch.equal(spikes, layer.trace(x).spikes)  # drawn for each call
    assert learned.delay.shape == (16, 1)
    spikes.sum().backward()
    assert learned.delay.grad.any()
    learned.anneal_(1.0)
    assert learned.sigma == 0.5


def test_dropped_spikes_as_events_and_dense():
    """Both give equal values and gradients through both layers and the readout."""
    found = []
    for synapses in ("events", "dense"):
        net = make_classifier(dropout=0.3, synapses=synapses).double()
        torch.manual_seed(3)
        output = net(EventBatch.from_dense(make_spikes(200)))
        output.scores.square().sum().backward()
        found.append(
            [output.scores.detach(), *(p.grad for p in net.parameters() if p.requires_grad)]
        )
    for x, expected in zip(*found, strict=True):
        assert expected.any()
        torch.testing.assert_close(x, expected, rtol=1e-9, atol=1e-9)


def test_loud_and_quiet_recordings_weigh_the_same():
    """With input_events, doubling the events changes nothing, for both kinds of input."""
    spikes = make_spikes().double()
    silent = spikes.clone()
    silent[:, 1] = 0
    net = make_classifier(input_events=300.0, max_delay=3).double()
    for mode in (net, net.eval()):
        once = mode(EventBatch.from_dense(spikes)).scores
        torch.testing.assert_close(mode(EventBatch.from_dense(2 * spikes)).scores, once)
        torch.testing.assert_close(mode(3 * spikes).scores, once)
        assert torch.isfinite(mode(EventBatch.from_dense(silent)).scores).all()
    assert not torch.equal(net(spikes).scores, make_classifier(max_delay=3).double()(spikes).scores)


def test_readout_is_a_leaky_integrator():
    torch.manual_seed(0)
    readout = LeakyReadout(16, 4, dt_ms=1.0).double()
    with torch.no_grad():
        readout.bias.uniform_(-1, 1)
    spikes = (torch.rand(20, 2, 16) < 0.2).double()
    membrane = torch.zeros(2, 4).double()
    for t, out in enumerate(readout(spikes)):
        membrane = readout.beta * membrane + spikes[t] @ readout.weight.T + readout.bias
        torch.testing.assert_close(out, membrane)


@pytest.mark.parametrize(("name", "bound"), [("beta", 0.999), ("p", 0.0), ("b", 1.0)])
def test_a_parameter_at_its_bound_can_move_back(name, bound):
    net = make_classifier(train_b=True)
    parameter = net.layers[0].get_parameter(name)
    inward = -1 if bound > 0 else 1
    with torch.no_grad():
        parameter.fill_(bound - inward)
    net.project_()
    assert parameter.tolist() == pytest.approx([bound] * 16)

    net(make_spikes()).scores.square().sum().backward()
    grad = parameter.grad
    assert grad is not None
    alive = grad != 0
    assert alive.sum() >= 8
    parameter.grad = -inward * grad.abs()  # as if the loss pulled it back inside
    torch.optim.Adam([parameter], lr=0.01).step()
    assert (inward * (parameter.detach() - bound) > 0)[alive].all()


def in_range(net: SpikingClassifier) -> bool:
    own = [layer.get_parameter(name) for layer in net.layers for name in ("beta", "p", "b")]
    values = [p.detach() for p in own]
    values.append(net.readout.beta.detach())
    return all(bool(p.min() >= 0) and bool(p.max() <= 1) for p in values)


@pytest.mark.parametrize("copied", [lambda net: net, copy.deepcopy, by_pickle])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop])
def test_bounds_keep_themselves_in_any_loop(make, copied):
    net = copied(make_classifier(train_b=True))
    optimizer = make(net.parameters(), lr=3.0)
    for _ in range(2):
        optimizer.zero_grad()
        net(make_spikes()).scores.square().sum().backward()
        optimizer.step()
        assert in_range(net)


def test_an_optimiser_of_others_leaves_them_alone():
    net, other = make_classifier(), torch.nn.Parameter(torch.ones(2))
    with torch.no_grad():
        net.readout.beta.fill_(7.0)
    other.grad = torch.ones(2)
    torch.optim.SGD([other, net.readout.bias], lr=1.0).step()
    assert (net.readout.beta == 7).all()


def test_a_parametrised_parameter_is_its_owners_affair():
    net, other = make_classifier(), torch.nn.Parameter(torch.ones(2))
    torch.nn.utils.parametrize.register_parametrization(net.layers[0], "beta", torch.nn.Sigmoid())
    other.grad = torch.ones(2)
    with torch.no_grad():
        net.layers[0].get_parameter("p").fill_(7.0)
    before = net.layers[0].beta.detach().clone()
    torch.optim.SGD([other, net.layers[0].get_parameter("p")], lr=1.0).step()
    assert net.layers[0].get_parameter("p").max() < 1  # the others are clamped
    assert torch.equal(net.layers[0].beta, before)


def test_projection_only_clamps_values_that_are_out_of_range():
    net = make_classifier(beta_bounds=(0.5, 0.99))
    before = {name: value.detach().clone() for name, value in net.named_parameters()}
    net.project_()
    for name, value in net.named_parameters():
        assert torch.equal(value, before[name])
    with torch.no_grad():
        for value in net.parameters():
            value.fill_(-7.0)
    net.project_()
    for layer in net.layers:
        assert [layer.beta.min().item(), layer.p.min().item(), layer.b.min().item()] == [0.5, 0, 0]
    assert net.readout.beta.min().item() == pytest.approx(0.001)
    assert (net.layers[0].weight == -7).all()  # weights have no bounds


def test_training_options():
    layer: Any = ALIFLayer(3, 2, dt_ms=1.0, train_beta=False, train_p=False, train_b=True)
    assert [layer.beta.requires_grad, layer.p.requires_grad, layer.b.requires_grad] == [
        False,
        False,
        True,
    ]
    plain = ALIFLayer(3, 2, dt_ms=1.0, tau_adaptation_ms=None, recurrent=False)
    assert plain.p is None and plain.b is None and plain.recurrent_weight is None
    assert {name for name, _ in plain.named_parameters()} == {"weight", "bias", "beta"}
    assert plain.weight.shape == (2, 3)


def test_options_reach_every_layer():
    net = make_classifier(n_layers=3, surrogate=Boxcar(), detach_spikes=False, method="blocks")
    assert len(net.layers) == 3
    for layer in net.layers:
        assert layer.options.surrogate == Boxcar() and layer.options.method == "blocks"
        assert not layer.options.detach_spikes


def test_checkpoint_round_trip():
    net, other = make_classifier(), make_classifier()
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(0.9)
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(make_spikes()).scores, net(make_spikes()).scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_inputs": 0}, "^n_inputs"),
        ({"n_units": 2.5}, "^n_units"),
        ({"max_delay": -1}, "^max_delay"),
        ({"recurrent_max_delay": 2.5}, "^recurrent_max_delay"),
        ({"dt_ms": 0.0}, "^tau_membrane_ms"),
        ({"tau_membrane_ms": 0.02}, "^tau_membrane_ms: expected ms"),
        ({"tau_membrane_ms": 1e6}, "^tau_membrane_ms: expected 0.001 ≤ beta ≤ .*, got beta = 0.99"),
        ({"tau_adaptation_ms": 1e6}, "^tau_adaptation_ms: expected 0.0 ≤ p ≤ 0.99.*, got p = 0.99"),
        ({"b": 1.8}, "^b: expected 0.0 ≤ b ≤ 1.0, got b = 1.8"),
        ({"b": float("nan")}, "^b: expected 0.0 ≤ b ≤ 1.0, got b = nan"),
    ],
)
def test_bad_arguments_of_a_layer(options, message):
    with pytest.raises(ValueError, match=message):
        ALIFLayer(**({"n_inputs": 3, "n_units": 2, "dt_ms": 1.0} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scores": "max"}, "^scores: expected one of sum, mean, softmax, got 'max'"),
        ({"skip_steps": -1}, "^skip_steps"),
        ({"dropout": 1.0}, "dropout"),
        ({"n_hidden": [5, 4, 3]}, "^n_hidden, n_layers: expected a number for each"),
        ({"n_hidden": 0}, "^n_units: expected an integer"),
        ({"n_classes": 0}, "^n_units: expected an integer"),
    ],
)
def test_bad_options_of_a_classifier(options, message):
    with pytest.raises(ValueError, match=message):
        SpikingClassifier(**({"n_inputs": 3, "n_classes": 2, "dt_ms": 1.0} | options))


def test_scores_are_means_over_the_views_of_a_sample():
    scores = torch.arange(12.0).reshape(6, 2)  # 2 samples × 3 views
    output = ClassifierOutput(scores, [], scores, ClassifierState((), scores))
    assert torch.equal(output.mean_over_views(6), scores)
    assert output.mean_over_views(2).tolist() == [[4.0, 5.0], [6.0, 7.0]]


def test_an_adlif_layer_starts_spread_over_its_ranges():
    torch.manual_seed(0)
    layer = EulerAdLIFLayer(20, 50, dt_ms=1.0, tau_membrane_ms=(5.0, 25.0), b=(0.5, 2.0))
    tau_ms = -1 / torch.log(layer.alpha)
    assert tau_ms.min().item() == pytest.approx(5, rel=1e-4)
    assert tau_ms.max().item() == pytest.approx(25, rel=1e-4)
    assert layer.b.min() == 0.5 and layer.b.max() == 2.0
    assert not torch.equal(layer.alpha.argsort(), layer.b.argsort())
    scaled = layer.weight * (1 - layer.alpha[:, None])
    assert 0.9 / 20**0.5 < scaled.abs().max() <= 1.0001 / 20**0.5
    w = layer.recurrent_weight
    assert w is not None and torch.allclose(w @ w.T, torch.eye(50), atol=1e-5)


@pytest.mark.parametrize("euler", ["symplectic", "forward"])
def test_an_adlif_layer_equals_its_function(euler):
    torch.manual_seed(0)
    layer = EulerAdLIFLayer(20, 50, dt_ms=1.0, euler=euler, recurrent_delay=3, q=12.0)
    x = (torch.rand(40, 2, 20) < 0.3).float()
    expected = euler_adlif(
        layer.current(x), layer.alpha, layer.beta, layer.a, layer.b, q=12.0, euler=euler,
        recurrent_weight=layer.recurrent_weight, recurrent_delay=3, detach_spikes=False,
        method="standard",
    ).spikes  # fmt: skip
    assert expected.sum() > 0
    spikes = layer(x)
    assert (spikes != expected).sum() <= 0.01 * expected.sum()  # depending on rounding
    spikes.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    with torch.no_grad():
        layer.alpha += 1
    layer.project_()
    assert layer.alpha.max().item() == pytest.approx(decay(25.0, 1.0))


def test_times_of_an_adlif_layer_in_seconds_are_refused():
    with pytest.raises(ValueError, match="^tau_membrane_ms: expected ms"):
        EulerAdLIFLayer(20, 50, dt_ms=1.0, tau_membrane_ms=(0.005, 0.025))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["se_adlif", "ef_adlif"])
def test_adlif_from_the_command_line(blockspike, tmp_path, model):
    small = (
        "data=nmnist_sample", "data.n_steps=20", "data.dt_ms=15", "network.n_hidden=16",
        "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1",
        "model.tau_membrane_ms=[75,375]", "model.tau_adaptation_ms=[900,4500]",
    )  # fmt: skip
    blockspike("train", *small, f"model={model}", "model.surrogate=fast_sigmoid")
    (result,) = tmp_path.rglob("result.json")
    row = json.loads(result.read_text())
    assert row["model.euler"] == {"se_adlif": "symplectic", "ef_adlif": "forward"}[model]
    done = blockspike("train", *small, f"model={model}", "model.surrogate=step", check=False)
    assert done.returncode == 2 and "surrogate: expected" in done.stderr
    done = blockspike("train", *small, f"model={model}", "model.tau=3", check=False)
    assert done.returncode == 2 and "tau" in done.stderr
    blockspike("evaluate", str(result.parent))


def test_recurrence_of_any_delay_in_a_layer():
    torch.manual_seed(0)
    layer = ALIFLayer(20, 50, dt_ms=1.0, arp_ms=2.0, recurrent_delay=1)
    x = 3 * (torch.rand(40, 2, 20) < 0.5).float()
    spikes = layer(x)
    layer.options = replace(layer.options, recurrent_delay=3)
    assert not torch.equal(layer(x), spikes) and spikes.sum() > 0


def test_hidden_layers_have_sizes_of_their_own():
    net = SpikingClassifier(6, 3, n_hidden=[5, 4], dt_ms=1.0)
    spikes = net(torch.ones(10, 2, 6)).spikes
    assert [x.shape[2] for x in spikes] == [5, 4]
    torch.manual_seed(0)
    same = SpikingClassifier(6, 3, n_hidden=[5, 5, 5], n_layers=3, dt_ms=1.0).state_dict()
    torch.manual_seed(0)
    state = SpikingClassifier(6, 3, n_hidden=5, n_layers=3, dt_ms=1.0).state_dict()
    assert all(torch.equal(same[name], value) for name, value in state.items())
