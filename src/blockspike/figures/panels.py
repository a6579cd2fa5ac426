"""Shared parts of the figures of training runs: selection of runs, seeds, lines and legends.

Our accuracies are those of the model chosen on validation data. A line is the mean over seeds with
standard errors; a point with one seed has no error bar.
"""

import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockspike.files import CONF
from blockspike.plots.means import require_columns, warn_of_mixed
from blockspike.plots.style import save

# column of the table → name in this module
_COLUMNS = {
    "experiment": "experiment",
    "data_set": "data_set",
    "seed": "seed",
    "model.method": "method",
    "model.arp_ms": "arp_ms",
    "model.surrogate": "surrogate",
    "model.detach_spikes": "detached",
    "trainer.accelerator": "accelerator",
    "n_threads": "n_threads",
    "test_accuracy": "accuracy",
    "epoch_s": "epoch_s",
}
_OF_POINTS = ("experiment", "data_set", "method", "arp_ms", "surrogate", "detached")
# name, name with its gradient, line style for figures where colours mean something else
METHODS = {
    "fused": ("fused", "fused (standard gradient)", "-."),
    "blocks": ("Blocks", "Blocks (published gradient)", "-"),
    "standard": ("standard", "standard", ":"),
}
# label, marker, line style
_RECIPES = {"paper": ("paper's recipe", "o", "-"), "ours": ("our recipe", "^", "-.")}
_PANELS = ("nmnist", "shd", "surrogates", "detach")
_EXPERIMENT = rf"^(paper_)?({'|'.join(_PANELS)})(?:_(.+))?$"
# label, colour, marker
SURROGATES = {
    "multi_gaussian": ("multi-Gaussian", "#009E73", "o"),
    "fast_sigmoid": ("fast sigmoid", "#CC79A7", "s"),
    "boxcar": ("boxcar", "#E69F00", "^"),
}
ACCURACY = "test accuracy (%)\nours: model chosen on validation,\nmean ± s.e. over seeds"
ARP = "absolute refractory period (ms)"


