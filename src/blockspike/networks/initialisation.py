"""Initial weights of a network, drawn by the rules that other libraries use."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

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

    A layer's input weights [rf_len, n_units, n_inputs] have a fan-in of rf_len · n_inputs. A model
    whose step scales its input gets them in its own unit, see `NeuronLayer.weight_scale`.

    Args:
        layers: hidden layers and the readout.
        init: rule for input weights.
        recurrent_init: rule for the recurrent weights [n_units, n_units] of the layers with any.

    Raises:
        ValueError: a layer has no such input weights, or no layer has recurrent weights.
    """
    for layer in layers if init != "default" else ():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or weight.ndim != 3:
            raise ValueError(
                "init: expected default for layers without a weight [rf_len, n_units, n_inputs], "
                f"got {init} for {type(layer).__name__}"
            )
        rf_len, n_units, n_inputs = weight.shape
        drawn = _drawn(init, n_units, rf_len * n_inputs).view(n_units, rf_len, n_inputs)
        weight.copy_(drawn.transpose(0, 1) * getattr(layer, "weight_scale", 1.0))
    if recurrent_init == "default":
        return
    recurrent = [getattr(layer, "recurrent_weight", None) for layer in layers]
    found = [weight for weight in recurrent if isinstance(weight, Tensor)]
    if not found:
        raise ValueError(
            f"recurrent_init: expected default for layers without recurrence, got {recurrent_init}"
        )
    for weight in found:
        weight.copy_(_drawn(recurrent_init, *weight.shape))


def _drawn(rule: str, n_units: int, fan_in: int) -> Tensor:
    drawn = torch.empty(n_units, fan_in)
    _RULES[rule](drawn)
    return drawn
