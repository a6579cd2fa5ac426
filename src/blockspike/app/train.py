"""`blockspike train`: train a classifier, choose it on validation data and test it once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

from blockspike.app.build import build_data, build_module
from blockspike.app.initial_weights import check_settings, start_from
from blockspike.app.trainer import (
    EpochCheckpoint,
    finished_row,
    last_checkpoint,
    make_trainer,
    processes_of_one_run,
    read_checkpoint,
    row_of,
    start,
    without_known_warnings,
)
from blockspike.app.wandb_run import log_result, wandb_closed
from blockspike.data.datamodule import EventDataModule
from blockspike.runs.log import LOGGER
from blockspike.runs.run import Run, is_first_process
from blockspike.training.callbacks import MONITORS, GradientNorm, Throughput
from blockspike.training.classification import ClassificationModule
from blockspike.training.classifier_guard import ClassifierGuard
from blockspike.training.confusion import write_confusion
from blockspike.training.metrics_table import read_metrics


def train(cfg: DictConfig, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train a classifier in its run's folder, choose an epoch on validation data and test it once.

    An interrupted run continues, and a finished one is skipped. Without a validation split, the
    last epoch is tested; a fold of cross-validation is not tested.

    Args:
        cfg: configuration, as conf/train.yaml.
        callbacks: further callbacks of Lightning.

    Returns:
        The run's row, as in `result.json`.

    Raises:
        ValueError: a setting is wrong, or the folder holds a run with another configuration or of
            other data.
        FileNotFoundError: the data are missing.
    """
    run = Run(cfg.run_dir)
    _check(cfg)
    if (row := finished_row(cfg, run, EventDataModule)) is not None:
        return row
    start(cfg)
    data = build_data(cfg, EventDataModule)
    data.prepare_data()
    data.setup()
    module = build_module(cfg, data)
    with run.recorded(cfg, data.sha256), processes_of_one_run(), wandb_closed():
        row = row_of(cfg, str(data.name), data.sha256)
        resumed = last_checkpoint(run, cfg.resume_from)
        if cfg.trainer.get("precision") == "64-true":  # Lightning converts after loading
            module.double()
        if cfg.init_from is not None and resumed is None:
            check_settings(cfg, cfg.init_from)
            for name in start_from(module.network, cfg.init_from):
                LOGGER.warning("%s: initialised anew; it differs from %s", name, cfg.init_from)
        monitor = {"monitor": cfg.monitor, "mode": MONITORS[cfg.monitor]} if data.validates else {}
        chosen = EpochCheckpoint(
            run.best_checkpoint, save_on_train_epoch_end=None if monitor else True,
            **monitor or {"mode": "max"},  # apart from `last`, whose mode is "min"
        )  # fmt: skip
        # Lightning's save_last writes only when a model is chosen; resuming needs every epoch.
        last = EpochCheckpoint(run.last_checkpoint, save_on_train_epoch_end=True)
        guard = ClassifierGuard(run.folder / "bad_batch.ckpt")
        trainer = make_trainer(
            cfg, run, [Throughput(), GradientNorm(), guard, *callbacks, chosen, last]
        )
        with without_known_warnings():
            data.trainer = trainer
            loaders = [data.val_dataloader()] if data.validates else []
            if cfg.test_each_epoch:
                loaders.append(data.test_dataloader())
            trainer.fit(module, data.train_dataloader(), loaders or None, ckpt_path=resumed)
            best = read_checkpoint(run.best_checkpoint)
            module.load_state_dict(best["state_dict"])
            results = _scores(run, best["epoch"], module)
            if cfg.data.get("fold") is None:
                trainer.test(module, data.test_dataloader(), verbose=False)
                tested = {name: float(x) for name, x in trainer.callback_metrics.items()}
                results |= {"test_accuracy": tested["test/accuracy"], **_rates_hz(tested, "test")}
                if is_first_process():
                    write_confusion(run.folder / "confusion.csv", module.test_confusion)
        row |= results
        log_result(run, row, results, data, module)
        run.write_result(row)
        LOGGER.info(_summary(row))
    if is_first_process():
        print(f"{run.folder}: {_summary(row)}")
    return row


def _check(cfg: DictConfig) -> None:
    """Refuse a configuration in which test data would choose the model or end the training."""
    if cfg.monitor not in MONITORS:
        raise ValueError(
            f"monitor: expected {' or '.join(MONITORS)}, since models are chosen on validation "
            f"data, got {cfg.monitor!r}"
        )
    for name, callback in (cfg.callbacks or {}).items():
        monitor = callback.get("monitor") if isinstance(callback, DictConfig) else None
        if str(monitor).startswith("test"):
            raise ValueError(
                f"callbacks.{name}.monitor: expected a training or validation metric, "
                f"got {monitor!r}"
            )
    has_own = cfg.data.get("fold") is not None or cfg.data.get("validation") == "own"
    validates = cfg.data.get("validation_fraction") != 0 or has_own
    stops = "early_stopping" in (cfg.callbacks or {})
    for name, follows in (("test_each_epoch", cfg.test_each_epoch), ("callbacks", stops)):
        if follows and not validates:
            raise ValueError(
                f"{name}: expected nothing that follows validation, since "
                f"data.validation_fraction is 0, got {cfg[name]}"
            )


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
