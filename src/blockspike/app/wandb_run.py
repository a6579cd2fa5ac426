"""Runs in Weights & Biases: named by their folder, resumed under their id, with their results."""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from blockspike.app.activity import activity_of
from blockspike.figures.raster import raster
from blockspike.files import write_text
from blockspike.networks.classifier import SpikingClassifier
from blockspike.plots.style import use_style
from blockspike.runs.run import Run
from blockspike.training.callbacks import MONITORS
from blockspike.training.metrics_table import read_metrics

_IDENTITY = ("data_set", "config_hash", "data_sha256")
_OF_MODEL = (*_IDENTITY, "monitor", "val_accuracy", "chosen_epoch", "seed")
_MODEL_FILES = ("config.yaml", "content.json", "checkpoints/best.ckpt")  # that `load_run` needs


def wandb_logger(
    run_dir: str, name: str, choices: list[str | None], tags: list[str], **options: Any
) -> WandbLogger:
    """Lightning's logger for the wandb run of a folder, resumed under the id kept there.

    Metrics are drawn against the epoch. `options` are further arguments of `wandb.init`.
    """
    words = [*(choice for choice in choices if choice), *tags]
    options |= {"name": name[-128:], "tags": words, "dir": run_dir}
    return WandbLogger(experiment=_start(Path(run_dir), **options), save_dir=run_dir)


@rank_zero_only
def _start(folder: Path, **options: Any) -> Any:
    import wandb  # takes a third of a second

    if options["mode"] != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it looks up a host offline
    if not (id_file := folder / "wandb_id").is_file():
        write_text(id_file, secrets.token_hex(8))
    run = wandb.init(id=id_file.read_text(), resume="allow", **options)
    for metric in ("epoch", "train/*", "val/*", "time/*", "test_each_epoch/*", "lr", "lr/*"):
        run.define_metric(metric, step_metric=None if metric == "epoch" else "epoch")
    for metric, summary in MONITORS.items():
        run.define_metric(metric, step_metric="epoch", summary=summary)
    if (metrics := folder / "metrics.csv").is_file():  # wandb loses the last ones if it is killed
        for row in read_metrics(metrics).to_dict("records"):
            run.log({str(k): v for k, v in row.items() if pd.notna(v)})
    return run


@contextmanager
def wandb_closed() -> Iterator[None]:
    """Close a wandb run that the block leaves open as failed, so that the next can start."""
    try:
        yield
    finally:
        if "wandb" in sys.modules and (left := sys.modules["wandb"].run) is not None:
            left.finish(exit_code=1)


def log_result(
    run: Run, row: dict[str, Any], results: dict[str, Any], module: Any, data: Any
) -> None:
    """Log summary, pictures, tables and the chosen model, and close the run, if one is open.

    Call it before `result.json` is written: the same command logs a run killed earlier again.
    """
    wandb: Any = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    if isinstance(network := getattr(module, "network", None), SpikingClassifier):
        use_style()
        raster(shown := activity_of(network, data), run.folder / "figures" / "raster")
        rates = {k: v for k, v in shown.items() if k.startswith("rates_")}
        wandb.run.log({f"media/{k}": wandb.Histogram(v, num_bins=32) for k, v in rates.items()})
    for picture in (run.folder / "figures").glob("*.png"):
        wandb.run.log({f"media/{picture.stem}": wandb.Image(str(picture))})
    for table in (x for x in ("confusion", "fits") if (run.folder / f"{x}.csv").is_file()):
        content = pd.read_csv(run.folder / f"{table}.csv")
        wandb.run.log({f"media/{table}": wandb.Table(dataframe=content)})
    if run.best_checkpoint.is_file():
        about = {key: row[key] for key in _OF_MODEL if key in row}
        artifact = wandb.Artifact(f"model-{row['config_hash']}", "model", metadata=about)
        for name in _MODEL_FILES:
            artifact.add_file(str(run.folder / name), name, skip_cache=True, policy="immutable")
        wandb.run.log_artifact(artifact)
    wandb.run.summary.update({key: row[key] for key in _IDENTITY} | results)
    wandb.run.finish()
