"""Runs in Weights & Biases: named by their folder and resumed under their id.

wandb is imported only when a wandb run starts: the import takes a third of a second.
"""

import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.utilities import rank_zero_only

from blockspike.app.activity import activity
from blockspike.data.datamodule import EventDataModule
from blockspike.files import write_text
from blockspike.plots.raster import raster
from blockspike.plots.style import use_style
from blockspike.runs.identity import content_hash, content_of, is_fit, plain
from blockspike.runs.results import fits_of
from blockspike.runs.run import Run
from blockspike.training.callbacks import MONITORS
from blockspike.training.classification import ClassificationModule
from blockspike.training.metrics_table import read_metrics

Mode = Literal["online", "offline", "disabled"]
_LONGEST_NAME = 128  # characters that the server takes
_N_BINS = 32
_BY_EPOCH = ("train/*", "val/*", "time/*", "test_each_epoch/*", "lr", "lr/*")
_IDENTITY = ("data_set", "config_hash", "data_sha256")  # columns of the row in the summary
_OF_MODEL = ("monitor", "val_accuracy", "chosen_epoch", "seed")  # with them in its artifact
_MODEL_FILES = ("config.yaml", "content.json", "checkpoints/best.ckpt")


def wandb_logger(
    run_dir: str,
    output_dir: str,
    project: str,
    mode: Mode,
    tags: Sequence[str | None] = (),
    **options: Any,
) -> WandbLogger:
    """Start or resume the wandb run of `run_dir` and return Lightning's logger for it.

    The wandb run is named by its folder below `output_dir` and holds the whole configuration.
    Metrics are drawn against the epoch; the summary holds the best validation accuracy and loss.

    Args:
        run_dir: folder of a started run, which holds its configuration.
        output_dir: folder of all runs.
        project: name of the project in Weights & Biases.
        mode: wandb's mode.
        tags: in addition to those of the configuration; None is left out.
        **options: further arguments of `wandb.init`.
    """
    options |= {"project": project, "tags": [tag for tag in tags if tag is not None]}
    experiment = _start(Run(Path(run_dir)), output_dir, mode, **options)
    return WandbLogger(experiment=experiment, project=project, save_dir=run_dir)


@rank_zero_only
def _start(run: Run, output_dir: str, mode: Mode, **options: Any) -> Any:
    import wandb

    if mode != "online":
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it looks up a host offline
    cfg = run.config()
    options["tags"] = [*options["tags"], *cfg.get("tags", [])]
    experiment = wandb.init(
        id=run_id(run), resume="allow", mode=mode, dir=str(run.folder), config=plain(cfg),
        name=os.path.relpath(run.folder, output_dir)[-_LONGEST_NAME:],
        job_type="fit" if is_fit(cfg) else "train", **options,
    )  # fmt: skip
    experiment.define_metric("epoch")
    for name in _BY_EPOCH:
        experiment.define_metric(name, step_metric="epoch")
    for name, summary in MONITORS.items():
        experiment.define_metric(name, step_metric="epoch", summary=summary)
    _repeat_epochs(experiment, run.folder / "metrics.csv")
    return experiment


def _repeat_epochs(experiment: Any, metrics: Path) -> None:
    """Log the epochs before an interruption again: wandb loses the last ones if it is killed."""
    rows = read_metrics(metrics).to_dict("records") if metrics.is_file() else []
    for row in rows:
        experiment.log({str(k): v for k, v in row.items() if v == v})


def run_id(run: Run) -> str:
    """wandb id of a run, kept when it resumes: the hash of its content and a random token.

    The token is drawn when the run first starts and stored in its folder. So the same run on
    another machine, or repeated after its folder was deleted, is a new wandb run.
    """
    path = run.folder / "wandb_id"
    if not path.is_file():
        digest = content_hash(content_of(run.config()))
        write_text(path, f"{digest}-{secrets.token_hex(4)}")
    return path.read_text(encoding="utf-8")


@contextmanager
def wandb_closed() -> Iterator[None]:
    """Close a wandb run that the block leaves open as failed, so that the next can start."""
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
    run: Run,
    row: dict[str, Any],
    results: dict[str, Any],
    data: pl.LightningDataModule,
    module: pl.LightningModule,
) -> None:
    """Log the results as the summary, log pictures, and close the wandb run if one is open.

    For a classifier, log the confusion matrix of its test, a raster of a few test recordings and
    each layer's histogram of firing rates, and the chosen model as an artifact; for fits, log their
    picture and table. Call it before `result.json` is written: a run killed earlier is not
    finished, and the same command logs it again.

    Args:
        run: the run; for fits its folder holds `fits.csv` and `figures/recording.png`.
        row: the content of `result.json`.
        results: the columns of the row that are results, not settings.
        data: the data module; firing rates are those of its first test batch.
        module: the module with the chosen model.
    """
    started = _open_run()
    if started is None:
        return
    summary = {key: row[key] for key in _IDENTITY} | results
    if isinstance(module, ClassificationModule) and isinstance(data, EventDataModule):
        started.log(_media(run, module, data))
        started.log_artifact(_chosen_model(run, row))
    else:
        started.log(_media_of_fits(run))
    started.summary.update(summary)
    started.finish()


def _chosen_model(run: Run, row: dict[str, Any]) -> Any:
    """Artifact of the files that `load_run` needs; they are not copied."""
    import wandb

    about = {key: row[key] for key in (*_IDENTITY, *_OF_MODEL) if key in row}
    artifact = wandb.Artifact(f"model-{row['config_hash']}", "model", metadata=about)
    for name in _MODEL_FILES:
        artifact.add_file(str(run.folder / name), name, skip_cache=True, policy="immutable")
    return artifact


def _media(run: Run, module: ClassificationModule, data: EventDataModule) -> dict[str, Any]:
    import wandb

    events, labels = next(iter(data.test_dataloader()))
    with torch.no_grad():
        output = module.network.eval()(events)
    use_style()
    shown = activity(output, events, labels, data.dt_ms)
    picture = raster(shown, run.folder / "figures" / "raster")
    media: dict[str, Any] = {"media/raster": wandb.Image(str(picture))}
    for i, spikes in enumerate(output.spikes, start=1):
        rates_hz = spikes.mean((0, 1)).numpy() * 1000 / data.dt_ms
        media[f"media/rates_layer{i}_hz"] = wandb.Histogram(rates_hz, num_bins=_N_BINS)
    counts = module.test_confusion
    if counts.any():  # a fold is not tested
        true, predicted = counts.nonzero().repeat_interleave(counts[counts > 0], dim=0).T.tolist()
        names = [str(k) for k in range(len(counts))]
        media["media/confusion"] = wandb.plot.confusion_matrix(
            y_true=true, preds=predicted, class_names=names, title="Confusion matrix (test)"
        )
    return media


def _media_of_fits(run: Run) -> dict[str, Any]:
    import wandb

    fits = fits_of(run)
    return {
        "media/recording": wandb.Image(str(run.folder / "figures" / "recording.png")),
        "media/fits": wandb.Table(dataframe=fits),
    }
