"""From Hydra's configuration to objects; the only file that calls `instantiate`.

The schema of what we own is read off the signatures of the classes it configures, so names, types
and defaults are written once. Hydra checks every override against it: a wrong key or type is named.
"""

import dataclasses
import hashlib
import inspect
import json
import os
import types
import typing
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object, instantiate
from omegaconf import MISSING, DictConfig, OmegaConf

from blockspike.benchmark.studies import Options
from blockspike.config.targets import checked_targets
from blockspike.data.allen import AllenRecordings
from blockspike.data.datamodule import EventDataModule
from blockspike.data.nmnist import NMNISTDataModule
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.data.shd import SHDDataModule
from blockspike.fitting.module import NeuronFittingModule
from blockspike.fitting.population import NeuronPopulation, PhysicalPopulation, PublishedPopulation
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import AdLIFLayer, ALIFLayer, LayerOptions, NeuronLayer
from blockspike.neurons import Boxcar, FastSigmoid, MultiGaussian, Surrogate
from blockspike.runs.processes import cluster_environment
from blockspike.training.classification import ClassificationModule

SURROGATES: dict[str, type[Surrogate]] = {
    "fast_sigmoid": FastSigmoid,
    "boxcar": Boxcar,
    "multi_gaussian": MultiGaussian,
}
_POPULATIONS: dict[str, type[NeuronPopulation]] = {
    "physical": PhysicalPopulation,
    "published": PublishedPopulation,
}
_DATA = {
    "nmnist": NMNISTDataModule,
    "shd": SHDDataModule,
    "recordings": RecordingsDataModule,
    "allen": AllenRecordings,
    "synthetic_cells": SyntheticCells,
}
# Base class → the arguments that its subclasses take as **keywords and pass on.
_PASSED_ON = {RecordingsDataModule: RecordingsDataModule, NeuronLayer: LayerOptions}
_TARGET = ("_target_", str, dataclasses.field(default=MISSING))
_OF_HYDRA = ("_target_", "_partial_", "_convert_", "_recursive_")
_FROM_DATA = ("self", "n_inputs", "n_units", "n_classes", "dt_ms")
# What may differ between two starts of the same run: where things lie and how they are shown.
_NOT_CONTENT = ("output_dir", "data_dir", "run_dir", "logger", "progress", "threads", "replay")


_Data = typing.TypeVar("_Data", bound=pl.LightningDataModule)


