"""One figure for any sweep: a metric against a setting, a colour and a panel for two others."""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from blockspike.figures.means import (
    FOLD,
    Means,
    fold_of,
    mean_and_error,
    means,
    setting,
    text_of,
    varied_settings,
    with_metric,
)
from blockspike.figures.panels import mean_of, where
from blockspike.plots.style import BLUE, METHOD_COLOURS, save

_MOST_IN_A_ROW = 3
_MOST_TICKS = 8
_MOST_COLOURS = 16  # of more labels, as those of a search's trials, none has a colour or an entry
_LEAST_GAP = 0.06  # between two labels, as a share of the axis
_LONGEST_TICKS = 36  # characters that fit below a panel
_SHIFT, _SHIFT_OF_NAMES = 0.15, 0.4  # of the distance between two positions
_LARGEST_SHIFT = 0.05  # of the axis
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


@dataclass(frozen=True)
class Roles:
    """Which settings the figure shows, and how.

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
        ValueError: a setting is unknown or has two roles, or x is not given and the runs differ in
            nothing but the seed.
    """
    given = [("x", x), *(("color", name) for name in color or ()), ("facet", facet)]
    names = [name for _, name in given if name is not None]
    for option, name in given:
        if name is not None:
            setting(table, name, option)  # raises if there is none
    if len(set(names)) < len(names):
        raise ValueError(f"x, color, facet: expected different settings, got {', '.join(names)}")
    drawn = with_metric(table, metric)
    free = [name for name in varied_settings(drawn) if name not in (x, facet, *(color or ()))]
    if facet is None and "data" in free and (x or len(free) > 1):
        facet = "data"
        free.remove(facet)
    if x is None:
        if not free and FOLD not in names and fold_of(drawn).nunique() > 1:
            free = [FOLD]
        if not free:
            raise ValueError("x: expected a setting, since runs differ in the seed alone, got none")
        x = max(free, key=lambda name: _n_numbers(setting(drawn, name)))
        free.remove(x)
    return Roles(x, free if color is None else list(color), facet)


def sweep(
    table: pd.DataFrame, folder: Path, chosen: Roles, metric: str | None = None
) -> tuple[Path, Means]:
    """Draw a sweep into `folder`.

    Args:
        table: a row per run, as `blockspike collect` writes.
        folder: where to write.
        chosen: see `roles`.
        metric: see `means`.

    Returns:
        Path of the PNG, `sweep_<experiment>_<metric>.png`, and the means that it shows.

    Raises:
        ValueError: as `means`.
    """
    found = means(table, chosen.all, metric)
    drawn = table.loc[found.runs.index]
    experiments = sorted({str(name) for name in drawn["experiment"]})
    own = experiments[0] if len(experiments) == 1 else "all"
    name = re.sub(r"\W+", "_", f"sweep_{own}_{found.metric}")
    return save(sweep_figure(found, chosen, ", ".join(experiments)), folder / name), found


