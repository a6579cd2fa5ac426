"""Reads `metrics.csv`, a row of metrics per epoch; needs no PyTorch."""

from pathlib import Path

import pandas as pd


def read_metrics(path: Path) -> pd.DataFrame:
    """Read `metrics.csv`, a row per epoch, with every number exactly as it was written.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    table: pd.DataFrame = pd.read_csv(path, float_precision="round_trip")  # pyright: ignore
    return table.astype({"epoch": int})
