"""Second derivatives: right where they exist, an error of PyTorch elsewhere."""

import math
from functools import partial
from typing import Any

import pytest
import torch
from neuron_cases import SURROGATES, assert_close, distance_of_alif, make_inputs

from blockspike.fitting.distance import Window, squared_distance
from blockspike.fitting.metrics import van_rossum_distance
from blockspike.networks import readout
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.convolution import causal_convolution
from blockspike.networks.delays import Delays
from blockspike.networks.synapses import synaptic_current
from blockspike.neurons import Boxcar, FastSigmoid, alif, blocks, leaky_integrate, loop
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.euler_adlif import euler_adlif
from blockspike.neurons.events import EventBatch
from blockspike.neurons.surrogates import MultiGaussian, Surrogate


def integral(margin, surrogate: Surrogate):
    """Integral of the surrogate derivative, which PyTorch can differentiate to any order."""
    if isinstance(surrogate, FastSigmoid):
        return margin / (1 + 10 * margin.abs())
    if isinstance(surrogate, Boxcar):
        return margin.clamp(-0.5, 0.5)

    def normal(mean, std):
        return 0.5 * torch.erf((margin - mean) / (std * math.sqrt(2)))

    return 0.5 * (1.15 * normal(0, 0.5) - 0.15 * (normal(0.5, 3) + normal(-0.5, 3)))


def straight_through(margin, surrogate: Surrogate):
    """Spike whose derivatives of all orders are those of `integral`."""
    smooth = integral(margin, surrogate)
    return (margin > 0).to(margin.dtype) + smooth - smooth.detach()


def integrate_by_a_loop(current, beta, start=None):
    """`leaky_integrate` in plain PyTorch operations."""
    state, out = torch.zeros_like(current[0]) if start is None else start, []
    for row in current:
        state = beta * state + row
        out.append(state)
    return torch.stack(out)


def second_derivatives(function, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gradients of Σ |gradient|² for every input, of a random weighting of function(**inputs)."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in inputs.items()}
    out = function(**leaves)
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    first = torch.autograd.grad(
        (weights * out).sum(), list(leaves.values()), create_graph=True, allow_unused=True
    )
    penalty = sum(g.square().sum() for g in first if g is not None)
    assert isinstance(penalty, torch.Tensor) and penalty > 0
    second = torch.autograd.grad(
        penalty, list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, second, strict=True))


def assert_second_derivatives(found, expected) -> None:
    assert any(value.any() for value in expected.values())
    for name, value in expected.items():
        assert_close(found[name], value, 1e-9, name, scale=1.0)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_second_derivatives_of_the_alif_loop(surrogate, detach_spikes, recurrent, monkeypatch):
    inputs = make_inputs((30, 2, 4), recurrent=recurrent)

    def spikes(**inputs):
        options: dict[str, Any] = {"surrogate": surrogate, "detach_spikes": detach_spikes}
        return alif(**inputs, **options, arp=2, method="standard").spikes

    found = second_derivatives(spikes, inputs)
    monkeypatch.setattr(loop, "spike", straight_through)
    assert_second_derivatives(found, second_derivatives(spikes, inputs))


@pytest.mark.parametrize("detach_spikes", [True, False])
def test_second_derivatives_of_parallel_blocks(detach_spikes, monkeypatch):
    inputs = make_inputs((30, 2, 4), recurrent=True)

    def spikes(**inputs):
        options: dict[str, Any] = {"method": "blocks", "membrane": True}  # not by the kernel
        return alif(**inputs, **options, detach_spikes=detach_spikes, arp=2).spikes

    found = second_derivatives(spikes, inputs)
    monkeypatch.setattr(blocks, "spike", straight_through)
    assert_second_derivatives(found, second_derivatives(spikes, inputs))


@pytest.mark.parametrize("euler", ["symplectic", "forward"])
def test_second_derivatives_of_the_adlif_loop(euler, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    inputs = {"current": 2 + 8 * torch.randn(30, 2, 4, generator=generator).double()}
    for name in ("alpha", "beta", "a", "b"):
        inputs[name] = 0.2 + 0.6 * torch.rand(4, generator=generator).double()

    def spikes(**inputs):
        options: dict[str, Any] = {"euler": euler, "method": "standard", "q": 3.0}
        return euler_adlif(**inputs, **options, detach_spikes=False).spikes

    found = second_derivatives(spikes, inputs)
    monkeypatch.setattr(loop, "spike", straight_through)
    assert_second_derivatives(found, second_derivatives(spikes, inputs))


def random(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape))).double()


