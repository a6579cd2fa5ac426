"""One figure for any sweep: a metric against a setting, with a colour and a panel for others."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from blockspike.plots.means import FOLD, metric_of, scored, setting, varied
from blockspike.plots.style import METHOD_COLOURS

_MOST_COLOURS = 16


@dataclass(frozen=True)
class Roles:
    """Which settings a figure shows, and how.

    Attributes:
        x: horizontal axis.
        color: settings whose combinations have a colour each.
        facet: setting whose values have a panel each; None = one panel.
    """

    x: str
    color: Sequence[str] = ()
    facet: str | None = None

    @property
    def all(self) -> list[str]:
        """All settings that are shown."""
        return [self.x, *self.color, *([self.facet] if self.facet else [])]


def roles(
    table: pd.DataFrame,
    metric: str | None = None,
    x: str | None = None,
    color: Sequence[str] | None = None,
    facet: str | None = None,
) -> Roles:
    """Complete the roles from the settings in which runs with the metric differ.

    By default, x is the setting with the most numbers, facet is `data` if it differs, and color
    are the others.

    Raises:
        ValueError: a setting is unknown, or x is not given and the runs differ in the seed alone.
    """
    rows = pd.DataFrame(table[table[metric_of(table, metric)].notna()])
    free = [name for name in varied(rows) if name not in (x, facet, *(color or ()))]
    if facet is None and "data" in free and (x or len(free) > 1):
        facet = free.pop(free.index("data"))
    if x is None:
        if not free and FOLD in rows:
            free = [FOLD]
        if not free:
            raise ValueError("x: expected a setting, since runs differ in the seed alone, got none")
        x = max(free, key=lambda name: _n_numbers(setting(rows, name)))
        free.remove(x)
    return Roles(x, free if color is None else color, facet)


def sweep(table: pd.DataFrame, chosen: Roles, metric: str | None = None) -> Figure:
    """Draw runs as pale points, and their means with standard errors.

    Args:
        table: a row per run, as `blockspike collect` writes.
        chosen: see `roles`.
        metric: column of numbers; None = see `blockspike.plots.means.METRICS`.

    Raises:
        ValueError: a setting or the metric is unknown, or there are too many colours.
    """
    metric = metric_of(table, metric)
    rows = scored(table, chosen.all, metric)
    if not is_numeric_dtype(rows[chosen.x]):
        rows = rows.sort_values(chosen.x).astype({chosen.x: str})
    hue = ", ".join(chosen.color) or None
    if hue:
        rows = rows.sort_values([*chosen.color, chosen.x])
        rows[hue] = [", ".join(map(text_of, x)) for x in rows[list(chosen.color)].to_numpy(object)]
    labels = list(rows[hue].unique()) if hue else []
    if len(labels) > _MOST_COLOURS:
        raise ValueError(
            f"color: expected at most {_MOST_COLOURS} combinations of {hue}, got {len(labels)}; "
            "choose x, color or an experiment"
        )
    palette = METHOD_COLOURS if labels and set(labels) <= METHOD_COLOURS.keys() else None
    look = {"hue": hue, "palette": palette, "hue_order": labels or None} if hue else {}
    n_columns = min(3, rows[chosen.facet].nunique()) if chosen.facet else None
    grid = sns.relplot(
        rows, x=chosen.x, y=metric, col=chosen.facet, col_wrap=n_columns, kind="line",
        style=hue, dashes=False, **({"markers": True} if hue else {"marker": "o"}),
        errorbar="se", err_style="bars", height=3, aspect=1.15, **look,
    )  # fmt: skip
    for facet, axis in grid.axes_dict.items() if chosen.facet else [(None, grid.ax)]:
        own = rows if facet is None else rows[rows[chosen.facet] == facet]
        sns.scatterplot(own, x=chosen.x, y=metric, ax=axis, alpha=0.35, s=16, lw=0, legend=False,
                        **look)  # fmt: skip
        axis.grid(axis="y", color="0.9")
    if is_numeric_dtype(rows[chosen.x]) and _is_wide(rows[chosen.x]):
        grid.set(xscale="log")
        ticks = sorted(rows[chosen.x].unique())
        if len(ticks) <= 8:
            grid.set(xticks=ticks, xticklabels=[f"{x:g}" for x in ticks])
            for axis in grid.axes.flat:
                axis.minorticks_off()
    n_runs = rows.groupby(chosen.all, dropna=False)["n"].sum()
    low, high = n_runs.min(), n_runs.max()
    n = f"{high} run{'s' * (high > 1)}" if low == high else f"{low}–{high} runs"
    experiments = ", ".join(sorted(set(table["experiment"].astype(str))))
    grid.figure.suptitle(f"{experiments}: mean ± standard error, {n} a point", y=1.03)
    return grid.figure


def text_of(value: object) -> str:
    """Short text of a setting's value."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _is_wide(values: pd.Series) -> bool:
    """Whether positive numbers span a decade or more."""
    return values.min() > 0 and values.max() >= 8 * values.min() and values.nunique() > 2


def _n_numbers(values: pd.Series) -> int:
    """Number of different numbers; 0 if the values are of another type."""
    return values.nunique() if is_numeric_dtype(values) else 0
