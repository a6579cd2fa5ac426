"""Supplements to Figure 4: three surrogate gradients, and attached or detached spikes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockspike.figures.panels import (
    ACCURACY,
    ARP,
    METHODS,
    SURROGATES,
    draw_errors,
    draw_line,
    draw_published,
    figures_of_data_sets,
    groups,
    mean_over_seeds,
    of_panel,
    recipe_look,
    save_all,
    say_how,
    seeds,
    tidy,
    where,
)
from blockspike.figures.paper_numbers import paper_numbers
from blockspike.plots.style import BLUE, GREEN, ORANGE


def surrogates(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write accuracy with three surrogates against ARP into `folder`; returns the PNGs' paths."""
    return save_all(surrogate_figures(table), folder)


def detach(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write accuracy with attached and detached spikes into `folder`; returns the PNGs' paths."""
    return save_all(detach_figures(table), folder)


def surrogate_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Draw the panel of surrogate gradients; see `classification_figures`.

    A line takes refractory periods that its runs leave out from detached runs of the panel
    `detach`, whose experiments differ in nothing else.
    """
    runs = tidy(table)
    of_line = ["data_set", "recipe", "method", "surrogate"]
    own = runs["panel"].eq("surrogates").to_numpy(bool)
    lines, points = (
        set(map(tuple, runs.loc[own, names].to_numpy(object)))
        for names in (of_line, [*of_line, "arp_ms"])
    )
    lacking = [
        tuple(row[:-1]) in lines and tuple(row) not in points
        for row in runs[[*of_line, "arp_ms"]].to_numpy(object)
    ]
    others = (runs["panel"].eq("detach") & runs["detached"].eq(True)).to_numpy(bool)
    chosen = pd.DataFrame(runs[own | (others & np.array(lacking, bool))])
    return figures_of_data_sets(chosen, "surrogates", "SHD", _surrogates)


def detach_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Draw the panel of detached spikes; see `classification_figures`."""
    return figures_of_data_sets(of_panel(table, "detach"), "detach", "SHD", _detach)


def _axis() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axis = figure.subplots()
    axis.set_ylabel(ACCURACY)
    return figure, axis


def _finish(axis: Axes, runs: pd.DataFrame, file: str, published: str) -> None:
    if runs.empty:
        say_how(axis, file, published)
    # Below the panel, so that it hides no data.
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False, fontsize=8)


def _surrogates(runs: pd.DataFrame, published: str) -> Figure:
    figure, axis = _axis()
    points = mean_over_seeds(runs, ["recipe", "method", "surrogate", "arp_ms"], "accuracy")
    for surrogate, (name, colour, marker) in SURROGATES.items():
        of_surrogate = where(points, "surrogate", [surrogate])
        for (recipe, method), line in groups(of_surrogate, ["recipe", "method"]):
            short, _, style = METHODS[method]
            label = f"{name}, {short}, {recipe_look(recipe)[0]}, {seeds(line)}"
            draw_line(axis, line, label, colour, marker, style)
        numbers = paper_numbers(experiment="shd_surrogates", surrogate=surrogate)
        draw_published(axis, numbers, f"published, {published}: {name}", colour, marker)
    axis.set_xlabel(ARP)
    _finish(axis, runs, "paper_surrogates", published)
    return figure


def _detach(runs: pd.DataFrame, published: str) -> Figure:
    figure, axis = _axis()
    keys = ["recipe", "method", "arp_ms", "detached"]
    points = mean_over_seeds(runs, [*keys, "surrogate"], "accuracy")
    bars: list[tuple[str, pd.DataFrame, dict[str, Any]]] = []
    for (recipe, method, arp_ms, detached), rows in groups(points, keys):
        name = f"{METHODS[method][0]}, {recipe_look(recipe)[0]}, ARP {arp_ms:g} ms"
        look = {"color": {True: BLUE, False: ORANGE}.get(detached, GREEN)}
        bars.append((f"{spikes_of(detached)}, {name}, {seeds(rows)}", rows, look))
    for detached in (False, True):
        numbers = paper_numbers(experiment="shd_detach", spikes=spikes_of(detached))
        arp_ms = numbers["arp_steps"].iloc[0] * numbers["dt_ms"].iloc[0]
        label = f"{spikes_of(detached)}, published, {published}, ARP {arp_ms:g} ms"
        look = {"color": "white", "edgecolor": BLUE if detached else ORANGE, "hatch": "///"}
        rows = numbers.assign(mean=numbers["value"], error=np.nan, n_seeds=1)
        bars.append((label, rows, look))
    width = 0.8 / len(bars)
    for i, (label, rows, look) in enumerate(bars):
        rows = rows.set_index("surrogate").reindex(list(SURROGATES)).reset_index()
        rows = rows.assign(x=np.arange(len(rows)) + (i - (len(bars) - 1) / 2) * width)
        axis.bar(rows["x"], rows["mean"], 0.9 * width, label=label, **look)
        draw_errors(axis, rows, "x", "black")
    axis.set_xticks(range(len(SURROGATES)), [name for name, _, _ in SURROGATES.values()])
    axis.set_xlabel("surrogate; spikes attached or detached")
    _finish(axis, runs, "paper_detach", published)
    return figure


def spikes_of(detached: bool | str) -> str:
    """In words where gradient flows through spikes, for a value of `detach_spikes`."""
    if isinstance(detached, str):
        return f"detached in the {detached} alone"
    return "detached" if detached else "attached"
