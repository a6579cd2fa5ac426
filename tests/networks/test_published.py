"""Layers of neurons as their authors train them, against loops of the tests' own."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import blockspike as bs
from blockspike.networks.pieces import run_in_pieces
from blockspike.neurons.surrogates import spike

LAYERS = [bs.AdLIFLayer, bs.CSiLIFLayer]


def made(kind: Any, **options: Any) -> tuple[Any, Tensor]:
    """A layer in training and its input [T, B, n_inputs], in float64."""
    torch.manual_seed(0)
    layer = kind(20, 12, dt_ms=1.0, batch_norm=False, synapses="dense", **options).double()
    with torch.no_grad():
        layer.weight *= 40
    return layer, (torch.rand(40, 3, 20) < 0.3).double()


def radlif_spikes(layer: bs.AdLIFLayer, current: Tensor, u: Tensor, w: Tensor, s: Tensor) -> Tensor:
    """Spikes of the authors' loop after u, w and s [B, N]."""
    assert layer.recurrent_weight is not None
    weight = layer.recurrent_weight.clone().fill_diagonal_(0)
    spikes = []
    for drive in current:
        arriving = s @ weight.T
        w = layer.beta * w + layer.a * u + layer.b * s
        u = layer.alpha * (u - s) + (1 - layer.alpha) * (drive + arriving - w)
        s = spike(u - 1, bs.Boxcar())
        spikes.append(s)
    return torch.stack(spikes)


def c_silif_spikes(layer: bs.CSiLIFLayer, current: Tensor, u: Tensor, s: Tensor) -> Tensor:
    """Spikes of the authors' loop after u, complex, and s [B, N]."""
    rate, step = layer.log_rate.exp(), layer.log_time_step.exp()
    alpha = torch.exp(torch.complex(-rate, layer.frequency) * step)
    spikes = []
    for drive in current:
        u = alpha * (u - 0.5 * s) + layer.b * drive
        s = spike(2 * u.real - 1, bs.Boxcar())
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("kind", LAYERS)
def test_training_starts_where_the_authors_do_and_learns_as_they_do(kind, method):
    layer, x = made(kind, method=method)
    torch.manual_seed(5)
    spikes = layer(x)
    torch.manual_seed(5)
    s, first, second = torch.rand(3, 3, 12, dtype=torch.float64)
    if kind is bs.AdLIFLayer:
        expected = radlif_spikes(layer, layer.current(x), first, second, s)
    else:
        expected = c_silif_spikes(layer, layer.current(x), torch.complex(first, second), s)
    assert 0.05 < expected.mean() < 0.9
    assert torch.equal(spikes, expected)
    factors = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(1)).double()
    own = dict(layer.named_parameters())
    found, wanted = (
        torch.autograd.grad((out * factors).sum(), list(own.values())) for out in (spikes, expected)
    )
    for name, ours, theirs in zip(own, found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-9, msg=name)
        assert theirs.any()
    if kind is bs.AdLIFLayer:
        assert not found[list(own).index("recurrent_weight")].diagonal().any()


@pytest.mark.parametrize("kind", LAYERS)
def test_evaluation_starts_from_zero_and_a_given_state_is_kept(kind):
    layer, x = made(kind)
    whole = layer.eval()(x)
    assert torch.equal(layer(x), whole)
    zeros = dict.fromkeys(layer.trace(x).state.names, 0.0)
    assert torch.equal(layer.train().trace(x, state=zeros).spikes, whole)
    torch.manual_seed(1)
    first = layer.trace(x[:15])
    second = layer.trace(x[15:], state=first.state)
    torch.manual_seed(1)
    assert torch.equal(torch.cat([first.spikes, second.spikes]), layer(x))
    assert not torch.equal(layer(x), layer(x))
    layer.random_start = False
    assert torch.equal(layer(x), whole)


