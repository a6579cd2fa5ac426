"""Objects built from Hydra's configuration; the only file that calls `instantiate`."""

import inspect
import re
import typing
from functools import partial
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from blockspike.data.datamodule import EventDataModule
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.files import CONF
from blockspike.fitting.bfgs import BatchedBFGS
from blockspike.fitting.module import NeuronFittingModule
from blockspike.networks.classifier import SpikingClassifier
from blockspike.neurons.surrogates import SURROGATES, Surrogate
from blockspike.runs.identity import plain
from blockspike.runs.run import flatten, one_line
from blockspike.training.classification import ClassificationModule
from blockspike.training.rate_penalty import RatePenalty

_Data = typing.TypeVar("_Data", bound=pl.LightningDataModule)


def build_data(cfg: DictConfig, kind: type[_Data]) -> _Data:
    """Build the data module of `cfg.data`, which must be a `kind`: of events or of recordings.

    Raises:
        ValueError: it is of the other kind, or a required value is missing.
    """
    # Not `missing_keys`, which raises where another value is made of a missing one.
    for key in sorted(key for key in cfg.data if OmegaConf.is_missing(cfg.data, key)):
        raise ValueError(f"data.{key}: expected a value, got nothing; set it with data.{key}=…")
    data = _instantiate(cfg.data, "data", _convert_="all")
    if isinstance(data, kind):
        return data
    got = f"{type(data).__module__}.{type(data).__qualname__}, which is no {kind.__name__}"
    for other, what in ((EventDataModule, "events"), (RecordingsDataModule, "recordings")):
        if isinstance(data, other):
            command = "train" if other is EventDataModule else "fit"
            got = f"{what}, which `blockspike {command}` takes"
    of = "recordings" if kind is RecordingsDataModule else "events"
    raise ValueError(f"data: expected {of}, got {got}")


_BFGS = f"{BatchedBFGS.__module__}.{BatchedBFGS.__qualname__}"


def build_fit(cfg: DictConfig, n_cells: int, dt_ms: float) -> NeuronFittingModule:
    """Build the population of `cfg.population` and the module that fits it.

    Raises:
        ValueError: a value is outside its range; names it.
    """
    surrogate = _surrogate(cfg.population, "population")
    options: dict[str, Any] = {"dt_ms": dt_ms, "surrogate": surrogate}
    make = _instantiate(cfg.population, "population", _partial_=True)
    accepted = inspect.signature(make.func).parameters
    if "seed" in accepted:
        options["seed"] = cfg.seed
    if cfg.fit.loss == "likelihood":
        if "escape_noise" not in accepted:
            raise ValueError(
                "fit.loss: expected a distance for this population, whose neurons have no escape "
                "noise, got likelihood"
            )
        options["escape_noise"] = True
    if (cfg.optimizer.get("_target_") == _BFGS) != (cfg.fit.loss == "likelihood"):
        raise ValueError(
            "optimizer: expected bfgs for fit=likelihood and another one for other fits, got "
            f"{cfg.optimizer.get('_target_')}"
        )
    if weight_decay := cfg.optimizer.get("weight_decay"):
        raise ValueError(
            "optimizer.weight_decay: expected 0 for a fit, whose neurons' parameters it would pull "
            f"to 0, got {weight_decay}"
        )
    return NeuronFittingModule(
        make(n_cells, **options),
        _factory(cfg.optimizer, "optimizer"),
        cfg.trainer.max_epochs,
        seed=cfg.seed,
        **plain(cfg.fit),
    )


def _surrogate(node: DictConfig, key: str) -> Surrogate:
    """Make the surrogate that a node names, or that has a `_target_` and values."""
    chosen = node.surrogate
    if isinstance(chosen, DictConfig) and "_target_" in chosen:
        chosen = _instantiate(chosen, f"{key}.surrogate")
        if isinstance(chosen, Surrogate):
            return chosen
    if not isinstance(chosen, str) or chosen not in SURROGATES:
        raise ValueError(
            f"{key}.surrogate: expected one of {', '.join(SURROGATES)}, or a _target_ that is a "
            f"Surrogate, got {chosen!r}"
        )
    return SURROGATES[chosen]()


class Sizes(typing.Protocol):
    """Sizes of the data that a network needs."""

    @property
    def n_inputs(self) -> int: ...
    @property
    def n_classes(self) -> int: ...
    @property
    def dt_ms(self) -> float: ...


