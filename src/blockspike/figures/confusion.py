"""Confusion matrix of a classifier."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from blockspike.plots.style import save

_MOST_NUMBERS = 20  # classes up to which counts are written into the cells


def confusion_matrix(counts: np.ndarray, path: Path) -> Path:
    """Write `confusion_figure` as PNG and SVG; returns the path of the PNG."""
    return save(confusion_figure(counts), path)


def confusion_figure(counts: np.ndarray) -> Figure:
    """Draw the share of each true class's samples that is taken for each class.

    Args:
        counts: numbers of test samples [true class, predicted class].
    """
    n_classes, n_samples = len(counts), counts.sum(1, keepdims=True)
    share = counts / np.maximum(n_samples, 1)
    inches = max(3.2, 0.32 * min(n_classes, 40) + 1.2)
    figure = Figure(figsize=(inches + 0.9, inches), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in np.argwhere(counts) if n_classes <= _MOST_NUMBERS else ():
        colour = "white" if share[true, predicted] > 0.5 else "black"
        text = f"{counts[true, predicted]:d}"
        axis.text(predicted, true, text, ha="center", va="center", color=colour, fontsize=7)
    step = max(1, -(-n_classes // 20))
    axis.set(
        xlabel="predicted class", ylabel="true class",
        xticks=range(0, n_classes, step), yticks=range(0, n_classes, step),
    )  # fmt: skip
    axis.tick_params(labelsize=8)
    figure.colorbar(image, ax=axis, label="share of the true class", shrink=0.8)
    axis.set_title(f"test: {counts.trace()} of {counts.sum()} classified correctly", fontsize=10)
    return figure
