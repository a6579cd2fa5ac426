"""Contenders are timed only if they compute the same."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from blockspike.benchmark import layers
from blockspike.benchmark.layers import CONTENDERS, OURS, Size, check, first_steps, make_inputs
from blockspike.neurons.events import EventBatch

CPU = torch.device("cpu")
SIZE = Size(n_steps=40, batch_size=3, n_inputs=300, n_units=9, arp_steps=4)


def built(size, names):
    events, dense = make_inputs(size, CPU)
    assert events is not None
    modules: dict[str, Any] = {name: CONTENDERS[name].make(size) for name in names}
    inputs = {name: events if CONTENDERS[name].takes_events else dense for name in names}
    return modules, inputs


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("n_layers", [1, 3])
def test_our_contenders_agree(n_layers, recurrent):
    size = replace(SIZE, n_layers=n_layers, recurrent=recurrent)
    modules, inputs = built(size, [contender.name for contender in OURS])
    check(size, modules, inputs)
    spikes = {name: module(inputs[name]) for name, module in modules.items()}
    assert spikes["standard"].sum() > 10
    for name, own in spikes.items():
        assert own.shape == (40, 3, 9) and torch.equal(own, spikes["standard"]), name


@pytest.mark.parametrize("name", ["fused", "blocks", "standard reference"])
def test_a_contender_with_other_spikes_is_not_timed(name):
    modules, inputs = built(SIZE, ["standard", name])
    with torch.no_grad():
        modules[name].layers[0].weight.mul_(0.9)
    with pytest.raises(RuntimeError, match=f"spikes of {name} differ"):
        check(SIZE, modules, inputs)


def test_a_contender_with_other_gradients_is_not_timed():
    modules, inputs = built(SIZE, ["standard", "fused"])
    modules["fused"].layers[0].weight.register_hook(lambda grad: 1.01 * grad)
    with pytest.raises(RuntimeError, match="gradients of fused differ"):
        check(SIZE, modules, inputs)


def test_a_silent_network_is_not_timed():
    modules, inputs = built(SIZE, ["standard", "fused"])
    with pytest.raises(RuntimeError, match="hardly any spikes"):
        check(SIZE, modules, {name: torch.zeros(40, 3, 300) for name in inputs})


def test_poisson_input_has_the_published_rates():
    events, dense = make_inputs(replace(SIZE, n_steps=400, batch_size=64), CPU)
    assert events is not None and torch.equal(events.dense(), dense)
    per_unit = dense.sum(0).mean(1)  # [sample], events per unit: r, less those lost by clipping
    assert dense.max() == 1 and per_unit.min() < 20 and 130 < per_unit.max() < 200
    assert per_unit.mean() == pytest.approx(400 * (1 - 2 * (1 - 0.5**0.5 / 1.165)), rel=0.3)


def test_uniform_input_is_not_events():
    events, dense = make_inputs(replace(SIZE, inputs="uniform"), CPU)
    assert events is None and dense.min() >= 0 and dense.max() <= 1 and dense.shape == (40, 3, 300)


def test_first_steps():
    dense = (torch.rand(7, 3, 5, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    for n in (1, 4, 7, 9):
        start = first_steps(dense, n)
        assert isinstance(start, Tensor) and torch.equal(start, dense[:n])
        cut = first_steps(EventBatch.from_dense(dense), n)
        assert isinstance(cut, EventBatch) and torch.equal(cut.dense(), dense[:n])


def test_peers_have_one_layer():
    with pytest.raises(ValueError, match="n_layers: .* got 2"):
        CONTENDERS["snnTorch"].make(replace(SIZE, n_layers=2))


def test_names_are_unique():
    assert len(CONTENDERS) == len(OURS) + len(layers.PEERS)
