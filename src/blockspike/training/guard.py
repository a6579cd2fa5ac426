"""A guard that stops training at a NaN or Inf, names its place and keeps the batch."""

import logging
import math
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
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
    """Stops the training of any Lightning module at a NaN or Inf, before the optimiser's step.

    Each step takes one norm over scores, gradients and parameters; on a GPU that waits for the
    device. Only if it is not finite is the batch run again, layer by layer, to find the place: by
    `first_not_finite(batch)` of the module, if it has that. If several processes share the run,
    all of them stop. Checkpoints keep finite parameters, chosen by finite metrics.

    Args:
        file: where the batch is saved, with the weights, optimiser and random state before it.
        each_step: whether every step is checked. A fit leaves out single starts instead.
    """

    def __init__(self, file: Path, each_step: bool = True):
        self.file, self.each_step = file, each_step
        self._batch: Any = None
        self._place, self._random = "", torch.get_rng_state()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx=0
    ) -> None:
        """Remember the batch."""
        part = "test" if dataloader_idx else getattr(trainer.state.stage, "value", "")
        after = f"{part} batch {batch_idx + 1} after {trainer.global_step} steps"
        self._batch, self._place = batch, f"epoch {trainer.current_epoch + 1}, {after}"
        self._random = torch.get_rng_state()

    on_validation_batch_start = on_test_batch_start = on_train_batch_start

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check a training step; raises NotFiniteError."""
        if self.each_step:
            values = [x.grad for x in pl_module.parameters() if x.grad is not None]
            values += [pl_module.scores] if hasattr(pl_module, "scores") else []
            _require_finite(pl_module, values)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the parameters and the metrics that choose a model; raises NotFiniteError."""
        _require_finite(pl_module)
        for name, value in trainer.callback_metrics.items():
            if name.startswith(("val/", "test_each_epoch/")) and not torch.isfinite(value):
                raise NotFiniteError(f"{name}: is {float(value)}")

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the parameters before a checkpoint; raises NotFiniteError."""
        _require_finite(pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Add to a NotFiniteError what was not finite first, and where; write the batch."""
        if not isinstance(exception, NotFiniteError) or self._batch is None:
            return
        batch = _flat(self._batch)
        with trainer.precision_plugin.forward_context(), torch.random.fork_rng():
            torch.set_rng_state(self._random)
            found = _first(pl_module, batch, self._batch)
        process, found = _first_of_all(found)
        text = f"{found or exception}; {self._place}"
        if process:
            text += f" of process {process}"
        if process == trainer.global_rank:
            optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
            state = {"state_dict": pl_module.state_dict(), "optimizers": optimizers}
            state |= {"error": text, "batch": batch, "random": self._random}
            with whole_file(self.file) as temporary:
                torch.save(state, temporary)
        if _is_shared():
            dist.barrier()  # the first process to end ends the others
        exception.args = (f"{text}; this batch: {self.file}",)


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


def _require_finite(module: pl.LightningModule, values: list[Tensor] | None = None) -> None:
    """Raise NotFiniteError in all processes of the run if parameters or values are not finite."""
    values = [*module.parameters(), *(values or [])]
    # The sum of squares may overflow although all values are finite; the maximum norm is slower.
    is_wrong = not any(get_total_norm(values, p).isfinite() for p in (2.0, math.inf))
    if _is_shared():
        any_wrong = torch.tensor(int(is_wrong), device=module.device)
        dist.all_reduce(any_wrong)
        is_wrong = bool(any_wrong)
    if is_wrong:
        raise NotFiniteError("scores or gradients: NaN or Inf, but not when run again")


def _first(module: Any, values: dict[str, Any], batch: Any) -> str | None:
    """Name the first number that is not finite: parameter, input, layer, gradient from the loss."""
    own = {name.removeprefix("network."): x for name, x in module.named_parameters()}
    inputs = {k: x for k, x in values.items() if isinstance(x, Tensor) and k.count(".") == 1}
    gradients = {f"{name} (gradient)": x.grad for name, x in reversed(own.items())}
    again = getattr(module, "first_not_finite", lambda _: None)
    return _named(own | inputs) or again(batch) or _named(gradients)


def _named(values: Mapping[str, Tensor | None]) -> str | None:
    """Name the first tensor that is not finite."""
    for name, x in values.items():
        if x is not None and (wrong := not_finite(x)):
            return f"{': '.join(name.rsplit('.', 1))} {wrong}"
    return None


def _flat(x: Any, name: str = "batch") -> dict[str, Any]:
    """A batch as one dict, such as {"batch.0": inputs, "batch.1": labels}, with plain values."""
    if is_dataclass(x):
        x = vars(x)
    elif hasattr(x, "_asdict"):
        x = x._asdict()
    elif isinstance(x, list | tuple) and not all(isinstance(i, int) for i in x):
        x = dict(enumerate(x))
    if isinstance(x, dict):
        return {k: v for key in x for k, v in _flat(x[key], f"{name}.{key}").items()}
    return {name: x.clone() if isinstance(x, Tensor) else x}


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
