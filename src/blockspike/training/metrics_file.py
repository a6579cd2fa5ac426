"""Writes a row of metrics per epoch into `metrics.csv`, also across restarts."""

import csv
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from blockspike.files import whole_file


class MetricsFile(Checkpoint):
    """Writes `metrics.csv` into `folder`: a row per epoch, on disk after each.

    The rows are also part of the checkpoint, from which a resumed run takes them; an epoch that is
    run again replaces its row. (Lightning's CSVLogger deletes the file of an interrupted run.)

    It is a `Checkpoint` so that it runs after all callbacks that log and, if listed first, before
    the epoch's checkpoint: a run killed between the two repeats the epoch rather than lack its row.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
        values = {name: float(x) for name, x in trainer.callback_metrics.items()}
        self.write(trainer.current_epoch, values)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Write a row to disk.

        Raises:
            FileNotFoundError: the folder was moved or deleted.
        """
        self._rows[epoch] = {"epoch": epoch, **values}
        self._save()

    @rank_zero_only
    def _save(self) -> None:
        columns = dict.fromkeys(name for row in self._rows.values() for name in row)
        self._path.parent.stat()  # else the folder would be made again
        with whole_file(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows.values())

    def state_dict(self) -> dict[str, Any]:
        """Rows for the checkpoint."""
        return {"rows": list(self._rows.values())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the checkpoint's rows, whatever the file holds."""
        self._rows = {row["epoch"]: row for row in state_dict["rows"]}
        self._save()
