"""Learning curve of a run, drawn from its `metrics.csv`."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from blockspike.plots.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    label_log_axis,
    save,
    use_whole_ticks,
)


def learning_curve(
    metrics: pd.DataFrame, scores: dict, chosen_epoch: int, test_accuracy: float, path: Path
) -> Path:
    """Draw training and, where there is one, validation loss and accuracy against the epoch.

    Args:
        metrics: a row per epoch, as in `metrics.csv`.
        scores: content of `evaluation.json`, for the linear model's accuracy and the data set's
            name.
        chosen_epoch: epoch (from 1) whose model was chosen.
        test_accuracy: test accuracy of that model.
        path: where to write the PNG and SVG.

    Returns:
        Path of the PNG.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    epoch = metrics["epoch"] + 1
    for axis, name in ((left, "loss"), (right, "accuracy")):
        axis.plot(epoch, metrics[f"train/{name}"], color=GREY, ls="--", label="training")
        if f"val/{name}" in metrics:
            axis.plot(epoch, metrics[f"val/{name}"], color=BLUE, label="validation")
        axis.axvline(chosen_epoch, color=GREY, lw=0.8, ls=":", label="chosen epoch")
        use_whole_ticks(axis.xaxis)
        axis.set(xlabel="epoch", ylabel="cross-entropy" if name == "loss" else name)
    left.set_yscale("log")
    right.plot(chosen_epoch, test_accuracy, "o", color=ORANGE, label=f"test {test_accuracy:.1%}")
    linear = scores["linear_model_test_accuracy"]
    right.axhline(linear, color=GREEN, lw=1, ls="-.", label=f"linear model, test {linear:.1%}")
    label_log_axis(left.yaxis)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    figure.suptitle(scores["data_set"], fontsize=10)
    return save(figure, path)
