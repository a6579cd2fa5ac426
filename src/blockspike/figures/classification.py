"""Figure 4 of the paper and its two supplements, from the table of runs, published values beside.

Accuracies of ours are of the model chosen on validation data. A line is the mean over seeds with
its standard error; a point of one seed has no error bar.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from blockspike.figures.paper_numbers import paper_numbers
from blockspike.figures.style import BLUE, METHOD_COLOURS, ORANGE, save

_CONF = Path(__file__).parents[1] / "conf" / "experiment"
# column of the table → its name here
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
# name, name with its gradient, line style where colours say something else
_METHODS = {
    "fused": ("fused", "fused (standard gradient)", "-."),
    "blocks": ("Blocks", "Blocks (published gradient)", "-"),
    "standard": ("standard", "standard", ":"),
}
# label, marker, line style
_RECIPES = {"paper": ("paper's recipe", "o", "-"), "ours": ("our recipe", "^", "-.")}
# label, colour, marker
_SURROGATES = {
    "multi_gaussian": ("multi-Gaussian", "#009E73", "o"),
    "fast_sigmoid": ("fast sigmoid", "#CC79A7", "s"),
    "boxcar": ("boxcar", "#E69F00", "^"),
}
_ACCURACY = "test accuracy (%)\nours: model chosen on validation"
_ARP = "absolute refractory period (ms)"


def classification(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write the figures of `classification_figures` into `folder`; returns the PNGs' paths."""
    return [save(f, folder / name) for name, f in classification_figures(table).items()]


def classification_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Draw Figure 4 and its supplements, one figure a data set, under the data set's own name.

    Args:
        table: a row per run and seed, as `blockspike collect` writes. The experiment says where a
            run belongs: e3_… and e4_… Figure 4 on N-MNIST and SHD, e5_… surrogates, e6_… attached
            and detached spikes. What follows in its name is the recipe: e4_shd is the paper's,
            e4_shd_ours is ours.

    Returns:
        Name → figure. What has no runs is drawn with the published values alone, with the command
        that makes the runs.

    Raises:
        ValueError: columns are missing, there is no such run, or two runs of a point have one seed.
    """
    runs = _tidy(table)
    figures: dict[str, Figure] = {}
    for stem, published, panels, draw in (
        ("classification", "N-MNIST", ["e3"], _figure_4),
        ("classification", "SHD", ["e4"], _figure_4),
        ("surrogates", "SHD", ["e5", "e6"], _supplements),
    ):
        chosen = _where(runs, "panel", panels)
        nobody = f"{published}, published values only"
        for data_set in sorted(set(chosen["data_set"])) or [nobody]:
            figure = draw(_where(chosen, "data_set", [data_set]), published)
            substitute = data_set not in (published, nobody)
            title = f"{data_set}, not {published}" if substitute else data_set
            figure.suptitle(title, fontsize=10)
            slug = re.sub("[^a-z0-9]+", "_", data_set.lower()).strip("_")
            figures[f"{stem}_{slug}"] = figure
    return figures


def mean_over_seeds(runs: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean, standard error and number of seeds of `value`, a row per combination of `by`.

    The standard error is NaN for one seed.

    Raises:
        ValueError: two runs of a combination have the same seed, so they differ in something else.
    """
    twice = runs[runs.duplicated([*by, "seed"])]
    if len(twice):
        first = twice.iloc[0]
        point = ", ".join(f"{name} {first[name]}" for name in ("experiment", *by, "seed"))
        raise ValueError(
            f"table: more than one run of {point}; give runs that differ in something else "
            "an experiment_name of their own"
        )
    groups = runs.groupby(list(by))[value]
    parts = {"mean": groups.mean(), "error": groups.sem(), "n_seeds": groups.count()}
    return pd.DataFrame(parts).reset_index()


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    """The runs of e3 to e6, with short names, accuracy in % and the columns panel and recipe."""
    missing = [name for name in _COLUMNS if name not in table]
    if missing:
        raise ValueError(
            f"table: expected the columns that `blockspike collect` writes, "
            f"missing {', '.join(missing)}"
        )
    runs = pd.DataFrame({name: table[column] for column, name in _COLUMNS.items()})
    parts = pd.Series(runs["experiment"], dtype=str).str.extract("^(e[3-6])_[a-z]+_?(.*)$")
    runs = runs.assign(
        panel=parts[0],
        recipe=parts[1].replace("", "paper"),
        accuracy=100 * runs["accuracy"],
    ).dropna(subset=["panel"])
    if runs.empty:
        found = ", ".join(sorted(set(table["experiment"].astype(str)))) or "none"
        raise ValueError(
            f"table: expected experiments whose names start with e3_, e4_, e5_ or e6_, got {found}"
        )
    for column, known in (("method", _METHODS), ("surrogate", _SURROGATES)):
        unknown = sorted(set(map(str, runs[column])) - set(known))
        if unknown:
            raise ValueError(f"table: {column}: expected {', '.join(known)}, got {unknown[0]!r}")
    return runs


