"""Validation accuracy by epoch, averaged over folds and seeds: how many epochs to train."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from blockspike.plots.means import Means, labels_of, means, varied_settings
from blockspike.plots.style import draw_legend, draw_title, save, use_whole_ticks
from blockspike.plots.sweep import palette_of, what_is_drawn

_METRIC = "val/accuracy"
_MOST_CURVES = 16


def mean_curves(
    table: pd.DataFrame, metrics: Sequence[pd.DataFrame], color: Sequence[str] | None = None
) -> Means:
    """Average the validation accuracy of each epoch over the runs with the same settings.

    Args:
        table: a row per run, as `blockspike collect` writes.
        metrics: of each run, a row per epoch, as in `metrics.csv`.
        color: settings that tell curves apart; None = all that differ but the fold.

    Returns:
        Means by these settings and `epoch`, which counts from 1.

    Raises:
        ValueError: no run has a validation split, or runs of one curve have different numbers of
            epochs.
    """
    curves = [own[["epoch", _METRIC]] for own in metrics if _METRIC in own]
    if not curves:
        raise ValueError(f"table: expected runs with {_METRIC} in metrics.csv, got none")
    table = pd.DataFrame(table[[_METRIC in own for own in metrics]])
    color = varied_settings(table) if color is None else list(color)
    rows = pd.concat(curves, keys=range(len(curves))).droplevel(1)
    rows = table.reset_index(drop=True).join(rows.assign(epoch=rows["epoch"] + 1))
    found = means(rows.reset_index(drop=True), [*color, "epoch"], _METRIC)
    for label, curve in _curves(found):
        if curve["n"].nunique() > 1:
            last = curve["epoch"][curve["n"] == curve["n"].max()].max()
            raise ValueError(
                f"{label or 'runs'}: expected as many epochs in each, got {last} to "
                f"{len(curve)}; train them without callbacks=early_stopping, or tell them apart "
                "by color=trainer.max_epochs"
            )
    return found


def best_epochs(found: Means) -> list[str]:
    """A line on each curve: the epoch at which it is highest, and how high."""
    lines = []
    for label, curve in _curves(found):
        best = curve.loc[curve["mean"].idxmax()]
        error = best["standard_error"]
        spread = "" if pd.isna(error) else f" ± {error:.2%}"
        lines.append(
            f"{label}{': ' if label else ''}best mean validation accuracy {best['mean']:.2%}"
            f"{spread} at epoch {best['epoch']:.0f} of {len(curve)} (runs: {best['n']:.0f})"
        )
    return lines


def epochs(found: Means, title: str, folder: Path) -> Path:
    """Draw curves, with a circle at the best epoch of each, into `epochs_<title>.png` and .svg.

    Args:
        found: see `mean_curves`.
        title: text above the panel.
        folder: where to write.

    Raises:
        ValueError: there are too many curves to tell apart.
    """
    curves = _curves(found)
    if len(curves) > _MOST_CURVES:
        raise ValueError(
            f"epochs: expected at most {_MOST_CURVES} curves to tell apart, got {len(curves)}; "
            "choose --experiment or --color"
        )
    labels = [label for label, _ in curves]
    palette = palette_of(labels)
    units = found.units.assign(label=labels_of(found.units, found.by[:-1], True))
    figure = Figure(figsize=(6, 3.2))
    axis = figure.subplots()
    sns.lineplot(
        units.assign(**{_METRIC: 100 * units[_METRIC]}), x="epoch", y=_METRIC, hue="label",
        style="label", hue_order=labels, style_order=labels, palette=palette, errorbar="se",
        err_kws={"lw": 0}, ax=axis, legend=False,
    )  # fmt: skip
    entries = []
    for label, curve in curves:
        best = curve.loc[curve["mean"].idxmax()]
        axis.plot(best["epoch"], 100 * best["mean"], "o", color=palette[label], mfc="white")
        text = f"{label or 'mean'}; best epoch {best['epoch']:.0f}: {best['mean']:.1%}"
        entries.append((palette[label], "", text))
    axis.set(xlabel="epoch", ylabel="validation accuracy (%)")
    use_whole_ticks(axis.xaxis)
    axis.grid(axis="y", color="0.9")
    sns.despine(figure)
    draw_legend(figure, entries)
    draw_title(figure, [f"{title}: {what_is_drawn(found.points['n'])} a curve", *found.caveats])
    return save(figure, folder / re.sub(r"\W+", "_", f"epochs_{title}"))


def _curves(found: Means) -> list[tuple[str, pd.DataFrame]]:
    """Label and points of each curve."""
    labels = labels_of(found.points, found.by[:-1], with_names=True)
    return [(str(x), pd.DataFrame(own)) for x, own in found.points.groupby(labels, sort=False)]
