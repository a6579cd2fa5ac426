"""Neuron models compared: the test scores of fits to the same recordings."""

import re
import textwrap
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from blockspike.plots.means import (
    Means,
    counted,
    labels_of,
    means,
    rounded,
    varied_settings,
    without_copies,
)
from blockspike.plots.style import BLUE, GREY, draw_title, save
from blockspike.plots.sweep import what_is_drawn

# score of `fits.csv` → what it is; all but the last are better the higher they are
SCORES = {
    "etv_15ms": "normalised ETV,\nσ 15 ms",
    "etv_5ms": "normalised ETV,\nσ 5 ms",
    "noiseless_etv_15ms": "ETV of one train\nwithout noise, σ 15 ms",
    "gamma_a_2ms": "Γ_A ± 2 ms",
    "md_star_4ms": "Md* ± 4 ms",
    "bits_per_spike": "log-likelihood\n(bits per spike)",
    "rate_error": "rate error",
}
_BESIDE = {"null_etv_15ms": (":", "constant rate"), "reliability_etv_15ms": ("--", "another trial")}
_MOST_IN_A_ROW, _LONGEST_LABEL = 4, 44


def compared(table: pd.DataFrame) -> dict[str, dict[str, Means]]:
    """Means of the test scores over the seeds and folds of each fit; see `means`.

    A run's score is the median over its cells. Of runs that differ in the number of bootstraps
    alone, the last counts.

    Args:
        table: a row per run, as `blockspike collect` writes; runs of `train` are ignored.

    Returns:
        Data set → score → means by `fit`: the neuron, and the options by which fits differ.

    Raises:
        ValueError: no run is a fit.
    """
    if "neuron" not in table:
        raise ValueError("table: expected fits made by `blockspike fit`, got none")
    fits = without_copies(table.drop(columns="n_bootstrap", errors="ignore"))
    found = {}
    for data_set, own in fits[fits["neuron"].notna()].groupby(fits["data_set"].astype(str)):
        varied = varied_settings(own, ["neuron"])
        own = own.assign(fit=labels_of(own, ["neuron"]))
        if varied:
            texts = own["fit"] + ", " + labels_of(own, varied, with_names=True)
            own["fit"] = [textwrap.shorten(text, _LONGEST_LABEL) for text in texts]
        replicate = ["fit", *varied, "seed", *own.filter(["data.fold"])]
        own = own.drop_duplicates(replicate, keep="last")
        columns = {name: f"test_{name}_median" for name in (*SCORES, *_BESIDE)}
        found[str(data_set)] = {
            name: means(own, ["fit"], column)
            for name, column in columns.items() if column in own and own[column].notna().any()
        }  # fmt: skip
    return found


def scores_table(scores: dict[str, Means]) -> pd.DataFrame:
    """Scores of each fit as text, mean ± standard error, the best by the first score on top."""
    first = next(iter(scores.values())).points.sort_values("mean", ascending=False)
    table = pd.DataFrame({"fit": first["fit"], "runs": first["n"].astype(str)})
    for name in SCORES.keys() & scores.keys():
        points = scores[name].points
        texts = dict(zip(points["fit"], rounded(points), strict=True))
        table[name] = table["fit"].map(texts).fillna("")
    return table[["fit", "runs", *(name for name in SCORES if name in table)]]


def fits(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the test scores of all fits to each data set: means over runs, with standard errors.

    Args:
        table: as for `compared`.
        folder: where to write.

    Returns:
        Paths of the PNGs, `fits_<data set>.png`.

    Raises:
        ValueError: no run is a fit.
    """
    paths: list[Path] = []
    for data_set, scores in compared(table).items():
        path = folder / re.sub("[^a-z0-9]+", "_", f"fits_{data_set}".lower())
        while path.with_suffix(".png") in paths:  # names that differ in signs alone
            path = path.with_name(f"{path.name}_")
        paths.append(save(_figure(scores, data_set, table), path))
    return paths


def _figure(scores: dict[str, Means], data_set: str, table: pd.DataFrame) -> Figure:
    shown = [name for name in SCORES if name in scores]
    order = scores_table(scores)["fit"].tolist()
    units = pd.concat([
        own.units.rename(columns={own.metric: "value"}).assign(score=name)
        for name, own in scores.items() if name in shown
    ])  # fmt: skip
    grid = sns.catplot(
        units, kind="point", x="value", y="fit", order=order, col="score", col_order=shown,
        col_wrap=min(len(shown), _MOST_IN_A_ROW), sharex=False, errorbar="se", color=BLUE,
        linestyle="none", markersize=5, err_kws={"linewidth": 1.2}, capsize=0.1,
        height=1 + 0.24 * len(order), aspect=2.2 / (1 + 0.24 * len(order)),
    )  # fmt: skip
    for name, axis in grid.axes_dict.items():
        is_normalised = "reliability_etv_15ms" in scores  # else of one trial
        label = SCORES[name] if is_normalised else SCORES[name].removeprefix("normalised ")
        axis.set(title="", ylabel="")
        axis.set_xlabel(label, fontsize=8)
        axis.tick_params(axis="x", labelsize=8)
        axis.grid(axis="y", color="0.9")
        axis.margins(x=0.15)
        if name == "rate_error":
            axis.axvline(0, color=GREY, lw=0.8)
    for (name, (style, label)), side in zip(_BESIDE.items(), ("right", "left"), strict=True):
        if name in scores:
            value = scores[name].points["mean"].mean()
            axis = grid.axes_dict[shown[0]]
            axis.axvline(value, color=GREY, lw=1, ls=style)
            axis.annotate(
                label, (value, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom",
                fontsize=7, color=GREY,
            )  # fmt: skip
    own = table[table["data_set"].astype(str) == data_set]
    cells = counted(own["n_cells"].astype(int).tolist(), "cell")
    first = scores[shown[0]]
    what = "test, median over cells" if own["n_cells"].max() > 1 else "test"
    title = f"{data_set}: {cells}, {what}; {what_is_drawn(first.points['n'])} a row"
    draw_title(grid.figure, [title, *first.caveats])
    return grid.figure