@pytest.mark.parametrize("kind", LAYERS)
def test_simulating_again_in_pieces_draws_the_same_start(kind):
    _, x = made(kind)
    torch.manual_seed(0)
    layer = partial(kind, batch_norm=False)
    network = bs.SpikingClassifier(20, 4, n_hidden=12, dt_ms=1.0, layer=layer).double()
    with torch.no_grad():
        for hidden in network.layers:
            hidden.get_parameter("weight").mul_(40)
    found = []
    for n_steps in (40, 9):
        torch.manual_seed(2)
        output = run_in_pieces(network, x, n_steps)
        assert output.rates[1] > 0.01
        loss = torch.nn.functional.cross_entropy(output.scores, torch.tensor([0, 1, 2]))
        found.append(torch.autograd.grad(loss, list(network.parameters())))
    for whole, pieces in zip(*found, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-8, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("kind", LAYERS)
def test_training_in_mixed_precision(kind):
    torch.manual_seed(0)
    layer = kind(20, 12, dt_ms=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        spikes = layer((torch.rand(30, 4, 20) < 0.3).float())
    spikes.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())
    assert all(p.grad.any() for name, p in layer.named_parameters() if name.endswith("weight"))


def test_a_delayed_recurrence_delivers_the_random_spikes_once():
    layer, x = made(bs.AdLIFLayer, recurrent_delay=3)
    with torch.no_grad():
        layer.recurrent_weight.fill_(30.0)
        layer.weight.zero_()
    torch.manual_seed(5)
    membrane = layer.trace(x[:4], membrane=True).membrane
    torch.manual_seed(5)
    first, u, w = torch.rand(3, 3, 12, dtype=torch.float64)
    s = first
    for t in range(3):
        w = layer.beta * w + layer.a * u + layer.b * s
        arriving = 30 * (first.sum(1, keepdim=True) - first) if t == 2 else 0
        u = layer.alpha * (u - s) + (1 - layer.alpha) * (arriving - w)
        s = (u > 1).double()
        torch.testing.assert_close(membrane[t], u.detach(), rtol=1e-9, atol=1e-12)
    assert (membrane[2] > 1).any()
    assert layer(x[:2]).shape == (2, 3, 12)  # shorter than the delay


def test_parameters_start_uniform_within_the_published_ranges():
    torch.manual_seed(0)
    layer = bs.AdLIFLayer(20, 2000, dt_ms=10.0)
    for name, low, high in (
        ("alpha", math.exp(-1 / 5), math.exp(-1 / 25)),
        ("beta", math.exp(-1 / 30), math.exp(-1 / 120)),
        ("a", -1.0, 1.0),
        ("b", 0.0, 2.0),
    ):
        values = getattr(layer, name)
        width = high - low
        assert low <= values.min() < low + 0.01 * width
        assert high - 0.01 * width < values.max() <= high + 1e-7
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.03 * width)
        assert layer.bounds[name] == pytest.approx((low, high))
    assert layer.weight.abs().max().item() == pytest.approx(20**-0.5, rel=1e-2)
    assert layer.options.surrogate == bs.Boxcar(width=1.0, height=1.0)
    assert layer.options.detach_spikes is False and layer.options.batch_norm
    small = bs.AdLIFLayer(20, 50, dt_ms=10.0).recurrent_weight
    assert small is not None and torch.allclose(small @ small.T, torch.eye(50), atol=1e-5)


def test_c_silif_starts_as_published():
    torch.manual_seed(0)
    layer = bs.CSiLIFLayer(20, 2000, dt_ms=10.0)
    log_step = layer.log_time_step
    low, high = math.log(0.01), math.log(0.5)
    assert low <= log_step.min() < low + 0.05 and high - 0.05 < log_step.max() <= high
    assert log_step.mean().item() == pytest.approx((low + high) / 2, abs=0.15)
    assert torch.allclose(layer.log_rate.exp(), torch.tensor(0.5))
    assert torch.allclose(layer.frequency, torch.tensor(math.pi))
    assert 0 <= layer.b.min() < 0.01 and 0.99 < layer.b.max() <= 1
    assert layer.recurrent_weight is None


@pytest.mark.parametrize("kind", [bs.AdLIFLayer, bs.CSiLIFLayer])
def test_the_delay_of_the_model_is_one_step(kind):
    found = []
    for delay in (None, 1):
        torch.manual_seed(0)
        layer = kind(5, 4, dt_ms=1.0, recurrent_delay=delay)
        found.append(layer(torch.ones(6, 2, 5)))
    assert torch.equal(*found)
