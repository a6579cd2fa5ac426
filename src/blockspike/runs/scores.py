"""Scores of a run so far: of the chosen model, and of the last epoch."""

import csv
from pathlib import Path
from typing import Any

_NAN = float("nan")
_CHOSEN = {"val_score": ("val_accuracy",), "test_score": ("test_accuracy", "test_etv_15ms_median")}


def scores(row: dict[str, Any] | None, metrics: Path) -> dict[str, float]:
    """Scores of a run, NaN where there is none: accuracies, of a fit the ETV at σ = 15 ms.

    Args:
        row: content of `result.json`; None = not finished.
        metrics: path of `metrics.csv`; a row per epoch.

    Returns:
        `val_score` and `test_score` of the chosen model, and `last_val_score`, the validation
        accuracy of the last epoch so far.
    """
    found = {name: _first(row or {}, columns) for name, columns in _CHOSEN.items()}
    return found | {"last_val_score": _last(metrics, "val/accuracy")}


def _first(row: dict[str, Any], names: tuple[str, ...]) -> float:
    values = (row[name] for name in names if isinstance(row.get(name), float))
    return next(values, _NAN)


def _last(metrics: Path, column: str) -> float:
    """Value in the last whole row; NaN if there is none, or if the file is damaged."""
    try:
        lines = metrics.read_text(encoding="utf-8").rpartition("\n")[0].splitlines()
        (row,) = csv.DictReader([lines[0], lines[-1]])
        return float(row[column])
    except (OSError, ValueError, IndexError, KeyError, TypeError, csv.Error):
        return _NAN
