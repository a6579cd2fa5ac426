"""The paper's figure on recordings: explained variance and fit times, published and ours."""

import statistics
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from blockspike.figures.panels import plural_range, slugs, where
from blockspike.figures.paper_numbers import paper_numbers
from blockspike.plots.means import require_columns, setting, warn_of_mixed
from blockspike.plots.style import BLUE, GREY, ORANGE, label_log_axis, save

_SCORE = "test_etv_15ms"
_COLUMNS = (
    "data_set", "n_cells", "data.dt_ms", "population.arp_ms", "population.method",
    "population._target_", "population.n_starts", "fit_s_per_cell", f"{_SCORE}_median",
    f"{_SCORE}_q25", f"{_SCORE}_q75",
)  # fmt: skip
# class of the population → label, colour, marker
_RECIPES = {
    "PhysicalPopulation": ("our recipe", BLUE, "o"),
    "PaperPopulation": ("published recipe", ORANGE, "s"),
}
_ARP_PANEL_DT_MS = 0.1
_LOWEST_ETV = -1.0  # that is drawn
_PUBLISHED = "published: 146 Allen cells"
_NOBODY = "Published values only"


def recordings(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Draw normalised ETV against dt and against ARP, and seconds per cell, for each data set.

    Points are means over seeds of the medians over cells; bars span the quartiles of the cells.
    Each recipe's points are those of its most frequent method, in the dt panel also of its most
    frequent refractory period. It warns if the fits of a point differ in other options.

    Args:
        table: a row per run, as `blockspike collect` writes; other experiments are ignored.
        folder: where to write.

    Returns:
        Paths of the PNGs, `recordings_<data set>.png`.

    Raises:
        ValueError: the table has fits but lacks columns.
    """
    fits = table.reindex(columns=table.columns.union(list(_COLUMNS)))
    recipes = [str(target).rpartition(".")[2] for target in fits["population._target_"]]
    fits = fits.assign(recipe=recipes)
    fits = pd.DataFrame(fits[fits["recipe"].isin(list(_RECIPES))])
    if len(fits):
        require_columns(table, _COLUMNS)
    # Text where a table also has lists, such as the range of a GIF's refractory period.
    numbers = ("data.dt_ms", "population.arp_ms", "population.n_starts")
    fits = fits.assign(**{name: setting(fits, name) for name in numbers})
    point = ["data_set", "recipe", "data.dt_ms", "population.arp_ms", "population.method"]
    advice = "experiment_name=NAME draws those of one experiment"
    warn_of_mixed(fits, point, "figure=recordings", advice)
    paths = []
    fits = fits.assign(data_set=fits["data_set"].astype(str))
    for data_set, slug in slugs(set(fits["data_set"]) or [_NOBODY]).items():
        own = where(fits, "data_set", [data_set])
        figure, axes = plt.subplot_mosaic(
            [["dt", "arp"], ["seconds", "seconds"]], figsize=(7.2, 6.4), layout="constrained",
            height_ratios=[3, 2],
        )  # fmt: skip
        _against_dt(axes["dt"], own)
        _against_arp(axes["arp"], own)
        _seconds(axes["seconds"], own)
        figure.suptitle(_title(data_set, own), fontsize=10)
        paths.append(save(figure, folder / f"recordings_{slug}"))
    return paths


def _title(data_set: str, fits: pd.DataFrame) -> str:
    if fits.empty:
        return data_set
    title = f"{data_set} ({plural_range([max(fits['n_cells'])], 'cell')})"
    return title if "Allen" in data_set else f"{title}, not the Allen cells of the paper"


def _by_recipe(fits: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    found = [(name, pd.DataFrame(fits[fits["recipe"] == name])) for name in _RECIPES]
    return [(name, own) for name, own in found if len(own)]


def _usual(fits: pd.DataFrame, column: str) -> pd.DataFrame:
    """The fits with the most frequent value of a column."""
    return pd.DataFrame(fits[fits[column] == statistics.mode(fits[column].tolist())])


def _against_dt(axis: Axes, fits: pd.DataFrame) -> None:
    for recipe, own in _by_recipe(fits):
        usual = _usual(_usual(own, "population.method"), "population.arp_ms")
        arp_ms = usual["population.arp_ms"].iloc[0]
        _line(axis, recipe, usual, "data.dt_ms", f", ARP {arp_ms:g} ms")
    _published_line(axis, "recordings_dt", "dt_ms")
    axis.set(
        xscale="log",
        xlabel="time step (ms)",
        ylabel="normalised ETV, σ 15 ms\n(median and quartiles over cells)",
    )
    _finish(axis)
    _say_how(axis, fits, "data.dt_ms=0.1,0.5,1,2,4,8")


def _finish(axis: Axes) -> None:
    """Scale and legend of a panel; the legend is below, where it hides no data."""
    axis.set_ylim(max(min(-0.05, axis.get_ylim()[0]), _LOWEST_ETV), 1)
    label_log_axis(axis.xaxis)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=9)


def _say_how(axis: Axes, fits: pd.DataFrame, overrides: str) -> None:
    """Title a panel without fits with the command that makes them."""
    if fits.empty:
        command = f"no fits yet:\nblockspike fit -m\nexperiment=recordings\n{overrides}"
        axis.set_title(command, loc="left", fontsize=8, family="monospace")


def _against_arp(axis: Axes, fits: pd.DataFrame) -> None:
    at_dt = pd.DataFrame(fits[np.isclose(fits["data.dt_ms"], _ARP_PANEL_DT_MS)])
    for recipe, own in _by_recipe(at_dt):
        usual = _usual(own, "population.method")
        _line(axis, recipe, usual, "population.arp_ms", f", dt {_ARP_PANEL_DT_MS} ms")
    _published_line(axis, "recordings_arp", "arp_ms")
    axis.set(
        xscale="log",
        xlabel="absolute refractory period (ms)",
    )
    _finish(axis)
    _say_how(axis, at_dt, "data.dt_ms=0.1 population.arp_ms=1,2,4,6,8,16")


def _line(axis: Axes, recipe: str, fits: pd.DataFrame, x: str, what: str) -> None:
    if fits.empty:
        return
    label, colour, marker = _RECIPES[recipe]
    mean = fits.groupby(x)[[f"{_SCORE}_{q}" for q in ("median", "q25", "q75")]].mean()
    median, low, high = (mean.iloc[:, i].to_numpy(float) for i in range(3))
    axis.errorbar(
        mean.index.to_numpy(float), median, (median - low, high - median),
        color=colour, marker=marker, ms=4, lw=1.2, label=label + what,
    )  # fmt: skip


def _published_line(axis: Axes, experiment: str, x: str) -> None:
    numbers = paper_numbers(experiment=experiment, quantity="normalised_etv_median")
    axis.plot(numbers[x], numbers["value"], color=GREY, ls="--", marker="x", ms=4, label=_PUBLISHED)


def _time(fits: pd.DataFrame, label: str, colour: str) -> tuple[str, float, str]:
    """Name, seconds and colour of the point for fits with one recipe, method and time step."""
    first = fits.iloc[0]
    device = "GPU" if first.get("trainer.accelerator") in ("gpu", "cuda") else "CPU"
    starts = fits["population.n_starts"].fillna(1).unique().tolist()
    each = " and ".join(f"{n:g}" for n in sorted(starts)) + " start" + "s" * (starts != [1])
    etv = fits[f"{_SCORE}_median"].mean()
    name = f"{label}, {device}, dt {first['data.dt_ms']:g} ms, {each} (ETV {etv:.2f})"
    return name, float(np.median(fits["fit_s_per_cell"])), colour


def _seconds(axis: Axes, fits: pd.DataFrame) -> None:
    """Draw fit times: published on a GPU, ours at the paper's dt and our own."""
    seconds, etv = (
        paper_numbers(experiment="recordings_method", quantity=quantity).set_index("method")[
            "value"
        ]
        for quantity in ("fit_time_per_cell", "normalised_etv_median")
    )
    times = [
        (f"published, {name}, GPU (ETV {etv[name]:.2f})", float(s), GREY)
        for name, s in seconds.items()
    ]
    for recipe, own in _by_recipe(fits):
        label, colour, _ = _RECIPES[recipe]
        methods = own["population.method"].unique().tolist()
        for dt_ms in sorted({_ARP_PANEL_DT_MS, statistics.mode(own["data.dt_ms"].tolist())}):
            for method in methods:
                is_own = (own["data.dt_ms"] == dt_ms) & (own["population.method"] == method)
                which = f" ({method})" if len(methods) > 1 else ""
                if is_own.any():
                    times.append(_time(pd.DataFrame(own[is_own]), label + which, colour))
    names, seconds, colours = zip(*times, strict=True)
    axis.scatter(seconds, range(len(times)), c=colours, s=36)
    axis.grid(axis="y", color="0.9")
    axis.set_yticks(range(len(times)), [n.replace(", ", "\n", 1) for n in names], fontsize=9)
    axis.set_ylim(len(times) - 0.5, -0.5)
    axis.set(xscale="log", xlabel="fit time per cell (s)")
    for i, value in enumerate(seconds):
        axis.text(
            value, i, f"   {value:.0f}" if value > 9 else f"   {value:.2g}", va="center", fontsize=9
        )
    axis.set_xlim(left=min(seconds) / 2, right=max(seconds) * 4)
    label_log_axis(axis.xaxis)
