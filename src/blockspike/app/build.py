"""Objects built from Hydra's configuration; the only file that calls `instantiate`."""

import inspect
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment

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


def build_data(cfg: DictConfig, recordings: bool | None = None) -> Any:
    """Build the data module of `cfg.data`, of recordings or of something else; None = either.

    Raises:
        ValueError: it is of the other kind, or a required value is missing.
    """
    for key in cfg.data:
        if OmegaConf.is_missing(cfg.data, key):
            raise ValueError(f"data.{key}: expected a value, got nothing; set it with data.{key}=…")
    data = _instantiate(cfg.data, "data", _convert_="all")
    is_recorded = isinstance(data, RecordingsDataModule)
    if recordings not in (None, is_recorded) or not isinstance(data, pl.LightningDataModule):
        raise ValueError(
            f"data: expected {'recordings' if recordings else 'events'}, got "
            f"{type(data).__qualname__}, which `blockspike {'fit' if is_recorded else 'train'}` "
            "takes"
        )
    return data


def open_data(cfg: DictConfig, recordings: bool | None = None) -> Any:
    """Build the data module of `cfg.data` and make it ready for loaders; see `build_data`."""
    data = build_data(cfg, recordings)
    data.prepare_data()
    data.setup("fit")
    if not isinstance(data, EventDataModule | RecordingsDataModule):  # whose stages are the same
        data.setup("test")
    return data


_BFGS = f"{BatchedBFGS.__module__}.{BatchedBFGS.__qualname__}"


def build_fit(
    cfg: DictConfig, n_cells: int, dt_ms: float, names: Sequence[str] | None = None
) -> NeuronFittingModule:
    """Build the population of `cfg.population` and the module that fits it.

    Raises:
        ValueError: a value is outside its range; names it.
    """
    make = _instantiate(cfg.population, "population", _partial_=True)
    accepted = inspect.signature(make.func).parameters
    by_likelihood = cfg.fit.loss == "likelihood"
    if by_likelihood and "escape_noise" not in accepted:
        raise ValueError(
            "fit.loss: expected a distance for this population, whose neurons have no escape "
            "noise, got likelihood"
        )
    if (cfg.optimizer.get("_target_") == _BFGS) != by_likelihood:
        raise ValueError(
            "optimizer: expected bfgs for fit=likelihood and another one for other fits, got "
            f"{cfg.optimizer.get('_target_')}"
        )
    if weight_decay := cfg.optimizer.get("weight_decay"):
        raise ValueError(
            "optimizer.weight_decay: expected 0 for a fit, whose neurons' parameters it would pull "
            f"to 0, got {weight_decay}"
        )
    options = {"dt_ms": dt_ms, "surrogate": _surrogate(cfg.population, "population")}
    options |= {"seed": cfg.seed} if "seed" in accepted else {}
    options |= {"escape_noise": True} if by_likelihood else {}
    return NeuronFittingModule(
        make(n_cells, **options),
        _instantiate(cfg.optimizer, "optimizer", _partial_=True),
        cfg.trainer.max_epochs,
        seed=cfg.seed,
        names=names,
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


def build_network(cfg: DictConfig, sizes: Any) -> Any:
    """Build the network of `cfg.network`: a classifier of the neurons of `cfg.model`.

    If the model has a `_target_`, that class makes the hidden layers (docs/howto/extend.md). If
    the network has one, it is any module that returns scores.

    Args:
        cfg: configuration.
        sizes: what has the network's n_inputs, n_classes and dt_ms, such as its data.

    Raises:
        ValueError: a value is outside its range; names it.
    """
    needed = {"n_inputs", "n_classes", "dt_ms"}
    if "_target_" in cfg.network:
        make = _instantiate(cfg.network, "network", _partial_=True)
        needed &= inspect.signature(make.func).parameters.keys()
        return make(**{name: getattr(sizes, name) for name in needed - make.keywords.keys()})
    neurons = plain(cfg.model)
    named = cfg.model.get("surrogate")
    is_ours = "_target_" not in neurons
    if is_ours or isinstance(named, DictConfig) or str(named) in SURROGATES:
        neurons["surrogate"] = _surrogate(cfg.model, "model")
    if not is_ours:
        layer = _instantiate(cfg.model, "model", _partial_=True)
        given = {k: x for k, x in neurons.items() if k == "surrogate"}
        neurons = {"layer": partial(layer.func, **layer.keywords | given)}
    options: Any = {name: getattr(sizes, name) for name in needed} | neurons | plain(cfg.network)
    try:
        return SpikingClassifier(**options)
    except TypeError as error:  # an argument that the network or its layers do not have
        raise ValueError(f"model, network: {error}") from error


def build_module(cfg: DictConfig, data: Any) -> ClassificationModule:
    """Build the Lightning module: network, optimiser and scheduler."""
    options = plain(cfg.training)
    of_rates = [key for key in options if key.startswith("rate_")]
    rates = {key.removeprefix("rate_"): options.pop(key) for key in of_rates}
    module = ClassificationModule(
        build_network(cfg, data),
        data.n_classes,
        getattr(data, "dt_ms", 1.0),  # without, no rates are logged
        _instantiate(cfg.optimizer, "optimizer", _partial_=True),
        _instantiate(cfg.scheduler, "scheduler", _partial_=True) if cfg.scheduler else None,
        label_smoothing=cfg.label_smoothing,
        rate_penalty=RatePenalty(**rates) if any(rates.values()) else None,
        **options,
        seed=cfg.seed,
    )
    module.save_hyperparameters({}, logger=False)  # loggers get the configuration
    if cfg.trainer.get("precision") == "64-true":  # Lightning converts after loading
        module.double()
    return module


def build_trainer(
    cfg: DictConfig, folder: Path, callbacks: Sequence[Callback], **options: Any
) -> pl.Trainer:
    """Build the trainer with `callbacks`, the configured callbacks and the loggers."""
    if is_task_of_its_own(cfg.trainer):
        options["plugins"] = [LightningEnvironment()]
    trainer: pl.Trainer = _instantiate(
        cfg.trainer, "trainer",
        callbacks=[*_instantiate_all(cfg.callbacks, "callbacks"), *callbacks],
        logger=_instantiate_all(cfg.logger, "logger"), default_root_dir=str(folder),
        num_sanity_val_steps=0, enable_model_summary=False, **options,
    )  # fmt: skip
    for logger in trainer.loggers:
        logger.log_hyperparams(plain(cfg))
    return trainer


def is_task_of_its_own(trainer: DictConfig) -> bool:
    """Whether this is one of several tasks of a Slurm step that are runs of one process each."""
    is_alone = str(trainer.get("devices")) == "1" and trainer.get("num_nodes", 1) == 1
    return is_alone and os.environ.get("SLURM_NTASKS", "1") != "1"


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
