"""The look that all figures share: readable in print and for colour-blind readers."""

from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.figure import Figure

METHOD_COLOURS = {"fused": "#0072B2", "blocks": "#D55E00", "standard": "#555555"}
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#555555", "#009E73"


def use_style() -> None:
    """Draw without a screen, with the project's fonts and lines."""
    matplotlib.use("Agg")
    sns.set_theme(context="paper", style="ticks", font_scale=1.1, palette="colorblind")


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG and SVG and close it; returns the PNG's path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix in (".png", ".svg"):
        figure.savefig(path.with_suffix(suffix), dpi=200, bbox_inches="tight")
    plt.close(figure)
    return path.with_suffix(".png")
