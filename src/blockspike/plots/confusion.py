"""Confusion matrix of a classifier."""

from pathlib import Path

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure

from blockspike.plots.style import save

_MOST_NUMBERS = 20  # classes up to which counts are written into the cells


def confusion_matrix(counts: np.ndarray, path: Path) -> Path:
    """Draw the share of each true class's samples that is taken for each class.

    Args:
        counts: numbers of test samples [true class, predicted class].
        path: where to write the PNG and SVG.

    Returns:
        Path of the PNG.
    """
    n = len(counts)
    inches = max(3.2, 0.32 * min(n, 40) + 1.2)
    figure = Figure(figsize=(inches + 0.9, inches), layout="constrained")
    shown = np.where(counts > 0, counts.astype(str), "") if n <= _MOST_NUMBERS else None
    axis = sns.heatmap(
        counts / np.maximum(counts.sum(1, keepdims=True), 1), vmin=0, vmax=1, cmap="Blues",
        annot=shown, fmt="", annot_kws={"size": 7}, square=True, ax=figure.subplots(),
        xticklabels=-(-n // 20), yticklabels=-(-n // 20),
        cbar_kws={"label": "share of the true class", "shrink": 0.8},
    )  # fmt: skip
    axis.tick_params(labelsize=8, rotation=0)
    axis.set(xlabel="predicted class", ylabel="true class")
    axis.set_title(f"test: {counts.trace()} of {counts.sum()} classified correctly", fontsize=10)
    return save(figure, path)