def _figure_4(runs: pd.DataFrame, published: str) -> Figure:
    """Accuracy and seconds an epoch against the refractory period."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    experiment, file = ("shd", "e4_shd") if published == "SHD" else ("nmnist", "e3_nmnist")
    for axis, value, quantity in (
        (left, "accuracy", "test_accuracy"),
        (right, "epoch_s", "epoch_duration"),
    ):
        points = mean_over_seeds(runs, ["recipe", "method", "arp_ms"], value)
        for (recipe, method), line in _groups(points, ["recipe", "method"]):
            name, marker, style = _recipe(recipe)
            label = f"{_METHODS[method][1]}, {name}, {_seeds(line)}"
            _draw_line(axis, line, label, METHOD_COLOURS[method], marker, style)
        for method, marker in (("blocks", "o"), ("standard", "s")):
            numbers = paper_numbers(experiment=experiment, quantity=quantity, method=method)
            label = f"published, {published}, GPU: {_METHODS[method][0]}"
            _draw_published(axis, numbers, label, METHOD_COLOURS[method], marker)
        if runs.empty:
            _say_how(axis, file, published)
        axis.set_xlabel(_ARP)
    left.set_ylabel(_ACCURACY)
    right.set(yscale="log", ylabel=f"seconds an epoch{_hardware(runs)}")
    right.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.yaxis.set_major_formatter("{x:g}")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _supplements(runs: pd.DataFrame, published: str) -> Figure:
    """Accuracy with the three surrogates, against the refractory period and attached or not."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis, panel, file, draw in (
        (left, "e5", "e5_surrogates", _surrogates),
        (right, "e6", "e6_detach", _detach),
    ):
        of_panel = _where(runs, "panel", [panel])
        draw(axis, of_panel, published)
        if of_panel.empty:
            _say_how(axis, file, published)
        # Below the panel, where no data are.
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize=8)
    left.set_ylabel(_ACCURACY)
    return figure


def _surrogates(axis: Axes, runs: pd.DataFrame, published: str) -> None:
    points = mean_over_seeds(runs, ["recipe", "method", "surrogate", "arp_ms"], "accuracy")
    for surrogate, (name, colour, marker) in _SURROGATES.items():
        of_surrogate = _where(points, "surrogate", [surrogate])
        for (recipe, method), line in _groups(of_surrogate, ["recipe", "method"]):
            short, _, style = _METHODS[method]
            label = f"{name}, {short}, {_recipe(recipe)[0]}, {_seeds(line)}"
            _draw_line(axis, line, label, colour, marker, style)
        numbers = paper_numbers(experiment="shd_surrogates", surrogate=surrogate)
        _draw_published(axis, numbers, f"published, {published}: {name}", colour, marker)
    axis.set_xlabel(_ARP)


