"""An optimiser's parameters in groups: weight decay for synaptic weights alone."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer


def make_optimizer(
    make: Callable[[Any], Optimizer], parameters: Mapping[str, nn.Parameter]
) -> Optimizer:
    """Make an optimiser whose weight decay acts on synaptic weights alone.

    Without weight decay, all parameters are one group. With it, biases, delays and the neurons'
    parameters, which decay would pull to 0, are a group of their own.

    Args:
        make: makes the optimiser from parameters or groups of them.
        parameters: the parameters by name; the last part of a weight's name ends in "weight".
    """
    optimizer = make(list(parameters.values()))
    if not optimizer.defaults.get("weight_decay"):
        return optimizer
    weights = [p for name, p in parameters.items() if name.endswith("weight")]
    others = [p for name, p in parameters.items() if not name.endswith("weight")]
    return make([{"params": weights}, {"params": others, "weight_decay": 0.0}])
