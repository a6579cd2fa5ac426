"""`init_from`: training that starts from the weights of another network."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from blockspike.app.loaded_run import chosen_weights
from blockspike.app.pretrained import read_weights
from blockspike.networks.classifier import SpikingClassifier
from blockspike.runs.identity import is_fit
from blockspike.runs.run import Run
from blockspike.training.guard import warn

_MAY_DIFFER = re.compile(r"readout\.")  # another number of classes
_LEARNED = (  # start as in the other network
    "tau_membrane_ms", "tau_adaptation_ms", "b", "a", "tau_membrane_steps", "tau_adaptation_steps",
    "rate", "frequency", "time_step",
)  # fmt: skip
_OF_STEP = ("q", "arp_ms", "recurrent_delay")  # what a step of the neurons depends on besides


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
    network.project_()
    return list(differing)


def check_settings(cfg: DictConfig, source: str) -> None:
    """Warn of settings in which a run differs from `source`, the network that it starts from.

    Raises:
        ValueError: the weights would mean something else: the neurons are of another model, or
            delays, which are stored as shares of the longest, have another longest one.
    """
    model, dt_ms = _origin(source)
    for key in ("_target_", "euler", "max_delay", "recurrent_max_delay"):
        there, here = _value(model, key), _value(cfg.model, key)
        if there != here:
            raise ValueError(f"init_from: expected model.{key}={there} as in {source}, got {here}")
    for key in (*_LEARNED, *_OF_STEP):
        if key in model and key in cfg.model and cfg.model[key] != model[key]:
            there, here = f"model.{key}={model[key]}", f"model.{key}={cfg.model[key]}"
            if key in _LEARNED:
                warn(
                    f"init_from: the neurons start as those of {source} ({there}), not with {here}"
                )
            else:
                warn(f"init_from: {source} was trained with {there}, this run is with {here}")
    if dt_ms != cfg.data.dt_ms:
        warn(
            f"init_from: time constants are kept in steps, so those of {source}, trained in steps "
            f"of {dt_ms:g} ms, become {cfg.data.dt_ms / dt_ms:.3g} times as long"
        )


def _value(model: Mapping[str, Any], key: str) -> Any:
    """A setting of the model; the name of a class alone, 0 for what is left out."""
    if key == "_target_":
        return str(model.get(key) or "ALIFLayer").rpartition(".")[2]
    return model.get(key) or 0


def _origin(source: str) -> tuple[dict[str, Any], float]:
    """Configuration of a network's neurons, and its time step in ms."""
    if Path(source).is_dir():
        run = Run(Path(source))
        run.finished("init_from")
        cfg = run.config()
        if is_fit(cfg):
            raise ValueError(f"init_from: expected a classifier, got the fit {source}")
        return dict(cfg.model), cfg.data.dt_ms
    about, _ = read_weights(source)
    return about.model, about.dt_ms


def _weights(source: str) -> dict[str, torch.Tensor]:
    folder = Path(source)
    if folder.is_dir():
        Run(folder).finished("init_from")  # else its weights may still change
        return chosen_weights(Run(folder))
    return read_weights(source)[1]


def _shape(x: torch.Tensor | None) -> str:
    return "missing" if x is None else str(list(x.shape))
