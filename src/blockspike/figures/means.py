"""Means over seeds of the runs in a table, by any of their settings."""

import difflib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from blockspike.figures.tables import require_columns

DEFAULT_METRICS = ("test_accuracy", "test_etv_15ms_median", "val_accuracy")
"""Metric of classifiers, of fits, and of folds, which are not tested."""
TOP_LEVEL_SETTINGS = (
    "test_each_epoch", "monitor", "init_from", "resume_from", "label_smoothing", "n_bootstrap",
)  # fmt: skip
"""Settings of a run without a dot in their names; results have none either."""
_OF_DATA = ("data_set", "data_sha256", "experiment")
_MADE_BY = ("git_sha", "git_dirty", "python", "machine", "n_threads")
FOLD = "data.fold"
"""Setting in which the runs of a cross-validation differ; like the seed it tells no means apart."""
OTHER_FOLDS = f"means are not of the same folds ({FOLD}), so they do not compare"
_CHOICE = "_config"  # the column `model_config` holds the choice of the group `model`
_MOST_NAMES = 8


@dataclass(frozen=True)
class Means:
    """Means of one metric over the runs that agree in all of `by`.

    Attributes:
        metric: the averaged column.
        by: settings that tell the means apart.
        points: a row per mean: a column per setting in `by`, `n` (runs), `mean` and
            `standard_error`, which is NaN for one run; see `mean_and_error`.
        runs: the runs behind them, a column per setting in `by` and `metric`.
        folds: of each run, see `replicate_of`.
        mixed: settings in which runs of one mean differ, apart from seed and fold.
        differ_in_folds: whether the means are not all of the same folds.
        n_left_out: number of runs without this metric.
    """

    metric: str
    by: list[str]
    points: pd.DataFrame
    runs: pd.DataFrame
    folds: pd.Series
    mixed: list[str]
    differ_in_folds: bool
    n_left_out: int

    @property
    def varied(self) -> list[str]:
        """Settings of `by` with several values."""
        return [name for name in self.by if self.points[name].nunique(dropna=False) > 1]

    @property
    def shared(self) -> dict[str, str]:
        """Settings of `by` that all runs share, with their values."""
        return {n: text_of(self.points[n].iloc[0]) for n in self.by if n not in self.varied}

    @property
    def warnings(self) -> list[str]:
        """Sentences on settings that differ within a mean, and on runs that are in none."""
        found = []
        if self.mixed:
            names = ", ".join(self.mixed)
            found.append(f"runs of one mean differ in more than seed and fold: {names}")
        if self.differ_in_folds:
            found.append(OTHER_FOLDS)
        if self.n_left_out:
            found.append(f"runs left out, without {self.metric}: {self.n_left_out}")
        return found


def of_experiment(table: pd.DataFrame, name: str | None) -> pd.DataFrame:
    """Rows of one experiment; None = all.

    Raises:
        ValueError: no row is of this experiment, or the table has no column of it.
    """
    if name is None:
        return table
    require_columns(table, ["experiment"])
    names = sorted({str(x) for x in table["experiment"]})
    if name not in names:
        raise ValueError(f"experiment_name: expected {_near(name, names)}, got {name!r}")
    return pd.DataFrame(table[table["experiment"] == name])


