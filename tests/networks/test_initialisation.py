"""Initial weights: their distributions, and that the default stays as it was."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import ALIFLayer, EulerAdLIFLayer
from blockspike.networks.readout import LeakyReadout

N_INPUTS, N_HIDDEN, N_CLASSES = 300, 200, 100
# Rule → (standard deviation, largest value) for a fan-in and a number of units.
RULES: dict[str, Any] = {
    "kaiming_uniform": lambda fan, n: (math.sqrt(2 / fan), math.sqrt(6 / fan)),
    "kaiming_normal": lambda fan, n: (math.sqrt(2 / fan), math.inf),
    "xavier_uniform": lambda fan, n: (math.sqrt(2 / (fan + n)), math.sqrt(6 / (fan + n))),
    "xavier_normal": lambda fan, n: (math.sqrt(2 / (fan + n)), math.inf),
}


def network(**options: Any) -> Any:
    torch.manual_seed(0)
    return SpikingClassifier(N_INPUTS, N_CLASSES, N_HIDDEN, dt_ms=1.0, **options)


def test_the_default_is_that_of_the_layers():
    net = network()
    torch.manual_seed(0)
    own = [ALIFLayer(n, N_HIDDEN, dt_ms=1.0) for n in (N_INPUTS, N_HIDDEN)]
    for layer, expected in zip(net.layers, own, strict=True):
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(layer.recurrent_weight, torch.eye(N_HIDDEN))
    assert torch.equal(net.readout.weight, LeakyReadout(N_HIDDEN, N_CLASSES, dt_ms=1.0).weight)


@pytest.mark.parametrize("rule", RULES)
def test_input_weights_follow_the_rule(rule):
    net, before = network(init=rule), network()
    layers = [*net.layers, net.readout]
    for layer, own in zip(layers, [*before.layers, before.readout], strict=True):
        n_units, n_inputs = layer.weight.shape
        deviation, largest = RULES[rule](n_inputs, n_units)
        assert float(layer.weight.detach().std()) == pytest.approx(deviation, rel=0.02)
        assert float(layer.weight.detach().mean()) == pytest.approx(0, abs=0.02 * deviation)
        assert layer.weight.stride() == own.weight.stride()
        most = float(layer.weight.detach().abs().max())
        assert 0.99 * largest < most <= largest or (largest == math.inf and most > 3 * deviation)
        assert not layer.bias.any()
    assert torch.equal(net.layers[0].recurrent_weight, torch.eye(N_HIDDEN))


def test_recurrent_weights_follow_their_rule():
    weight = network(recurrent_init="orthogonal").layers[1].recurrent_weight.detach()
    torch.testing.assert_close(weight @ weight.T, torch.eye(N_HIDDEN), atol=1e-5, rtol=0)
    assert (weight != torch.eye(N_HIDDEN)).any()
    weight = network(recurrent_init="xavier_uniform").layers[0].recurrent_weight.detach()
    assert float(weight.abs().max()) == pytest.approx(math.sqrt(6 / (2 * N_HIDDEN)), rel=0.01)
    adlif = partial(EulerAdLIFLayer, euler="symplectic")
    weight = network(recurrent_init="identity", layer=adlif).layers[0].recurrent_weight
    assert torch.equal(weight, torch.eye(N_HIDDEN))


def test_a_model_that_scales_its_input_gets_the_weights_in_its_unit():
    """SE-adLIF multiplies its input by 1 − α."""
    layer = network(init="kaiming_uniform", layer=EulerAdLIFLayer).layers[0]
    scaled = layer.weight.detach() * (1 - layer.alpha.detach()[:, None])
    assert float(scaled.std()) == pytest.approx(math.sqrt(2 / N_INPUTS), rel=0.02)
    assert float(scaled.abs().max()) <= math.sqrt(6 / N_INPUTS) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"init": "he"}, "init: expected one of default, kaiming_uniform, .*, got 'he'"),
        ({"recurrent_init": "he"}, "recurrent_init: expected one of default, orthogonal"),
    ],
)
def test_bad_rules_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        network(**options)
