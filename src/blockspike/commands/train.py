"""`blockspike train`: train a classifier, choose it on validation data and test it once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig

from blockspike.commands.checks import check_training
from blockspike.commands.extension import check_source, first_epochs
from blockspike.commands.initial_weights import check_settings, start_from
from blockspike.commands.run_once import Task, run_once
from blockspike.commands.trainer import (
    EpochCheckpoint,
    last_checkpoint,
    load_best,
    make_trainer,
    without_known_warnings,
)
from blockspike.config.build import build_data, build_module
from blockspike.data.datamodule import EventDataModule
from blockspike.runs.log import LOGGER
from blockspike.runs.rank import is_first_process
from blockspike.runs.run import Run
from blockspike.training.callbacks import GradientNorm, Pruner, Throughput, mode_of
from blockspike.training.classification import ClassificationModule
from blockspike.training.classifier_guard import ClassifierGuard
from blockspike.training.confusion import write_confusion
from blockspike.training.metrics_table import read_metrics


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train a classifier and test it once, as one run (see `run_once`).

    The model is the best of all epochs on the validation split, or without one that of the last
    epoch. A run that is pruned, or holds out a fold of cross-validation, is not tested.
    """
    return run_once(cfg, _TASK)


def open_data(cfg: DictConfig) -> str | None:
    """Check the settings of a run and open its data, before a search plans many of them.

    Returns:
        SHA-256 of the data.

    Raises:
        ValueError: a setting is wrong, or the prepared file is damaged.
        FileNotFoundError: the data are missing.
    """
    check_training(cfg)
    return _data(cfg).sha256


def _data(cfg: DictConfig) -> EventDataModule:
    data = build_data(cfg, EventDataModule)
    data.prepare_data()
    data.setup()
    return data


def _build(cfg: DictConfig) -> tuple[EventDataModule, ClassificationModule]:
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    data = _data(cfg)
    module = build_module(cfg, data)
    if _is_extended(cfg, Run(Path(cfg.run_dir))) and cfg.replay is None:
        check_source(cfg, module.network, data.sha256)
    return data, module


def _is_extended(cfg: DictConfig, run: Run) -> bool:
    """Whether the run is to begin with the epochs of another one."""
    return cfg.extend is not None and not run.last_checkpoint.is_file()


def _fit_and_test(
    cfg: DictConfig, run: Run, data: EventDataModule, module: ClassificationModule
) -> dict[str, Any]:
    chosen = EpochCheckpoint(
        run.best_checkpoint.parent,
        filename=run.best_checkpoint.stem,
        monitor=cfg.monitor if data.validates else None,  # None = the last epoch
        mode=mode_of(cfg.monitor) if data.validates else "max",  # apart from `last`, of mode "min"
        save_on_train_epoch_end=None if data.validates else True,
        enable_version_counter=False,
    )
    # Lightning's save_last writes only when a model is chosen; resuming needs every epoch.
    last = EpochCheckpoint(
        run.last_checkpoint.parent,
        filename=run.last_checkpoint.stem,
        save_on_train_epoch_end=True,
        enable_version_counter=False,
    )
    is_extended = _is_extended(cfg, run)
    resumed = first_epochs(Run(Path(cfg.extend)), run) if is_extended else last_checkpoint(run)
    if cfg.trainer.get("precision") == "64-true":  # Lightning converts after loading
        module.double()
    if cfg.init_from is not None and resumed is None:
        check_settings(cfg, cfg.init_from)
        differing = start_from(module.network, cfg.init_from)
        for name in differing:
            LOGGER.warning("%s: initialised anew; it differs from %s", name, cfg.init_from)
    guard = ClassifierGuard(run.folder / "bad_batch.ckpt")
    pruner = Pruner(run.folder / "metrics.csv", cfg.monitor, cfg.get("pruning") or [])
    pruning = [pruner] if data.validates else []
    callbacks = [Throughput(), GradientNorm(), guard, *pruning, chosen, last]
    trainer = make_trainer(cfg, run, callbacks)
    with without_known_warnings():
        data.trainer = trainer
        loaders = [data.val_dataloader()] if data.validates else []
        if cfg.test_each_epoch:
            loaders.append(data.test_dataloader())
        trainer.fit(module, data.train_dataloader(), loaders or None, ckpt_path=resumed)
        if not run.best_checkpoint.is_file():
            raise ValueError(
                f"trainer: expected a finished epoch, got none (max_epochs {trainer.max_epochs})"
            )
        best = load_best(run)
        module.load_state_dict(best["state_dict"])
        scores = _scores(run, best["epoch"], module)
        if pruner.has_pruned:
            return {"pruned": True, **scores}
        if cfg.data.get("fold") is not None:
            return scores
        trainer.test(module, data.test_dataloader(), verbose=False)
    if is_first_process():
        write_confusion(run.confusion, module.test_confusion)
    tested = {name: float(x) for name, x in trainer.callback_metrics.items()}
    return {"test_accuracy": tested["test/accuracy"], **_rates_hz(tested, "test"), **scores}


def _scores(run: Run, best_epoch: int, module: ClassificationModule) -> dict[str, Any]:
    """Columns of the run's row that do not depend on test data, but for `best_test_accuracy`."""
    history = read_metrics(run.folder / "metrics.csv").set_index("epoch")
    values = history.loc[best_epoch].to_numpy(dtype=float)
    chosen = dict(zip(map(str, history.columns), values.tolist(), strict=True))
    epoch_s = history["time/epoch_s"].to_numpy(dtype=float)
    row = {
        "train_accuracy": chosen["train/accuracy"],
        "chosen_epoch": best_epoch + 1,
        "n_epochs": len(history),
        "epoch_s": float(np.median(epoch_s)),
        "train_s": float(epoch_s.sum()),
        "n_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
    }
    if "val/accuracy" in chosen:
        row |= {"val_accuracy": chosen["val/accuracy"], **_rates_hz(chosen, "val")}
    if "test_each_epoch/accuracy" in history:
        row["best_test_accuracy"] = max(history["test_each_epoch/accuracy"].tolist())
    return row


def _rates_hz(values: dict[str, float], part: str) -> dict[str, float]:
    """Firing rates on a part of the data, as columns of the run's row."""
    start = f"{part}/"
    return {k.removeprefix(start): x for k, x in values.items() if k.startswith(f"{start}rate_")}


def _summary(row: dict[str, Any]) -> str:
    if row.get("pruned"):
        return f"pruned after epoch {row['n_epochs']} (validation: {row['val_accuracy']:.2%})"
    model = f"model of epoch {row['chosen_epoch']}"
    if "test_accuracy" not in row:
        return f"validation accuracy {row['val_accuracy']:.2%} ({model}); a fold, not tested"
    how = "trained on everything"
    if "val_accuracy" in row:
        how = f"chosen on validation: {row['val_accuracy']:.2%}"
    text = f"test accuracy {row['test_accuracy']:.2%} ({model}, {how})"
    if "best_test_accuracy" in row:
        text += f"; best test accuracy of all epochs {row['best_test_accuracy']:.2%}"
    return text


_TASK = Task(
    build=_build,
    work=_fit_and_test,
    guard=lambda file, data: ClassifierGuard(file),
    title=lambda data: str(data.name),
    summary=_summary,
)
