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

from blockspike.config.build import build_network
from blockspike.files import whole_file
from blockspike.networks.classifier import SpikingClassifier

_FORMAT = "blockspike-network-1"
_FOLDER = Path(__file__).parent
_FORMER = {f"{data}_adlif": f"{data}_ef_adlif" for data in ("hd_lauscher", "nmnist_sample")}
_MOST_CHARACTERS = 1 << 16


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


def load_pretrained(name: str | Path) -> SpikingClassifier:
    """Load a trained network, ready for use: `load_pretrained(name)(events).scores`.

    Args:
        name: a name from `pretrained_names`, or the path of a file written by `blockspike publish`.

    Returns:
        The network, in evaluation mode.

    Raises:
        FileNotFoundError: no such network.
        ValueError: the file is damaged or of another kind.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> network = bs.load_pretrained("hd_lauscher_alif")
        >>> network(torch.zeros(120, 1, 140)).scores.shape  # [T, B, channels] → [B, digits]
        torch.Size([1, 20])
    """
    return read_network(name)[1]


def about_pretrained(name: str | Path) -> NetworkFile:
    """Read the description of a trained network; arguments and errors as in `load_pretrained`."""
    return _read(_path(name))[0]


def read_network(name: str | Path) -> tuple[NetworkFile, SpikingClassifier]:
    """Read description and network; arguments and errors as in `load_pretrained`."""
    path = _path(name)
    about, tensors = _read(path)
    try:
        network = build_network(OmegaConf.create(vars(about)), about)
        network.to(weights_dtype(tensors))
        network.load_state_dict(tensors)
        network.project_()
    except (ValueError, TypeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: expected a network that can be built ({text})") from error
    return about, network.eval()


def save_pretrained(path: Path, network: SpikingClassifier, about: NetworkFile) -> None:
    """Write a network for `load_pretrained`; the file appears at `path` only when complete."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    metadata = {"format": _FORMAT, "about": json.dumps(vars(about))}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def weights_dtype(tensors: dict[str, torch.Tensor]) -> torch.dtype:
    """Floating-point dtype of a network's parameters; float32 if there are none."""
    return next((x.dtype for x in tensors.values() if x.is_floating_point()), torch.float32)


def _path(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix != ".safetensors":
        path = _FOLDER / f"{_FORMER.get(str(name), name)}.safetensors"
    if not path.is_file():
        names = ", ".join(pretrained_names())
        raise FileNotFoundError(f"{name}: expected a .safetensors file or one of {names}")
    return path


def _checked(text: str) -> NetworkFile:
    """Parse and check the metadata of a file, which may be untrusted."""
    if len(text) > _MOST_CHARACTERS or "${" in text:
        raise ValueError(f"expected at most {_MOST_CHARACTERS} characters and no interpolations")
    about = NetworkFile(**json.loads(text))
    nodes = (about.model, about.network, about.data, about.card)
    counts = (about.n_inputs, about.n_classes, about.network["n_layers"], *_hidden(about))
    if not all(type(node) is dict for node in nodes) or not all(type(n) is int for n in counts):
        raise ValueError("expected model, network, data and card as mappings, and integer sizes")
    if type(about.card["test_accuracy"]) is not float or type(about.data_config) is not str:
        raise ValueError("expected card.test_accuracy as a float and data_config as a string")
    return about


def _hidden(about: NetworkFile) -> list[Any]:
    """Number of neurons in each hidden layer, or once if it is the same in all; unchecked."""
    n_hidden = about.network["n_hidden"]
    return n_hidden if type(n_hidden) is list else [n_hidden]


def _check(about: NetworkFile, tensors: dict[str, torch.Tensor]) -> None:
    """Check that sizes match the parameters, before allocating, and that parameters are finite."""
    largest = max((n for tensor in tensors.values() for n in tensor.shape), default=0)
    layers = {key.split(".")[1] for key in tensors if key.startswith("layers.")}
    sizes = (about.n_inputs, about.n_classes, *_hidden(about))
    if max(sizes) > largest or about.network["n_layers"] != len(layers):
        raise ValueError("expected sizes that match the parameters, got others")
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("expected finite parameters, got a NaN or Inf")


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
        raise ValueError(f"{path}: expected a trained network ({error})") from error
    return about, tensors
