"""One tidy table of the runs in outputs/, a row per run and seed."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from blockspike.files import read_json, whole_file
from blockspike.runs.identity import plain
from blockspike.runs.run import Run, flatten

_OF_EVALUATION = ("test_accuracy_without_views", "val_accuracy_with_views")


def collect_runs(output_dir: Path) -> pd.DataFrame:
    """Gather every `result.json` below `output_dir` into `tables/runs.parquet` and `.csv`.

    Returns and raises as `finished_rows`.
    """
    table = finished_rows(output_dir)
    folder = output_dir / "tables"
    with whole_file(folder / "runs.parquet") as file:
        table.to_parquet(file, index=False)
    with whole_file(folder / "runs.csv") as file:
        table.to_csv(file, index=False)
    return table


def fits_of(run: Run) -> pd.DataFrame:
    """The table of a finished fit, a row per cell; names such as "007" are text."""
    return pd.read_csv(run.folder / "fits.csv", converters={"cell": str})


def finished_rows(output_dir: Path) -> pd.DataFrame:
    """Gather every `result.json` below `output_dir`, with the scores that `evaluate` added.

    Returns:
        A row per finished run, sorted by its folder, which the column `run` names. If two folders
        hold the same run, the first one counts, with a warning on stderr.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a `result.json` is damaged.
    """
    files = sorted(output_dir.rglob("result.json"))
    if not files:
        raise FileNotFoundError(f"{output_dir}: expected a finished run (a result.json), got none")
    rows = []
    for file in files:
        evaluation = read_json(file.with_name("evaluation.json"))
        more = {k: v for k, v in evaluation.items() if k in _OF_EVALUATION}
        rows.append({"run": str(file.parent.relative_to(output_dir)), **_cells(read_json(file))})
        rows[-1] |= more
    return _unique(pd.DataFrame(pd.DataFrame(rows).apply(_of_one_type)))


def with_settings(table: pd.DataFrame, output_dir: Path, names: Iterable[str]) -> pd.DataFrame:
    """Add settings that rows lack, such as `threads`, from the configurations of their runs.

    Args:
        table: as from `collect_runs`.
        output_dir: folder of the runs.
        names: keys of the configuration; others are ignored.
    """
    lacking = [name for name in names if name not in table]
    if not lacking:
        return table
    configs = [_cells(flatten(plain(Run(output_dir / run).config()))) for run in table["run"]]
    found = {
        name: _of_one_type(pd.Series([config.get(name) for config in configs], table.index))
        for name in lacking
        if any(name in config for config in configs)
    }
    return table.assign(**found)


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Turn lists into text, since a table's cell holds one value."""
    return {k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()}


def _of_one_type(column: pd.Series) -> pd.Series:
    """Turn a column into text if it mixes text and numbers, which no file format takes."""
    kinds = {type(value) for value in column.dropna()}
    if str in kinds and len(kinds) > 1:
        return column.map(str, na_action="ignore")
    return column


def _unique(table: pd.DataFrame) -> pd.DataFrame:
    """Keep one row per run: an override spelt differently makes a second folder."""
    same_run = [c for c in ("config_hash", "data_sha256") if c in table]
    number = table.groupby(same_run, sort=False, dropna=False).ngroup()
    for _, same in table.groupby(number):
        if len(same) > 1:
            (kept, *left_out), digest = same["run"].tolist(), same["config_hash"].iloc[0]
            warning = f"{kept}: the same run (config_hash {digest}) is in {', '.join(left_out)} too"
            print(f"warning: {warning}; only the first is in the table", file=sys.stderr)
    return pd.DataFrame(table.drop_duplicates(same_run))
