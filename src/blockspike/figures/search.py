"""History of a search's trials, and importance of its parameters."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from blockspike.plots.style import BLUE, GREEN, GREY, ORANGE, save, use_whole_ticks


def search(
    trials: pd.DataFrame, monitor: str, importances: dict[str, float], title: str, path: Path
) -> Path:
    """Draw a study: the value of every trial with the best so far, and importances.

    Args:
        trials: a row per trial: `number`, `state` (COMPLETE, PRUNED or FAIL), `value` (of a pruned
            trial the last one, of a failed one NaN).
        monitor: the metric.
        importances: parameter → share; may be empty.
        title: above the figure.
        path: where to write the PNG and SVG.

    Returns:
        Path of the PNG.
    """
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.2), layout="constrained", width_ratios=[3, 2]
    )
    _draw_history(left, trials, monitor)
    if importances:
        names, shares = list(importances), list(importances.values())
        right.barh(names[::-1], shares[::-1], color=BLUE, height=0.6)
        right.set(xlabel="importance (PED-ANOVA)", xlim=(0, 1))
    else:
        right.set_axis_off()
        right.text(0.5, 0.5, "too few finished trials\nfor importances", ha="center", va="center")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save(figure, path)


def _draw_history(axis: Axes, trials: pd.DataFrame, monitor: str) -> None:
    by_state = {state: pd.DataFrame(rows) for state, rows in trials.groupby("state")}
    if (pruned := by_state.get("PRUNED")) is not None:
        axis.plot(
            pruned["number"], pruned["value"], "x", color=GREY, ms=4, label="pruned, last value"
        )
    if (done := by_state.get("COMPLETE")) is not None:
        best = done["value"].cummin() if monitor.endswith("loss") else done["value"].cummax()
        axis.step(done["number"], best, where="post", color=GREEN, lw=1, label="best so far")
        axis.plot(done["number"], done["value"], "o", color=BLUE, ms=4, label="chosen epoch")
    if (failed := by_state.get("FAIL")) is not None:
        bottom = [0.02] * len(failed)
        axis.plot(
            failed["number"], bottom, "^", color=ORANGE, ms=5, label="failed",
            transform=axis.get_xaxis_transform(),
        )  # fmt: skip
    axis.set(xlabel="trial", ylabel=f"{monitor} (validation)")
    use_whole_ticks(axis.xaxis)
