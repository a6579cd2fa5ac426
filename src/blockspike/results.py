"""outputs/ → one tidy table, a row per run and seed."""

import json
from pathlib import Path

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
        {"run": str(file.parent.relative_to(output_dir)), **json.loads(file.read_text())}
        for file in files
    ]
    table = pd.DataFrame(rows)
    for column in table.columns[table.dtypes == object]:  # lists and mixed settings, as text
        values = table[column]
        if not values.map(lambda v: v is None or isinstance(v, str)).all():
            table[column] = values.map(lambda v: v if v is None else json.dumps(v))
    folder = output_dir / "tables"
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / "runs.parquet", index=False)
    table.to_csv(folder / "runs.csv", index=False)
    return table
