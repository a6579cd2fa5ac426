"""Trained networks: those shipped with blockspike, by name, and your own, one file each.

A file is in the safetensors format. It holds the network's parameters by name and, as JSON in the
metadata, its configuration and how it was trained. Nothing in it is unpickled or evaluated.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from blockspike.app.build import build_network, check_targets
from blockspike.files import whole_file
from blockspike.networks.classifier import SpikingClassifier

_FORMAT = "blockspike-network-1"
_FOLDER = Path(__file__).parents[1] / "pretrained"


@dataclass(frozen=True)
class NetworkFile:
    """Description of a trained network, stored in its file with the parameters.

    Attributes:
        n_inputs, n_classes: sizes of the network.
        dt_ms: length of a step in ms.
        model, network: the `model` and `network` nodes of the configuration.
        data: configuration of the training data, which defines how data become input.
        data_config: name of that configuration.
        card: data set, commit, scores and other facts about the training, by name.
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
    """Names of the networks shipped with blockspike; each has a card, `pretrained/NAME.md`.

    Examples:
        >>> import blockspike as bs
        >>> bs.pretrained_names()[:3]
        ['hd_lauscher_alif', 'hd_lauscher_ef_adlif', 'hd_lauscher_se_adlif']
    """
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def load_pretrained(name: str | Path, trust: bool = False) -> SpikingClassifier:
    """Load a trained network, ready for use: `load_pretrained(name)(events).scores`.

    Args:
        name: a name from `pretrained_names`, or the path of a file written by `blockspike publish`.
        trust: run code that the file names and blockspike's configuration does not.

    Returns:
        The network, in evaluation mode.

    Raises:
        FileNotFoundError: no such network.
        ValueError: the file is of another kind, or would run other code and is not trusted.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> network = bs.load_pretrained("hd_lauscher_alif")
        >>> network(torch.zeros(120, 1, 140)).scores.shape  # [T, B, channels] → [B, digits]
        torch.Size([1, 20])
    """
    return read_network(name, trust)[1]


def about_pretrained(name: str | Path) -> NetworkFile:
    """Read the description of a trained network; arguments and errors as in `load_pretrained`."""
    return _read(_path(name))[0]


def read_network(name: str | Path, trust: bool = False) -> tuple[NetworkFile, SpikingClassifier]:
    """Read description and network; arguments and errors as in `load_pretrained`."""
    path = _path(name)
    about, tensors = _read(path)
    if not trust:
        check_targets(about.model | about.network, str(path))
    network = build_network(OmegaConf.create(vars(about)), about)
    network.to(weights_dtype(tensors))
    load_weights(network, tensors, str(path))
    network.project_()
    return about, network.eval()


def save_pretrained(path: Path, network: SpikingClassifier, about: NetworkFile) -> None:
    """Write a network for `load_pretrained`; the file appears at `path` only when complete."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    metadata = {"format": _FORMAT, "about": json.dumps(vars(about))}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_weights(network: nn.Module, weights: dict[str, torch.Tensor], source: str) -> None:
    """Load weights, or raise ValueError if they are of another network."""
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"{source}: holds weights of another network ({error})") from error


def read_weights(name: str | Path) -> tuple[NetworkFile, dict[str, torch.Tensor]]:
    """Description and parameters; arguments and errors as in `load_pretrained`."""
    return _read(_path(name))


def weights_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """Floating-point dtype of a network's parameters; float32 if there are none."""
    return next((x.dtype for x in tensors.values() if x.is_floating_point()), torch.float32)


def _path(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix != ".safetensors":
        path = _FOLDER / f"{name}.safetensors"
    if not path.is_file():
        names = ", ".join(pretrained_names())
        raise FileNotFoundError(f"{name}: expected a .safetensors file or one of {names}")
    return path


def _read(path: Path) -> tuple[NetworkFile, dict[str, torch.Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:  # pyright: ignore[reportPrivateImportUsage]
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}") from error
    text = metadata.get("about", "")
    if metadata.get("format") != _FORMAT or "${" in text:  # an interpolation could read anything
        raise ValueError(f"{path}: expected a trained network that blockspike publish wrote")
    return NetworkFile(**json.loads(text)), tensors
