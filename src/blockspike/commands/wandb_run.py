"""A run in Weights & Biases: named by its folder, continued under its id, closed in the end.

wandb is imported where a run of it is started: it takes a third of a second.
"""

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from blockspike.commands.activity import activity
from blockspike.data.datamodule import EventDataModule
from blockspike.figures.raster import raster
from blockspike.figures.style import use_style
from blockspike.networks.classifier import SpikingClassifier
from blockspike.runs.identity import content_hash, is_fit, plain
from blockspike.runs.run import Run, read_json, write_text
from blockspike.training.classification import ClassificationModule
from blockspike.training.metrics_file import read_metrics

Mode = Literal["online", "offline", "disabled"]
_LONGEST_NAME = 128  # characters that the server takes
_N_BINS = 32
_BY_EPOCH = ("train/*", "val/*", "time/*", "test_each_epoch/*")
_BEST = {"val/accuracy": "max", "val/loss": "min"}


def wandb_logger(
    run_dir: str, output_dir: str, project: str, mode: Mode, **options: Any
) -> WandbLogger:
    """Lightning's logger of the run in `run_dir`, started or continued.

    The run is named by its folder below `output_dir` and holds the whole configuration. Metrics are
    drawn against the epoch; the best validation accuracy and loss go into the summary.

    Args:
        run_dir: the folder of a run that has started, so that its configuration is there.
        output_dir: of all runs.
        project: in Weights & Biases.
        mode: of wandb.
        **options: further arguments of `wandb.init`.
    """
    experiment = _start(Run(Path(run_dir)), output_dir, mode, project=project, **options)
    return WandbLogger(experiment=experiment, project=project, save_dir=run_dir)


@rank_zero_only
def _start(run: Run, output_dir: str, mode: Mode, **options: Any) -> Any:
    import wandb

    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # is looked up offline, too
    cfg = run.config()
    experiment = wandb.init(
        id=run_id(run), resume="allow", mode=mode, dir=str(run.folder), config=plain(cfg),
        name=os.path.relpath(run.folder, output_dir)[-_LONGEST_NAME:],
        job_type="fit" if is_fit(cfg) else "train", **options,
    )  # fmt: skip
    experiment.define_metric("epoch")
    for name in _BY_EPOCH:
        experiment.define_metric(name, step_metric="epoch")
    for name, summary in _BEST.items():
        experiment.define_metric(name, step_metric="epoch", summary=summary)
    _repeat_epochs(experiment, run.folder / "metrics.csv")
    return experiment


def _repeat_epochs(experiment: Any, metrics: Path) -> None:
    """Log again what was logged before an interruption: a kill takes the last of it from wandb."""
    rows = read_metrics(metrics).to_dict("records") if metrics.is_file() else []
    for row in rows:
        experiment.log({str(k): v for k, v in row.items() if v == v})


def run_id(run: Run) -> str:
    """The run's id, the same whenever it is continued: its content's hash and a token.

    The token is drawn when the run first starts and kept in its folder. So the same run on another
    machine, or again after its folder was deleted, is a run of its own.
    """
    path = run.folder / "wandb_id"
    if not path.is_file():
        digest = content_hash(read_json(run.folder / "content.json"))
        write_text(path, f"{digest}-{secrets.token_hex(4)}")
    return path.read_text()


@contextmanager
def wandb_closed() -> Iterator[None]:
    """A wandb run that the block leaves open has failed: a sweep's next run starts its own."""
    try:
        yield
    finally:
        if (left := _open_run()) is not None:
            left.finish(exit_code=1)


def _open_run() -> Any:
    """The wandb run of this process, or None."""
    wandb = sys.modules.get("wandb")
    return wandb and wandb.run


def log_result(
    run: Run, row: dict[str, Any], data: pl.LightningDataModule, module: pl.LightningModule
) -> None:
    """Log the row as the summary, and pictures, and close the wandb run; nothing if none is open.

    After that `result.json` may be written: a run that is killed before is not finished, and the
    same command logs it again.

    Of a classifier the raster of a few test recordings and a histogram a layer of its neurons'
    firing rates; of fits their picture and table.

    Args:
        run: of fits with `fits.csv` and `figures/recording.png`.
        row: what `result.json` is to hold.
        data: rates are of the first test batch.
        module: holds the chosen model.
    """
    started = _open_run()
    if started is None:
        return
    if isinstance(module, ClassificationModule) and isinstance(data, EventDataModule):
        started.log(_media(run, module.network, data))
    else:
        started.log(_media_of_fits(run))
    started.summary.update(row)
    started.finish()


def _media(run: Run, network: SpikingClassifier, data: EventDataModule) -> dict[str, Any]:
    import wandb

    events, labels = next(iter(data.test_dataloader()))
    with torch.no_grad():
        output = network(events)
    use_style()
    shown = activity(output, events, labels, data.dt_ms)
    picture = raster(shown, run.folder / "figures" / "raster")
    media: dict[str, Any] = {"media/raster": wandb.Image(str(picture))}
    for i, spikes in enumerate(output.spikes, start=1):
        rates_hz = spikes.mean((0, 1)).numpy() * 1000 / data.dt_ms
        media[f"media/rates_layer{i}_hz"] = wandb.Histogram(rates_hz, num_bins=_N_BINS)
    return media


def _media_of_fits(run: Run) -> dict[str, Any]:
    import wandb

    fits = pd.read_csv(run.folder / "fits.csv")
    return {
        "media/recording": wandb.Image(str(run.folder / "figures" / "recording.png")),
        "media/fits": wandb.Table(dataframe=fits),
    }
