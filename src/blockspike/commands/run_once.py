"""A run of `train` or `fit`, from its configuration to `result.json`."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from blockspike.commands.checks import check_training, checked_code
from blockspike.commands.trainer import processes_of_one_run
from blockspike.commands.wandb_run import log_result, wandb_closed
from blockspike.config.build import build_trainer
from blockspike.runs.identity import content_hash, content_of, settings_of
from blockspike.runs.log import LOGGER
from blockspike.runs.rank import is_first_process
from blockspike.runs.results import as_cell
from blockspike.runs.run import Run, flatten, provenance
from blockspike.training.guard import Guard
from blockspike.training.metrics_table import read_metrics
from blockspike.training.pruning import higher_is_better, pruned_epoch

_ELSEWHERE = ("seed", "experiment_name")  # settings that the row has under other names


@dataclass(frozen=True)
class Task:
    """The part of a run that differs between `train` and `fit`.

    Attributes:
        build: configuration → data module, set up, and Lightning module.
        work: (configuration, run, data, module) → results for the run's row.
        guard: (file of a bad batch, data) → the callback that writes and replays it.
        title: data → name of the data set.
        summary: row → the line printed at the end.
    """

    build: Callable[[DictConfig], tuple[Any, Any]]
    work: Callable[[DictConfig, Run, Any, Any], dict[str, Any]]
    guard: Callable[[Path, Any], Guard]
    title: Callable[[Any], str]
    summary: Callable[[dict[str, Any]], str]


def run_once(cfg: DictConfig, task: Task) -> dict[str, Any]:
    """Perform the task in the run's folder: resume an interrupted run, skip a finished one.

    A pruned run is skipped where it would be pruned again, and continued otherwise.
    With `replay`, only the batch in that file, left by a stopped run, is run; nothing is written.

    Returns:
        The run's row, as in `result.json`; empty after a replay.

    Raises:
        ValueError: the configuration is bad, or the folder holds a run with another one or of
            other data, also if it is finished.
        FileNotFoundError: the data are missing.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    if cfg.replay is not None:
        _replay(cfg, task)
        return {}
    run, content = Run(Path(cfg.run_dir)), content_of(cfg)
    check_training(cfg)
    run.check_content(content)
    code_sha256 = checked_code(cfg, run)
    run.clear_error()
    row = run.result()
    if row is not None and not _is_to_continue(cfg, run, row):
        if run.may_have_other_data(cfg.data.get("path")):
            run.check_data(task.build(cfg)[0].sha256)
            run.mark_data_checked()
        run.mark_done()
        print(f"{run.folder}: {'pruned' if row.get('pruned') else 'finished'}, skipped")
        return row
    use_threads(cfg.threads)
    data, module = task.build(cfg)
    held = run.recorded(cfg, content, content_hash(content), data.sha256, code_sha256)
    with held, run.logged(), processes_of_one_run(), wandb_closed():
        row = _identity(cfg, content, task.title(data)) | {"data_sha256": data.sha256}
        results = task.work(cfg, run, data, module)
        row |= results
        log_result(run, row, results, data, module)
        run.write_result(row)
        LOGGER.info(task.summary(row))
    if is_first_process():
        print(f"{run.folder}: {task.summary(row)}")
    return row


def _is_to_continue(cfg: DictConfig, run: Run, row: dict[str, Any]) -> bool:
    """Whether the run was pruned, and is not with the thresholds of this configuration."""
    if not row.get("pruned"):
        return False
    values = read_metrics(run.folder / "metrics.csv")[cfg.monitor].tolist()
    return pruned_epoch(values, cfg.get("pruning") or [], higher_is_better(cfg.monitor)) is None


def _replay(cfg: DictConfig, task: Task) -> None:
    check_training(cfg)
    use_threads(cfg.threads)
    file = Path(cfg.replay)
    data, module = task.build(cfg)
    silent = cfg.copy()
    silent.logger = silent.callbacks = None
    trainer = build_trainer(silent, [], enable_progress_bar=False, enable_checkpointing=False)
    print(task.guard(file, data).replay(file, module, trainer))


def use_threads(threads: int | None) -> None:
    """Set the number of threads of PyTorch and the kernels, unless it is None."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected an integer ≥ 1, got {threads}")
        torch.set_num_threads(threads)


def _identity(cfg: DictConfig, content: dict[str, Any], data_set: str) -> dict[str, Any]:
    made = provenance()
    return {
        "experiment": cfg.experiment_name,
        "data_set": data_set,
        "seed": cfg.seed,
        **({"tags": list(cfg.tags)} if cfg.get("tags") else {}),
        "config_hash": content_hash(content),
        "git_sha": made["git_sha"],
        "git_dirty": made["git_dirty"],
        "machine": made["machine"],
        "python": made["python"],
        **{f"version.{name}": number for name, number in made["versions"].items()},
        "n_threads": torch.get_num_threads(),
        **{f"{group}_config": choice for group, choice in (cfg.choices or {}).items()},
        **{k: as_cell(k, v) for k, v in flatten(settings_of(cfg)).items() if k not in _ELSEWHERE},
    }
