"""One row of metrics an epoch in `metrics.csv`, also across restarts."""

import csv
import os
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only


def read_metrics(path: Path) -> pd.DataFrame:
    """`metrics.csv` with a row an epoch, every number exactly as it was written.

    (The fast parser of older pandas is off by one unit in the last place.) A last row without its
    end of line, which a process was killed in, is left out.
    """
    whole_lines = path.read_text().rpartition("\n")[0].splitlines()
    rows = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(whole_lines)]
    return pd.DataFrame(rows).astype({"epoch": int})


class MetricsFile(Checkpoint):
    """Writes `metrics.csv` into `folder`: a row an epoch, on disk after each.

    A resumed run finds its earlier rows there and goes on; an epoch that is run again replaces
    its row. (Lightning's CSVLogger deletes the file of an interrupted run.) Rows are appended, so
    that the last epoch takes no longer than the first; the file is replaced whole only for the
    first row of a process and for new columns. It is a `Checkpoint` for its turn, after all that
    log and, if it is listed first, before the epoch's checkpoint: a run that is killed between them
    repeats the epoch rather than lack its row.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / "metrics.csv"
        self._columns: list[str] = []  # of the file, once this process has written it
        self._last_epoch = -1

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
        values = {name: float(x) for name, x in trainer.callback_metrics.items()}
        self.write(trainer.current_epoch, values)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Put a row in, on disk."""
        row = {"epoch": epoch, **values}
        if epoch > self._last_epoch and row.keys() <= set(self._columns):
            with self._path.open("a", newline="") as file:
                self._write_rows(file, [row])
            self._last_epoch = epoch
        else:
            self._replace(row)

    def _replace(self, row: dict[str, Any]) -> None:
        """Write the file anew with this row in it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        earlier = read_metrics(self._path).to_dict("records") if self._path.is_file() else []
        of_epoch = {int(r["epoch"]): {str(k): v for k, v in r.items()} for r in [*earlier, row]}
        rows = [of_epoch[epoch] for epoch in sorted(of_epoch)]
        self._columns = list(dict.fromkeys(column for r in rows for column in r))
        self._last_epoch = max(of_epoch)
        temporary = self._path.with_name(".metrics.csv.new")
        with temporary.open("w", newline="") as file:
            self._write_rows(file, [dict(zip(self._columns, self._columns, strict=True)), *rows])
        temporary.replace(self._path)

    def _write_rows(self, file: TextIO, rows: list[dict[str, Any]]) -> None:
        csv.DictWriter(file, self._columns, lineterminator="\n").writerows(rows)
        file.flush()
        os.fsync(file.fileno())
