"""`blockspike train`: one run, from its configuration to `result.json`."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from blockspike.commands import fit
from blockspike.commands.checks import check_training
from blockspike.commands.trainer import (
    EpochCheckpoint,
    last_checkpoint,
    load_best,
    make_trainer,
    processes_of_one_run,
    without_known_warnings,
)
from blockspike.commands.wandb_run import log_result, wandb_closed
from blockspike.config.build import (
    build_data,
    build_module,
    build_trainer,
    content_hash,
    content_of,
    is_fit,
)
from blockspike.data.datamodule import EventDataModule
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.fitting.module import NeuronFittingModule
from blockspike.runs.run import Run, flatten, is_first_process, provenance
from blockspike.training.callbacks import Throughput
from blockspike.training.classification import ClassificationModule
from blockspike.training.guards import FitGuard, NumberGuard
from blockspike.training.metrics_file import read_metrics


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train a classifier or fit neurons, test once; resume or skip what is there.

    With `replay`, run only the batch in that file, which a stopped run left, and write nothing.

    Returns:
        The run's row, as in `result.json`; of a replay, nothing.

    Raises:
        ValueError: a bad configuration, or the folder holds a run with another one.
        FileNotFoundError: the data are missing.
    """
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    run = Run(Path(cfg.run_dir))
    if cfg.replay is not None:
        _replay(cfg)
        return {}
    content = content_of(cfg)
    check_training(cfg)
    run.check_content(content)
    run.clear_error()
    row = run.result()
    if row is not None:
        run.mark_done()
        print(f"{run.folder}: finished, skipped")
        return row
    use_threads(cfg.threads)
    data, module = fit.build(cfg) if is_fit(cfg) else _build(cfg)
    held = run.recorded(cfg, content, content_hash(content), data.sha256)
    with held, processes_of_one_run(), wandb_closed():
        title = data.title if isinstance(data, RecordingsDataModule) else str(data.name)
        row = _identity(cfg, content, title) | {"data_sha256": data.sha256}
        if isinstance(data, RecordingsDataModule):
            assert isinstance(module, NeuronFittingModule)
            row |= fit.fit_and_score(cfg, run, data, module)
        else:
            assert isinstance(module, ClassificationModule)
            row |= _fit_and_test(cfg, run, data, module)
        log_result(run, row, data, module)
        run.write_result(row)
    summary = fit.summary_line(row) if is_fit(cfg) else _summary(row)
    if is_first_process():
        print(f"{run.folder}: {summary}")
    return row


def _replay(cfg: DictConfig) -> None:
    check_training(cfg)
    use_threads(cfg.threads)
    file = Path(cfg.replay)
    if is_fit(cfg):
        recordings, module = fit.build(cfg)
        guard = FitGuard(file, recordings.names)
    else:
        _, module = _build(cfg)
        guard = NumberGuard(file)
    silent = cfg.copy()
    silent.logger = silent.callbacks = None
    trainer = build_trainer(silent, [], enable_progress_bar=False, enable_checkpointing=False)
    print(guard.replay(file, module, trainer))


def use_threads(threads: int | None) -> None:
    """Set PyTorch's (and so the kernels') number of threads, if one is given."""
    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads: expected an integer ≥ 1, got {threads}")
        torch.set_num_threads(threads)


def _build(cfg: DictConfig) -> tuple[EventDataModule, ClassificationModule]:
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg, EventDataModule)
    data.prepare_data()
    data.setup()
    return data, build_module(cfg, data)


def _fit_and_test(
    cfg: DictConfig, run: Run, data: EventDataModule, module: ClassificationModule
) -> dict[str, Any]:
    chosen = EpochCheckpoint(
        run.best_checkpoint.parent,
        filename=run.best_checkpoint.stem,
        monitor=cfg.monitor,
        mode="min" if cfg.monitor.endswith("loss") else "max",
        enable_version_counter=False,
    )
    # Lightning's save_last writes only when a model was chosen; a restart wants every epoch.
    last = EpochCheckpoint(
        run.last_checkpoint.parent,
        filename=run.last_checkpoint.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    guard = NumberGuard(run.folder / "bad_batch.ckpt")
    trainer = make_trainer(cfg, run, [Throughput(), guard, chosen, last])
    with without_known_warnings():
        data.trainer = trainer
        loaders = [data.val_dataloader()]
        if cfg.test_each_epoch:
            loaders.append(data.test_dataloader())
        trainer.fit(module, data.train_dataloader(), loaders, ckpt_path=last_checkpoint(run))
        if not run.best_checkpoint.is_file():
            raise ValueError(f"trainer: no epoch was finished (max_epochs {trainer.max_epochs})")
        best = load_best(run)
        module.load_state_dict(best["state_dict"])
        trainer.test(module, data.test_dataloader(), verbose=False)
    return _scores(run, trainer, best["epoch"], module)


def _scores(
    run: Run, trainer: pl.Trainer, best_epoch: int, module: ClassificationModule
) -> dict[str, Any]:
    history = read_metrics(run.folder / "metrics.csv").set_index("epoch")
    values = history.loc[best_epoch].to_numpy(dtype=float)
    chosen = dict(zip(map(str, history.columns), values.tolist(), strict=True))
    epoch_s = history["time/epoch_s"].to_numpy(dtype=float)
    row = {
        "test_accuracy": float(trainer.callback_metrics["test/accuracy"]),
        "val_accuracy": chosen["val/accuracy"],
        "train_accuracy": chosen["train/accuracy"],
        "chosen_epoch": best_epoch + 1,
        "n_epochs": len(history),
        "epoch_s": float(np.median(epoch_s)),
        "train_s": float(epoch_s.sum()),
        "n_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    for name, value in chosen.items():
        if name.startswith("val/rate_"):
            row[name.removeprefix("val/")] = value
    if "test_each_epoch/accuracy" in history:
        row["best_test_accuracy"] = max(history["test_each_epoch/accuracy"].tolist())
    return row


def _identity(cfg: DictConfig, content: dict[str, Any], data_set: str) -> dict[str, Any]:
    made = provenance()
    return {
        "experiment": cfg.experiment_name,
        "data_set": data_set,
        "seed": cfg.seed,
        "config_hash": content_hash(content),
        "git_sha": made["git_sha"],
        "git_dirty": made["git_dirty"],
        "machine": made["machine"],
        "python": made["python"],
        **{f"version.{name}": number for name, number in made["versions"].items()},
        "n_threads": torch.get_num_threads(),
        **{k: v for k, v in flatten(content).items() if k not in ("seed", "experiment_name")},
    }


def _summary(row: dict[str, Any]) -> str:
    text = (
        f"test accuracy {row['test_accuracy']:.2%} (model of epoch {row['chosen_epoch']}, "
        f"chosen on validation: {row['val_accuracy']:.2%})"
    )
    if "best_test_accuracy" in row:
        text += f"; best test accuracy of all epochs {row['best_test_accuracy']:.2%}"
    return text