def save_all(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write figures under their names; returns the PNGs' paths."""
    return [save(figure, folder / name) for name, figure in figures.items()]


def figures_of_data_sets(
    chosen: pd.DataFrame,
    stem: str,
    published: str,
    draw: Callable[[pd.DataFrame, str], Figure],
) -> dict[str, Figure]:
    """Draw a figure for each data set with runs of a panel; a title marks a substitute data set.

    Args:
        chosen: runs of the panel, as from `of_panel`.
        stem: first part of the figures' names.
        published: data set of the published values.
        draw: (runs, name of the published data set) → figure.

    Returns:
        Name → figure; without runs, one figure with the published values alone.

    Raises:
        ValueError: two runs of a point have the same seed.
    """
    nobody = f"{published}, published values only"
    figures: dict[str, Figure] = {}
    for data_set, slug in slugs(set(chosen["data_set"]) or [nobody]).items():
        figure = draw(where(chosen, "data_set", [data_set]), published)
        substitute = data_set not in (published, nobody)
        title = f"{data_set}, not {published}" if substitute else data_set
        figure.suptitle(title, fontsize=10)
        figures[f"{stem}_{slug}"] = figure
    return figures


def slugs(data_sets: Iterable[str]) -> dict[str, str]:
    """Different parts of file names for different data sets, sorted by the sets' names."""
    found: dict[str, str] = {}
    for data_set in sorted(set(data_sets)):
        slug = re.sub("[^a-z0-9]+", "_", data_set.lower()).strip("_")
        while slug in found.values():  # names that differ in signs alone
            slug += "_"
        found[data_set] = slug
    return found


def mean_over_seeds(runs: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean, standard error and number of seeds of `value`, one row per combination of `by`.

    The standard error is NaN for one seed.

    Raises:
        ValueError: two runs of a combination have the same seed, so they differ in another option.
    """
    repeated = runs[runs.duplicated([*by, "seed"])]
    if len(repeated):
        first = repeated.iloc[0]
        point = ", ".join(f"{name} {first[name]}" for name in ("experiment", *by, "seed"))
        raise ValueError(
            f"table: expected one run per seed, got several of {point}; give runs that differ in "
            "other options another experiment_name"
        )
    points = runs.groupby(list(by))[value]
    parts = {"mean": points.mean(), "error": points.sem(), "n_seeds": points.count()}
    return pd.DataFrame(parts).reset_index()


def of_panel(table: pd.DataFrame, panel: str) -> pd.DataFrame:
    """Runs of one panel: nmnist, shd, surrogates or detach; see `tidy`."""
    return where(tidy(table), "panel", [panel])


def tidy(table: pd.DataFrame) -> pd.DataFrame:
    """Select classification runs with one of `SURROGATES`, and name their panel and recipe.

    Columns get short names, and accuracy is in %.

    The experiment `paper_shd` is the paper's recipe for the panel `shd`, `shd` is ours, and
    `shd_wide` is a recipe called "wide". Runs of one point that differ in more than the seed are
    warned of.

    Raises:
        ValueError: there are such runs, but columns are missing.
    """
    if "experiment" in table:
        table = pd.DataFrame(table[table["experiment"].astype(str).str.match(_EXPERIMENT)])
        if table.empty:
            table = table.reindex(columns=list(_COLUMNS))
    if "model.surrogate._target_" in table and "model.surrogate" not in table:
        table = table.assign(**{"model.surrogate": None})
    require_columns(table, _COLUMNS)
    runs = pd.DataFrame({name: table[column] for column, name in _COLUMNS.items()})
    # A column with "reset" in it is of text.
    runs["detached"] = [{"True": True, "False": False}.get(x, x) for x in runs["detached"]]
    parts = pd.Series(runs["experiment"], dtype=str).str.extract(_EXPERIMENT)
    is_ours = parts[0].isna()
    runs = runs.assign(
        panel=parts[1],
        recipe=parts[2].fillna("ours").where(is_ours, "paper"),
        accuracy=100 * runs["accuracy"],
    )
    unknown = sorted(set(map(str, runs["method"])) - set(METHODS))
    if unknown:
        raise ValueError(f"table: method: expected {', '.join(METHODS)}, got {unknown[0]!r}")
    is_drawn = runs["surrogate"].isin(SURROGATES)
    by = [column for column, name in _COLUMNS.items() if name in _OF_POINTS]
    advice = "give them another experiment_name, such as shd_wide"
    warn_of_mixed(pd.DataFrame(table[is_drawn]), by, "figures of experiments", advice)
    return pd.DataFrame(runs[is_drawn])


def draw_line(
    axis: Axes, points: pd.DataFrame, label: str, colour: str, marker: str, style: str
) -> None:
    """Draw points with error bars as a line with an entry in the legend."""
    x, y = points["arp_ms"], points["mean"]
    axis.plot(x, y, label=label, color=colour, marker=marker, ls=style, ms=5)
    draw_errors(axis, points, "arp_ms", colour)


def draw_errors(axis: Axes, points: pd.DataFrame, x: str, colour: str) -> None:
    """Draw standard errors of points with at least two seeds."""
    several = points[points["n_seeds"] >= 2]
    if len(several):
        axis.errorbar(
            several[x], several["mean"], several["error"], fmt="none", ecolor=colour,
            elinewidth=1, capsize=2,
        )  # fmt: skip


def draw_published(axis: Axes, numbers: pd.DataFrame, label: str, colour: str, marker: str) -> None:
    """Draw published points with a dashed line and open markers."""
    x, y = numbers["arp_ms"], numbers["value"]
    axis.plot(x, y, label=label, color=colour, marker=marker, ls="--", lw=1, ms=5, mfc="white")


def say_how(axis: Axes, file: str, published: str) -> None:
    """Title a panel without runs with the command that makes them."""
    lines = ["no runs yet:", *textwrap.wrap(command_of(file), 52, break_long_words=False)]
    if published == "SHD":
        lines.append("(without SHD: data=hd_lauscher_sample)")
    axis.set_title("\n".join(lines), loc="left", fontsize=7, family="monospace")


def command_of(experiment: str) -> str:
    """The command that makes an experiment's runs: the first comment in its configuration file."""
    head = (CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf-8").splitlines()[1]
    return head.removeprefix("# ")


def names_of(method: str, recipe: str) -> tuple[str, str]:
    """Names of a method (with its gradient) and a recipe for legends and tables."""
    return METHODS[method][1], recipe_look(recipe)[0]


def recipe_look(name: str) -> tuple[str, str, str]:
    """Label, marker and line style of a recipe."""
    return _RECIPES.get(name, (f"recipe {name}", "v", ":"))


def seeds(points: pd.DataFrame) -> str:
    """Number of seeds of the points, as text."""
    return plural_range(points["n_seeds"], "seed")


def plural_range(values: Iterable[Any], word: str) -> str:
    """Text such as `1 seed`, `3 seeds` or `1–3 seeds`."""
    low, high = int(min(values)), int(max(values))
    number = str(high) if low == high else f"{low}–{high}"
    return f"{number} {word}{'' if high == 1 else 's'}"


def mean_of(numbers: Iterable[Any], word: str) -> str:
    """Text such as `1 run` or `mean ± s.e., 1–3 runs`: what a figure draws of each group."""
    counted = plural_range(numbers, word)
    return counted if max(numbers) == 1 else f"mean ± s.e., {counted}"


def where(table: pd.DataFrame, column: str, values: list[str]) -> pd.DataFrame:
    """Rows whose `column` is one of `values`."""
    return pd.DataFrame(table[table[column].isin(values)])


def groups(table: pd.DataFrame, by: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    """Key and rows of each combination of `by`."""
    return [(key, pd.DataFrame(rows)) for key, rows in table.groupby(by)]