def schema(cls: type, skip: tuple[str, ...] = ("self",), **replace: Any) -> type:
    """A dataclass with the arguments of `cls` as fields, for OmegaConf to check against.

    Args:
        cls: its __init__ gives names, types and defaults.
        skip: arguments that do not come from the configuration.
        **replace: fields whose configured type and default differ, as (type, default).
    """
    hints = typing.get_type_hints(cls.__init__)
    fields: list[tuple[str, Any, Any]] = []
    bases: tuple[type, ...] = ()
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD and cls.__base__ in _PASSED_ON:
            bases = (schema(_PASSED_ON[cls.__base__], skip, **replace),)
        if name in skip or parameter.kind is parameter.VAR_KEYWORD:
            continue
        kind, default = hints[name], parameter.default
        kind, default = replace.get(name, (_plain(kind), default))
        default = MISSING if default is inspect.Parameter.empty else default
        fields.append((name, kind, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(cls.__name__, fields, bases=bases)


def _plain(kind: Any) -> Any:
    """The type as OmegaConf knows it: a Literal or Path is a str, a tuple is a list."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal or kind is Path:
        return str
    if origin in (typing.Union, types.UnionType):
        plain = {_plain(option) for option in options}
        inner = (plain - {type(None)}).pop()
        return inner | None if type(None) in plain else inner
    return kind


@dataclasses.dataclass
class TrainSchema:
    """Top level of conf/train.yaml."""

    experiment_name: str = MISSING
    seed: int = MISSING
    threads: int | None = None  # None = PyTorch's default
    progress: bool = True
    replay: str | None = None
    test_each_epoch: bool = False
    monitor: str = MISSING
    label_smoothing: float = 0.0
    output_dir: str = MISSING
    data_config: str = MISSING
    data_dir: str = MISSING
    run_dir: str = MISSING
    model: Any = MISSING
    network: Any = None
    fit: Any = None
    data: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = None
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


@dataclasses.dataclass
class PrepareSchema:
    """Top level of conf/prepare.yaml."""

    seed: int = 0
    data_dir: str = MISSING
    data: Any = MISSING


@dataclasses.dataclass
class RunSchema:
    """Top level of conf/evaluate.yaml: a run, a trained network, or a neuron and a recording."""

    run: str | None = None
    pretrained: str | None = None
    neuron: str | None = None
    recording: str | None = None
    stimulus: str | None = None
    threads: int | None = None
    data_dir: str = MISSING


@dataclasses.dataclass
class PublishSchema:
    """Top level of conf/publish.yaml."""

    run: str = MISSING
    name: str = MISSING
    output_dir: str = MISSING


@dataclasses.dataclass
class FiguresSchema:
    """Top level of conf/figures.yaml: a finished run, or a figure of the paper from a table."""

    run: str | None = None
    figure: str | None = None
    table: str = MISSING
    output_dir: str = MISSING


@dataclasses.dataclass
class BenchmarkSchema(schema(Options)):
    """Top level of conf/benchmark.yaml."""

    study: list[str] = MISSING
    check: bool = False
    threads: int | None = None
    output_dir: str = MISSING


@dataclasses.dataclass
class StatusSchema:
    """Top level of conf/status.yaml."""

    experiment_name: str | None = None
    output_dir: str = MISSING


@dataclasses.dataclass
class CollectSchema:
    """Top level of conf/collect.yaml."""

    output_dir: str = MISSING


@dataclasses.dataclass
class ReportSchema:
    """Top level of conf/report.yaml."""

    run: str | None = None
    table: str | None = None
    threads: int | None = None
    output_dir: str = MISSING


def register_schemas() -> None:
    """Tell Hydra the schemas and resolvers that conf/ refers to."""
    store = ConfigStore.instance()
    for name, node in (
        ("train", TrainSchema),
        ("prepare", PrepareSchema),
        ("run", RunSchema),
        ("publish", PublishSchema),
        ("figures", FiguresSchema),
        ("benchmark", BenchmarkSchema),
        ("collect", CollectSchema),
        ("status", StatusSchema),
        ("report", ReportSchema),
    ):
        store.store(name=f"{name}_schema", node=node)
    neurons = schema(ALIFLayer, _FROM_DATA, surrogate=(str, "multi_gaussian"))
    store.store(group="model", name="schema", node=neurons)
    from_model = {f.name for f in dataclasses.fields(neurons)}
    adlif = schema(AdLIFLayer, _FROM_DATA, surrogate=(str, "multi_gaussian"))
    adlif = dataclasses.make_dataclass("AdLIF", [_TARGET], bases=(adlif,))
    store.store(group="model", name="adlif_schema", node=adlif)
    network = schema(SpikingClassifier, (*_FROM_DATA, "layer", *from_model))
    store.store(group="network", name="schema", node=network)
    for name, cls in _DATA.items():
        skip = ("self", *getattr(cls, "fixed_arguments", ()))
        node = dataclasses.make_dataclass(cls.__name__, [_TARGET], bases=(schema(cls, skip),))
        store.store(group="data", name=f"{name}_schema", node=node)
    for name, cls in _POPULATIONS.items():
        skip = ("self", "n_cells", "dt_ms", "seed")
        node = schema(cls, skip, surrogate=(str, "multi_gaussian"))
        store.store(group="model", name=f"{name}_schema", node=node)
    fit = schema(NeuronFittingModule, ("self", "population", "optimizer", "n_epochs", "seed"))
    fit = dataclasses.make_dataclass("Fit", [("parameters", str, MISSING)], bases=(fit,))
    store.store(group="fit", name="schema", node=fit)
    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)
    OmegaConf.register_new_resolver("cores", _cores, replace=True)
    OmegaConf.register_new_resolver("stem", lambda path: Path(path).stem, replace=True)


def _cores(n_jobs: int = 1) -> int:
    """Cores that this process may use, or of each of so many jobs that share them; at least one.

    As for joblib, n_jobs < 0 stands for as many jobs as there are cores.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or a cluster may give fewer
        n_cores = len(os.sched_getaffinity(0))
    else:
        n_cores = os.cpu_count() or 1
    return max(n_cores // n_jobs, 1) if n_jobs > 0 else 1


def _folder_name(choices: str) -> str:
    """The overrides as one folder name: no slashes, not too long, never empty."""
    name = (choices or "default").replace("/", "_")
    if len(name) <= 150:
        return name
    return f"{name[:130]}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def content_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration less what does not change a result."""
    content = plain(cfg)
    for key in _NOT_CONTENT:
        content.pop(key, None)
    content["data"].pop("download", None)
    if content["trainer"].get("precision") == "32-true":  # as in runs that did not name it
        del content["trainer"]["precision"]
    if not is_fit(cfg):  # where a known data set lies; but a recording is known by its path alone
        for key in ("path", "raw"):
            content["data"].pop(key, None)
        content.pop("fit", None)
    return content


def is_fit(cfg: DictConfig) -> bool:
    """Whether the configuration fits neurons to recordings (else it trains a classifier)."""
    return cfg.get("fit") is not None


def content_hash(content: dict[str, Any]) -> str:
    """12 hexadecimal digits that stand for a configuration."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def build_data(cfg: DictConfig, kind: type[_Data]) -> _Data:
    """The data module of `cfg.data`, which must be a `kind`: of events or of recordings.

    Raises:
        ValueError: it is of the other kind, or a value that it needs is missing.
    """
    for key in sorted(OmegaConf.missing_keys(cfg.data)):
        raise ValueError(f"data.{key}: expected a value, got nothing; data.{key}=… gives it one")
    data = _instantiate(cfg.data, "data", _convert_="all")
    if not isinstance(data, kind):
        raise ValueError(
            "fit: expected data of recordings, got data of events"
            if kind is RecordingsDataModule
            else "data: expected events; recordings need fit=ours or fit=paper"
        )
    return data


def build_fit(cfg: DictConfig, n_cells: int, dt_ms: float) -> NeuronFittingModule:
    """The population and how it is fitted.

    Raises:
        ValueError: a value outside its range, naming it.
    """
    recipe = plain(cfg.fit)
    kind = recipe.pop("parameters")
    neurons: dict[str, Any] = plain(cfg.model) | {"surrogate": _surrogate(cfg.model.surrogate)}
    if kind == "physical":
        neurons["seed"] = cfg.seed
    make: Any = _POPULATIONS[kind]
    population = make(n_cells, dt_ms=dt_ms, **neurons)
    optimizer = _instantiate(cfg.optimizer, "optimizer")
    return NeuronFittingModule(
        population, optimizer, cfg.trainer.max_epochs, seed=cfg.seed, **recipe
    )


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved node as a dict."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))


def _surrogate(name: str) -> Surrogate:
    if name not in SURROGATES:
        raise ValueError(f"model.surrogate: expected one of {', '.join(SURROGATES)}, got {name!r}")
    return SURROGATES[name]()


class Sizes(typing.Protocol):
    """What a network has to know of its data."""

    @property
    def n_inputs(self) -> int: ...
    @property
    def n_classes(self) -> int: ...
    @property
    def dt_ms(self) -> float: ...


def build_network(cfg: DictConfig, data: Sizes) -> SpikingClassifier:
    """The classifier of `cfg.model` and `cfg.network`, sized for `data`.

    A model with a `_target_` of its own makes the hidden layers (docs/extend.md).

    Raises:
        ValueError: a value outside its range, naming it.
    """
    if "_target_" in cfg.model:
        try:
            layer = _instantiate(cfg.model, "model", _partial_=True)
            if cfg.model.get("surrogate") in SURROGATES:
                layer = partial(layer, surrogate=_surrogate(cfg.model.surrogate))
            return _classifier(cfg, data, {"layer": layer})
        except TypeError as error:  # an argument that the class does not have
            raise ValueError(f"model: {error}") from error
    return _classifier(cfg, data, {**cfg.model, "surrogate": _surrogate(cfg.model.surrogate)})


def _classifier(cfg: DictConfig, data: Sizes, neurons: dict) -> SpikingClassifier:
    return SpikingClassifier(
        data.n_inputs, data.n_classes, dt_ms=data.dt_ms, **neurons, **cfg.network
    )


def build_module(cfg: DictConfig, data: EventDataModule) -> ClassificationModule:
    """The Lightning module: network, optimiser and scheduler."""
    network = build_network(cfg, data)
    scheduler = _instantiate(cfg.scheduler, "scheduler") if cfg.scheduler else None
    return ClassificationModule(
        network,
        data.n_classes,
        data.dt_ms,
        _instantiate(cfg.optimizer, "optimizer"),
        scheduler,
        label_smoothing=cfg.label_smoothing,
        seed=cfg.seed,
    )


def build_trainer(
    cfg: DictConfig, callbacks: list[pl.Callback], plugins: Sequence[Any] = (), **options: Any
) -> pl.Trainer:
    """The trainer with the configured callbacks and loggers beside `callbacks`."""
    options["callbacks"] = [*_instantiate_all(cfg.callbacks, "callbacks"), *callbacks]
    options["logger"] = _instantiate_all(cfg.logger, "logger")
    options["plugins"] = [*plugins, cluster_environment(cfg.trainer)]
    return _instantiate(cfg.trainer, "trainer", **options)


def _instantiate_all(nodes: DictConfig | None, key: str) -> list[Any]:
    """What a group of named nodes stands for, without those that are null."""
    named = (nodes or {}).items()
    return [_instantiate(node, f"{key}.{name}") for name, node in named if node is not None]


def _instantiate(node: DictConfig, key: str, **options: Any) -> Any:
    """What the node's `_target_` makes, if that and all below it may be called.

    Raises:
        ValueError: a `_target_` that is not allowed (`blockspike.config.targets`), or an argument
            that it does not take; names its key.
    """
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ValueError(f"{key}: expected a node with a _target_, got {node}")
    found = checked_targets(plain(node), key)
    _check_arguments(found, key)
    return instantiate(found, **options)


def _check_arguments(node: dict[str, Any], key: str) -> None:
    """Raise ValueError for arguments that the node's `_target_` does not take, or still lacks.

    Hydra would notice where the object is made, which for an optimiser is long after this.
    """
    target = get_object(node["_target_"])
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    later = list(parameters)[:1] if node.get("_partial_") else []  # what a partial is called with
    known = [name for name in parameters if name not in later]
    for name in node:
        if name not in _OF_HYDRA and name not in known and not open_ended:
            raise ValueError(
                f"{key}.{name}: expected an argument of {target.__name__} ({', '.join(known)}), "
                f"got {name}; ~{key}.{name} leaves it out"
            )
    for name in known if node.get("_partial_") and not open_ended else ():
        if name not in node and parameters[name].default is inspect.Parameter.empty:
            raise ValueError(
                f"{key}.{name}: expected a value, which {target.__name__} needs, got nothing; "
                f"+{key}.{name}=… gives it one"
            )
