"""One tidy table of the runs in outputs/, a row per run and seed."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from blockspike.files import read_json, whole_file
from blockspike.runs.identity import plain
from blockspike.runs.renamed import with_new_names
from blockspike.runs.run import Run, flatten

# Columns of every row → type. A classifier's row also has `test_accuracy`, or if it was not tested
# `val_accuracy` (a fold) or `pruned` (a trial); a fit's has `fit_s`.
_COLUMNS: dict[str, tuple[type, ...]] = {
    "experiment": (str,),
    "data_set": (str,),
    "seed": (int,),
    "config_hash": (str,),
    "git_sha": (str, type(None)),
    "git_dirty": (bool,),
    "machine": (str,),
    "python": (str,),
    "version.blockspike": (str,),
    "version.torch": (str,),
    "version.pytorch-lightning": (str,),
    "version.numpy": (str,),
    "version.numba": (str,),
    "n_threads": (int,),
    "data_config": (str,),
}
# Columns that figures use, if a row has them: a fit has no network, a custom model other arguments.
_READ_BY_FIGURES: dict[str, tuple[type, ...]] = {
    "model.method": (str,),
    "model.arp_ms": (float, int),
    "model.surrogate": (str,),
    "model.detach_spikes": (bool, str),
    "network.n_hidden": (int, list),
    "data.dt_ms": (float, int),
    "data.n_steps": (int,),
    "trainer.accelerator": (str,),
    "epoch_s": (float,),
    "n_epochs": (int,),
    "n_parameters": (int,),
}


_SCORES = ("test_accuracy", "val_accuracy", "fit_s")  # a row has one of them
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
        ValueError: a `result.json` is damaged, lacks a column or has one of another type; each
            such file is named.
    """
    files = sorted(output_dir.rglob("result.json"))
    if not files:
        raise FileNotFoundError(f"{output_dir}: expected a finished run (a result.json), got none")
    rows, wrong = [], []
    for file in files:
        try:
            evaluation = read_json(file.with_name("evaluation.json"))
            more = {k: v for k, v in evaluation.items() if k in _OF_EVALUATION}
            row = _as_cells(_read(file) | more)
        except ValueError as error:
            wrong.append(str(error))
        else:
            rows.append({"run": str(file.parent.relative_to(output_dir)), **row})
    if wrong:
        raise ValueError("\n".join(wrong))
    table = pd.DataFrame(rows)
    return _unique(with_new_names(pd.DataFrame(table.apply(_of_one_type))))


def with_settings(table: pd.DataFrame, output_dir: Path, names: Iterable[str]) -> pd.DataFrame:
    """Add settings that rows lack, such as `threads`, from the configurations of their runs.

    Args:
        table: as from `collect_runs`.
        output_dir: folder of the runs.
        names: keys of the configuration; others are ignored.

    Raises:
        ValueError: the configuration of a run is damaged.
    """
    table = table.copy()
    lacking = [name for name in names if name not in table or table[name].isna().to_numpy().any()]
    if not lacking:
        return table
    configs = [_config(Run(output_dir / run)) for run in table["run"]]
    for name in lacking:
        if any(name in config for config in configs):
            own = table[name] if name in table else [None] * len(table)
            cells = [
                config.get(name) if pd.isna(value) else value
                for value, config in zip(own, configs, strict=True)
            ]
            table[name] = _of_one_type(pd.Series(cells, table.index))
    return table


def _config(run: Run) -> dict[str, Any]:
    """Cells of a run's configuration; none without one."""
    try:
        return _as_cells(flatten(plain(run.config())))
    except FileNotFoundError:
        return {}


def _read(file: Path) -> dict[str, Any]:
    row = read_json(file)
    of_figures = {name: kinds for name, kinds in _READ_BY_FIGURES.items() if name in row}
    for name, kinds in (_COLUMNS | of_figures).items():
        if name not in row or type(row[name]) not in kinds:
            found = f"{row[name]!r}" if name in row else "nothing"
            raise ValueError(f"{file}: {name}: expected {kinds[0].__name__}, got {found}")
    if row.get("pruned") is True:  # a trial of a search that was not tested
        return row
    name = next((name for name in _SCORES if name in row), None)
    score = row.get(name) if name else None
    if not isinstance(score, float) or (name != "fit_s" and not 0 <= score <= 1):
        expected = "test_accuracy or val_accuracy, 0 to 1, or fit_s"
        raise ValueError(f"{file}: expected {expected}, got {score!r}")
    return row


def _as_cells(row: dict[str, Any]) -> dict[str, Any]:
    """Turn lists into text, since a table's cell holds one value."""
    return {k: json.dumps(v) if isinstance(v, list) else as_cell(k, v) for k, v in row.items()}


def as_cell(key: str, value: Any) -> Any:
    """Keep 1, one batch, apart from 1.0, all batches, which it would become in a table."""
    is_limit = key.startswith("trainer.limit_") or key == "trainer.overfit_batches"
    return "1 batch" if is_limit and type(value) is int and value == 1 else value


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
