"""One row of metrics an epoch in `metrics.csv`, also across restarts."""

import csv
from pathlib import Path

import pandas as pd
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.utilities import rank_zero_only


def read_metrics(path: Path) -> pd.DataFrame:
    """`metrics.csv` with a row an epoch, every number exactly as it was written.

    (The fast parser of older pandas is off by one unit in the last place.)
    """
    with path.open(newline="") as file:
        rows = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]
    return pd.DataFrame(rows).astype({"epoch": int})


class MetricsFile(Checkpoint):
    """Writes `metrics.csv` into `folder`: a row an epoch, replaced whole after each epoch.

    A resumed run finds its earlier rows there and goes on; an epoch that is run again replaces
    its row. (Lightning's CSVLogger deletes the file of an interrupted run.) It is a `Checkpoint`
    for its turn, after all that log and, if it is listed first, before the epoch's checkpoint: a
    run that is killed between them repeats the epoch rather than lack its row.
    """

    def __init__(self, folder: str | Path):
        self._path = Path(folder) / "metrics.csv"
        self._rows: dict[int, dict[str, float]] = {}
        if self._path.is_file():
            for row in read_metrics(self._path).to_dict("records"):
                self._rows[int(row["epoch"])] = {str(k): v for k, v in row.items()}

    @rank_zero_only
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the epoch's row."""
        values = {name: float(x) for name, x in trainer.callback_metrics.items()}
        self.write(trainer.current_epoch, values)

    def write(self, epoch: int, values: dict[str, float]) -> None:
        """Put a row in, on disk."""
        self._rows[epoch] = {"epoch": epoch, **values}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(".metrics.csv.new")
        rows = [self._rows[epoch] for epoch in sorted(self._rows)]
        pd.DataFrame(rows).to_csv(temporary, index=False)
        temporary.replace(self._path)
