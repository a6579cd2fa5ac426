"""Schemas of the configuration, against which Hydra checks every override.

The schemas of our own classes come from their signatures, so that names, types and defaults are
written once. A wrong key or type is named.
"""

import dataclasses
import hashlib
import inspect
import os
import types
import typing
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from blockspike.benchmark.studies import Options
from blockspike.data.allen import AllenRecordings
from blockspike.data.datamodule import EventDataModule
from blockspike.data.nmnist import NMNISTDataModule
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.data.sequential_mnist import SequentialMNISTDataModule
from blockspike.data.shd import SHDDataModule
from blockspike.data.tonic_events import TonicDataModule
from blockspike.fitting.glif_population import GLIFPopulation
from blockspike.fitting.module import NeuronFittingModule
from blockspike.fitting.population import NeuronPopulation, PaperPopulation, PhysicalPopulation
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layers import ALIFLayer, EulerAdLIFLayer, LayerOptions, NeuronLayer
from blockspike.networks.published import AdLIFLayer, CSiLIFLayer, PublishedLayer
from blockspike.training.callbacks import mode_of

_DATA = {
    "nmnist": NMNISTDataModule,
    "shd": SHDDataModule,
    "tonic": TonicDataModule,
    "sequential_mnist": SequentialMNISTDataModule,
    "recordings": RecordingsDataModule,
    "allen": AllenRecordings,
    "synthetic_cells": SyntheticCells,
}
_POPULATIONS: dict[str, type[NeuronPopulation]] = {
    "alif": PhysicalPopulation,
    "glif": GLIFPopulation,
    "paper": PaperPopulation,
}
_LAYERS: dict[str, type[NeuronLayer]] = {
    "adlif": AdLIFLayer,
    "euler_adlif": EulerAdLIFLayer,
    "c_silif": CSiLIFLayer,
}
# Base class → class with the arguments that its subclasses take as **keywords and pass on.
_PASSED_ON: dict[type, type] = {
    EventDataModule: EventDataModule,
    RecordingsDataModule: RecordingsDataModule,
    NeuronLayer: LayerOptions,
    PublishedLayer: LayerOptions,
}
_TARGET = ("_target_", str, dataclasses.field(default=MISSING))
_FROM_DATA = ("self", "n_inputs", "n_units", "n_classes", "dt_ms")


