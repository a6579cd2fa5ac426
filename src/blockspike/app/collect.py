"""`blockspike collect`: gather finished runs in one tidy table, and average over seeds."""

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blockspike.files import whole_file
from blockspike.runs.results import collect_runs, with_settings
from blockspike.runs.status import run_states

_METRICS = ("test_accuracy", "test_etv_15ms_median", "val_accuracy")  # the first that runs have
_FOLD = "data.fold"


def collect(
    output_dir: Path, by: Sequence[str] = (), metric: str | None = None,
    experiment: str | None = None,
) -> None:  # fmt: skip
    """Write `tables/runs.parquet` and `runs.csv` below the output folder; count what is not there.

    With `by`, print the means of a metric over the runs that agree in these settings, and write
    them to `tables/means_<metric>_by_<settings>.csv`.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a row is damaged; a name in `by`, the metric or the experiment is unknown.
    """
    table = collect_runs(output_dir)
    folder = output_dir / "tables"
    counts = run_states(output_dir)["state"].value_counts()
    left_out = [f"{n} {state}" for state, n in counts.items() if state != "done"]
    more = f"; not in it: {', '.join(left_out)} (blockspike status)" if left_out else ""
    print(f"{folder / 'runs.csv'}: {len(table)} run{'s' * (len(table) > 1)}{more}")
    if experiment is not None:
        table = table[table["experiment"] == experiment]
    if not by and experiment is None and metric is None:
        return
    metric = metric or next((name for name in _METRICS if name in table), "test_accuracy")
    found = means(with_settings(pd.DataFrame(table), output_dir, by), by, metric)
    _print(found, metric)
    name = re.sub(r"[^\w.,-]+", "_", f"means_{metric}_by_{','.join(by)}.csv")
    with whole_file(folder / name) as file:
        found.to_csv(file, index=False)
    print(folder / name)


def means(table: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """Average a metric over the runs that agree in some settings, normally over seeds.

    Runs of the same fold of a cross-validation share the data that they are scored on, so each fold
    counts once. A warning names other settings in which averaged runs differ.

    Args:
        table: a row per run, as `blockspike collect` writes.
        by: columns, or groups of the configuration such as `model` or `data`.
        metric: column of numbers.

    Returns:
        A column per setting, `n` (runs), `mean` and `standard_error`, NaN for one run or fold.

    Raises:
        ValueError: a column is unknown, or no run has the metric.
    """
    columns = [f"{name}_config" if f"{name}_config" in table else name for name in by]
    for name in (*columns, metric):
        if name not in table:
            raise ValueError(f"by, metric: expected a column of the table, got {name}")
    rows = pd.DataFrame(table.dropna(subset=[metric]))
    if rows.empty:
        raise ValueError(f"metric: expected a run with {metric}, got none")
    rows["_all"] = 0  # a group, if `by` is empty
    groups = ["_all", *columns]
    fold = rows[_FOLD] if _FOLD in rows else pd.Series(pd.NA, rows.index)
    data_set = rows.get("data_set", "")
    rows["_unit"] = (fold.astype(str) + data_set).where(fold.notna(), rows.index.astype(str))
    units = rows.groupby([*groups, "_unit"], dropna=False, as_index=False)[metric].mean()
    by_group = units.groupby(groups, dropna=False)[metric]
    found = pd.DataFrame({"mean": by_group.mean(), "standard_error": by_group.sem()}).reset_index()
    found.insert(len(groups), "n", rows.groupby(groups, dropna=False).size().to_numpy())
    others = [c for c in map(str, rows) if _is_setting(c) and c not in columns]
    mixed = [c for c in others if (rows.groupby(groups, dropna=False)[c].nunique(False) > 1).any()]
    if mixed:
        more = f" and {len(mixed) - 5} more" if len(mixed) > 5 else ""
        warnings.warn(f"averaged runs differ in {', '.join(mixed[:5])}{more}", stacklevel=2)
    names = dict(zip(columns, by, strict=True))
    return found.drop(columns="_all").rename(columns=names)


def _is_setting(column: str) -> bool:
    """Whether a column is a setting in which averaged runs should agree."""
    is_replicate = column == _FOLD or column.endswith(".seed")
    is_key = "." in column and not column.startswith("version.")
    return (is_key or column.endswith("_config") or column == "data_set") and not is_replicate


def _print(found: pd.DataFrame, metric: str) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in found.columns[:-3]:
        table.add_column(escape(str(name)), overflow="fold")
    table.add_column(f"{metric}, mean ± standard error", justify="right")
    table.add_column("n", justify="right")
    for *settings, n, mean, error in found.itertuples(index=False):
        text = f"{mean:.4g}" if pd.isna(error) else f"{mean:.4g} ± {error:.2g}"
        table.add_row(*(escape(str(x)) for x in settings), text, str(n))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
