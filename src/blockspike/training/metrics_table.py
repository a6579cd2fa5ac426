"""Reads `metrics.csv`, a row of metrics per epoch; needs no PyTorch."""

import csv
from pathlib import Path

import pandas as pd


def read_metrics(path: Path) -> pd.DataFrame:
    """Read `metrics.csv`, a row per epoch, with every number exactly as it was written.

    A last row without an end of line, in which a process was killed, is left out. The fast parser
    of older pandas is not used, because it is off by one unit in the last place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: expected a row per epoch, got no file")
    try:
        whole_lines = path.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        rows = [
            {k: float(v or "nan") for k, v in row.items()} for row in csv.DictReader(whole_lines)
        ]
        return pd.DataFrame(rows).astype({"epoch": int})
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