def _detach(axis: Axes, runs: pd.DataFrame, published: str) -> None:
    keys = ["recipe", "method", "arp_ms", "detached"]
    points = mean_over_seeds(runs, [*keys, "surrogate"], "accuracy")
    bars: list[tuple[str, pd.DataFrame, dict[str, Any]]] = []
    for (recipe, method, arp_ms, detached), rows in _groups(points, keys):
        name = f"{_METHODS[method][0]}, {_recipe(recipe)[0]}, ARP {arp_ms:g} ms"
        look = {"color": BLUE if detached else ORANGE}
        bars.append((f"{_spikes(detached)}, {name}, {_seeds(rows)}", rows, look))
    for detached in (False, True):
        numbers = paper_numbers(experiment="shd_detach", spikes=_spikes(detached))
        arp_ms = numbers["arp_steps"].iloc[0] * numbers["dt_ms"].iloc[0]
        label = f"{_spikes(detached)}, published, {published}, ARP {arp_ms:g} ms"
        look = {"color": "white", "edgecolor": BLUE if detached else ORANGE, "hatch": "///"}
        rows = numbers.assign(mean=numbers["value"], error=np.nan, n_seeds=1)
        bars.append((label, rows, look))
    width = 0.8 / len(bars)
    for i, (label, rows, look) in enumerate(bars):
        rows = rows.set_index("surrogate").reindex(list(_SURROGATES)).reset_index()
        rows = rows.assign(x=np.arange(len(rows)) + (i - (len(bars) - 1) / 2) * width)
        axis.bar(rows["x"], rows["mean"], 0.9 * width, label=label, **look)
        _draw_errors(axis, rows, "x", "black")
    axis.set_xticks(range(len(_SURROGATES)), [name for name, _, _ in _SURROGATES.values()])
    axis.set_xlabel("surrogate; spikes attached or detached")


def _draw_line(
    axis: Axes, points: pd.DataFrame, label: str, colour: str, marker: str, style: str
) -> None:
    x, y = points["arp_ms"], points["mean"]
    axis.plot(x, y, label=label, color=colour, marker=marker, ls=style, ms=5)
    _draw_errors(axis, points, "arp_ms", colour)


def _draw_errors(axis: Axes, points: pd.DataFrame, x: str, colour: str) -> None:
    """Standard errors, where there are at least two seeds."""
    several = points[points["n_seeds"] >= 2]
    if len(several):
        axis.errorbar(
            several[x], several["mean"], several["error"], fmt="none", ecolor=colour,
            elinewidth=1, capsize=2,
        )  # fmt: skip


def _draw_published(
    axis: Axes, numbers: pd.DataFrame, label: str, colour: str, marker: str
) -> None:
    x, y = numbers["arp_ms"], numbers["value"]
    axis.plot(x, y, label=label, color=colour, marker=marker, ls="--", lw=1, ms=5, mfc="white")


def _say_how(axis: Axes, file: str, published: str) -> None:
    """Write over a panel without runs the command that its configuration file begins with."""
    command = (_CONF / f"{file}.yaml").read_text().splitlines()[1].removeprefix("# ")
    lines = ["no runs yet:", *textwrap.wrap(command, 52, break_long_words=False)]
    if published == "SHD":
        lines.append("(where SHD cannot be had: data=hd_lauscher)")
    axis.set_title("\n".join(lines), loc="left", fontsize=7, family="monospace")


def _recipe(name: str) -> tuple[str, str, str]:
    return _RECIPES.get(name, (f"recipe {name}", "v", ":"))


def _spikes(detached: bool) -> str:
    return "detached" if detached else "attached"


def _seeds(points: pd.DataFrame) -> str:
    return _range(points["n_seeds"], "seed")


def _hardware(runs: pd.DataFrame) -> str:
    if runs.empty:
        return ""
    devices = " and ".join(sorted({str(name).upper() for name in runs["accelerator"]}))
    return f"\nours: {devices}, {_range(runs['n_threads'], 'thread')}"


def _range(values: Iterable[Any], word: str) -> str:
    low, high = int(min(values)), int(max(values))
    number = str(high) if low == high else f"{low}–{high}"
    return f"{number} {word}{'' if high == 1 else 's'}"


def _where(table: pd.DataFrame, column: str, values: list[str]) -> pd.DataFrame:
    return pd.DataFrame(table[table[column].isin(values)])


def _groups(table: pd.DataFrame, by: list[str]) -> list[tuple[Any, pd.DataFrame]]:
    return [(key, pd.DataFrame(rows)) for key, rows in table.groupby(by)]
