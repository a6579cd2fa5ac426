"""Means over the runs of a table that agree in some settings, normally over seeds."""

import difflib
import warnings
from collections.abc import Sequence

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

METRICS = ("test_accuracy", "test_etv_15ms_median", "val_accuracy")
"""Metrics of classifiers, of fits, and of folds, which have no test; the first known is drawn."""
FOLD = "data.fold"
_CHOICE = "_config"  # the column `model_config` holds the choice of the group `model`
_TOP_LEVEL = ("data_set", "monitor", "init_from", "resume_from", "label_smoothing")


def means(table: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """Average a metric over the runs that agree in some settings.

    Args:
        table: a row per run, as `blockspike collect` writes.
        by: columns, or groups of the configuration such as `model` or `data`.
        metric: column of numbers.

    Returns:
        A column per setting, `n` (runs), `mean` and `standard_error`, which is NaN for one run or
        one fold.

    Raises:
        ValueError: a column is unknown, or no run has the metric.
    """
    rows = scored(table, by, metric)
    groups = rows.assign(_all=0).groupby(["_all", *by], dropna=False)
    found = groups.agg(n=("n", "sum"), mean=(metric, "mean"), standard_error=(metric, "sem"))
    return found.reset_index().drop(columns="_all")


def scored(table: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """The values that a mean is taken of: one per run, or one per fold of a cross-validation.

    Runs of one fold share the data that they are scored on, so more of them make a mean no surer.
    A row that is in the table twice counts once. A warning names other settings in which the runs
    of a mean differ.

    Returns:
        A column per setting of `by`, the metric, and `n`, the number of runs behind it.

    Raises:
        ValueError: a column is unknown, or no run has the metric.
    """
    table = pd.DataFrame(table[~table.astype(str).duplicated()])
    settings = pd.DataFrame({name: setting(table, name) for name in by}, index=table.index)
    metric = metric_of(table, metric)
    known = table[metric].notna()
    table, settings = pd.DataFrame(table[known]), settings[known]
    if mixed := differing(table, codes(settings)):
        more = f" and {len(mixed) - 5} more" if len(mixed) > 5 else ""
        warnings.warn(f"averaged runs differ in {', '.join(mixed[:5])}{more}", stacklevel=3)
    rows = settings.assign(**{metric: table[metric].astype(float), "_unit": table.index})
    if FOLD in table:
        fold = table[FOLD].astype(str) + " " + table.get("data_set", "").astype(str)
        rows["_unit"] = fold.where(table[FOLD].notna(), rows["_unit"].astype(str))
    units = rows.groupby([*by, "_unit"], dropna=False, sort=False)[metric]
    return units.agg(["size", "mean"]).reset_index().rename(columns={"size": "n", "mean": metric})


def setting(table: pd.DataFrame, name: str) -> pd.Series:
    """Values of a setting: of a group of the configuration, the choice; else of the column.

    Raises:
        ValueError: there is no such group or column; the message has the nearest names.
    """
    for column in (f"{name}{_CHOICE}", name):
        if column in table:
            values = pd.Series(table[column])
            numbers = pd.to_numeric(values, errors="coerce")  # text, beside lists in other rows
            return numbers if (numbers.isna() == values.isna()).all() else values
    names = [str(column).removesuffix(_CHOICE) for column in table]
    near = difflib.get_close_matches(name, names, 8, 0.4) or names
    raise ValueError(f"setting: expected one of {', '.join(near)}, got {name!r}")


def metric_of(table: pd.DataFrame, metric: str | None = None) -> str:
    """Name of a metric that some run has; None = the first of `METRICS`.

    Raises:
        ValueError: no run has it, or it is no number.
    """
    numbers = [
        str(name) for name, column in table.items()
        if is_numeric_dtype(column) and not is_bool_dtype(column) and column.notna().any()
    ]  # fmt: skip
    metric = metric or next((name for name in METRICS if name in numbers), METRICS[0])
    if metric not in numbers:
        near = difflib.get_close_matches(metric, numbers, 8, 0.4) or numbers
        raise ValueError(f"metric: expected one of {', '.join(near)}, got {metric!r}")
    return metric


def of_experiment(table: pd.DataFrame, name: str | None) -> pd.DataFrame:
    """Rows of one experiment; None = all.

    Raises:
        ValueError: no row is of this experiment.
    """
    rows = table if name is None else pd.DataFrame(table[table["experiment"] == name])
    if rows.empty:
        names = ", ".join(sorted(set(table["experiment"].astype(str))))
        raise ValueError(f"experiment: expected one of {names}, got {name!r}")
    return rows


def varied(table: pd.DataFrame) -> list[str]:
    """Fewest settings that tell apart all runs that differ in more than seed and fold.

    A setting that follows from earlier ones is left out: `model` stands for all of its options,
    unless runs of the same model differ in them.
    """
    return differing(table, pd.Series(0, table.index))


def codes(settings: pd.DataFrame) -> pd.Series:
    """Number of each row's combination of values."""
    if settings.columns.empty:
        return pd.Series(0, settings.index)
    return settings.groupby(list(settings.columns), dropna=False).ngroup()


def differing(table: pd.DataFrame, groups: pd.Series) -> list[str]:
    """Settings that tell apart rows of one group, each only where earlier ones do not."""
    names = [str(name) for name in table]
    choices = [name.removesuffix(_CHOICE) for name in names if name.endswith(_CHOICE)]
    options = [name for name in names if "." in name and not _is_replicate(table, name)]
    found = []
    for name in [*choices, *options, *(x for x in _TOP_LEVEL if x in names)]:
        values = setting(table, name).astype(str)
        if values.nunique() == 1:
            continue
        finer = codes(pd.DataFrame({"group": groups, "value": values}))
        if finer.nunique() > groups.nunique():
            found.append(name)
            groups = finer
    return found


def _is_replicate(table: pd.DataFrame, name: str) -> bool:
    """Whether a column is the fold, a version, or a seed that repeats the run's."""
    if name.endswith(".seed"):
        known = table[name].dropna()
        return bool((known == table["seed"][known.index]).all())
    return name == FOLD or name.startswith("version.")
