"""Means of the runs in a table: copies of a run and runs of a fold count once, mixtures are named.

Every mean of the package comes from `means`: those of `blockspike collect`, of pictures and of the
report.
"""

import difflib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

DEFAULT_METRICS = ("test_accuracy", "test_etv_15ms_median", "val_accuracy")
"""Metric of classifiers, of fits, and of folds, which are not tested."""
TOP_LEVEL_SETTINGS = (
    "test_each_epoch", "monitor", "init_from", "resume_from", "label_smoothing", "n_bootstrap",
)  # fmt: skip
"""Settings of a run without a dot in their names; results have none either."""
FOLD = "data.fold"
"""Setting in which the runs of a cross-validation differ; like the seed it tells no means apart."""
_OF_DATA = ("data_set", "data_sha256", "experiment")
_MADE_BY = ("git_sha", "git_dirty", "python", "machine", "n_threads")
_CHOICE = "_config"  # the column `model_config` holds the choice of the group `model`
_MOST_NAMES = 8


@dataclass(frozen=True)
class Means:
    """Means of a metric over the runs that agree in some settings.

    Attributes:
        metric: the averaged column.
        by: settings that tell the means apart.
        units: a row per value that counts once in a mean, a run or the mean of a fold's runs:
            the settings and the metric.
        points: a row per mean: the settings, `n` (runs), `mean` and `standard_error`, NaN for one
            unit.
        caveats: sentences on runs that are averaged though they differ, and on runs left out.
    """

    metric: str
    by: list[str]
    units: pd.DataFrame
    points: pd.DataFrame
    caveats: list[str]


def means(table: pd.DataFrame, by: Sequence[str] = (), metric: str | None = None) -> Means:
    """Average a metric over the runs with the same settings, normally those of several seeds.

    The runs of one fold of a cross-validation are scored on the same data, so that their number
    makes no mean surer: each fold counts once, unless a mean is of one fold alone.

    Args:
        table: a row per run, as `blockspike collect` writes.
        by: columns, or groups of the configuration such as `model` or `data`.
        metric: column of numbers; None = the first of `DEFAULT_METRICS` that the runs have.

    Raises:
        ValueError: a name of `by` or the metric is unknown, or no run has the metric.
    """
    by = list(by)
    table = without_copies(table)
    settings = pd.DataFrame({name: setting(table, name) for name in by}, index=table.index)
    has_some = settings.notna().any(axis=1)
    metric = metric_of(pd.DataFrame(table[has_some]) if has_some.any() else table, metric)
    known = pd.DataFrame(table[table[metric].notna()])
    if known.empty:
        raise ValueError(f"metric: expected a run with {metric}, got none")
    settings = settings.loc[known.index]
    group = _codes(settings)
    folds = _folds(known)
    unit = (folds + " " + known.reindex(columns=["data_set"])["data_set"].astype(str)).where(
        folds.groupby(group).transform("nunique") > 1
    )
    rows = pd.DataFrame({"group": group, "unit": unit.fillna(known.index.to_series().astype(str))})
    rows[metric] = known[metric].astype(float)
    of_groups = settings.assign(group=group).drop_duplicates("group").set_index("group")
    units = rows.groupby(["group", "unit"], as_index=False)[metric].mean()
    by_group = units.groupby("group")[metric]
    points = of_groups.join(rows.groupby("group").size().rename("n"))
    points = points.assign(mean=by_group.mean(), standard_error=by_group.sem()).sort_index()
    mixed = differing(known, group, [*_settings(known), *_made_by(known)])
    caveats = [f"averaged runs differ in more than seed and fold: {', '.join(mixed)}"] * bool(mixed)
    of_folds = {frozenset(own.dropna()) for _, own in folds.groupby(group)}
    if FOLD not in by and len(of_folds) > 1:
        caveats.append(f"means are not of the same folds ({FOLD}), so they do not compare")
    if len(known) < len(table):
        caveats.append(f"runs left out, without {metric}: {len(table) - len(known)}")
    units = units.join(of_groups, on="group").drop(columns=["group", "unit"])
    return Means(metric, by, units, points.reset_index(drop=True), caveats)


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of runs from a .parquet or .csv file.

    Raises:
        ValueError: the file has another suffix.
        FileNotFoundError: there is no such file.
    """
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv}
    if path.suffix not in readers:
        raise ValueError(f"table: expected a file {' or '.join(readers)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a table, as `blockspike collect` makes")
    return readers[path.suffix](path)


def of_experiment(table: pd.DataFrame, name: str | None) -> pd.DataFrame:
    """Rows of one experiment; None = all.

    Raises:
        ValueError: no row is of this experiment.
    """
    if name is None:
        return table
    rows = pd.DataFrame(table[table["experiment"] == name])
    if rows.empty:
        known = sorted(set(map(str, table["experiment"])))
        raise ValueError(f"experiment: expected {_near(name, known)}, got {name!r}")
    return rows


def without_copies(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of different runs: of rows that agree in all but the folder, the first.

    As two runs they would make a mean look surer than it is.
    """
    is_copy = table.duplicated([name for name in table if name != "run"])
    if is_copy.any():
        text = f"table: {is_copy.sum()} of {len(table)} rows repeat another run and are left out"
        warnings.warn(text, stacklevel=3)
    return pd.DataFrame(table[~is_copy]).reset_index(drop=True)


