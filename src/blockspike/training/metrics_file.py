"""Writes a row of metrics per epoch into `metrics.csv`, also across restarts."""

import csv
import math
import os
from pathlib import Path
from typing import Any, TextIO

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only

from blockspike.files import whole_file


class MetricsFile(Checkpoint):
    """Writes `metrics.csv` into `folder`: a row per epoch, on disk after each.

    The rows are also part of the checkpoint, from which a resumed run takes them; an epoch that is
    run again replaces its row. (Lightning's CSVLogger deletes the file of an interrupted run.) Rows
    are appended, so that the last epoch takes no longer than the first; the whole file is replaced
    only for the first row of a process and for new columns.

    It is a `Checkpoint` so that it runs after all callbacks that log and, if listed first, before
    the epoch's checkpoint: a run killed between the two repeats the epoch rather than lack its row.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / "metrics.csv"
        self._rows: dict[int, dict[str, Any]] = {}
        self._columns: list[str] = []  # of the file, once this process has written it

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
        values = {name: float(x) for name, x in trainer.callback_metrics.items()}
        self.write(trainer.current_epoch, values)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Write a row to disk."""
        row: dict[str, Any] = {"epoch": epoch, **values}
        is_next = epoch > max(self._rows, default=-1)
        self._rows[epoch] = row
        if is_next and row.keys() <= set(self._columns):
            with self._path.open("a", newline="") as file:
                self._write_rows(file, [row])
                os.fsync(file.fileno())
        else:
            self._replace()

    def state_dict(self) -> dict[str, Any]:
        """Rows for the checkpoint, whose checksum notices damage.

        Empty rows pad their number to a power of two: tensors that grow every epoch leave holes in
        memory that the next does not fit into, 20 MB in 2,000 epochs.
        """
        columns = list(dict.fromkeys(c for row in self._rows.values() for c in row))
        nan = float("nan")
        values = [[row.get(c, nan) for c in columns] for row in self._rows.values()]
        n_empty = (1 << len(values).bit_length()) - len(values)
        values += [[nan] * len(columns)] * n_empty
        return {"columns": columns, "rows": torch.tensor(values, dtype=torch.float64)}

    @rank_zero_only
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the checkpoint's rows, whatever the file holds."""
        for values in state_dict["rows"].tolist():
            row = dict(zip(state_dict["columns"], values, strict=True))
            if not math.isnan(row.get("epoch", math.nan)):
                epoch = int(row["epoch"])
                self._rows[epoch] = row | {"epoch": epoch}
        self._replace()

    def _replace(self) -> None:
        """Replace the whole file."""
        rows = [self._rows[epoch] for epoch in sorted(self._rows)]
        self._columns = list(dict.fromkeys(column for row in rows for column in row))
        header = dict(zip(self._columns, self._columns, strict=True))
        with whole_file(self._path) as temporary, temporary.open("w", newline="") as file:
            self._write_rows(file, [header, *rows])

    def _write_rows(self, file: TextIO, rows: list[dict[str, Any]]) -> None:
        csv.DictWriter(file, self._columns, lineterminator="\n").writerows(rows)
        file.flush()
