"""What `train` and `fit` share: how a run begins and ends, its checkpoints and its row."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_utilities.core.rank_zero import rank_zero_only
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from blockspike.app.build import is_task_of_its_own, open_data
from blockspike.app.wandb_run import wandb_closed
from blockspike.files import whole_file
from blockspike.runs.identity import content_hash, content_of, is_fit
from blockspike.runs.log import LOGGER
from blockspike.runs.run import Run, flatten, is_first_process, provenance
from blockspike.training.callbacks import EpochLines, LearningRates
from blockspike.training.metrics_file import MetricsFile

_ELSEWHERE = ("seed", "experiment_name")  # settings that the row has under other names
_KNOWN_WARNINGS = (  # of Lightning, about deliberate choices
    # Batches are made on a separate thread; worker processes would be slower.
    ".*does not have many workers.*",
    ".*LeafSpec.*is deprecated.*",  # Lightning's own
    ".*exists and is not empty.*",  # a resumed run
    ".*have no `val_dataloader`.*",  # validation_fraction=0
    ".*`srun` command is available.*",  # one process is meant
)


def finished_row(cfg: DictConfig, run: Run) -> dict[str, Any] | None:
    """Row of the run if it is finished, which is printed; None for a run that is to start.

    Raises:
        RunRefusedError: the folder holds a run with another configuration, or of other data.
    """
    content = content_of(cfg)
    run.check(content)
    row = run.result()
    if row is not None:
        if run.may_have_other_data(cfg.data.get("path")):
            run.check(content, open_data(cfg, recordings=is_fit(cfg)).sha256)
            run.mark_data_checked()
        unsent = f"; nothing was sent to {', '.join(cfg.logger)}" if cfg.logger else ""
        print(f"{run.folder}: finished, skipped{unsent}")
    return row


def start(cfg: DictConfig) -> None:
    """Set threads, seed and rank of the run that this process begins."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    use_threads(cfg.threads)
    if is_task_of_its_own(cfg.trainer):
        rank_zero_only.rank = 0  # pyright: ignore[reportFunctionMemberAccess]
    pl.seed_everything(cfg.seed, workers=True, verbose=False)


@contextmanager
def recorded(cfg: DictConfig, run: Run, data: Any) -> Iterator[dict[str, Any]]:
    """Record a run for a block: its folder is locked and has its status and log.

    Yields:
        The columns of the run's row that do not depend on its results.
    """
    sha256 = getattr(data, "sha256", None)
    name = getattr(data, "title", getattr(data, "name", type(data).__name__))
    with (
        run.recorded(cfg, sha256), _processes_of_one_run(), wandb_closed(),
        warnings.catch_warnings(),
    ):  # fmt: skip
        for text in _KNOWN_WARNINGS:
            warnings.filterwarnings("ignore", text)
        yield _row_of(cfg, str(name), sha256)


def use_threads(threads: int | None) -> None:
    """Set the number of threads of PyTorch and the kernels, unless it is None."""
    if threads is not None:
        torch.set_num_threads(threads)


def progress_and_metrics(
    progress: bool, run: Run, epochs_a_line: int = 1
) -> tuple[list[Callback], bool]:
    """Callbacks that write `metrics.csv` and show progress, and whether there is a bar."""
    has_bar = progress and sys.stdout.isatty()
    lines = [EpochLines(epochs_a_line)] if progress and not has_bar else []
    return [MetricsFile(run.folder), LearningRates(), *lines], has_bar


class EpochCheckpoint(ModelCheckpoint):
    """`ModelCheckpoint` in a run's folder, which keeps the best score if the folder is moved."""

    def __init__(self, path: Path, **options: Any):
        super().__init__(path.parent, path.stem, enable_version_counter=False, **options)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state, with its paths moved to this run's folder."""

        def here(value: Any) -> Any:
            if isinstance(value, dict):  # of paths
                return {here(path): score for path, score in value.items()}
            is_path = isinstance(value, str) and value
            return str(Path(self.dirpath or "", Path(value).name)) if is_path else value

        moved = {k: here(v) for k, v in state_dict.items()}
        super().load_state_dict(moved | {"dirpath": self.dirpath})


def last_checkpoint(run: Run, resume_from: str | None = None) -> Path | None:
    """Path of the checkpoint to resume from, which is printed; None for a new run.

    Args:
        run: the run.
        resume_from: folder of a finished run that a new run continues; its best model is copied.

    Raises:
        ValueError: the checkpoint cannot be read, or that run is not finished.
    """
    for file in run.folder.glob("hpc_ckpt_*"):  # Lightning's, of the middle of an epoch
        file.unlink()
    path = run.last_checkpoint
    if not path.is_file() and resume_from is not None:
        source = Run(resume_from)
        source.finished("resume_from")
        if is_first_process():
            with whole_file(run.best_checkpoint) as copy:
                shutil.copyfile(source.best_checkpoint, copy)
        path = source.last_checkpoint
    if not path.is_file():
        return None
    epoch = read_checkpoint(path)["epoch"]
    if run.best_checkpoint.is_file():
        read_checkpoint(run.best_checkpoint)  # a damaged one would be noticed only after training
    if is_first_process():
        print(f"{run.folder}: continued after epoch {epoch + 1}")
        LOGGER.info("continued after epoch %d", epoch + 1)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of Lightning; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch has no common class for damage
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: not a readable checkpoint ({reason}); delete it") from error


@contextmanager
def _processes_of_one_run() -> Iterator[None]:
    """Let Lightning start the processes of a run by `sys.argv`, and end them with the run."""
    before = dict(os.environ)
    sys.modules["__main__"].__spec__ = find_spec("blockspike.__main__")
    try:
        yield
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
        for name in ("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"):
            if name not in before:
                os.environ.pop(name, None)


def _row_of(cfg: DictConfig, data_set: str, data_sha256: str | None) -> dict[str, Any]:
    made, content = provenance(), content_of(cfg)
    return {
        "experiment": cfg.experiment_name,
        "data_set": data_set,
        "seed": cfg.seed,
        **({"tags": list(cfg.tags)} if cfg.tags else {}),
        "config_hash": content_hash(content),
        **{name: made[name] for name in ("git_sha", "git_dirty", "machine", "python")},
        **{f"version.{name}": number for name, number in made["versions"].items()},
        "n_threads": torch.get_num_threads(),
        **{f"{group}_config": choice for group, choice in (cfg.choices or {}).items()},
        **{k: v for k, v in flatten(content).items() if k not in _ELSEWHERE},
        "data_sha256": data_sha256,
    }
