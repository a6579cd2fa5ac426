"""Validation accuracy by epoch, averaged over folds and seeds: how many epochs to train."""

import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from blockspike.figures.means import (
    FOLD,
    OTHER_FOLDS,
    differ_in_folds,
    mean_and_error,
    replicate_of,
    setting,
    text_of,
    varied_settings,
)
from blockspike.figures.panels import mean_of
from blockspike.plots.style import save, use_whole_ticks

_METRIC = "val/accuracy"
_MOST_CURVES = 16
_STYLES = ("-", "--", "-.", ":")


@dataclass(frozen=True)
class Curve:
    """Mean of the validation curves of runs that differ in fold and seed alone.

    Attributes:
        label: settings in which it differs from the other curves.
        experiments: that the runs belong to.
        n_runs: number of runs.
        mean, standard_error: [n_epochs]; the standard error of one run is NaN.
    """

    label: str
    experiments: list[str]
    n_runs: int
    mean: np.ndarray
    standard_error: np.ndarray

    @property
    def best(self) -> int:
        """Epoch, from 1, at which the mean is largest."""
        return int(self.mean.argmax()) + 1

    def __str__(self) -> str:
        best, error = self.best - 1, self.standard_error[self.best - 1]
        spread = "" if np.isnan(error) else f" ± {error:.2%}"
        label = f"{self.label}: " if self.label else ""
        return (
            f"{label}best mean validation accuracy {self.mean[best]:.2%}{spread} at epoch "
            f"{self.best} of {len(self.mean)} (runs: {self.n_runs})"
        )


def mean_curves(
    table: pd.DataFrame, metrics: Sequence[pd.DataFrame], color: Sequence[str] | None = None
) -> list[Curve]:
    """Average the validation accuracy of each epoch over the runs with the same settings.

    Args:
        table: a row per run, as `blockspike collect` writes.
        metrics: of each run, a row per epoch, as in `metrics.csv`.
        color: settings that tell curves apart; None = all that differ but the fold.

    Raises:
        ValueError: no run has a validation split, or runs of one curve have different numbers of
            epochs.
    """
    known = [i for i, curve in enumerate(metrics) if _METRIC in curve]
    if not known:
        raise ValueError(f"table: expected runs with {_METRIC} in metrics.csv, got none")
    table = table.iloc[known].reset_index(drop=True)
    names = list(color) if color is not None else varied_settings(table)
    settings = pd.DataFrame({name: setting(table, name) for name in names}, index=table.index)
    groups = settings.groupby(names, dropna=False).indices if names else {(): table.index}
    if FOLD not in names and differ_in_folds(table, settings):
        warnings.warn(f"figure=epochs: {OTHER_FOLDS}", stacklevel=2)
    curves = []
    for values, rows in groups.items():
        values = values if isinstance(values, tuple) else (values,)
        label = ", ".join(f"{n}={text_of(v)}" for n, v in zip(names, values, strict=True))
        own = [metrics[known[row]][_METRIC].to_numpy(float) for row in rows]
        lengths = sorted({len(curve) for curve in own})
        if len(lengths) > 1:
            raise ValueError(
                f"{label or 'runs'}: expected as many epochs in each, got {lengths[0]} to "
                f"{lengths[-1]}; train them without callbacks=early_stopping, or tell them apart "
                "by color=trainer.max_epochs"
            )
        mean, error = mean_and_error(np.array(own), replicate_of(table.iloc[list(rows)]))
        experiments = sorted({str(name) for name in table["experiment"].iloc[list(rows)]})
        curves.append(Curve(label, experiments, len(own), mean, error))
    return curves


def epochs(curves: Sequence[Curve], folder: Path) -> Path:
    """Draw the curves, with a circle at the best epoch of each, into `folder`.

    Args:
        curves: see `mean_curves`.
        folder: where to write `epochs_<experiment>.png`.

    Raises:
        ValueError: there are too many curves to tell apart.
    """
    if len(curves) > _MOST_CURVES:
        raise ValueError(
            f"figure: expected at most {_MOST_CURVES} curves to tell apart, got {len(curves)}; "
            "choose experiment_name=… or color=…"
        )
    experiments = sorted({name for curve in curves for name in curve.experiments})
    labels = [f"{c.label or 'mean'}; best epoch {c.best}: {c.mean.max():.1%}" for c in curves]
    labels = [textwrap.fill(label, 90, subsequent_indent="   ") for label in labels]
    n_lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(6, 3.6 + 0.2 * n_lines), layout="constrained")
    axis = figure.subplots()
    colours = sns.color_palette("colorblind" if len(curves) <= 10 else "husl", len(curves))
    for i, (curve, colour, label) in enumerate(zip(curves, colours, labels, strict=True)):
        epoch = np.arange(1, len(curve.mean) + 1)
        style = _STYLES[i % len(_STYLES)]  # curves may be equal
        axis.plot(epoch, 100 * curve.mean, color=colour, ls=style, label=label)
        low, high = curve.mean - curve.standard_error, curve.mean + curve.standard_error
        axis.fill_between(epoch, 100 * low, 100 * high, color=colour, alpha=0.2, lw=0)
        axis.plot(curve.best, 100 * curve.mean.max(), "o", color=colour, mfc="white")
    axis.set(xlabel="epoch", ylabel="validation accuracy (%)")
    use_whole_ticks(axis.xaxis)
    axis.grid(axis="y", color="0.9")
    runs = mean_of([curve.n_runs for curve in curves], "run")
    title = f"{', '.join(experiments)}: {runs} a curve"
    figure.suptitle(textwrap.fill(title, 80), fontsize=10)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    own = experiments[0] if len(experiments) == 1 else "all"
    return save(figure, folder / re.sub(r"\W+", "_", f"epochs_{own}"))