def schema(cls: type, skip: tuple[str, ...] = ("self",), **replace: Any) -> type:
    """Make a dataclass with the arguments of `cls` as fields, for OmegaConf to check against.

    Args:
        cls: class whose __init__ gives names, types and defaults.
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
    """Convert a type to one that OmegaConf knows: a Literal or a Path becomes a str."""
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal or kind is Path:
        return str
    if origin in (typing.Union, types.UnionType):
        plain = {_plain(option) for option in options}
        inner = plain - {type(None)}
        if len(inner) > 1:  # OmegaConf checks no such union; the class does
            return Any
        kind = inner.pop()
        return kind | None if type(None) in plain else kind
    return kind


@dataclasses.dataclass
class _OneRunSchema:
    """Keys that conf/train.yaml and conf/fit.yaml share."""

    experiment_name: str = MISSING
    seed: int = MISSING
    threads: int | None = None  # None = PyTorch's default
    progress: bool = True
    tags: list[str] = dataclasses.field(default_factory=list)
    replay: str | None = None
    output_dir: str = MISSING
    data_config: str = MISSING
    choices: Any = None
    data_dir: str = MISSING
    run_dir: str = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    trainer: Any = MISSING
    logger: Any = None
    callbacks: Any = None


@dataclasses.dataclass
class TrainingSchema:
    """Key `training` of conf/train.yaml."""

    membrane_penalty: float = 0.0
    recompute_steps: int | None = None
    truncate_steps: int | None = None
    rate_lower_hz: float | None = None
    rate_lower_factor: float = 0.0
    rate_upper_hz: float | None = None
    rate_upper_factor: float = 0.0
    lr_factors: Any = None  # of patterns; OmegaConf has no optional dict that an override fills


@dataclasses.dataclass
class SearchSchema:
    """Key `search` of conf/search/*.yaml: a search by Optuna."""

    n_trials: int = 30
    batch_size: int | None = None  # trials at a time; None = 1, for sweep=serial
    n_random_trials: int = 10  # before the sampler uses what it has seen
    prune: bool = True  # by successive halving
    n_unpruned_trials: int = 5  # that pass a rung before it prunes
    min_epochs: int = 1  # up to the first rung
    reduction_factor: int = 4  # of the number of trials from rung to rung
    space: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class TrainSchema(_OneRunSchema):
    """Top level of conf/train.yaml."""

    test_each_epoch: bool = False
    monitor: str = MISSING
    init_from: str | None = None
    extend: str | None = None
    label_smoothing: float = 0.0
    training: TrainingSchema = dataclasses.field(default_factory=TrainingSchema)
    model: Any = MISSING
    network: Any = MISSING
    scheduler: Any = None
    search: SearchSchema | None = None
    pruning: list[float | None] | None = None


@dataclasses.dataclass
class FitSchema(_OneRunSchema):
    """Top level of conf/fit.yaml."""

    n_bootstrap: int = 0
    population: Any = MISSING
    fit: Any = MISSING


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
    electrode: str | None = None
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
    x: str | None = None
    color: list[str] | None = None
    facet: str | None = None
    metric: str | None = None
    experiment_name: str | None = None
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
class InspectSchema:
    """Top level of conf/inspect.yaml."""

    path: str = MISSING
    sweeps: list[int] | None = None


@dataclasses.dataclass
class CollectSchema:
    """Top level of conf/collect.yaml."""

    by: list[str] | None = None
    metric: str | None = None
    experiment_name: str | None = None
    output_dir: str = MISSING


@dataclasses.dataclass
class ReportSchema:
    """Top level of conf/report.yaml."""

    run: str | None = None
    table: str | None = None
    threads: int | None = None
    output_dir: str = MISSING


def register_schemas() -> None:
    """Register the schemas and resolvers that conf/ refers to."""
    store = ConfigStore.instance()
    for name, node in (
        ("train", TrainSchema),
        ("fit", FitSchema),
        ("prepare", PrepareSchema),
        ("run", RunSchema),
        ("publish", PublishSchema),
        ("figures", FiguresSchema),
        ("benchmark", BenchmarkSchema),
        ("collect", CollectSchema),
        ("status", StatusSchema),
        ("inspect", InspectSchema),
        ("report", ReportSchema),
    ):
        store.store(name=f"{name}_schema", node=node)
    neurons = schema(ALIFLayer, _FROM_DATA, surrogate=(Any, "multi_gaussian"))
    store.store(group="model", name="schema", node=neurons)
    from_model = {f.name for f in dataclasses.fields(neurons)}
    for name, cls in _LAYERS.items():
        node = schema(cls, _FROM_DATA, surrogate=(Any, "multi_gaussian"))
        node = dataclasses.make_dataclass(cls.__name__, [_TARGET], bases=(node,))
        store.store(group="model", name=f"{name}_schema", node=node)
    network = schema(SpikingClassifier, (*_FROM_DATA, "layer", *from_model))
    store.store(group="network", name="schema", node=network)
    for name, cls in _DATA.items():
        skip = ("self", *getattr(cls, "fixed_arguments", ()))
        node = dataclasses.make_dataclass(cls.__name__, [_TARGET], bases=(schema(cls, skip),))
        store.store(group="data", name=f"{name}_schema", node=node)
    for name, cls in _POPULATIONS.items():
        skip = ("self", "n_cells", "dt_ms", "seed", "escape_noise")
        node = schema(cls, skip, surrogate=(Any, "multi_gaussian"))
        node = dataclasses.make_dataclass(cls.__name__, [_TARGET], bases=(node,))
        store.store(group="population", name=f"{name}_schema", node=node)
    fit = schema(NeuronFittingModule, ("self", "population", "optimizer", "n_epochs", "seed"))
    store.store(group="fit", name="schema", node=fit)
    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)
    OmegaConf.register_new_resolver("cores", _cores, replace=True)
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
    OmegaConf.register_new_resolver("stem", lambda path: Path(path).stem, replace=True)


def _cores(n_jobs: int = 1) -> int:
    """Cores that this process may use, divided among `n_jobs` jobs; at least one.

    As in joblib, n_jobs < 0 means as many jobs as cores.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux: a container or a cluster may give fewer
        n_cores = len(os.sched_getaffinity(0))
    else:
        n_cores = os.cpu_count() or 1
    return max(n_cores // n_jobs, 1) if n_jobs > 0 else 1


def _folder_name(choices: str) -> str:
    """Turn overrides into one folder name: no slashes, not too long, never empty."""
    name = (choices or "default").replace("/", "_")
    if len(name) <= 150:
        return name
    return f"{name[:130]}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"
