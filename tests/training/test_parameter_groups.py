"""Optimisers with groups of parameters."""

from functools import partial
from typing import Any

import pytest
import torch

from blockspike.networks.classifier import SpikingClassifier
from blockspike.training.classification import ClassificationModule


def network(**options: Any) -> SpikingClassifier:
    torch.manual_seed(0)
    return SpikingClassifier(6, 2, n_hidden=4, n_layers=2, dt_ms=1.0, max_delay=3, **options)


def optimizer_of(net: SpikingClassifier, make: Any, **options: Any) -> torch.optim.Optimizer:
    return ClassificationModule(net, 2, 1.0, make, **options).configure_optimizers()


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RAdam])
def test_weight_decay_acts_on_synaptic_weights_alone(make):
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = optimizer_of(net, partial(make, lr=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.endswith("weight")}
    assert len(changed) == 5


def test_without_weight_decay_all_parameters_are_one_group():
    (group,) = optimizer_of(network(), partial(torch.optim.Adam, lr=0.1)).param_groups
    assert len(group["params"]) == len(list(network().parameters())) - 2  # b is not trained
