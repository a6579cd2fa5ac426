"""A guard that stops a fit when its data, or all starts of a cell, are not finite."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from blockspike.fitting.distance import Window
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.voltage import RecordedVoltage
from blockspike.neurons import NotFiniteError
from blockspike.training.guard import Guard, require_finite, warn


class FittingGuard(Guard):
    """Stops a fit when its data, or all starts of a cell, are not finite, and names the cell.

    A single start whose loss or gradient is not finite is left out of the step
    (`NeuronFittingModule`), with one warning for each cell.

    Args:
        file: where the batch is saved.
        names: names of the cells.
    """

    def __init__(self, file: Path, names: Sequence[str]):
        super().__init__(file)
        self.names = names
        self._warned: set[int] = set()
        self._n_left_out = 0

    def on_after_backward(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Count and name the starts left out; raise NotFiniteError if a cell loses all of them."""
        loss = pl_module.loss_of_starts  # [C, K]
        wrong = ~torch.isfinite(loss)
        lost = wrong.all(1).any()
        for value in pl_module.population.parameters():
            if value.grad is not None:
                wrong = wrong | ~torch.isfinite(value.grad).view_as(loss)
        n_wrong, n_lost = torch.stack([wrong.sum(), lost.long()]).tolist()  # waits for a GPU
        if n_lost:
            raise NotFiniteError(self._lost_cell(loss) or "")
        self._n_left_out += n_wrong
        epoch = trainer.current_epoch + 1
        for cell in wrong.any(1).nonzero()[:, 0].tolist() if n_wrong else ():
            if cell not in self._warned:
                self._warned.add(cell)
                starts = ", ".join(str(k + 1) for k in wrong[cell].nonzero()[:5, 0].tolist())
                warn(
                    f"{self.names[cell]}: loss or gradient of {int(wrong[cell].sum())} "
                    f"of {wrong.shape[1]} starts is not finite in epoch {epoch} "
                    f"(start {starts}); left out of this step"
                )

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Check the parameters before a checkpoint; raises NotFiniteError."""
        require_finite(list(pl_module.population.parameters()), pl_module.device)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Print how often a start was left out."""
        if self._n_left_out:
            warn(
                f"a start was left out of a step {self._n_left_out} times, in "
                f"{len(self._warned)} cells, because its loss or gradient was not finite"
            )

    def _find(self, module: NeuronFittingModule, batch: FittingBatch) -> str | None:
        n_starts = module.population.n_starts
        if wrong := self._wrong_data(batch):
            return wrong
        for name, value in module.population.named_parameters():
            for i in (~torch.isfinite(value)).nonzero()[:1, 0].tolist():
                return f"{self._start(i, n_starts)}: {name} is {value[i].item()}"
        with torch.no_grad():
            try:
                loss = module.losses(batch)[0].view(-1, n_starts)
            except NotFiniteError as error:
                if error.neuron is None:
                    return str(error)
                return f"{self._start(error.neuron, n_starts)}: {error}"
        return self._lost_cell(loss)

    def _seen(self, module: NeuronFittingModule) -> str | None:
        wrong = self._lost_cell(module.loss_of_starts)
        return wrong and f"{wrong}, but not when run again"

    def _wrong_data(self, batch: FittingBatch) -> str | None:
        for name, value in (("current", batch.current), ("target", batch.target)):
            bad = (~torch.isfinite(value)).nonzero()
            if len(bad):
                t, segment, cell = bad[0].tolist()
                return (
                    f"{self.names[cell]}: {name} is {value[t, segment, cell].item()} at step {t}, "
                    f"segment {segment} ({len(bad)} such values)"
                )
        return None

    def _lost_cell(self, loss: Tensor) -> str | None:
        for cell in (~torch.isfinite(loss)).all(1).nonzero()[:1, 0].tolist():
            return f"{self.names[cell]}: loss of all {loss.shape[1]} starts is not finite"
        return None

    def _start(self, i: int, n_starts: int) -> str:
        return f"{self.names[i // n_starts]}, start {i % n_starts + 1}"

    def _plain(self, batch: FittingBatch) -> dict[str, Any]:
        voltage = None if batch.voltage is None else tuple(batch.voltage)
        return batch._asdict() | {"window": tuple(batch.window), "voltage": voltage}

    def _unpacked(self, plain: dict[str, Any]) -> FittingBatch:
        voltage = plain.get("voltage")
        own = {
            "window": Window(*plain["window"]),
            "voltage": None if voltage is None else RecordedVoltage(*voltage),
        }
        return FittingBatch(**plain | own)
