"""outputs/ → one tidy table, a row per run and seed."""

import json
from pathlib import Path
from typing import Any

import pandas as pd


def collect_runs(output_dir: Path) -> pd.DataFrame:
    """Gather every `result.json` below `output_dir` into `tables/runs.parquet` and `.csv`.

    Returns:
        A row per finished run, sorted by its folder; the column `run` names it.

    Raises:
        FileNotFoundError: there is no finished run.
    """
    files = sorted(output_dir.rglob("result.json"))
    if not files:
        raise FileNotFoundError(f"{output_dir}: no finished run (expected a result.json)")
    rows = [
        {"run": str(file.parent.relative_to(output_dir)), **_as_cells(json.loads(file.read_text()))}
        for file in files
    ]
    table = pd.DataFrame(rows)
    folder = output_dir / "tables"
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / "runs.parquet", index=False)
    table.to_csv(folder / "runs.csv", index=False)
    return table


def _as_cells(row: dict[str, Any]) -> dict[str, Any]:
    """Lists as text, since a table's cell holds one value."""
    return {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}
