"""Recordings beside the neurons fitted to them: current, rasters and smoothed rates."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter1d

from blockspike.figures.style import GREY, ORANGE, save

_SIGMA_MS = 15.0
_SHOWN_S = 3.0


def recording_fit(traces: dict[str, np.ndarray], path: Path) -> Path:
    """Draw one column per cell: test current, rasters of trials and model, rates at σ = 15 ms.

    Args:
        traces: arrays of `traces.npz`: for each cell its name, current [T] in pA, recorded trains
            [R, T], the model's trials [M, T], its prediction [T] and its scores on all test data.
        path: where to write the PNG and SVG. The first 3 s are shown.

    Returns:
        Path of the PNG.
    """
    n_cells = sum(key.endswith("_name") for key in traces)
    figure, axes = plt.subplots(
        3, n_cells, sharex=True, squeeze=False, layout="constrained",
        figsize=(max(7.0, 4.2 * n_cells), 4.2), height_ratios=(1, 1.3, 1),
    )  # fmt: skip
    dt_ms = float(traces["dt_ms"])
    for k in range(n_cells):
        own = {
            key.removeprefix(f"cell{k}_"): value
            for key, value in traces.items() if key.startswith(f"cell{k}_")
        }  # fmt: skip
        _column(axes[:, k], own, dt_ms)
    for axis, label in zip(axes[:, 0], ("current (pA)", "trial", "rate (Hz)"), strict=True):
        axis.set_ylabel(label)
    figure.align_ylabels(axes[:, 0])
    axes[2, -1].legend(
        frameon=False, fontsize=7, loc="lower right", bbox_to_anchor=(1, 0.95), ncols=2
    )
    return save(figure, path)


def _column(axes, own: dict[str, np.ndarray], dt_ms: float) -> None:
    model = np.atleast_2d(own["model"])  # files of older versions hold a single train
    predicted = own["predicted"] if "predicted" in own else model[0]
    n_steps = min(len(predicted), round(_SHOWN_S * 1000 / dt_ms))
    time_s = np.arange(n_steps) * dt_ms / 1000
    axes[0].plot(time_s, own["current_pa"][:n_steps], color=GREY, lw=0.5)
    axes[0].set_title(
        f"{own['name']}: ETV {float(own['etv_15ms']):.2f}, Γ {float(own['gamma_4ms']):.2f}",
        fontsize=9,
    )
    trains = own["trains"].astype(float)
    n, m = len(trains), len(model)
    rows = [np.flatnonzero(train[:n_steps]) * dt_ms / 1000 for train in (*trains, *model)]
    offsets = [*range(1, n + 1), *range(n + 2, n + m + 2)]
    axes[1].eventplot(
        rows, lineoffsets=offsets, linelengths=0.8, colors=[GREY] * n + [ORANGE] * m, lw=0.9
    )
    axes[1].set_yticks([(1 + n) / 2, n + (3 + m) / 2], [f"1–{n}", "model"])
    axes[1].invert_yaxis()
    lines = ((np.mean(trains, 0), GREY, "recorded"), (predicted, ORANGE, "model"))
    for train, colour, name in lines:
        smooth = np.asarray(gaussian_filter1d(train.astype(float), _SIGMA_MS / dt_ms), float)
        rate = smooth * (1000 / dt_ms)
        axes[2].plot(time_s, rate[:n_steps], color=colour, lw=1, label=name)
    axes[2].set_xlabel("time (s)")