def setting(table: pd.DataFrame, name: str, option: str = "by") -> pd.Series:
    """Values of a setting: of a group of the configuration, the choice; else of the column.

    Raises:
        ValueError: there is no such group or column; the message has the near names, and `option`,
            which gave the name.
    """
    for column in (f"{name}{_CHOICE}", name):
        if column in table:
            values = pd.Series(table[column])
            try:  # numbers may be text, in a table with lists among them in other rows
                return values if is_numeric_dtype(values) else pd.Series(pd.to_numeric(values))
            except (ValueError, TypeError):
                return values
    names = [column.removesuffix(_CHOICE) for column in map(str, table)]
    raise ValueError(f"{option}: expected {_near(name, names)}, got {name!r}")


def metric_of(table: pd.DataFrame, metric: str | None) -> str:
    """Name of a column of numbers: the metric, or for None the first of `DEFAULT_METRICS`.

    Raises:
        ValueError: there is none.
    """
    numbers = [
        str(name) for name, column in table.items()
        if is_numeric_dtype(column) and not is_bool_dtype(column) and column.notna().any()
    ]  # fmt: skip
    found = next((name for name in DEFAULT_METRICS if name in numbers), None)
    if (metric or found) not in numbers:
        near = ", ".join(numbers) if metric is None else _near(metric, numbers)
        raise ValueError(f"metric: expected {near}, got {metric}")
    return str(metric or found)


def varied_settings(table: pd.DataFrame, given: Sequence[str] = ()) -> list[str]:
    """Fewest settings that tell apart all runs that differ in more than seed and fold.

    A setting that only follows from earlier ones is left out, so `model` stands for all of its
    options unless runs with the same model differ in them.

    Args:
        table: a row per run.
        given: settings that tell runs apart already; they are not in the result.
    """
    settings = pd.DataFrame({name: setting(table, name) for name in given}, index=table.index)
    return differing(table, _codes(settings), [x for x in _settings(table) if x != "data_sha256"])


def differing(table: pd.DataFrame, codes: pd.Series, names: Iterable[str]) -> list[str]:
    """Names of settings that tell apart rows of one code, each only if earlier ones do not."""
    found = []
    for name in names:
        both = pd.DataFrame({"codes": codes, "values": setting(table, name)})
        finer = _codes(both)
        if finer.nunique() > codes.nunique():
            found.append(name)
            codes = finer
    return found


def warn_of_mixed(table: pd.DataFrame, by: Sequence[str], figure: str, advice: str) -> None:
    """Warn of settings in which runs of one point of a figure differ, apart from seed and fold.

    Args:
        table: the runs of the figure.
        by: settings that tell its points apart.
        figure: what the warning calls the figure.
        advice: how to keep the runs apart.
    """
    codes = _codes(pd.DataFrame({name: setting(table, name) for name in by}, index=table.index))
    if mixed := differing(table, codes, _settings(table)):
        text = f"runs of one point are averaged but differ in {', '.join(mixed)}"
        warnings.warn(f"{figure}: {text}; {advice}", stacklevel=3)