def build_network(cfg: DictConfig, data: Sizes) -> SpikingClassifier:
    """Build the classifier of `cfg.model` and `cfg.network`, sized for `data`.

    If the model has a `_target_`, that class makes the hidden layers (docs/howto/extend.md).

    Raises:
        ValueError: a value is outside its range; names it.
    """
    neurons: dict[str, Any] = dict(cfg.model)
    named = cfg.model.get("surrogate")
    is_ours = "_target_" not in cfg.model
    if is_ours or isinstance(named, DictConfig) or str(named) in SURROGATES:
        neurons["surrogate"] = _surrogate(cfg.model, "model")
    if not is_ours:
        layer = _instantiate(cfg.model, "model", _partial_=True)
        given = {k: x for k, x in neurons.items() if k == "surrogate"}
        neurons = {"layer": partial(layer, **given)}
    try:
        return SpikingClassifier(
            data.n_inputs, data.n_classes, dt_ms=data.dt_ms, **neurons, **cfg.network
        )
    except TypeError as error:  # an argument that the network or its layers do not have
        raise ValueError(f"model, network: {error}") from error


def build_module(cfg: DictConfig, data: EventDataModule) -> ClassificationModule:
    """Build the Lightning module: network, optimiser and scheduler."""
    network = build_network(cfg, data)
    scheduler = _factory(cfg.scheduler, "scheduler") if cfg.scheduler else None
    options = plain(cfg.training)
    of_rates = [key for key in options if key.startswith("rate_")]
    rates = {key.removeprefix("rate_"): options.pop(key) for key in of_rates}
    has_penalty = any(x is not None if name.endswith("_hz") else x for name, x in rates.items())
    return ClassificationModule(
        network,
        data.n_classes,
        data.dt_ms,
        _factory(cfg.optimizer, "optimizer"),
        scheduler,
        label_smoothing=cfg.label_smoothing,
        rate_penalty=RatePenalty(**rates) if has_penalty else None,
        **options,
        seed=cfg.seed,
    )


def build_trainer(cfg: DictConfig, callbacks: list[pl.Callback], **options: Any) -> pl.Trainer:
    """Build the trainer with `callbacks`, the configured callbacks and the loggers."""
    options["callbacks"] = [*_instantiate_all(cfg.callbacks, "callbacks"), *callbacks]
    options["logger"] = _instantiate_all(cfg.logger, "logger")
    return _instantiate(cfg.trainer, "trainer", **options)


def _instantiate_all(nodes: DictConfig | None, key: str) -> list[Any]:
    """Build the objects of a group of named nodes, without those that are null."""
    named = (nodes or {}).items()
    return [_instantiate(node, f"{key}.{name}") for name, node in named if node is not None]


def _instantiate(node: DictConfig, key: str, **options: Any) -> Any:
    """Build the object of a node's `_target_`.

    Raises:
        ValueError: the class cannot be found or does not take an argument; names the key.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{key}: expected a node with a _target_, got {node}")
    try:
        found = instantiate(plain(node), **options)
        if isinstance(found, partial):  # a wrong argument would be noticed only much later
            inspect.signature(found.func).bind_partial(**found.keywords)
    except (InstantiationException, TypeError) as error:
        raise ValueError(f"{key}: {one_line(error)}") from error
    return found


def _factory(node: DictConfig, key: str) -> Any:
    """Function of one argument, such as parameters, that builds an optimiser or scheduler."""
    found = _instantiate(node, key, _partial_=True)
    try:
        inspect.signature(found.func).bind(None, **found.keywords)
    except TypeError as error:
        raise ValueError(f"{key}: {error}") from error
    return found


def check_targets(node: Any, source: str) -> None:
    """Check that a configuration from elsewhere names only classes that conf/ names, too.

    Args:
        node: the configuration, resolved.
        source: where it is from, for the message.

    Raises:
        ValueError: another `_target_`; names it.
    """
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    known = {name for text in texts for name in re.findall(r"_target_: (\S+)", text)}
    known |= {f"{cls.__module__}.{cls.__qualname__}" for cls in SURROGATES.values()}
    for key, value in flatten(plain(node) if isinstance(node, DictConfig) else node).items():
        values = value if isinstance(value, list) else [value]
        for item in values:
            if isinstance(item, dict):
                check_targets(item, source)
        if key.rpartition(".")[2] == "_target_" and value not in known:
            raise ValueError(
                f"{source}: {key} runs the code of {value}; if you trust it, say so with --trust, "
                "or trust=True in Python"
            )
