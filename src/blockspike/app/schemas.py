"""Schemas of the configuration's groups, against which Hydra checks every override.

They come from the signatures of our own classes, so that names, types and defaults are written
once. A wrong key or type is named. This module loads those classes, and with them PyTorch and
Lightning.
"""

import dataclasses
import inspect
import types
import typing
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

from blockspike.app.top_level import register_top_level
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
_POPULATIONS: dict[str, type[NeuronPopulation]] = {
    "alif": PhysicalPopulation,
    "glif": GLIFPopulation,
    "paper": PaperPopulation,
}
_LAYERS: dict[str, type[NeuronLayer]] = {
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
_TARGET = ("_target_", str, dataclasses.field(default=MISSING))
_FROM_DATA = ("self", "n_inputs", "n_units", "n_classes", "dt_ms", "batch_first")


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
class BenchmarkSchema(schema(Options)):
    """Top level of conf/benchmark.yaml."""

    study: list[str] = MISSING
    check: bool = False
    threads: int | None = None
    output_dir: str = MISSING


def register_schemas() -> None:
    """Register the schemas and resolvers that conf/ refers to, for every command."""
    register_top_level()
    store = ConfigStore.instance()
    store.store(name="benchmark_schema", node=BenchmarkSchema)
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
    OmegaConf.register_new_resolver("mode_of", mode_of, replace=True)