def means(table: pd.DataFrame, by: Sequence[str], metric: str | None = None) -> Means:
    """Average a metric over the runs with the same settings, normally those of several seeds.

    Args:
        table: a row per run, as `blockspike collect` writes.
        by: columns, or groups of the configuration such as `model` or `data`.
        metric: column of numbers; None = the first of `DEFAULT_METRICS` that the runs have.

    Raises:
        ValueError: a name of `by` or the metric is unknown, or no run has the metric.
    """
    settings = pd.DataFrame({name: setting(table, name) for name in by}, index=table.index)
    if len(settings.columns) < len(by):
        raise ValueError(f"by: expected different names, got {', '.join(by)}")
    has_some = settings.notna().any(axis=1) if by else pd.Series(True, index=table.index)
    metric = metric_of(pd.DataFrame(table[has_some] if has_some.any() else table), metric)
    if metric in by:
        raise ValueError(f"metric: expected a column that is not in by, got {metric!r}")
    chosen = with_metric(table, metric)
    settings = settings.loc[chosen.index]
    runs = settings.assign(**{metric: chosen[metric].astype(float)})
    groups = (
        runs.groupby(list(by), dropna=False)[metric] if by else runs.groupby(lambda _: 0)[metric]
    )
    folds = replicate_of(chosen)
    found = [mean_and_error(own.to_numpy(), pd.Series(folds[own.index])) for _, own in groups]
    points = pd.DataFrame({"n": groups.count()})
    points[["mean", "standard_error"]] = np.array(found)
    points = points.reset_index(drop=not by)
    return Means(
        metric=metric,
        by=list(by),
        points=points,
        runs=runs,
        folds=folds,
        mixed=_differing(chosen, _codes(settings), [*_settings(chosen), *_made_by(chosen)]),
        differ_in_folds=FOLD not in by and differ_in_folds(chosen, settings),
        n_left_out=len(table) - len(runs),
    )


def fold_of(table: pd.DataFrame) -> pd.Series:
    """Text of each run's fold; None if it is not of a cross-validation."""
    columns = {name: table.get(name) for name in (FOLD, "data.n_folds", "fit_s")}
    rows = pd.DataFrame(columns, table.index)
    is_fold = rows[FOLD].notna() & (rows["data.n_folds"].notna() | rows["fit_s"].isna())
    texts = [
        f"{text_of(fold)} of {text_of(n)}" if own else None
        for own, fold, n in zip(is_fold, rows[FOLD], rows["data.n_folds"], strict=True)
    ]
    return pd.Series(texts, table.index, dtype=object)


def replicate_of(table: pd.DataFrame) -> pd.Series:
    """Name of each run's fold and data set, which count once in a mean; a number without a fold."""
    folds, data = fold_of(table), table.get("data_set")
    names = ["" for _ in folds] if data is None else data.tolist()
    return pd.Series(
        [i if x is None else f"{x} {y}" for i, (x, y) in enumerate(zip(folds, names, strict=True))],
        table.index, dtype=object,
    )  # fmt: skip


def differ_in_folds(table: pd.DataFrame, settings: pd.DataFrame) -> bool:
    """Whether the runs with some of the settings are of other folds than those with others."""
    groups = fold_of(table).groupby(_codes(settings))
    return len({frozenset(own.dropna()) for _, own in groups}) > 1


def mean_and_error(values: np.ndarray, folds: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """Mean of values [n, …] of runs, and its standard error, which is NaN for n = 1.

    Args:
        values: a score, or a curve, of each run.
        folds: of each run, see `replicate_of`. Of several folds, the runs of each count as one,
            their mean: they share the data that they are scored on, so their number makes no mean
            surer.
    """
    if folds.nunique() > 1:
        each = [values[(folds == fold).to_numpy()].mean(0) for fold in folds.unique()]
        values = np.stack(each)
    n, mean = len(values), values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(n) if n > 1 else np.full_like(mean, np.nan)
    return mean, error


def with_metric(table: pd.DataFrame, metric: str | None = None) -> pd.DataFrame:
    """The runs that have a metric, see `means`.

    Raises:
        ValueError: there are none.
    """
    metric = metric_of(table, metric)
    known = pd.DataFrame(table[table[metric].notna()])
    if known.empty:
        raise ValueError(f"metric: expected a run with {metric}, got none")
    return known


def setting(table: pd.DataFrame, name: str, option: str = "by") -> pd.Series:
    """Values of a setting: of a group of the configuration, the choice; else of the column.

    Raises:
        ValueError: there is no such group or column; the message has the near names, and `option`,
            which gave the name.
    """
    for column in (f"{name}{_CHOICE}", name):
        if column in table:
            return _numbers_if_all_are(pd.Series(table[column]))
    groups = [c.removesuffix(_CHOICE) for c in map(str, table) if c.endswith(_CHOICE)]
    near = _near(name, [*groups, *map(str, table)])
    raise ValueError(f"{option}: expected {near}, got {name!r}")


def _numbers_if_all_are(column: pd.Series) -> pd.Series:
    """Numbers where they were text, as in a table with lists among them in other rows."""
    if is_numeric_dtype(column):
        return column
    try:
        return pd.Series(pd.to_numeric(column))
    except (ValueError, TypeError):
        return column


def warn_of_mixed(table: pd.DataFrame, by: Sequence[str], figure: str, advice: str) -> None:
    """Warn of settings in which runs of one point of a figure differ, apart from seed and fold.

    Args:
        table: the runs of the figure.
        by: settings that tell its points apart.
        figure: what the warning calls the figure.
        advice: how to keep the runs apart.
    """
    codes = _codes(pd.DataFrame({name: setting(table, name) for name in by}, index=table.index))
    if mixed := _differing(table, codes, _settings(table)):
        warnings.warn(
            f"{figure}: runs of one point are averaged but differ in {', '.join(mixed)}; {advice}",
            stacklevel=3,
        )


def varied_settings(table: pd.DataFrame) -> list[str]:
    """Fewest settings that tell apart all runs that differ in more than seed and fold.

    A setting that only follows from earlier ones is left out, so `model` stands for all of its
    options unless runs with the same model differ in them.
    """
    names = _differing(table, pd.Series(0, index=table.index), _settings(table))
    return [name for name in names if name != "data_sha256"]


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
        f"{mean:.{digits}f}" + (f" ± {error:.{digits}f}" if error == error else "")
        for mean, error in zip(points["mean"], points["standard_error"], strict=True)
    ]


