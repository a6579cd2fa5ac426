"""`blockspike train`: train a classifier, choose it on validation data and test it once."""

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities.model_helpers import is_overridden

from blockspike.app.build import build_module, build_trainer, open_data
from blockspike.app.initial_weights import start_from
from blockspike.app.trainer import (
    EpochCheckpoint,
    finished_row,
    last_checkpoint,
    progress_and_metrics,
    read_checkpoint,
    recorded,
    start,
)
from blockspike.app.wandb_run import log_result
from blockspike.runs.log import LOGGER
from blockspike.runs.run import Run, is_first_process
from blockspike.training.callbacks import MONITORS, GradientNorm, LayerStates, Throughput
from blockspike.training.confusion import write_confusion
from blockspike.training.guard import Guard
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
    if (row := finished_row(cfg, run)) is not None:
        return row
    start(cfg)
    data = open_data(cfg, recordings=False)
    module = build_module(cfg, data)
    validates = getattr(data, "validates", is_overridden("val_dataloader", data))
    with recorded(cfg, run, data) as row:
        resumed = last_checkpoint(run, cfg.resume_from)
        if cfg.init_from is not None and resumed is None:
            start_from(module.network, cfg.init_from, cfg.model, module.dt_ms)

        own, has_bar = progress_and_metrics(cfg.progress, run)
        own += [Throughput(), GradientNorm(), LayerStates(), Guard(run.folder / "bad_batch.ckpt")]
        monitor = {"monitor": cfg.monitor, "mode": MONITORS[cfg.monitor]}
        if not validates:  # the last epoch; apart from `last`, whose mode is "min"
            monitor = {"mode": "max", "save_on_train_epoch_end": True}
        chosen = EpochCheckpoint(run.best_checkpoint, **monitor)
        # Lightning's save_last writes only when a model is chosen; resuming needs every epoch.
        last = EpochCheckpoint(run.last_checkpoint, save_on_train_epoch_end=True)
        own += [*callbacks, chosen, last]
        trainer = build_trainer(cfg, run.folder, own, enable_progress_bar=has_bar)

        data.trainer = trainer
        loaders = [data.val_dataloader()] if validates else []
        loaders += [data.test_dataloader()] if cfg.test_each_epoch else []
        trainer.fit(module, data.train_dataloader(), loaders or None, ckpt_path=resumed)

        best = read_checkpoint(run.best_checkpoint)
        module.load_state_dict(best["state_dict"])
        results = _scores(run, best["epoch"])
        results["n_parameters"] = sum(p.numel() for p in module.parameters() if p.requires_grad)
        if cfg.data.get("fold") is None:
            trainer.test(module, data.test_dataloader(), verbose=False)
            tested = {name: float(x) for name, x in trainer.callback_metrics.items()}
            results |= {"test_accuracy": tested["test/accuracy"], **_rates_hz(tested, "test")}
            if is_first_process():
                write_confusion(run.folder / "confusion.csv", module.test_confusion)
        row |= results
        log_result(run, row, results, module, data)
        run.write_result(row)
        LOGGER.info(_summary(row))
    if is_first_process():
        print(f"{run.folder}: {_summary(row)}")
    return row


def _check(cfg: DictConfig) -> None:
    """Refuse a configuration in which test data would choose the model or end the training."""
    monitors = {f"callbacks.{k}.monitor": _monitor(x) for k, x in (cfg.callbacks or {}).items()}
    for name, monitor in {"monitor": cfg.monitor, **monitors}.items():
        if monitor.startswith("test") or (name == "monitor" and monitor not in MONITORS):
            raise ValueError(
                f"{name}: expected {' or '.join(MONITORS)}, since models are chosen on validation "
                f"data, got {monitor!r}"
            )
    has_own = cfg.data.get("fold") is not None or cfg.data.get("validation") == "own"
    validates = cfg.data.get("validation_fraction") != 0 or has_own
    if not validates and (cfg.test_each_epoch or "early_stopping" in (cfg.callbacks or {})):
        raise ValueError(
            "data.validation_fraction: expected a share > 0 for test_each_epoch or early stopping, "
            "which follow validation, got 0"
        )


def _monitor(callback: Any) -> str:
    return str(callback.get("monitor")) if isinstance(callback, DictConfig) else ""


def _scores(run: Run, best_epoch: int) -> dict[str, Any]:
    """Columns of the run's row that do not depend on test data, but for `best_test_accuracy`."""
    history = read_metrics(run.folder / "metrics.csv").set_index("epoch")
    chosen: dict[str, float] = history.to_dict("index")[best_epoch]  # pyright: ignore
    row = {
        "train_accuracy": chosen["train/accuracy"],
        "chosen_epoch": best_epoch + 1,
        "n_epochs": len(history),
        "epoch_s": history["time/epoch_s"].median(),
        "train_s": history["time/epoch_s"].sum(),
    }
    if "val/accuracy" in chosen:
        row |= {"val_accuracy": chosen["val/accuracy"], **_rates_hz(chosen, "val")}
    if "test_each_epoch/accuracy" in history:
        row["best_test_accuracy"] = history["test_each_epoch/accuracy"].max()
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