def test_second_derivatives_of_the_leaky_integrator_and_its_uses():
    assert torch.autograd.gradgradcheck(
        leaky_integrate, (random(5, 2, 3).requires_grad_(), random(3).requires_grad_())
    )
    x, y = random(6, 1, 4).requires_grad_(), random(6, 1, 2)
    assert torch.autograd.gradgradcheck(lambda x: van_rossum_distance(x[..., :2], y, 3.0, 1.0), x)
    assert torch.autograd.gradgradcheck(
        lambda x: squared_distance(x, y, 0.7, Window(1, 5, 6))[0], x
    )


def test_second_derivatives_of_dense_synapses_convolution_and_delays():
    x, weight, bias = random(6, 2, 3), random(2, 4, 3), random(4)
    inputs = [value.requires_grad_() for value in (x, weight, bias)]
    assert torch.autograd.gradgradcheck(synaptic_current, inputs)
    assert torch.autograd.gradgradcheck(causal_convolution, inputs[:2])
    torch.manual_seed(0)
    delays = Delays(4, 3, 8).double()
    delays.sigma.fill_(1e-9)  # in each call the same delays are drawn
    inputs[1] = random(4, 3).requires_grad_()
    assert torch.autograd.gradgradcheck(partial(delays.current, mode="dense"), inputs)


def make_network(**options) -> Any:
    torch.manual_seed(0)
    net: Any = SpikingClassifier(10, 3, 8, dt_ms=1.0, arp_ms=2.0, **options).double()
    with torch.no_grad():
        for layer in net.layers:
            layer.weight.mul_(4)
    return net


def test_a_gradient_penalty_of_a_whole_network(monkeypatch):
    net = make_network(method="standard", synapses="dense")
    spikes = (random(25, 2, 10) < 0.3).double()

    def scores(x, **parameters):
        return torch.func.functional_call(net, parameters, (x,)).scores

    inputs = {"x": spikes} | dict(net.named_parameters())
    found = second_derivatives(scores, inputs)
    monkeypatch.setattr(loop, "spike", straight_through)
    monkeypatch.setattr(readout, "leaky_integrate", integrate_by_a_loop)
    expected = second_derivatives(scores, inputs)
    assert_second_derivatives(found, expected)
    assert all(value.any() for name, value in expected.items() if "weight" in name)


def fused_alif():
    inputs = make_inputs((9, 2, 4), recurrent=True)
    return alif(**inputs).spikes, inputs["current"]


def fused_adlif():
    current = random(9, 2, 4).requires_grad_()
    return euler_adlif(current, *random(4, 4)).spikes, current


def blocks_by_their_kernel():
    inputs = make_inputs((9, 2, 4))
    return alif(**inputs, arp=1, method="blocks").spikes, inputs["current"]


def fitting():
    current, target, beta = random(9, 2, 4), random(9, 2, 4).round(), random(4).requires_grad_()
    values = (beta, *random(5, 4))
    options: dict[str, Any] = {"surrogate": MultiGaussian(), "decay": 0.9, "arp": 1}
    return distance_of_alif(current, target, *values, window=Window(0, 9, 9), **options)[0], beta


def events():
    weight = random(1, 4, 3).requires_grad_()
    batch = EventBatch.from_dense((random(9, 2, 3) < 0.2).long())
    return synaptic_current(batch, weight, random(4), mode="events"), weight


def fired_spikes():
    spikes, weight = (random(9, 2, 3) < 0.1).double().requires_grad_(), random(1, 4, 3)
    return synaptic_current(spikes, weight, random(4), events=SpikeEvents(spikes.detach())), spikes


KERNELS = [
    fused_alif,
    fused_adlif,
    blocks_by_their_kernel,
    fitting,
    events,
    fired_spikes,
]


@pytest.mark.parametrize("operation", KERNELS, ids=lambda function: function.__name__)
def test_kernels_have_no_second_derivative(operation):
    """PyTorch says so; a second derivative that lacks a part would be worse."""
    out, leaf = operation()
    (expected,) = torch.autograd.grad(out.sum(), leaf, retain_graph=True)
    (grad,) = torch.autograd.grad(out.sum(), leaf, create_graph=True)
    assert expected.any() and torch.equal(grad.detach(), expected)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.square().sum(), leaf, retain_graph=True)
    with pytest.raises(RuntimeError):
        grad.square().sum().backward()


def test_a_gradient_penalty_is_not_silently_wrong():
    """A network with default options raises, by whichever of its kernels comes first."""
    net = make_network()
    x = (random(25, 2, 10) < 0.3).double().requires_grad_()
    (grad,) = torch.autograd.grad(net(x).scores.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError):
        grad.square().sum().backward()
