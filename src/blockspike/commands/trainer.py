"""The trainer that `train` and `fit` share: progress, metrics and checkpoints."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import TensorBoardLogger

from blockspike.config.build import build_trainer
from blockspike.runs.log import LOGGER
from blockspike.runs.rank import is_first_process
from blockspike.runs.run import Run
from blockspike.training.callbacks import EpochBar, EpochLines, LearningRates
from blockspike.training.checkpoint_io import PlainCheckpointIO, load_plain
from blockspike.training.metrics_file import MetricsFile


def make_trainer(
    cfg: DictConfig, run: Run, callbacks: Sequence[Callback], epochs_a_line: int = 1, **options: Any
) -> pl.Trainer:
    """Build the configured trainer, with progress, plain checkpoints and `metrics.csv`."""
    on_terminal = cfg.progress and sys.stdout.isatty()
    callbacks = [
        MetricsFile(run.folder),
        LearningRates(),
        *callbacks,
        _FirstError(run),
        _EndTogether(),
    ]
    if cfg.progress:
        callbacks.append(EpochBar() if on_terminal else EpochLines(epochs_a_line))
    trainer = build_trainer(
        cfg, callbacks, plugins=[PlainCheckpointIO()], enable_progress_bar=on_terminal,
        num_sanity_val_steps=0, enable_model_summary=False,
        # In a Slurm step, Lightning would otherwise resume from a file of the current folder.
        default_root_dir=str(run.folder),
        **options,
    )  # fmt: skip
    for logger in trainer.loggers if cfg.get("tags") else ():
        if isinstance(logger, TensorBoardLogger) and is_first_process():
            logger.experiment.add_text("tags", ", ".join(cfg.tags))
    return trainer


class EpochCheckpoint(ModelCheckpoint):
    """Checkpoint callback that keeps the best score if the run's folder is moved."""

    @property
    def state_key(self) -> str:
        """The base class's key, so that checkpoints written by it can be resumed."""
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, with its paths moved to this run's folder."""

        def here(value: Any) -> Any:
            if isinstance(value, dict):  # of paths
                return {here(path): score for path, score in value.items()}
            is_path = isinstance(value, str) and value
            return str(Path(self.dirpath or "", Path(value).name)) if is_path else value

        moved = {k: here(v) for k, v in state_dict.items()}
        super().load_state_dict(moved | {"dirpath": self.dirpath})


_TO_FAIL_FIRST_S = 1.0


class _FirstError(Callback):
    """Record the first error, before it makes the run's other processes fail."""

    def __init__(self, run: Run):
        self.run = run

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        if not is_first_process():
            time.sleep(_TO_FAIL_FIRST_S)  # the first process reports its error, or ends this one
        if isinstance(exception, Exception):
            self.run.write_error(exception)


class _EndTogether(Callback):
    """Treat SIGTERM as Ctrl-C, and let the first process handle both and end the others.

    Slurm and a terminal signal all processes of a run. With Lightning's handler they would wait
    for each other, often forever, or the first would fail because another had already ended.

    Where a signal arrives in a finaliser (of the last epoch's batches), Python prints the exception
    and continues; then it is raised again at the next batch.
    """

    def __init__(self):
        self.is_interrupted = False

    def _interrupt(self, *_: object) -> None:
        self.is_interrupted = True
        raise KeyboardInterrupt

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._interrupt if is_first_process() else signal.SIG_IGN)

    on_test_start = on_train_start

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        if self.is_interrupted:
            raise KeyboardInterrupt

    on_validation_batch_start = on_train_batch_start
    on_test_batch_start = on_train_batch_start


@contextmanager
def processes_of_one_run() -> Iterator[None]:
    """Destroy Lightning's process group at the end, so that a sweep's next run can make its own."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name in ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
            if name not in before:
                os.environ.pop(name, None)


def last_checkpoint(run: Run, is_own: bool = True) -> Path | None:
    """Path of the checkpoint to resume from, which is printed; None for a new run.

    A damaged one is deleted if the one before is readable, whose place it would take at the next
    epoch; not in another run's folder, with `is_own` False.

    Raises:
        ValueError: no checkpoint is readable, or the best one is damaged.
    """
    if run.best_checkpoint.is_file():
        load_best(run)  # a damaged one would be noticed only after training
    kept = [p for p in (run.last_checkpoint, run.previous_checkpoint) if p.is_file()]
    damaged: list[Path] = []
    for path in kept:
        try:
            epochs = load_plain(path)["epoch"] + 1
        except ValueError as error:
            print(f"{error}; not used", file=sys.stderr)
            LOGGER.info("%s; not used", error)
            damaged.append(path)
            continue
        if is_first_process():
            how = "continued" if is_own else "extended"
            print(f"{run.folder}: {how} after epoch {epochs}")
            LOGGER.info("%s after epoch %d", how, epochs)
            for other in damaged if is_own else ():
                other.unlink(missing_ok=True)
        return path
    if kept:
        raise ValueError(
            f"{run.folder}: expected a readable checkpoint, got none; "
            "delete the folder to start over"
        )
    return None


def load_best(run: Run) -> dict[str, Any]:
    """Read the checkpoint chosen on validation data.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    try:
        return load_plain(run.best_checkpoint)
    except ValueError as error:
        raise ValueError(f"{error}; delete {run.folder} to start over") from error


@contextmanager
def without_known_warnings() -> Iterator[None]:
    """Silence Lightning's warnings about deliberate choices."""
    with warnings.catch_warnings():
        # Batches are made on a separate thread; worker processes would be slower.
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")  # Lightning's own
        warnings.filterwarnings("ignore", ".*exists and is not empty.*")  # a resumed run
        warnings.filterwarnings("ignore", ".*have no `val_dataloader`.*")  # validation_fraction=0
        # Lightning warns at every fit and test, but `build_trainer` has settled it.
        warnings.filterwarnings("ignore", ".*`srun` command is available.*")
        yield