def metric_of(table: pd.DataFrame, metric: str | None) -> str:
    """Name of a column of numbers that some run has."""
    numbers = [
        str(name) for name, column in table.items()
        if is_numeric_dtype(column) and not is_bool_dtype(column) and column.notna().any()
    ]  # fmt: skip
    if metric is None:
        found = next((name for name in DEFAULT_METRICS if name in numbers), None)
        if found is None:
            raise ValueError(
                f"metric: expected one of {', '.join(numbers)}, since no run has "
                f"{' or '.join(DEFAULT_METRICS)}, got none"
            )
        return found
    if metric not in numbers:
        raise ValueError(f"metric: expected {_near(metric, numbers)}, got {metric!r}")
    return metric


def _near(name: str, names: Iterable[str]) -> str:
    """The names that resemble `name`, as text; all if none does."""
    names = list(dict.fromkeys(names))
    last = name.rpartition(".")[2].lower()
    close = difflib.get_close_matches(name, names, _MOST_NAMES)
    close += [x for x in names if difflib.get_close_matches(last, [x.rpartition(".")[2]], 1)]
    inside = [x for x in names if len(last) > 1 and last in x.lower()]
    near = list(dict.fromkeys([*close, *inside]))
    more = f" and {len(near) - _MOST_NAMES} more" if len(near) > _MOST_NAMES else ""
    return "one of " + ", ".join(near[:_MOST_NAMES] or names) + more


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
    if name == FOLD:
        return True
    known = table[name].dropna()
    return name.endswith(".seed") and bool((known == table["seed"][known.index]).all())


def _made_by(table: pd.DataFrame) -> list[str]:
    """Names of what a run was made with."""
    return [c for c in map(str, table) if c in _MADE_BY or c.startswith("version.")]


def _codes(settings: pd.DataFrame) -> pd.Series:
    """Number of each row's combination of values."""
    if settings.columns.empty:
        return pd.Series(0, index=settings.index)
    return settings.groupby(list(settings.columns), dropna=False).ngroup()


def _differing(table: pd.DataFrame, codes: pd.Series, names: Iterable[str]) -> list[str]:
    """Names of settings that tell apart rows of one code, each only if earlier ones do not."""
    found = []
    for name in names:
        values = setting(table, name)
        both = pd.DataFrame({"codes": codes, "values": values})
        finer = both.groupby(["codes", "values"], dropna=False, sort=False).ngroup()
        if finer.nunique() > codes.nunique():
            found.append(name)
            codes = finer
    return found
