"""Raster of input, hidden layers and readout of a few samples, drawn from `activity.npz`."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from blockspike.plots.style import BLUE, GREY, ORANGE, save


def raster(activity: dict[str, np.ndarray], path: Path) -> Path:
    """Draw one column per sample: input spikes, hidden layers, readout membranes.

    Args:
        activity: arrays of `activity.npz`: for each sample the (step, unit) of each layer's
            spikes (layer 0 = input), the readout [T, n_classes], the label and the predicted
            class.
        path: where to write the PNG and SVG.

    Returns:
        Path of the PNG.
    """
    n_samples = sum(name.endswith("_label") for name in activity)
    n_layers = sum(name.startswith("n_units_layer") for name in activity)
    figure, axes = plt.subplots(
        n_layers + 1, n_samples, sharex=True, sharey="row", squeeze=False,
        figsize=(2.8 * n_samples + 0.8, 1.3 * (n_layers + 1) + 0.6), layout="constrained",
        height_ratios=[1.4] + [1] * n_layers,
    )  # fmt: skip
    dt_ms = float(activity["dt_ms"])
    for k in range(n_samples):
        column = axes[:, k]
        for i in range(n_layers):
            step, unit = activity[f"sample{k}_layer{i}"]
            size = 0.3 if i == 0 else 1.5
            column[i].scatter(step * dt_ms, unit, s=size, c=GREY if i == 0 else BLUE, lw=0)
            column[i].set_ylim(-1, int(activity[f"n_units_layer{i}"]))
        _readout(column[-1], activity, k, dt_ms)
        label, predicted = int(activity[f"sample{k}_label"]), int(activity[f"sample{k}_predicted"])
        right = "✓" if label == predicted else "✗"
        column[0].set_title(f"class {label}, classified as {predicted} {right}", fontsize=9)
        column[-1].set_xlabel("time (ms)")
    names = ["input", *(f"hidden {i}" for i in range(1, n_layers)), "readout V"]
    for axis, name in zip(axes[:, 0], names, strict=True):
        axis.set_ylabel(name)
    figure.align_ylabels(axes[:, 0])
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(
        handles[:-3:-1],
        labels[:-3:-1],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=9,
    )
    return save(figure, path)


def _readout(axis, activity: dict[str, np.ndarray], k: int, dt_ms: float) -> None:
    readout = activity[f"sample{k}_readout"]
    label = int(activity[f"sample{k}_label"])
    time = np.arange(len(readout)) * dt_ms
    for c in np.argsort(np.arange(readout.shape[1]) == label):  # the true class on top
        true = c == label
        axis.plot(
            time, readout[:, c], color=ORANGE if true else "0.75", lw=1.4 if true else 0.7,
            label="the recording's class" if true else "other classes",
        )  # fmt: skip
