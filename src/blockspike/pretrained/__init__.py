"""Trained networks: those that come with blockspike, by name, and your own, one file each.

A file is safetensors: the network's parameters by name and, as JSON in its metadata, what it is
made of and how it was trained. Nothing in it is unpickled or evaluated.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from blockspike.config.build import build_network
from blockspike.files import whole_file
from blockspike.networks.classifier import SpikingClassifier

_FORMAT = "blockspike-network-1"
_FOLDER = Path(__file__).parent
_MOST_CHARACTERS = 1 << 16


@dataclass(frozen=True)
class NetworkFile:
    """What a file holds beside the parameters.

    Attributes:
        n_inputs, n_classes: sizes of the network.
        dt_ms: length of a step.
        model, network: as in the configuration.
        data: configuration of the data that it was trained on, which says how they become input.
        data_config: the name of that configuration.
        card: data set, commit, scores and the like, by name.
    """

    n_inputs: int
    n_classes: int
    dt_ms: float
    model: dict[str, Any]
    network: dict[str, Any]
    data: dict[str, Any]
    data_config: str
    card: dict[str, Any]


def pretrained_names() -> list[str]:
    """The networks that come with blockspike; each has a card, `pretrained/NAME.md`."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def load_pretrained(name: str | Path) -> SpikingClassifier:
    """A trained network, ready to be used: `load_pretrained(name)(events).scores`.

    Args:
        name: one of `pretrained_names`, or the path of a file that `blockspike publish` wrote.

    Raises:
        FileNotFoundError: no such network.
        ValueError: not such a file, or damaged.
    """
    return read_network(name)[1]


def about_pretrained(name: str | Path) -> NetworkFile:
    """What the file of a trained network says of it; arguments and errors as `load_pretrained`."""
    return _read(_path(name))[0]


def read_network(name: str | Path) -> tuple[NetworkFile, SpikingClassifier]:
    """Both of one file; arguments and errors as `load_pretrained`."""
    path = _path(name)
    about, tensors = _read(path)
    try:
        network = build_network(OmegaConf.create(vars(about)), about)
        network.to(weights_dtype(tensors))
        network.load_state_dict(tensors)
        network.project_()
    except (ValueError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: does not make a network ({text})") from error
    return about, network.eval()


def save_pretrained(path: Path, network: SpikingClassifier, about: NetworkFile) -> None:
    """Write a network for `load_pretrained`; the file appears under its name when complete."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    metadata = {"format": _FORMAT, "about": json.dumps(vars(about))}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def weights_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """The floating dtype of a network's parameters; float32 if there are none."""
    return next((x.dtype for x in tensors.values() if x.is_floating_point()), torch.float32)


def _path(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix != ".safetensors":
        path = _FOLDER / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(pretrained_names())
        raise FileNotFoundError(f"{name}: expected a .safetensors file or one of {names}")
    return path


def _checked(text: str) -> NetworkFile:
    """What the metadata say, which may be a stranger's."""
    if len(text) > _MOST_CHARACTERS or "${" in text:
        raise ValueError(f"expected at most {_MOST_CHARACTERS} characters and no interpolations")
    about = NetworkFile(**json.loads(text))
    nodes = (about.model, about.network, about.data, about.card)
    sizes = (about.n_inputs, about.n_classes, about.network["n_hidden"], about.network["n_layers"])
    if not all(type(node) is dict for node in nodes) or not all(type(n) is int for n in sizes):
        raise ValueError("expected model, network, data and card by name, sizes as integers")
    if type(about.card["test_accuracy"]) is not float or type(about.data_config) is not str:
        raise ValueError("expected card.test_accuracy as a number, data_config as a name")
    return about


def _check(about: NetworkFile, tensors: dict[str, torch.Tensor]) -> None:
    """Numbers, and sizes before anything is made of them."""
    largest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    layers = {key.split(".")[1] for key in tensors if key.startswith("layers.")}
    sizes = (about.n_inputs, about.n_classes, about.network["n_hidden"])
    if max(sizes) > largest or about.network["n_layers"] != len(layers):
        raise ValueError("sizes of the network are not those of its parameters")
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("holds a NaN or Inf")


def _read(path: Path) -> tuple[NetworkFile, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ValueError(f"expected format {_FORMAT}, got {metadata.get('format')}")
            about = _checked(metadata["about"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        _check(about, tensors)
    except (SafetensorError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: not a trained network ({error})") from error
    return about, tensors
