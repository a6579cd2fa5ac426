"""One figure for any sweep: a metric against a setting, a colour and a panel for two others."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from blockspike.plots.means import (
    FOLD,
    Means,
    counted,
    labels_of,
    metric_of,
    setting,
    text_of,
    varied_settings,
)
from blockspike.plots.style import BLUE, METHOD_COLOURS, draw_legend, draw_title, save

_MOST_IN_A_ROW = 3
_MOST_TICKS = 8
_LEAST_GAP = 0.06  # between two labels, as a share of the axis
_LONGEST_TICKS = 36  # characters that fit below a panel
_MOST_COLOURS = 16  # of more labels, as those of a search's trials, none has a colour or an entry
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


class Roles(NamedTuple):
    """Which settings a figure of a sweep shows, and how.

    Attributes:
        x: horizontal axis.
        color: settings whose combinations have a colour each.
        facet: setting whose values have a panel each; None = one panel.
    """

    x: str
    color: list[str]
    facet: str | None

    @property
    def all(self) -> list[str]:
        """All settings that are shown."""
        return [self.x, *self.color, *([self.facet] if self.facet else [])]


def roles(
    table: pd.DataFrame,
    x: str | None = None,
    color: Sequence[str] | None = None,
    facet: str | None = None,
    metric: str | None = None,
) -> Roles:
    """Complete the roles from the settings in which the runs with a metric differ.

    Unless given, x is the setting with the most numbers, facet is `data` if it differs, and color
    are the others. The fold is x only if nothing else differs.

    Raises:
        ValueError: a setting is unknown, or x is not given and the runs differ in nothing but the
            seed.
    """
    given = [("x", x), *(("color", name) for name in color or ()), ("facet", facet)]
    for option, name in given:
        if name is not None:
            setting(table, name, option)  # raises if there is none
    drawn = pd.DataFrame(table[table[metric_of(table, metric)].notna()])
    free = [name for name in varied_settings(drawn) if name not in (x, facet, *(color or ()))]
    if facet is None and "data" in free and (x or len(free) > 1):
        facet = "data"
        free.remove(facet)
    if x is None:
        if not free and FOLD in drawn and FOLD not in (color or ()) and drawn[FOLD].nunique() > 1:
            free = [FOLD]
        if not free:
            raise ValueError("x: expected a setting, since runs differ in the seed alone, got none")
        x = max(free, key=lambda name: _n_numbers(setting(drawn, name)))
        free.remove(x)
    return Roles(x, free if color is None else list(color), facet)


def sweep(found: Means, chosen: Roles, title: str, folder: Path) -> Path:
    """Write `sweep_<title>_<metric>.png` and .svg; arguments as of `sweep_figure`."""
    name = re.sub(r"\W+", "_", f"sweep_{title}_{found.metric}")
    return save(sweep_figure(found, chosen, title), folder / name)


def sweep_figure(found: Means, chosen: Roles, title: str) -> Figure:
    """Draw single runs as pale points, and their means with standard errors.

    Args:
        found: means by `chosen.all`.
        chosen: see `roles`.
        title: text above the panels.
    """
    units, places = found.units, _Places.of(found.units[chosen.x])
    facets = _ordered(found.points, [chosen.facet]) if chosen.facet else []
    labels, texts = _ordered(found.points, chosen.color), labels_of(units, chosen.color)
    share = texts.map(labels.index) / max(len(labels) - 1, 1)
    data = pd.DataFrame({
        chosen.x: places.shifted(units[chosen.x], share),
        found.metric: units[found.metric], "label": texts,
        chosen.facet: labels_of(units, [chosen.facet] if chosen.facet else []),
    })  # fmt: skip
    n_columns = 2 if len(facets) == 4 else min(max(len(facets), 1), _MOST_IN_A_ROW)
    has_legend = bool(chosen.color) and len(labels) <= _MOST_COLOURS
    look: dict[str, Any] = {
        "x": chosen.x, "y": found.metric, "hue": "label", "hue_order": labels,
        "palette": palette_of(labels), "style": "label", "style_order": labels,
        "markers": dict(zip(labels, itertools.cycle(_MARKERS if has_legend else "o"))),
    }  # fmt: skip
    grid = sns.relplot(
        data, kind="line", errorbar="se", err_style="bars", err_kws={"capsize": 2}, dashes=False,
        ms=7, lw=1.2, linestyle="-" if places.are_numbers else "", legend=False, height=2.8,
        aspect=1.25 if n_columns > 1 else 1.9, col=chosen.facet, col_order=facets or None,
        col_wrap=n_columns if chosen.facet else None, **look,
    )  # fmt: skip
    grid.map_dataframe(sns.scatterplot, s=16, alpha=0.4, lw=0, legend=False, **look)
    is_wide = _is_wide(data[found.metric].to_numpy(float)) and data[found.metric].max() > 1
    grid.set(yscale="log" if is_wide else "linear").set_titles("{col_var} {col_name}")
    for axis in grid.axes.flat:
        places.set_ticks(axis)
        axis.grid(axis="y", color="0.9")
    lines = [f"{title}: {what_is_drawn(found.points['n'])} a point", *found.caveats]
    if chosen.color and not has_legend:
        lines.append(f"{len(labels)} combinations of {', '.join(chosen.color)}")
    if has_legend:
        entries = [(look["palette"][x], look["markers"][x], x) for x in labels]
        draw_legend(grid.figure, entries, ", ".join(chosen.color))
    draw_title(grid.figure, lines)
    return grid.figure


def what_is_drawn(numbers: pd.Series) -> str:
    """Text such as `1 run` or `mean ± s.e., 1–3 runs`: what a figure draws of each group."""
    text = counted(numbers.tolist(), "run")
    return text if numbers.max() == 1 else f"mean ± s.e., {text}"


def palette_of(labels: list[str]) -> dict[str, Any]:
    """Colours of the methods where labels are methods; else distinct ones, or one for all."""
    if len(labels) == 1 or len(labels) > _MOST_COLOURS:
        return dict.fromkeys(labels, BLUE)
    if set(labels) <= METHOD_COLOURS.keys():
        return METHOD_COLOURS
    name = "colorblind" if len(labels) <= 10 else "husl"
    return dict(zip(labels, sns.color_palette(name, len(labels)), strict=True))


def _ordered(points: pd.DataFrame, names: list[str]) -> list[str]:
    """Different texts of some settings, in the order of their values."""
    ordered = points.sort_values(names) if names else points
    return list(dict.fromkeys(labels_of(ordered, names)))


def _is_wide(values: np.ndarray) -> bool:
    """Whether numbers span more than a decade, in steps that are more even as ratios."""
    different = np.unique(values)
    if different[0] <= 0 or different[-1] <= 10 * different[0]:
        return False
    steps, ratios = np.diff(different), np.diff(np.log(different))
    return len(steps) == 1 or ratios.std() / ratios.mean() < steps.std() / steps.mean()


class _Places(NamedTuple):
    """Where the values of a setting are on the horizontal axis: numbers, or names in a row."""

    ticks: np.ndarray
    labels: list[str]
    are_numbers: bool
    are_log: bool

    @classmethod
    def of(cls, values: pd.Series) -> "_Places":
        ordered = pd.Series(values.unique()).sort_values()
        labels = [text_of(x) for x in ordered]
        if _n_numbers(values) < len(ordered):  # some are no numbers
            return cls(np.arange(len(labels), dtype=float), labels, False, False)
        return cls(ordered.to_numpy(float), labels, True, _is_wide(ordered.to_numpy(float)))

    def shifted(self, values: pd.Series, share: pd.Series) -> np.ndarray:
        """Places of values, a little apart from those of other colours (share 0 to 1)."""
        places = np.log(self.ticks) if self.are_log else self.ticks
        gap = np.diff(places).min(initial=np.inf)
        most = min(0.15 * gap, 0.03 * np.ptp(places)) if self.are_numbers else 0.4
        place = dict(zip(self.labels, places, strict=True))
        x = values.map(text_of).map(place) + (share - 0.5) * (most if len(set(share)) > 1 else 0)
        return np.exp(x.to_numpy(float)) if self.are_log else x.to_numpy(float)

    def set_ticks(self, axis: Axes) -> None:
        """Label the values themselves where they fit."""
        if self.are_log:
            axis.set_xscale("log")
        places = np.log(self.ticks) if self.are_log else self.ticks
        is_tight = (np.diff(places) < _LEAST_GAP * np.ptp(places)).any()
        if self.are_numbers and (len(places) > _MOST_TICKS or is_tight):
            return
        is_long = sum(map(len, self.labels)) > _LONGEST_TICKS
        look: dict[str, Any] = {"rotation": 30, "ha": "right"} if is_long else {}
        axis.set_xticks(self.ticks.tolist(), self.labels, **look)
        axis.xaxis.set_minor_locator(NullLocator())
        if not self.are_numbers:
            axis.set_xlim(-0.6, len(places) - 0.4)


def _n_numbers(values: pd.Series) -> int:
    """Number of different numbers; 0 if the values are of another type."""
    return values.nunique() if is_numeric_dtype(values) and not is_bool_dtype(values) else 0
