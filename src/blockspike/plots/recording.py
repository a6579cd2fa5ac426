"""Recordings beside the neurons fitted to them: current, rasters and smoothed rates."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from blockspike.plots.cells import SIGMA_MS, CellTraces
from blockspike.plots.style import GREY, ORANGE, save

_MOST_COLUMNS = 3
_SHOWN_S = 3.0
_LONGEST_TITLE = 32  # characters above a column


def recording_fit(cells: Sequence[CellTraces], path: Path) -> Path:
    """Draw current, rasters of trials and model, and rates at σ = 15 ms, in up to three columns.

    Of several cells, these are the best, median and worst one by ETV, each on the segment with the
    median number of recorded spikes. Of one cell, they are its segments with the fewest, the median
    and the most spikes. Titles give the number of each segment and its own scores.

    Args:
        cells: the cells.
        path: where to write the PNG and SVG. The first 3 s of a segment are shown.

    Returns:
        Path of the PNG.
    """
    shown = _shown(cells)
    figure, axes = plt.subplots(
        3, len(shown), squeeze=False, sharex="col", layout="constrained",
        figsize=(7.2, 4.8), height_ratios=(1, 1.3, 1),  # as wide as a page
    )  # fmt: skip
    for column, (cell, segment) in zip(axes.T, shown, strict=True):
        _column(column, cell, segment)
    labels = ("current (pA)", "trial", f"rate (Hz)\nσ {SIGMA_MS:g} ms")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    figure.align_ylabels(axes[:, 0])
    axes[2, -1].legend(
        frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 0.95), ncols=2
    )
    return save(figure, path)


def _shown(cells: Sequence[CellTraces]) -> list[tuple[CellTraces, int]]:
    """Cell and segment of each column."""
    if len(cells) == 1:
        order = _by_spikes(cells[0])
        return [(cells[0], segment) for segment in sorted(_spread(order))]
    best_first = np.argsort([-float(np.mean(cell.etv_15ms)) for cell in cells])
    chosen = [cells[k] for k in _spread(best_first)]
    return [(cell, int(_by_spikes(cell)[len(cell.titles) // 2])) for cell in chosen]


def _by_spikes(cell: CellTraces) -> np.ndarray:
    """Segments by their number of recorded spikes per trial."""
    counts = np.bincount(cell.recorded[:, 0], minlength=len(cell.titles))
    return np.argsort(counts / cell.n_recorded, kind="stable")


def _spread(order: np.ndarray) -> list[int]:
    """First, middle and last of an order."""
    places = np.unique(np.linspace(0, len(order) - 1, _MOST_COLUMNS).astype(int))
    return [int(order[place]) for place in places]


def _column(axes, cell: CellTraces, segment: int) -> None:
    current, longest_s = cell.current_pa[segment], cell.n_steps * cell.dt_ms / 1000
    duration_s = longest_s * (np.flatnonzero(np.isfinite(current))[-1] + 1) / len(current)
    part = "" if duration_s <= _SHOWN_S else f", first {_SHOWN_S:g} of {duration_s:.3g}"
    n = len(cell.titles)
    of_all = f" ({segment + 1} of {n})" if n > 1 else ""
    etv, gamma = cell.etv_15ms[segment], cell.gamma_4ms[segment]
    scores = f"ETV {etv:.2f}, Γ {gamma:.2f}".replace("-", "−").replace("nan", "–")
    name = textwrap.fill(cell.name, _LONGEST_TITLE)
    axes[0].set_title(f"{name}\n{scores}\n{cell.titles[segment]}{of_all}", fontsize=8)
    axes[0].plot(_times(len(current), longest_s), current, color=GREY, lw=0.5)
    n_recorded = int(cell.n_recorded[segment])
    sets = (
        (cell.recorded, n_recorded, 1, f"1–{n_recorded}" if n_recorded > 1 else "1", GREY),
        (cell.model, cell.n_model, n_recorded + 2, "model", ORANGE),
    )
    for spikes, n_trials, first, _, colour in sets:
        own = spikes[spikes[:, 0] == segment]
        rows = [own[own[:, 1] == trial, 2] * cell.dt_ms / 1000 for trial in range(n_trials)]
        offsets = [first + trial for trial in range(n_trials)]
        axes[1].eventplot(rows, lineoffsets=offsets, linelengths=0.8, colors=colour, lw=0.9)
    axes[1].set_yticks(
        [first + (n_trials - 1) / 2 for _, n_trials, first, _, _ in sets],
        [label for *_, label, _ in sets],
    )
    axes[1].set_ylim(n_recorded + cell.n_model + 2, 0)  # the first trial on top
    rates = (("recorded", cell.recorded_hz, GREY), ("model", cell.model_hz, ORANGE))
    for label, hz, colour in rates:
        time_s = np.arange(hz.shape[1]) * cell.rate_steps * cell.dt_ms / 1000
        axes[2].plot(time_s, hz[segment], color=colour, lw=1, label=label)
    highest = max(1, axes[2].get_ylim()[1])
    axes[2].set_ylim(-0.03 * highest, highest)  # a rate of 0 can be seen
    axes[2].set_xlabel(f"time (s){part}")
    axes[2].set_xlim(0, min(duration_s, _SHOWN_S))


def _times(n_points: int, duration_s: float) -> np.ndarray:
    """Times of the points of a series, see `blockspike.plots.cells.thinned`."""
    return np.arange(n_points) * (duration_s / n_points)
