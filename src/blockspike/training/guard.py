"""A guard that stops a run at a NaN or Inf, names the place, and keeps the batch.

The check of a step is one norm over loss, scores, gradients and parameters. Only if that is not
finite is the batch run again, layer by layer, to find the first number that is not.
"""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.nn.utils import get_total_norm

from blockspike.files import whole_file
from blockspike.neurons import NotFiniteError


class Guard(Callback):
    """Stops a run at a number that is not finite, names the place and keeps the batch.

    `last.ckpt` and `best.ckpt` stay as they are, and the optimiser does not step. If several
    processes share the run, all of them stop, and the first whose own batch is the cause writes it.

    Args:
        file: where the batch is saved, with the weights, optimiser and random state before it.
    """

    def __init__(self, file: Path):
        self.file = file
        self._batch: Any = None
        self._place = ""
        self._epoch = 0
        self._random: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch, batch_idx) -> None:
        """Remember the batch."""
        step = f"step {trainer.global_step + 1}, batch {batch_idx + 1}"
        self._remember(trainer, batch, step)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Remember the batch."""
        of = "validation" if dataloader_idx == 0 else "test"
        self._remember(
            trainer, batch, f"{of} after step {trainer.global_step}, batch {batch_idx + 1}"
        )

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch, batch_idx, dataloader_idx=0
    ) -> None:
        """Remember the batch."""
        self._remember(trainer, batch, f"test, batch {batch_idx + 1}")

    def _remember(self, trainer: pl.Trainer, batch: Any, place: str) -> None:
        self._batch, self._epoch = batch, trainer.current_epoch
        self._place = f"epoch {trainer.current_epoch + 1}, {place}"
        self._random = {"cpu": torch.get_rng_state()}
        if trainer.strategy.root_device.type == "cuda":
            self._random["cuda"] = torch.cuda.get_rng_state(trainer.strategy.root_device)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception) -> None:
        """Add to a NotFiniteError what was not finite first, and where; write the batch."""
        if not isinstance(exception, NotFiniteError) or self._batch is None:
            return
        batch = self._plain(self._batch)
        with trainer.precision_plugin.forward_context(), _random_numbers(self._random):
            found = self._find(pl_module, self._unpacked(batch))
        process, found = _first_of_all(found)
        if found is None:  # no process found it again
            process, found = _first_of_all(self._seen(pl_module))
        text = f"{found or exception}; {self._place}"
        if process:
            text += f" of process {process}"
        kept = f"; this batch: {self.file}"
        if process == trainer.global_rank:
            content = {
                "error": text, "place": self._place, "epoch": self._epoch,
                "process": process, "random": self._random, "batch": batch,
                "state_dict": pl_module.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            }  # fmt: skip
            try:
                with whole_file(self.file) as temporary:
                    torch.save(content, temporary)
            except OSError as error:
                kept = f"; this batch could not be written ({error})"
        if _is_shared():
            dist.barrier()  # the first process to end ends the others
        exception.args = (text + kept,)

    def _find(self, module: Any, batch: Any) -> str | None:
        """Run the batch and name the first number that is not finite, or return None."""
        raise NotImplementedError

    def _seen(self, module: Any) -> str | None:
        """Name a number that was not finite, though all are when the batch is run again."""
        raise NotImplementedError

    def _plain(self, batch: Any) -> Any:
        """Turn the batch into plain values and copies of its tensors."""
        raise NotImplementedError

    def _unpacked(self, plain: Any) -> Any:
        """Restore the batch from what `_plain` returned."""
        raise NotImplementedError


def require_finite(values: list[Tensor], device: torch.device) -> None:
    """Raise NotFiniteError in all processes of the run if any has a value that is not finite."""
    # The sum of squares may overflow although all values are finite; the maximum norm is slower.
    wrong = (
        not get_total_norm(values).isfinite() and not get_total_norm(values, math.inf).isfinite()
    )
    if _is_shared():
        any_wrong = torch.tensor(int(wrong), device=device)
        dist.all_reduce(any_wrong)
        wrong = bool(any_wrong)
    if wrong:
        raise NotFiniteError("a number is NaN or Inf")


def not_finite(value: Tensor) -> str | None:
    """Describe where and how often a tensor is not finite; None if it is finite."""
    bad = (~torch.isfinite(value.detach())).nonzero()
    if not len(bad):
        return None
    place = bad[0].tolist()
    where = f" at {place} ({len(bad)} of {value.numel()} values)" if place else ""
    return f"is {value[tuple(place)].item()}{where}"


def warn(text: str) -> None:
    """Print a warning, which goes into the run's log file too."""
    print(f"warning: {text}", file=sys.stderr)
    logging.getLogger(__name__).info("warning: %s", text)


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized()


def _first_of_all(found: str | None) -> tuple[int, str | None]:
    """First process of the run that found something, and what it found."""
    texts = [found]
    if _is_shared():
        texts = [None] * dist.get_world_size()
        dist.all_gather_object(texts, found)
    process = next((i for i, text in enumerate(texts) if text is not None), 0)
    return process, texts[process]


@contextmanager
def _random_numbers(state: dict[str, Tensor]) -> Iterator[None]:
    """Set a random state for a block, and restore the present one afterwards."""
    with torch.random.fork_rng(devices=None if "cuda" in state else []):
        torch.set_rng_state(state["cpu"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(state["cuda"])
        yield
