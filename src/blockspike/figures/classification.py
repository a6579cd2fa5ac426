"""Figure 4 of the paper: accuracy and seconds per epoch, published and ours."""

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from blockspike.figures.panels import (
    ACCURACY,
    ARP,
    METHODS,
    draw_line,
    draw_published,
    figures_of_data_sets,
    groups,
    mean_over_seeds,
    of_panel,
    plural_range,
    recipe_look,
    save_all,
    say_how,
    seeds,
)
from blockspike.figures.paper_numbers import paper_numbers
from blockspike.plots.style import METHOD_COLOURS, label_log_axis


def classification(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write Figure 4 for N-MNIST and SHD into `folder`; returns the PNGs' paths."""
    return save_all(classification_figures(table), folder)


def classification_figures(table: pd.DataFrame) -> dict[str, Figure]:
    """Draw Figure 4, one figure per data set, titled with the data set of our runs.

    Args:
        table: a row per run, as `blockspike collect` writes. The experiments `nmnist` and `shd`
            are our recipes, `paper_nmnist` and `paper_shd` the paper's; a suffix names another
            recipe, as in `shd_wide`.

    Returns:
        Name → figure. Without runs, a figure shows the published values alone and the command
        that makes the runs.

    Raises:
        ValueError: columns are missing, or two runs of a point have the same seed.
    """
    figures = {}
    for panel, published in (("nmnist", "N-MNIST"), ("shd", "SHD")):
        runs = of_panel(table, panel)
        figures |= figures_of_data_sets(runs, "classification", published, _figure_4)
    return figures


def _figure_4(runs: pd.DataFrame, published: str) -> Figure:
    """Draw accuracy and seconds per epoch against the refractory period."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    experiment = "shd" if published == "SHD" else "nmnist"
    for axis, value, quantity in (
        (left, "accuracy", "test_accuracy"),
        (right, "epoch_s", "epoch_duration"),
    ):
        points = mean_over_seeds(runs, ["recipe", "method", "arp_ms"], value)
        for (recipe, method), line in groups(points, ["recipe", "method"]):
            name, marker, style = recipe_look(recipe)
            label = f"{METHODS[method][1]}, {name}, {seeds(line)}"
            draw_line(axis, line, label, METHOD_COLOURS[method], marker, style)
        for method, marker in (("blocks", "o"), ("standard", "s")):
            numbers = paper_numbers(experiment=experiment, quantity=quantity, method=method)
            label = f"published, {published}, GPU: {METHODS[method][0]}"
            draw_published(axis, numbers, label, METHOD_COLOURS[method], marker)
        if runs.empty:
            say_how(axis, f"paper_{experiment}", published)
        axis.set_xlabel(ARP)
    left.set_ylabel(ACCURACY)
    right.set(yscale="log", ylabel=f"seconds per epoch{_hardware(runs)}")
    label_log_axis(right.yaxis)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _hardware(runs: pd.DataFrame) -> str:
    if runs.empty:
        return ""
    devices = " and ".join(sorted({str(name).upper() for name in runs["accelerator"]}))
    return f"\nours: {devices}, {plural_range(runs['n_threads'], 'thread')}"
