"""Batch normalisation of the synaptic current, against its formula."""

import pytest
import torch

import blockspike as bs
from blockspike.networks.normalisation import EPSILON, MOMENTUM
from blockspike.networks.pieces import run_in_pieces

T, B, K, N = 40, 6, 12, 5


def made_layer(**options) -> bs.ALIFLayer:
    torch.manual_seed(0)
    layer = bs.ALIFLayer(K, N, dt_ms=1.0, batch_norm=True, **options).double()
    assert layer.norm is not None
    with torch.no_grad():
        layer.bias.uniform_(-1, 1)
        layer.norm.gain.uniform_(0.5, 2)
        layer.norm.mean.uniform_(-1, 1)
        layer.norm.variance.uniform_(0.5, 2)
    return layer


def made_spikes(density: float = 0.3) -> torch.Tensor:
    torch.manual_seed(1)
    return (torch.rand(T, B, K) < density).double()


@pytest.mark.parametrize("options", [{}, {"max_delay": 4}])
def test_training_normalises_by_the_batch(options):
    layer, x = made_layer(**options), made_spikes()
    norm = layer.norm
    assert norm is not None
    plain = bs.ALIFLayer(K, N, dt_ms=1.0, **options).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        plain.bias.zero_()
    torch.manual_seed(2)  # delays are drawn
    raw = plain.current(x)
    mean, variance = raw.mean((0, 1)), raw.var((0, 1), unbiased=False)
    expected = norm.gain * (raw - mean) / (variance + EPSILON).sqrt() + layer.bias
    running = torch.lerp(norm.variance.clone(), raw.var((0, 1)), MOMENTUM).detach()
    torch.manual_seed(2)
    found = layer.current(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(norm.variance, running)
    weights = torch.randn(T, B, N, dtype=torch.float64)
    of_layer = [layer.weight, layer.bias, norm.gain]
    grads = torch.autograd.grad((found * weights).sum(), of_layer)
    wanted = torch.autograd.grad((expected * weights).sum(), [plain.weight, *of_layer[1:]])
    for grad, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad, want)


@pytest.mark.parametrize("options", [{}, {"max_delay": 4}])
@pytest.mark.parametrize("density", [0.01, 0.5])  # by events, and dense
def test_evaluation_is_a_change_of_weights(options, density):
    layer, x = made_layer(**options).eval(), made_spikes(density)
    norm = layer.norm
    assert norm is not None
    plain = bs.ALIFLayer(K, N, dt_ms=1.0, **options).double().eval()
    plain.load_state_dict(layer.state_dict(), strict=False)
    with torch.no_grad():
        plain.bias.zero_()
    scaled = norm.gain * (plain.current(x) - norm.mean) / (norm.variance + EPSILON).sqrt()
    torch.testing.assert_close(layer.current(x), scaled + layer.bias)
    before = norm.mean.clone(), norm.variance.clone()
    whole = layer.trace(x)
    first = layer.trace(x[:17])
    second = layer.trace(x[17:], state=first.state)
    assert torch.equal(torch.cat([first.spikes, second.spikes]), whole.spikes)
    assert torch.equal(norm.mean, before[0]) and torch.equal(norm.variance, before[1])


def test_folded_weights_are_those_of_a_plain_layer():
    layer, x = made_layer().eval(), made_spikes()
    plain = bs.ALIFLayer(K, N, dt_ms=1.0).double()
    weight, bias = layer.weight_and_bias()
    with torch.no_grad():
        plain.weight.copy_(weight)
        plain.bias.copy_(bias)
    assert torch.equal(plain(x), layer(x))
    assert layer(x).any()


def test_neurons_that_scale_their_input_get_the_same_drive():
    """With the gain at its start, the scaled current of each neuron has the variance 1."""
    torch.manual_seed(0)
    layer = bs.EulerAdLIFLayer(K, N, dt_ms=1.0, batch_norm=True).double()
    scaled = (1 - layer.alpha) * layer.current(made_spikes())
    torch.testing.assert_close(
        scaled.var((0, 1)), torch.ones(N, dtype=torch.float64), rtol=0.01, atol=0
    )


def test_one_step_of_one_sample_cannot_be_normalised():
    layer = made_layer()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):  # PyTorch's
        layer(made_spikes()[:1, :1])


def test_statistics_can_be_frozen():
    layer, x = made_layer(), made_spikes()
    assert layer.norm is not None
    expected, mean = layer.eval()(x), layer.norm.mean.clone()
    layer.train()
    layer.norm.eval()
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer.norm.mean, mean)
    layer.norm.train()
    layer(x)
    assert not torch.equal(layer.norm.mean, mean)


def test_pieces_are_refused_in_training():
    network = bs.SpikingClassifier(K, 3, n_hidden=N, dt_ms=1.0, batch_norm=True)
    with pytest.raises(ValueError, match="expected no batch_norm in training"):
        run_in_pieces(network, made_spikes().float(), 10)
    network.eval()
    pieces = run_in_pieces(network, made_spikes().float(), 10)
    torch.testing.assert_close(pieces.scores, network(made_spikes().float()).scores)