def sweep_figure(found: Means, chosen: Roles, title: str) -> Figure:
    """Draw runs as pale points, and their means with standard errors.

    Args:
        found: means by `chosen.all`.
        chosen: see `roles`.
        title: text above the panels.
    """
    facet = [chosen.facet] if chosen.facet else []
    facets, labels = _labels(found.points, facet), _labels(found.points, chosen.color)
    n_columns = 2 if len(facets) == 4 else min(len(facets), _MOST_IN_A_ROW)
    n_rows = -(-len(facets) // n_columns)
    figure = Figure(figsize=(1.6 + 3.2 * n_columns, 1.3 + 2.6 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharex=True, sharey=True, squeeze=False).ravel()
    x, y = pd.Series(found.runs[chosen.x]), found.runs[found.metric].to_numpy(float)
    scale = _scale(x)
    runs = pd.DataFrame({
        "x": scale.positions(x), "y": y, "label": _texts(found.runs, chosen.color),
        "facet": _texts(found.runs, facet), "fold": found.folds,
    })  # fmt: skip
    for i, (axis, text) in enumerate(zip(axes, facets, strict=False)):
        _panel(axis, where(runs, "facet", [text]), labels, scale)
        axis.set_title(f"{chosen.facet} {text}" if facet else "", fontsize=10)
        axis.set(xlabel=chosen.x, ylabel="" if i % n_columns else found.metric)
    for axis in axes[len(facets) :]:
        axis.remove()
    for axis in figure.axes:  # once all are drawn, since they share their limits
        scale.set_ticks(axis)
    if _is_wide(y) and y.max() > 1:
        axes[0].set_yscale("log")
    if chosen.color:
        _legend(figure, labels, ", ".join(chosen.color))
    heading = f"{title}: {mean_of(found.points['n'], 'run')} a point"
    lines = [textwrap.fill(line, 30 + 40 * n_columns) for line in (heading, *found.warnings)]
    figure.suptitle("\n".join(lines), fontsize=10)
    return figure


def _legend(figure: Figure, labels: list[str], title: str) -> None:
    """Explain the colours below the panels; a panel need not have all."""
    drawn = [axis.get_legend_handles_labels() for axis in figure.axes]
    handles = {x: h for hs, xs in drawn for h, x in zip(hs, xs, strict=True)}
    entries = {x: handles[x] for x in labels}
    if len(labels) > _MOST_COLOURS:
        advice = "too many to tell apart; choose x=, color= or experiment_name="
        entries = {f"{len(labels)} combinations, {advice}": handles[labels[0]]}
    figure.legend(
        list(entries.values()), list(entries), loc="outside lower center", frameon=False,
        ncols=min(len(entries), 4), fontsize=9, title_fontsize=9,
        title=textwrap.fill(title, round(11 * figure.get_figwidth())),
    )  # fmt: skip


def _panel(axis: Axes, runs: pd.DataFrame, labels: list[str], scale: "_Scale") -> None:
    """Draw the runs of one panel; labels beside each other keep a small distance."""
    shifts = np.linspace(-0.5, 0.5, len(labels)) if len(labels) > 1 else [0.0]
    shift = dict(zip(labels, shifts, strict=True))
    x = scale.shifted(runs["x"].to_numpy(float), np.array([shift[x] for x in runs["label"]]))
    runs, colours = runs.assign(x=x), _palette(labels)
    n_markers = 1 if len(labels) > _MOST_COLOURS else len(_MARKERS)
    for i, label in enumerate(labels):
        own = where(runs, "label", [label])
        if own.empty:  # another panel has it
            continue
        places = np.array(sorted(set(own["x"].tolist())))
        mean, error = np.transpose([
            mean_and_error(of_x["y"].to_numpy(), pd.Series(of_x["fold"]))
            for _, of_x in own.groupby("x")
        ])  # fmt: skip
        look: dict[str, Any] = {"color": colours[label], "marker": _MARKERS[i % n_markers]}
        axis.scatter(own["x"], own["y"], s=16, alpha=0.4, lw=0, **look)
        width = 1.2 if scale.is_number else 0.0
        axis.plot(places, mean, ms=7, mec="white", lw=width, label=label, **look)
        if (known := np.isfinite(error)).any():
            axis.errorbar(
                places[known], mean[known], error[known], fmt="none", ecolor=colours[label],
                elinewidth=1.2, capsize=2,
            )  # fmt: skip
    axis.grid(axis="y", color="0.9")


def _palette(labels: list[str]) -> dict[str, Any]:
    """Colours of the methods where labels are methods; else distinct ones, or one for all."""
    if len(labels) == 1 or len(labels) > _MOST_COLOURS:
        return dict.fromkeys(labels, BLUE)
    if set(labels) <= METHOD_COLOURS.keys():
        return {label: METHOD_COLOURS[label] for label in labels}
    name = "colorblind" if len(labels) <= 10 else "husl"
    return dict(zip(labels, sns.color_palette(name, len(labels)), strict=True))


def _texts(table: pd.DataFrame, names: list[str]) -> pd.Series:
    """Values of some settings in each row, as one text."""
    rows = table[names].to_numpy(object).tolist()
    return pd.Series([", ".join(map(text_of, row)) for row in rows], table.index, dtype=object)


def _labels(points: pd.DataFrame, names: list[str]) -> list[str]:
    """Different texts of some settings, in the order of their values."""
    ordered = points.sort_values(names) if names else points
    return list(dict.fromkeys(_texts(ordered, names)))


def _is_wide(values: np.ndarray) -> bool:
    """Whether numbers span more than a decade, in steps that are more even as ratios."""
    different = np.unique(values)
    if different[0] <= 0 or different[-1] <= 10 * different[0]:
        return False
    steps, ratios = np.diff(different), np.diff(np.log(different))
    return len(steps) == 1 or ratios.std() / ratios.mean() < steps.std() / steps.mean()


@dataclass(frozen=True)
class _Scale:
    """The horizontal axis: numbers, on a log axis if they span a lot, or names in a row.

    Attributes:
        ticks: positions with a label.
        labels: their labels.
        is_number: whether positions are numbers.
        is_log: whether the axis is logarithmic.
    """

    ticks: list[float]
    labels: list[str]
    is_number: bool
    is_log: bool

    @property
    def _places(self) -> np.ndarray:
        """The ticks as the axis spaces them."""
        return np.log(self.ticks) if self.is_log else np.array(self.ticks)

    def positions(self, values: pd.Series) -> np.ndarray:
        """Position of each value of the setting."""
        if self.is_number:
            return values.to_numpy(float)
        place = dict(zip(self.labels, self.ticks, strict=True))
        return np.array([place[text_of(x)] for x in values])

    def shifted(self, x: np.ndarray, shift: np.ndarray) -> np.ndarray:
        """Positions moved aside by a share of the distance to the nearest other one."""
        if not self.is_number:
            return x + shift * _SHIFT_OF_NAMES
        places = self._places
        gaps = np.diff(places) if len(places) > 1 else np.ones(1)
        nearest = np.minimum(np.append(gaps, np.inf), np.insert(gaps, 0, np.inf))[: len(places)]
        span = max(np.ptp(places), gaps.min())
        at = np.searchsorted(self.ticks, x)
        moved = shift * np.minimum(_SHIFT * nearest, _LARGEST_SHIFT * span)[at]
        return x * np.exp(moved) if self.is_log else x + moved

    def set_ticks(self, axis: Axes) -> None:
        """Label the values themselves where they fit."""
        if self.is_log:
            axis.set_xscale("log")
        axis.xaxis.set_tick_params(labelbottom=True)
        places = self._places
        gaps = np.diff(places) / max(np.ptp(places), 1e-12)
        if self.is_number and (len(places) > _MOST_TICKS or (gaps < _LEAST_GAP).any()):
            return
        is_long = max(map(len, self.labels)) * len(self.labels) > _LONGEST_TICKS
        look: dict[str, Any] = {"rotation": 30, "ha": "right"} if is_long else {}
        axis.set_xticks(self.ticks, self.labels, **look)
        axis.xaxis.set_minor_locator(NullLocator())
        if not self.is_number:
            axis.set_xlim(-0.6, len(self.ticks) - 0.4)


def _scale(values: pd.Series) -> _Scale:
    ordered = pd.Series(values.unique()).sort_values()
    labels = [text_of(x) for x in ordered]
    if _n_numbers(values) < len(ordered):  # some are no numbers
        return _Scale([float(i) for i in range(len(labels))], labels, False, False)
    ticks = ordered.to_numpy(float)
    return _Scale(ticks.tolist(), labels, True, _is_wide(ticks))


def _n_numbers(values: pd.Series) -> int:
    """Number of different numbers; 0 if the values are of another type."""
    return values.nunique() if is_numeric_dtype(values) and not is_bool_dtype(values) else 0
