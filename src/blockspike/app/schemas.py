"""Schemas of the configuration, against which Hydra checks every override.

Those of data, models and fits come from the signatures of our classes, so names, types and defaults
are written once. In conf/ they are the group `schema`.
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
from omegaconf import MISSING, DictConfig, OmegaConf

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
from blockspike.fitting.population import PaperPopulation, PhysicalPopulation
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.layer import LayerOptions, NeuronLayer
from blockspike.networks.layers import (
    AdLIFLayer,
    ALIFLayer,
    CSiLIFLayer,
    EulerAdLIFLayer,
    GLIFLayer,
)
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
_POPULATIONS = {
    "alif_population": PhysicalPopulation,
    "glif_population": GLIFPopulation,
    "paper_population": PaperPopulation,
}
_LAYERS = {
    "adlif": AdLIFLayer,
    "euler_adlif": EulerAdLIFLayer,
    "c_silif": CSiLIFLayer,
    "glif": GLIFLayer,
}
# Base class → class with the arguments that its subclasses take as **keywords and pass on.
_PASSED_ON: dict[type, type] = {
    EventDataModule: EventDataModule,
    RecordingsDataModule: RecordingsDataModule,
    NeuronLayer: LayerOptions,
}
_FROM_DATA = ("self", "n_inputs", "n_units", "n_classes", "dt_ms", "batch_first")
_SURROGATE = {"surrogate": (Any, "multi_gaussian")}


@dataclasses.dataclass
class PrepareSchema:
    """Top level of conf/prepare.yaml, and keys that all three commands share."""

    seed: int = 0
    data_dir: str = MISSING
    data: Any = MISSING


@dataclasses.dataclass
class _RunSchema(PrepareSchema):
    """Keys that conf/train.yaml and conf/fit.yaml share."""

    experiment_name: str = MISSING
    threads: int | None = None  # None = PyTorch's default
    progress: bool = True
    tags: list[str] = dataclasses.field(default_factory=list)
    output_dir: str = MISSING
    data_config: str = MISSING
    choices: Any = None
    run_dir: str = MISSING
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
class TrainSchema(_RunSchema):
    """Top level of conf/train.yaml."""

    test_each_epoch: bool = False
    monitor: str = MISSING
    init_from: str | None = None
    resume_from: str | None = None
    label_smoothing: float = 0.0
    training: TrainingSchema = dataclasses.field(default_factory=TrainingSchema)
    model: Any = MISSING
    network: Any = MISSING
    scheduler: Any = None


@dataclasses.dataclass
class FitSchema(_RunSchema):
    """Top level of conf/fit.yaml."""

    n_bootstrap: int = 0
    population: Any = MISSING
    fit: Any = MISSING


def register_schemas() -> None:
    """Register the schemas and resolvers that conf/ refers to."""
    nodes: dict[str, type] = dict(_TOP_LEVEL)
    nodes["alif"] = schema(ALIFLayer, _FROM_DATA, **_SURROGATE)
    for name, cls in _LAYERS.items():
        nodes[name] = _with_target(schema(cls, _FROM_DATA, **_SURROGATE))
    of_neurons = [field.name for field in dataclasses.fields(nodes["alif"])]
    nodes["classifier"] = schema(SpikingClassifier, (*_FROM_DATA, "layer", *of_neurons))
    for name, cls in _DATA.items():
        fixed = getattr(cls, "fixed_arguments", ())
        nodes[name] = _with_target(schema(cls, ("self", *fixed)))
    for name, cls in _POPULATIONS.items():
        skip = ("self", "n_cells", "dt_ms", "seed", "escape_noise")
        nodes[name] = _with_target(schema(cls, skip, **_SURROGATE))
    skip = ("self", "population", "optimizer", "n_epochs", "seed", "names")
    nodes["fitting"] = schema(NeuronFittingModule, skip)
    for name, node in nodes.items():
        ConfigStore.instance().store(group="schema", name=name, node=node)
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
    OmegaConf.register_new_resolver("relative_path", os.path.relpath, replace=True)
    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)
    OmegaConf.register_new_resolver("cores", _cores, replace=True)
    OmegaConf.register_new_resolver("stem", lambda path: Path(path).stem, replace=True)


def check_keys(command: str, cfg: DictConfig) -> None:
    """Raise ValueError for a top-level key that the command does not have, such as `+modle=`."""
    known = {field.name for field in dataclasses.fields(_TOP_LEVEL[command])}
    for key in cfg:
        if key not in known and key != "hydra":
            names = ", ".join(sorted(known))
            raise ValueError(f"{key}: expected a key of {command} ({names}), got {key}")


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
        kind, default = replace.get(name, (_plain(hints[name]), parameter.default))
        default = MISSING if default is inspect.Parameter.empty else default
        fields.append((name, kind, dataclasses.field(default=default)))
    return dataclasses.make_dataclass(cls.__name__, fields, bases=bases)


def _with_target(node: type) -> type:
    target = ("_target_", str, dataclasses.field(default=MISSING))
    return dataclasses.make_dataclass(node.__name__, [target], bases=(node,))


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


@dataclasses.dataclass
class BenchmarkSchema(schema(Options)):
    """Top level of conf/benchmark.yaml."""

    study: list[str] = MISSING
    check: bool = False
    threads: int | None = None
    output_dir: str = MISSING


_TOP_LEVEL = {
    "train": TrainSchema,
    "fit": FitSchema,
    "prepare": PrepareSchema,
    "benchmark": BenchmarkSchema,
}