def labels_of(table: pd.DataFrame, names: Sequence[str], with_names: bool = False) -> pd.Series:
    """Text of some settings of each row, such as `blocks, 64` or `model=blocks, n_hidden=64`."""
    texts = pd.Series("", table.index, dtype=object)
    for i, name in enumerate(names):
        start = f"{name.rpartition('.')[2]}=" if with_names else ""
        texts = texts + (", " if i else "") + start + setting(table, name).map(text_of)
    return texts


def text_of(value: Any) -> str:
    """Short text of a setting's value."""
    if not isinstance(value, str | list) and pd.isna(value):
        return "–"
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else str(value)


def rounded(points: pd.DataFrame) -> list[str]:
    """Means ± standard errors as text, to two digits of the smallest error."""
    largest = float(points["mean"].abs().to_numpy().max())
    errors = [error for error in points["standard_error"].tolist() if error > 1e-6 * largest]
    smallest = min(errors) if errors else largest / 100
    digits = next((n for n in range(9) if smallest * 10**n >= 9.5), 9)
    return [
        f"{mean:.{digits}f}" + ("" if pd.isna(error) else f" ± {error:.{digits}f}")
        for mean, error in zip(points["mean"], points["standard_error"], strict=True)
    ]


def counted(numbers: Iterable[int], word: str) -> str:
    """Text such as `1 run` or `1–3 runs`."""
    low, high = min(numbers), max(numbers)
    number = str(high) if low == high else f"{low}–{high}"
    return f"{number} {word}{'' if high == 1 else 's'}"


def _near(name: str, names: Iterable[str]) -> str:
    """The names that resemble `name`, as text; all if none does."""
    names = list(dict.fromkeys(names))
    last = name.rpartition(".")[2].lower()
    near = [x for x in names if last in x.lower() or last in difflib.get_close_matches(x, [last])]
    near = list(dict.fromkeys([*difflib.get_close_matches(name, names), *near])) or names
    more = f" and {len(near) - _MOST_NAMES} more" if len(near) > _MOST_NAMES else ""
    return "one of " + ", ".join(near[:_MOST_NAMES]) + more


def _folds(table: pd.DataFrame) -> pd.Series:
    """Text of each run's fold; NaN if it is not of a cross-validation."""
    rows = table.reindex(columns=[FOLD, "data.n_folds", "fit_s"])
    # A fit has fold 0 also without folds.
    is_fold = rows[FOLD].notna() & (rows["data.n_folds"].notna() | rows["fit_s"].isna())
    return pd.Series(labels_of(rows, [FOLD, "data.n_folds"]).where(is_fold))


def _settings(table: pd.DataFrame) -> list[str]:
    """Names of all settings but seed and fold, groups of the configuration first."""
    columns = [str(name) for name in table]
    groups = [name.removesuffix(_CHOICE) for name in columns if name.endswith(_CHOICE)]
    options = [
        name for name in columns
        if ("." in name and not name.startswith("version.") and not _is_replicate(table, name))
        or name in TOP_LEVEL_SETTINGS
    ]  # fmt: skip
    return [*groups, *options, *(name for name in _OF_DATA if name in columns)]


def _is_replicate(table: pd.DataFrame, name: str) -> bool:
    """Whether a column is the fold or, such as `data.seed`, only repeats the seed."""
    known = table[name].dropna()
    is_seed = name.endswith(".seed") and bool((known == table["seed"][known.index]).all())
    return name == FOLD or is_seed


def _made_by(table: pd.DataFrame) -> list[str]:
    """Names of what a run was made with."""
    return [c for c in map(str, table) if c in _MADE_BY or c.startswith("version.")]


def _codes(settings: pd.DataFrame) -> pd.Series:
    """Number of each row's combination of values, in their order."""
    if settings.columns.empty:
        return pd.Series(0, index=settings.index)
    return settings.groupby(list(settings.columns), dropna=False).ngroup()
