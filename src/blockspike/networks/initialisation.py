"""Initial weights of a network, drawn by the rules that other libraries use."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from blockspike.networks.layer import check_choice

Init = Literal["default", "kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal"]
RecurrentInit = Literal["default", "orthogonal", "identity", "xavier_uniform"]

# Rule → function that fills [n_units, fan-in] in place.
_RULES: dict[str, Callable[[Tensor], Any]] = {
    "kaiming_uniform": partial(nn.init.kaiming_uniform_, nonlinearity="relu"),  # He et al. 2015
    "kaiming_normal": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier_uniform": nn.init.xavier_uniform_,  # Glorot & Bengio 2010
    "xavier_normal": nn.init.xavier_normal_,
    "orthogonal": nn.init.orthogonal_,  # Saxe et al. 2014
    "identity": nn.init.eye_,
}


@torch.no_grad()
def initialise_(layers: list[nn.Module], init: Init, recurrent_init: RecurrentInit) -> None:
    """Draw the weights of these layers anew, in place; "default" leaves them as they are.

    A model whose step scales its input gets input weights in its unit, see
    `NeuronLayer.input_scale`.

    Args:
        layers: hidden layers and the readout.
        init: rule for input weights.
        recurrent_init: rule for the recurrent weights [n_units, n_units] of the layers with any.

    Raises:
        ValueError: an unknown rule.
    """
    check_choice("init", init, get_args(Init))
    check_choice("recurrent_init", recurrent_init, get_args(RecurrentInit))
    for layer in layers:
        if init != "default":
            weight: Any = layer.weight
            drawn = _drawn(init, *weight.shape)
            scale = getattr(layer, "input_scale", None)
            weight.copy_(drawn if scale is None else drawn / scale)
        weight = getattr(layer, "recurrent_weight", None)
        if recurrent_init != "default" and weight is not None:
            weight.copy_(_drawn(recurrent_init, *weight.shape))


def _drawn(rule: str, n_units: int, fan_in: int) -> Tensor:
    drawn = torch.empty(n_units, fan_in)
    _RULES[rule](drawn)
    return drawn
