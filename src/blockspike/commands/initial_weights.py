"""`init_from`: training that starts from the weights of another network."""

import re
from pathlib import Path

import torch

from blockspike.networks.classifier import SpikingClassifier
from blockspike.pretrained import read_network
from blockspike.pretrained.loaded_run import chosen_weights
from blockspike.runs.run import Run

_MAY_DIFFER = re.compile(r"readout\.")  # another number of classes


def start_from(network: SpikingClassifier, source: str) -> list[str]:
    """Give a network the weights of another one, all but a readout of other classes.

    Args:
        network: changed in place.
        source: folder of a run, a name of `pretrained_names`, or a file that `blockspike publish`
            wrote.

    Returns:
        Names of the parameters of the readout that keep their initial weights, since their shapes
        differ.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: the run is not finished, a file is damaged, or a parameter of a hidden layer is
            missing or of another shape; names all of them.
    """
    weights = _weights(source)
    own = network.state_dict()
    differing = {
        name: f"{name} {_shape(own.get(name))}, there {_shape(weights.get(name))}"
        for name in sorted(own.keys() | weights.keys())
        if _shape(own.get(name)) != _shape(weights.get(name))
    }
    hidden = [text for name, text in differing.items() if not _MAY_DIFFER.match(name)]
    if hidden:
        raise ValueError(
            f"init_from: expected hidden layers as in {source}, got {'; '.join(hidden)}"
        )
    same = {name: x for name, x in weights.items() if name not in differing}
    network.load_state_dict({**own, **same})
    return list(differing)


def _weights(source: str) -> dict[str, torch.Tensor]:
    folder = Path(source)
    if folder.is_dir():
        Run(folder).check_finished("init_from")  # else its weights may still change
        return chosen_weights(Run(folder))
    return dict(read_network(source)[1].state_dict())


def _shape(x: torch.Tensor | None) -> str:
    return "missing" if x is None else str(list(x.shape))
