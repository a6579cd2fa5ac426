"""Test accuracy against number of spikes, for every neuron model and recipe."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockspike.figures.panels import (
    ACCURACY,
    draw_errors,
    mean_over_seeds,
    save_all,
    say_how,
    seeds,
    slugs,
    where,
)
from blockspike.plots.means import require_columns
from blockspike.plots.style import BLUE, GREEN, GREY, ORANGE, PURPLE, YELLOW

EXPERIMENTS = ("digits", "se_adlif")
# columns that a row must have, and columns that ALIF's rows may lack
_COLUMNS = (
    "run", "experiment", "data_set", "seed", "test_accuracy", "n_parameters", "n_epochs",
    "rate_layer1_hz", "network.n_hidden", "data.n_steps", "data.dt_ms",
)  # fmt: skip
_OPTIONAL = (
    "model._target_", "model.euler", "model.q", "model.max_delay", "model.recurrent_max_delay",
    "data.unchanged",
)  # fmt: skip
_EULER = {"symplectic": "SE-adLIF", "forward": "EF-adLIF"}
_NEURONS = {"AdLIFLayer": "adLIF", "CSiLIFLayer": "C-SiLIF"}
_COLOURS = {"SE-adLIF": BLUE, "EF-adLIF": ORANGE, "ALIF": GREEN, "adLIF": PURPLE, "C-SiLIF": YELLOW}
_MARKERS = "os^vDP*X"


def neurons(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write accuracy against spikes per recording, one figure per data set; returns PNG paths."""
    return save_all(neuron_figures(table), folder)


def neuron_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Draw the tested runs of `EXPERIMENTS`: a mark per run, and means with standard errors.

    The number of spikes is that of all hidden neurons in a validation recording.

    Args:
        table: a row per run, as `blockspike collect` writes.

    Returns:
        Name → figure. Without runs, an empty figure names the command that makes them.

    Raises:
        ValueError: columns are missing, or two runs of a recipe have the same seed.
    """
    require_columns(table, ["experiment"])
    chosen = where(table, "experiment", list(EXPERIMENTS))
    if not chosen.empty:  # those that hold out a speaker are not tested
        require_columns(chosen, _COLUMNS)
        chosen = chosen.dropna(subset="test_accuracy")
    if chosen.empty:
        return {"neurons": _figure(None, "no runs")}
    runs = chosen.reindex(columns=[*_COLUMNS, *_OPTIONAL])
    duration_s = runs["data.n_steps"] * runs["data.dt_ms"] / 1000
    runs = runs.assign(
        recipe=runs["run"].str.replace("/seed=[0-9]+$", "", regex=True),
        accuracy=100 * runs["test_accuracy"],
        spikes=[_spikes_hz(row) for _, row in chosen.iterrows()] * duration_s,
    )
    return {
        f"neurons_{slug}": _figure(where(runs, "data_set", [data_set]), data_set)
        for data_set, slug in slugs(runs["data_set"]).items()
    }


def _spikes_hz(row: pd.Series) -> float:
    """Spikes per second of all hidden neurons of a run."""
    rates_hz = row.filter(regex="^rate_layer[0-9]+_hz$").dropna()
    n_hidden = json.loads(str(row["network.n_hidden"]))  # a number, or a list by layer
    sizes = n_hidden if isinstance(n_hidden, list) else [n_hidden] * len(rates_hz)
    return sum(n * row[f"rate_layer{i}_hz"] for i, n in enumerate(sizes, start=1))


def _figure(runs: pd.DataFrame | None, title: str) -> Figure:
    figure = Figure(figsize=(6.2, 6.2), layout="constrained")
    axis = figure.subplots()
    axis.set(xlabel="spikes of all hidden neurons per recording", ylabel=ACCURACY)
    if runs is None:
        say_how(axis, "se_adlif", "HD-Lauscher")
        return figure
    axis.set_title(title, fontsize=10)
    points = mean_over_seeds(runs, ["recipe"], "accuracy").set_index("recipe")
    points = points.assign(spikes=runs.groupby("recipe")["spikes"].mean())
    drawn: dict[str, int] = {}
    for recipe in points.sort_values("mean", ascending=False).index:
        neuron = _neuron(runs[runs["recipe"] == recipe].iloc[0])
        number = drawn[neuron] = drawn.get(neuron, -1) + 1
        marker = _MARKERS[number % len(_MARKERS)]
        _draw(axis, where(runs, "recipe", [recipe]), points.loc[[recipe]], neuron, marker)
    figure.legend(
        loc="outside lower center", frameon=False, fontsize=9, alignment="left",
        title="parameters, epochs, seeds; open: with learned delays", title_fontsize=9,
    )  # fmt: skip
    return figure


def _draw(axis: Axes, rows: pd.DataFrame, point: pd.DataFrame, neuron: str, marker: str) -> None:
    """Draw the runs of a recipe, small and pale, and their mean."""
    first, colour = rows.iloc[0], _COLOURS.get(neuron, GREY)
    axis.scatter(rows["spikes"], rows["accuracy"], s=9, color=colour, marker=marker, alpha=0.4)
    has_delays = first["model.max_delay"] > 0 or first["model.recurrent_max_delay"] > 0
    face = "white" if has_delays else colour
    label = f"{neuron}{_choices(first)}, {seeds(point)}"
    axis.plot(
        point["spikes"], point["mean"], label=label, color=colour, marker=marker, mfc=face, ms=7,
        ls="none", zorder=3,
    )  # fmt: skip
    draw_errors(axis, point, "spikes", colour)


def _neuron(row: Any) -> str:
    if isinstance(row["model.euler"], str):
        return _EULER[row["model.euler"]]
    target = row["model._target_"]
    if not isinstance(target, str):
        return "ALIF"
    name = target.rsplit(".", 1)[-1]
    return _NEURONS.get(name, name)


def _choices(row: Any) -> str:
    """Legend text of a recipe, to follow the neuron's name."""
    words = [f"q = {row['model.q']:g}"] if row["model.q"] > 0 else []
    if row["model.max_delay"] > 0:
        words.append(f"delays ≤ {row['model.max_delay']:g} steps")
    if row["model.recurrent_max_delay"] > 0:
        words.append(f"recurrent delays + 0 to {row['model.recurrent_max_delay']:g} steps")
    if row["data.unchanged"] > 0:
        words.append(f"{100 * row['data.unchanged']:.0f} % of the data unchanged")
    words += [f"{row['n_parameters'] / 1000:.0f} k", f"{row['n_epochs']:.0f} epochs"]
    return "".join(f", {word}" for word in words)
