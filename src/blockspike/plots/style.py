"""Style of all figures: readable in print and by colour-blind readers."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from blockspike.files import whole_file

METHOD_COLOURS = {"fused": "#0072B2", "blocks": "#D55E00", "standard": "#555555"}
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#555555", "#009E73"
PURPLE, YELLOW = "#CC79A7", "#E69F00"


def use_style() -> None:
    """Set the backend without a screen, and the project's fonts and lines."""
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="ticks", font_scale=1.1, palette="colorblind")


def label_log_axis(axis: Axis) -> None:
    """Label a logarithmic axis with plain numbers, as many as fit; call it once all is drawn."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low)
    subs = (1, 2, 5) if decades < 1.7 else (1, 3) if decades < 2.5 else (1,)
    axis.set_major_locator(
        LogLocator(subs=subs) if decades > 0.7 else MaxNLocator(4, steps=[1, 2, 5, 10])
    )
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def use_whole_ticks(axis: Axis) -> None:
    """Label an axis of epochs or other counts at 0, 1, 2, … or at multiples of 2, 5, 10, …"""
    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def draw_title(figure: Figure, lines: Sequence[str]) -> None:
    """Write lines above all panels, as tall as they need."""
    texts = [textwrap.fill(line, round(13 * figure.get_figwidth())) for line in lines]
    text = "\n".join(texts)
    figure.set_figheight(figure.get_figheight() + 0.18 * (text.count("\n") + 1))
    figure.suptitle(text, fontsize=10)
    figure.set_layout_engine("constrained")


def draw_legend(figure: Figure, entries: Sequence[tuple[Any, str, str]], title: str = "") -> None:
    """Explain colours, markers and labels below all panels, as tall as they need."""
    handles = [Line2D([], [], color=c, marker=marker, label=x) for c, marker, x in entries]
    longest = max(len(label) for *_, label in entries) + 6
    n_columns = max(1, min(len(handles), round(14 * figure.get_figwidth()) // longest))
    title = textwrap.fill(title, round(13 * figure.get_figwidth()))
    n_lines = -(-len(handles) // n_columns) + title.count("\n") + bool(title)
    figure.set_figheight(figure.get_figheight() + 0.2 * n_lines)
    figure.legend(
        handles=handles, title=title or None, ncols=n_columns, loc="outside lower center",
        frameon=False, fontsize=9, title_fontsize=9,
    )  # fmt: skip


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG and SVG and close it; returns the PNG's path.

    Args:
        figure: what to write.
        path: of the files without `.png` and `.svg`; other dots are part of the name.
    """
    for suffix in (".png", ".svg"):
        with whole_file(path.with_name(path.name + suffix)) as file:
            figure.savefig(file, format=suffix[1:], dpi=200, bbox_inches="tight")
    plt.close(figure)
    return path.with_name(f"{path.name}.png")
