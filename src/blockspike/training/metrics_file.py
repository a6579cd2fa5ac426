"""A logger that keeps one row of metrics an epoch in `metrics.csv`, also across restarts."""

import csv
from pathlib import Path
from typing import Any

import pandas as pd
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only


def read_metrics(path: Path) -> pd.DataFrame:
    """`metrics.csv` with a row an epoch, every number exactly as it was written.

    (The fast parser of older pandas is off by one unit in the last place.)
    """
    with path.open(newline="") as file:
        rows = [{k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(file)]
    return pd.DataFrame(rows).astype({"epoch": int})


class EpochCSVLogger(Logger):
    """Writes `metrics.csv` into `folder`: a row an epoch, replaced whole after each epoch.

    A resumed run finds its earlier rows there and goes on; an epoch that is run again replaces
    its row. (Lightning's CSVLogger deletes the file of an interrupted run.)
    """

    def __init__(self, folder: str | Path):
        super().__init__()
        self._path = Path(folder) / "metrics.csv"
        self._rows: dict[int, dict[str, float]] = {}
        if self._path.is_file():
            for row in read_metrics(self._path).to_dict("records"):
                self._rows[int(row["epoch"])] = {str(k): v for k, v in row.items()}

    @property
    def name(self) -> str:
        """Of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one file a run."""
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The run's folder holds its configuration already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add to the epoch's row; test metrics belong to the result, not to an epoch."""
        values = {k: float(v) for k, v in metrics.items() if not k.startswith("test/")}
        epoch = int(values.pop("epoch", -1))
        if epoch >= 0 and values:
            self._rows.setdefault(epoch, {"epoch": epoch}).update(values)

    @rank_zero_only
    def save(self) -> None:
        """Write the file; Lightning calls this after each epoch's metrics."""
        if not self._rows:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(".metrics.csv.new")
        rows = [self._rows[epoch] for epoch in sorted(self._rows)]
        pd.DataFrame(rows).to_csv(temporary, index=False)
        temporary.replace(self._path)
