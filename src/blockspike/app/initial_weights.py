"""`init_from`: training that starts from the weights of another network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockspike.app.loaded_run import chosen_weights
from blockspike.app.pretrained import read_weights
from blockspike.runs.run import Run
from blockspike.training.guard import warn

_MEANING = ("_target_", "euler", "max_delay", "recurrent_max_delay")  # of the parameters


def start_from(
    network: nn.Module, source: str, model: Mapping[str, Any] | None = None, dt_ms: float = 1.0
) -> list[str]:
    """Give a network the weights of another one, all but a readout of other classes.

    Warnings name settings that differ, and parameters that keep their initial values.

    Args:
        network: changed in place.
        source: folder of a run, a name of `pretrained_names`, or a file that `blockspike publish`
            wrote.
        model: configuration of the network's neurons, to compare; None = not compared.
        dt_ms: length of its step.

    Returns:
        Names of the parameters of the readout that keep their initial weights, since their shapes
        differ.

    Raises:
        FileNotFoundError: there is no such network.
        ValueError: the run is not finished, a file is damaged, a parameter of a hidden layer is
            missing or of another shape, or the weights would mean something else: the neurons are
            of another model, or delays, which are stored as shares of the longest, have another
            longest one.
    """
    there, dt_there_ms, weights = _origin(source)
    if model is not None:
        differ = [k for k in {**there, **model} if there.get(k) != model.get(k)]
        changed = [f"model.{k}={there.get(k)} (here {model.get(k)})" for k in differ]
        if any(there.get(key) != model.get(key) for key in _MEANING):
            raise ValueError(
                f"init_from: expected a model as in {source}, got {', '.join(changed)}"
            )
        if dt_there_ms != dt_ms:
            changed.append(
                f"data.dt_ms={dt_there_ms:g} (here {dt_ms:g}; time constants keep steps)"
            )
        if changed:
            warn(f"init_from: {source}, whose parameters are kept, has {', '.join(changed)}")
    own = network.state_dict()
    shapes = {name: (_shape(own, name), _shape(weights, name)) for name in own | weights}
    differing = {name: f"{name} {x}, there {y}" for name, (x, y) in shapes.items() if x != y}
    if any(not name.startswith("readout.") for name in differing):
        raise ValueError(
            f"init_from: expected hidden layers as in {source}, got {'; '.join(differing.values())}"
        )
    network.load_state_dict(own | {k: x for k, x in weights.items() if k not in differing})
    if hasattr(network, "project_"):
        network.project_()  # pyright: ignore[reportCallIssue]
    for text in differing.values():
        warn(f"init_from: {text}; it is initialised anew")
    return list(differing)


def _origin(source: str) -> tuple[Mapping[str, Any], float, dict[str, torch.Tensor]]:
    """Configuration of a network's neurons, its time step in ms, and its weights."""
    if not Path(source).is_dir():
        about, weights = read_weights(source)
        return about.model, about.dt_ms, weights
    run = Run(source)
    run.finished("init_from")  # else its weights may still change
    config = run.config()
    return config.model, config.data.get("dt_ms", 1.0), chosen_weights(run)


def _shape(weights: Mapping[str, torch.Tensor], name: str) -> str:
    return str(list(weights[name].shape)) if name in weights else "missing"
