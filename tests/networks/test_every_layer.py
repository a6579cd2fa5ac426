"""What layers of every model have in common, and the layer of GLIF neurons."""

from typing import Any

import pytest
import torch
from torch import Tensor

import blockspike as bs

LAYERS = [bs.ALIFLayer, bs.AdLIFLayer, bs.CSiLIFLayer, bs.EulerAdLIFLayer, bs.GLIFLayer]
PARTS: dict[str, Any] = {
    "tau_membrane_ms": [10.0, 20.0, 30.0, 40.0],
    "refractory_ms": [0.0, 1.0, 2.4, 3.0],
    "reset_share": 0.1,
    "after_spike_currents": [([0.1, 0.0, 0.2, -0.1], 20.0), (0.05, 100.0)],
    "threshold_kernels": [(0.5, [30.0, 60.0, 90.0, 120.0])],
}


def made(kind: Any, n_units: int = 4, **options: Any) -> Any:
    torch.manual_seed(0)
    layer = kind(12, n_units, dt_ms=1.0, **options)
    with torch.no_grad():
        layer.weight *= 20
    return layer


def spikes(n_steps: int = 60) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(n_steps, 3, 12, generator=generator) < 0.3).float()


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("max_delay", [0, 3])
def test_batch_first_and_single_samples(kind, max_delay):
    layer, x = made(kind, max_delay=max_delay).eval(), spikes()
    other = made(kind, max_delay=max_delay, batch_first=True).eval()
    expected = layer.trace(x, membrane=True)
    assert expected.spikes.any()
    for given in (x.transpose(0, 1), bs.EventBatch.from_dense(x)):
        trace = other.trace(given, membrane=True)
        assert torch.equal(trace.spikes.transpose(0, 1), expected.spikes)
        assert torch.equal(trace.membrane.transpose(0, 1), expected.membrane)
        assert torch.equal(trace.state.values, expected.state.values)
    first = layer.trace(x[:20, 1])
    second = layer.trace(x[20:, 1], first.state)
    assert torch.equal(torch.cat([first.spikes, second.spikes]), expected.spikes[:, 1])
    assert first.state.values.shape[1:] == (4,)


def test_a_network_may_be_batch_first():
    networks = []
    for batch_first in (False, True):
        torch.manual_seed(0)
        networks.append(bs.SpikingClassifier(12, 3, 5, dt_ms=1.0, batch_first=batch_first))
    x = 20 * spikes()
    expected, output = networks[0](x), networks[1](x.transpose(0, 1))
    assert torch.equal(output.scores, expected.scores) and expected.spikes[1].any()
    assert torch.equal(output.readout.transpose(0, 1), expected.readout)
    for own, other, rates, wanted in zip(
        output.spikes, expected.spikes, output.rates_by_neuron, expected.rates_by_neuron,
        strict=True,
    ):  # fmt: skip
        assert torch.equal(own.transpose(0, 1), other) and torch.equal(rates, wanted)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_on_a_cpu_computes_in_float32(kind, dtype):
    layer, x = made(kind).to(dtype).eval(), spikes()
    single = made(kind).eval()
    single.load_state_dict(layer.state_dict())
    trace, expected = layer.trace(x.to(dtype)), single.trace(x)
    assert trace.spikes.dtype == trace.state.values.dtype == torch.float32
    assert torch.equal(trace.spikes, expected.spikes) and trace.spikes.any()
    trace.spikes.sum().backward()
    assert layer.weight.grad.dtype == dtype and layer.weight.grad.any()


@pytest.mark.parametrize("kind", LAYERS)
def test_half_precision_trains_with_batch_norm(kind):
    layer, single = (made(kind, batch_norm=True).bfloat16() for _ in range(2))
    single = single.float()
    for own, x in ((layer, spikes().bfloat16()), (single, spikes())):
        torch.manual_seed(3)
        own(x).sum().backward()
    assert layer.weight.grad.any() and layer.norm.gain.grad.dtype == torch.bfloat16
    torch.testing.assert_close(layer.norm.mean.float(), single.norm.mean, rtol=1e-2, atol=1e-4)


def test_a_wrong_number_of_values_or_inputs_is_named():
    with pytest.raises(ValueError, match="^tau_membrane_ms: .* each of 4 neurons, got 2$"):
        made(bs.GLIFLayer, tau_membrane_ms=[10.0, 20.0])
    with pytest.raises(ValueError, match=r"^input: expected \[T, B, 12\], .* got \[60, 3, 5\]"):
        made(bs.ALIFLayer)(spikes()[..., :5])


def test_glif_layers_mix_neurons():
    layer, x = made(bs.GLIFLayer, **PARTS).double(), spikes().double()
    decay = torch.exp(-1 / torch.tensor([20.0, 100.0])).double()
    trace = bs.glif(
        layer.current(x),
        layer.beta,
        reset_share=torch.full((4,), 0.1).double(),
        refractory=torch.tensor([0.0, 1.0, 2.0, 3.0]).double(),
        after_spike_currents=[
            (torch.tensor([0.1, 0.0, 0.2, -0.1]).double(), decay[0].expand(4)),
            (torch.full((4,), 0.05).double(), decay[1].expand(4)),
        ],
        threshold_kernels=[(layer.threshold_1, layer.threshold_decay_1)],
        recurrent_weight=layer.recurrent_weight,
    )
    assert torch.equal(layer(x), trace.spikes) and trace.spikes.any()
    alone = made(bs.GLIFLayer, recurrent=False, **PARTS)
    own: dict[str, Any] = {"tau_membrane_ms": 30.0, "refractory_ms": 2.0, "reset_share": 0.1}
    own |= {"after_spike_currents": [(0.2, 20.0), (0.05, 100.0)]}
    third = made(bs.GLIFLayer, recurrent=False, **own, threshold_kernels=[(0.5, 90.0)])
    third.load_state_dict({"weight": alone.weight, "bias": alone.bias}, strict=False)
    assert torch.equal(third(spikes())[..., 2], alone(spikes())[..., 2])


def test_glif_layers_train_the_parameters_that_are_named():
    names = ["beta", "threshold_1", "current_decay_2", "coupling", "coupling_width"]
    layer = made(bs.GLIFLayer, trainable=names, threshold_coupling=(0.3, 20.0, 0.5, 0.2), **PARTS)
    before = {name: x.clone() for name, x in layer.state_dict().items()}
    optimizer = torch.optim.SGD(layer.parameters(), 1.0)
    layer(spikes()).sum().backward()
    optimizer.step()
    trained = {name for name, x in layer.state_dict().items() if not torch.equal(x, before[name])}
    assert trained == {*names, "weight", "bias", "recurrent_weight"}
    assert (layer.beta <= 0.99999).all() and (layer.coupling_width >= 1e-3).all()
    for unknown in ("refractory", "threshold_2"):
        with pytest.raises(ValueError, match="^trainable: expected some of beta, coupling"):
            made(bs.GLIFLayer, trainable=[unknown], threshold_coupling=(0.3, 20.0, 0.5, 0.2))
    with pytest.raises(ValueError, match="^threshold_kernels: expected 0.001 ≤ threshold_decay_1"):
        made(bs.GLIFLayer, threshold_kernels=[(0.5, 0.1)])  # in seconds


@pytest.mark.slow
def test_glif_from_the_command_line(blockspike, tmp_path):
    small = ("data=nmnist_sample", "data.n_steps=20", "network.n_hidden=16", "trainer.max_epochs=1")
    blockspike("train", *small, "model=glif", "model.trainable=[beta,current_1]")
    (result,) = tmp_path.rglob("result.json")
    blockspike("evaluate", str(result.parent))
