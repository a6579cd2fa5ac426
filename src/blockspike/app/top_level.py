"""Schemas of the commands' own options, and resolvers: what needs neither PyTorch nor Lightning."""

import dataclasses
import hashlib
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, OmegaConf

_OF_CLASSES = ("train", "fit", "prepare", "benchmark")  # their options are arguments of classes


@dataclasses.dataclass
class _OneRunSchema:
    """Keys that conf/train.yaml and conf/fit.yaml share."""

    experiment_name: str = MISSING
    seed: int = MISSING
    threads: int | None = None  # None = PyTorch's default
    progress: bool = True
    tags: list[str] = dataclasses.field(default_factory=list)
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
class TrainSchema(_OneRunSchema):
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
class EvaluateSchema:
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
    """Top level of conf/figures.yaml: a finished run, or a figure from a table."""

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


def register_for(command: str) -> None:
    """Register what conf/COMMAND.yaml refers to, without loading PyTorch if it needs none."""
    if command in _OF_CLASSES:
        import_module("blockspike.app.schemas").register_schemas()
    else:
        register_top_level()


def register_top_level() -> None:
    """Register the schemas of this module, and the resolvers that need no others."""
    store = ConfigStore.instance()
    # Hydra copies the store for every group that it lists or completes, half of the time of
    # `--help`. What it loads from the store it copies again, so one store serves all.
    ConfigStore.__deepcopy__ = lambda self, memo: self  # pyright: ignore[reportAttributeAccessIssue]
    for name, node in (
        ("train", TrainSchema),
        ("fit", FitSchema),
        ("prepare", PrepareSchema),
        ("evaluate", EvaluateSchema),
        ("publish", PublishSchema),
        ("figures", FiguresSchema),
        ("collect", CollectSchema),
        ("status", StatusSchema),
        ("inspect", InspectSchema),
        ("report", ReportSchema),
    ):
        store.store(name=f"{name}_schema", node=node)
    OmegaConf.register_new_resolver("folder_name", _folder_name, replace=True)
    OmegaConf.register_new_resolver("cores", _cores, replace=True)
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
