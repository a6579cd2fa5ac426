"""The paper's figure on speed, the speed-accuracy trade-off, and other libraries."""

import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from blockspike.figures.paper_numbers import paper_numbers
from blockspike.plots.means import require_columns
from blockspike.plots.style import BLUE, GREEN, GREY, METHOD_COLOURS, ORANGE, label_log_axis, save

_BATCHES = (32, 64, 128)
_STEPS = {512: (BLUE, "o"), 1024: (ORANGE, "s"), 2048: (GREEN, "^")}
_UNITS = {128: (BLUE, "o"), 256: (ORANGE, "s"), 512: (GREEN, "^")}
_COLUMNS = (
    "study", "contender", "total_ms_median", "total_by_fused",
    "device", "cpu", "threads", "git_sha",
)  # fmt: skip
_LABELS = {"standard": "step loop", "blocks": "blocks, one pass"}


def speed(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the studies length, layers and libraries, as far as the table holds them.

    Args:
        table: rows of `blockspike benchmark`; ratios are medians over rounds.
        folder: where to write.

    Returns:
        Paths of the PNGs `speed` and `libraries`; a figure whose studies were not run is left out.

    Raises:
        ValueError: columns are missing, or the rows are from several machines or commits.
    """
    studies = _studies(table)
    drawn = []
    if studies & {"length", "layers"}:
        drawn.append(_speed(table, folder / "speed"))
    if studies & {"length", "libraries"}:
        drawn.append(_libraries(table, folder / "libraries"))
    if not drawn:
        print("no figure: run `blockspike benchmark` first")
    return drawn


def tradeoff(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw the study tradeoff, with the arguments of `speed`; no figure if it was not run."""
    if "tradeoff" not in _studies(table):
        print("no figure: run `blockspike benchmark study=tradeoff` first")
        return []
    return [_tradeoff(_of(table, study="tradeoff"), folder / "tradeoff")]


def _studies(table: pd.DataFrame) -> set[str]:
    require_columns(table, _COLUMNS, "blockspike benchmark")
    if len(table.groupby(["cpu", "threads", "git_sha"], dropna=False)) > 1:
        raise ValueError("table: expected rows of one machine and commit, got several")
    return set(table["study"].tolist())


def _of(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    for column, value in values.items():
        table = pd.DataFrame(table[table[column] == value])
    return table


def _where(table: pd.DataFrame, *studies: str) -> str:
    row = pd.DataFrame(table[table["study"].isin(list(studies))]).to_dict("records")[-1]
    where = f"{row['cpu']}, {row['threads']:g} threads"
    return where if row["device"] == "cpu" else str(row["device"])


def _speed(table: pd.DataFrame, path: Path) -> Path:
    """Draw the ratio of step loop to fused: against refractory period, and against layers."""
    figure, grid = plt.subplots(2, 2, figsize=(7.6, 7.4), layout="constrained", sharey=True)
    axes = grid.ravel()
    length, layers = _of(table, study="length"), _of(table, study="layers")
    for axis, batch in zip(axes, _BATCHES, strict=False):
        published = paper_numbers(experiment="speed_length")
        for n_steps, (colour, marker) in _STEPS.items():
            own = _of(length, batch_size=batch, n_steps=n_steps)
            _line(axis, own, "standard", "arp_steps", colour, marker, f"T = {n_steps}")
            _line(axis, own, "standard reference", "arp_steps", colour, marker)
            theirs = _of(published, batch=batch, t_len=n_steps)
            axis.plot(theirs["arp_steps"], theirs["value"], color=colour, ls="--", lw=1)
        axis.set(title=f"batch {batch}", xlabel="refractory period (steps)")
        _say_if_empty(axis, length, f"study=length batch_size={batch}", batch_size=batch)
    published = paper_numbers(experiment="speed_layers")
    for n_units, (colour, marker) in _UNITS.items():
        own = _of(layers, n_units=n_units)
        _line(axes[3], own, "standard", "n_layers", colour, marker, f"{n_units} neurons")
        theirs = _of(published, n_hidden=n_units)
        axes[3].plot(theirs["n_layers"], theirs["value"], color=colour, ls="--", lw=1)
    _say_if_empty(axes[3], layers, "study=layers")
    axes[3].set(title="T = 1024 steps, batch 64, ARP 40 steps", xlabel="layers", xticks=range(1, 6))
    axes[0].set(yscale="log")
    lowest, highest = axes[0].get_ylim()
    axes[0].set_ylim(min(3.0, lowest), max(400.0, highest))  # of other machines, below or above
    for axis in grid[:, 0]:
        axis.set_ylabel("times faster than a step loop")
    axes[0].plot([], [], color=GREY, ls=":", label="than a loop over slices of full tensors")
    label_log_axis(axes[0].yaxis)
    axes[0].plot([], [], color=GREY, ls="--", label="published: Blocks, GPU")
    for axis, side, title in ((axes[0], "left", "by batch"), (axes[3], "right", "by layers")):
        figure.legend(
            *axis.get_legend_handles_labels(), loc=f"outside lower {side}", ncols=2,
            frameon=False, fontsize=9, title=title, title_fontsize=9, alignment="left",
        )  # fmt: skip
    for axis in axes:
        axis.grid(axis="y", lw=0.3)
    figure.suptitle(
        "fused against the step loop with dense synapses, forward and backward,\n"
        f"whole layers: {_where(table, 'length', 'layers')}",
        fontsize=9,
    )
    return save(figure, path)


def _line(
    axis: Axes, own: pd.DataFrame, slow: str, x: str, colour: str, marker: str, label: str = ""
) -> None:
    own = _of(own, contender=slow).dropna(subset="total_by_fused").sort_values(x)
    if len(own):
        axis.plot(
            own[x], own["total_by_fused"], color=colour, marker=marker, ms=4, label=label or None,
            ls="-" if label else ":", mfc=colour if label else "none",
        )  # fmt: skip


def _say_if_empty(axis: Axes, table: pd.DataFrame, overrides: str, **values: object) -> None:
    if _of(table, **values).empty:
        axis.text(
            0.5, 0.5, f"not measured:\nblockspike benchmark\n{overrides}", fontsize=8,
            ha="center", va="center", transform=axis.transAxes, color=GREY,
        )  # fmt: skip


def _tradeoff(table: pd.DataFrame, path: Path) -> Path:
    """Draw the error of spike times against cost: a line per method, a point per step length."""
    figure, axis = plt.subplots(figsize=(5.8, 4.4), layout="constrained")
    finest = min(table["dt_ms"].tolist())
    shown = table.dropna(subset="total_ms_median")
    shown = pd.DataFrame(shown[np.isfinite(shown["spike_time_error_ms"])])
    # The finest step is the reference; its error of 0 is drawn at the bottom.
    floor = min((x for x in shown["spike_time_error_ms"].tolist() if x > 0), default=1.0) / 4
    seconds = float(table["simulated_s"].tolist()[-1])
    for name, marker in (("fused", "o"), ("blocks", "s"), ("standard", "^")):
        own = _of(shown, contender=name).sort_values("dt_ms")
        cost = [ms / seconds for ms in own["total_ms_median"].tolist()]
        error = [max(ms, floor) for ms in own["spike_time_error_ms"].tolist()]
        first = error.count(floor)  # the reference is not joined to the others
        look = {"color": METHOD_COLOURS[name], "marker": marker, "ms": 5}
        axis.plot(cost[:first], error[:first], ls="", **look)
        axis.plot(cost[first:], error[first:], label=_LABELS.get(name, name), **look)
        if name == "blocks":
            continue
        for x, y, dt_ms in zip(cost, error, own["dt_ms"].tolist(), strict=True):
            if name == "fused" or dt_ms in (8, 1, 0.1):
                axis.annotate(
                    f"{dt_ms:g} ms", (x, y), xytext=(-4, -3), textcoords="offset points",
                    fontsize=8, ha="right", va="top", color=METHOD_COLOURS[name],
                )  # fmt: skip
    axis.axhline(floor * 1.6, color=GREY, lw=0.5, ls=":")
    axis.text(
        0.99, 0.02, f"below the line: {finest:g} ms, the reference, error 0",
        fontsize=8, color=GREY, ha="right", transform=axis.transAxes,
    )  # fmt: skip
    axis.set(
        xscale="log", yscale="log", ylim=(floor / 2, None),
        xlabel="cost of 8 one-second trials, forward and backward (ms)",
        ylabel="mean error of a spike time (ms)",
    )  # fmt: skip
    axis.margins(x=0.12)  # for the labels of the leftmost points
    label_log_axis(axis.xaxis)
    label_log_axis(axis.yaxis)
    figure.legend(
        loc="outside lower center", ncols=3, frameon=False, fontsize=9, title_fontsize=9,
        title="time step at the points",
    )  # fmt: skip
    figure.suptitle(f"One neuron driven by noise: {_where(table, 'tradeoff')}", fontsize=9)
    return save(figure, path)


def _libraries(table: pd.DataFrame, path: Path) -> Path:
    """Draw ratios of times to fused: recurrent layers, over all sizes, and a feed-forward one."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained", sharey=True)
    studies = {"length": "1000 → 128 recurrent, events in", "libraries": "200 → 100, numbers in"}
    rows = pd.DataFrame(table[table["study"].isin(list(studies))]).dropna(subset="total_by_fused")
    drawn = {}
    for study in studies:
        own = _of(rows, study=study)
        smallest = min(own["batch_size"].tolist(), default=0)  # larger ones hold only our methods
        drawn[study] = _of(own, batch_size=smallest)
    medians: dict[str, float] = {}
    for own in drawn.values():  # the first panel orders those that it has
        medians = own.groupby("contender")["total_by_fused"].median().to_dict() | medians
    order = sorted((str(name) for name in medians), key=medians.__getitem__)
    for axis, (study, title) in zip(axes, studies.items(), strict=True):
        own = drawn[study]
        n_sizes = max(own["contender"].value_counts().tolist(), default=0)
        for y, name in enumerate(order):
            ratios = _of(own, contender=name)["total_by_fused"].tolist()
            if ratios:
                low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
                axis.plot([low, high], [y, y], color=_colour(name), lw=3, alpha=0.4)
                axis.plot([middle], [y], "o", color=_colour(name), ms=6)
                part = f" ({len(ratios)} of {n_sizes} sizes)" if len(ratios) < n_sizes else ""
                axis.text(high, y, f"  {middle:.3g}{part}", va="center", fontsize=8)
        if study == "libraries":
            _published_libraries(axis, order)
        axis.axvline(1, color=GREY, lw=0.6)
        axis.set(xscale="log", xlabel="time relative to fused", title=f"{title}")
        axis.set_xlim(right=axis.get_xlim()[1] * 6)  # for the texts
        label_log_axis(axis.xaxis)
    axes[0].set_yticks(range(len(order)), order, fontsize=8)
    figure.suptitle(
        f"Forward and backward, median and range over sizes: {_where(table, *studies)}",
        fontsize=9,
    )
    return save(figure, path)


def _published_libraries(axis: Axes, order: list[str]) -> None:
    """Draw the paper's forward times of the same layer on a GPU, relative to its Blocks."""
    numbers = paper_numbers(experiment="library_comparison").set_index("method")["value"]
    label = "published: relative to Blocks, forward, GPU"
    for method, value in numbers.items():
        rows = [y for y, name in enumerate(order) if name.lower().startswith(str(method))]
        for y in rows[:1]:
            axis.plot([value / numbers["blocks"]], [y], "D", color=GREY, mfc="none", label=label)
            label = None
    if label is None:
        axis.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def _colour(name: str) -> str:
    return METHOD_COLOURS.get(name.split()[-1], METHOD_COLOURS.get(name.split()[0], GREEN))
