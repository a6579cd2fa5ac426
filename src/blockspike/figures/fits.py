"""Neuron models compared: the test scores of fits to the same recordings."""

import textwrap
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from blockspike.figures.means import (
    FOLD,
    OTHER_FOLDS,
    differ_in_folds,
    fold_of,
    mean_and_error,
    replicate_of,
    text_of,
)
from blockspike.figures.panels import mean_of, plural_range, slugs, where
from blockspike.figures.tables import require_columns
from blockspike.plots.style import BLUE, GREY, save

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
_BESIDE = {"null_etv_15ms": "constant rate", "reliability_etv_15ms": "another trial"}
_COLUMNS = ("experiment", "data_set", "neuron", "seed", "n_cells")
_MOST_IN_A_ROW = 4
_LONGEST_LABEL = 44


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """Means of the test scores over the seeds and folds of each fit; see `mean_and_error`.

    A run's score is the median over its cells. Of runs that differ neither in the neuron and its
    options nor in seed and fold, such as one with and one without a bootstrap, the last counts. A
    mean is NaN if a score of one of its runs is.

    Args:
        table: a row per run, as `blockspike collect` writes; runs of `train` are ignored.

    Returns:
        A row per data set and fit: `data_set`, `fit` (the neuron, and the options by which fits
        with the same one differ), `n_runs`, `n_cells`, and each score and its standard error
        `<score>_error`, NaN with one run. The best of each data set come first.

    Raises:
        ValueError: no run is a fit that says which neuron it has.
    """
    if "neuron" not in table:
        raise ValueError("table: expected fits made by `blockspike fit`, got none")
    fits = pd.DataFrame(table[table["neuron"].notna()])
    require_columns(fits, _COLUMNS)
    options = [
        name for name in fits
        if "." in str(name) and name != FOLD and not str(name).startswith("version.")
        and not str(name).endswith(".seed")
    ]  # fmt: skip
    texts = [
        [str(x) for x in row] for row in fits[["experiment", "neuron", *options]].to_numpy(object)
    ]
    fits = fits.assign(data_set=fits["data_set"].astype(str), recipe=["\n".join(x) for x in texts])
    fits = fits.assign(fit=_with_options(fits, options))
    fits = fits.assign(fold=fold_of(fits))
    is_repeated = fits.duplicated(["data_set", "recipe", "seed", "fold"], keep="last")
    fits = pd.DataFrame(fits[~is_repeated])
    if any(differ_in_folds(own, own.filter(["recipe"])) for _, own in fits.groupby("data_set")):
        warnings.warn(f"fits: {OTHER_FOLDS}", stacklevel=2)
    rows = []
    for _, own in fits.groupby(["data_set", "recipe"], sort=False):
        row: dict[str, Any] = own.iloc[0][["data_set", "fit"]].to_dict()
        row |= {"n_runs": len(own), "n_cells": own["n_cells"].max()}
        for score in (*SCORES, *_BESIDE):
            values = own.reindex(columns=[f"test_{score}_median"]).iloc[:, 0]
            mean, error = mean_and_error(values.to_numpy(float), replicate_of(own))
            row |= {score: float(mean), f"{score}_error": float(error)}
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["data_set", "etv_15ms"], ascending=[True, False])


def _with_options(fits: pd.DataFrame, options: list[Any]) -> pd.Series:
    """Name of each run's fit: its neuron, and the options by which such fits differ, if any do."""
    labels = dict(zip(fits.index, fits["neuron"].tolist(), strict=True))
    for _, alike in fits.groupby(["data_set", "neuron"]):
        if alike["recipe"].nunique() == 1:
            continue
        texts = {name: [text_of(x) for x in alike[name].tolist()] for name in options}
        varied = [name for name in options if len(set(texts[name])) > 1]
        if alike["experiment"].nunique() > 1:
            texts["experiment"] = [str(x) for x in alike["experiment"].tolist()]
            varied.append("experiment")
        for i, index in enumerate(alike.index):
            own = [f"{str(name).rpartition('.')[2]}={texts[name][i]}" for name in varied]
            labels[index] = textwrap.shorten(", ".join([labels[index], *own]), _LONGEST_LABEL)
    return pd.Series(labels)


def fits(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the test scores of all fits to each data set: means over runs, with standard errors.

    Args:
        table: as for `compared`.
        folder: where to write.

    Returns:
        Paths of the PNGs, `fits_<data set>.png`.

    Raises:
        ValueError: as `compared`.
    """
    points, paths = compared(table), []
    for name, slug in slugs(points["data_set"]).items():
        figure = _figure(where(points, "data_set", [name]), name)
        paths.append(save(figure, folder / f"fits_{slug}"))
    return paths


def _figure(points: pd.DataFrame, data_set: str) -> Figure:
    shown = _known(points, SCORES)
    n_rows = -(-len(shown) // _MOST_IN_A_ROW)
    n_columns = min(len(shown), _MOST_IN_A_ROW)
    size = (
        0.6 + 0.075 * points["fit"].str.len().max() + 2.1 * n_columns,
        n_rows * (1.1 + 0.26 * len(points)),
    )
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).ravel()
    for axis, score in zip(axes, shown, strict=False):
        _panel(axis, points, score)
    for axis in axes[len(shown) :]:
        axis.remove()
    axes[0].set_yticks(range(len(points)), points["fit"].tolist())
    axes[0].set_ylim(len(points) - 0.4, -0.6)
    cells = plural_range(points["n_cells"], "cell")
    runs = mean_of(points["n_runs"], "run")
    what = "test, median over cells" if max(points["n_cells"].tolist()) > 1 else "test"
    figure.suptitle(f"{data_set}: {cells}, {what}; {runs} a row", fontsize=10)
    return figure


def _panel(axis: Axes, points: pd.DataFrame, score: str) -> None:
    y = range(len(points))
    axis.errorbar(
        points[score], y, xerr=points[f"{score}_error"].fillna(0), fmt="o", color=BLUE, ms=5,
        capsize=2,
    )  # fmt: skip
    label = SCORES[score]
    if not _known(points, ["reliability_etv_15ms"]):  # of one trial
        label = label.removeprefix("normalised ")
    axis.set_xlabel(label, fontsize=8)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="y", color="0.9")
    axis.margins(x=0.15)
    if score == "rate_error":
        axis.axvline(0, color=GREY, lw=0.8)
    if score == "etv_15ms":
        for (name, label), look in zip(
            _BESIDE.items(), ((":", "right"), ("--", "left")), strict=True
        ):
            _mark(axis, float(points[name].to_numpy(float).mean()), label, *look)


def _mark(axis: Axes, value: float, label: str, style: str, side: str) -> None:
    """Draw a score that all fits are compared to, named above the panel."""
    if value == value:  # not NaN
        axis.axvline(value, color=GREY, lw=1, ls=style)
        axis.annotate(
            label, (value, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom",
            fontsize=7, color=GREY,
        )  # fmt: skip


def _known(points: pd.DataFrame, names: Iterable[str]) -> list[str]:
    return [name for name in names if points[name].notna().to_numpy().any()]


def rounded(points: pd.DataFrame, names: Sequence[str] = tuple(SCORES)) -> pd.DataFrame:
    """Scores as text, mean ± standard error, in the order of `names`; unknown ones are left out."""
    known = _known(points, names)
    table = pd.DataFrame({"fit": points["fit"], "runs": points["n_runs"].astype(str)})
    for name in known:
        table[name] = [
            "" if mean != mean else f"{mean:.3f}" + (f" ± {error:.3f}" if error == error else "")
            for mean, error in zip(points[name], points[f"{name}_error"], strict=True)
        ]
    return table
