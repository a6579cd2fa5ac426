"""Sweeps on the report's page: of every experiment whose runs differ, means and a figure."""

import base64
import io
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure

from blockspike.figures.means import Means, means, rounded, text_of
from blockspike.figures.sweep import Roles, roles, sweep_figure

LARGEST_SVG_BYTES = 400_000


@dataclass(frozen=True)
class Sweep:
    """An experiment whose runs differ in more than the seed.

    Attributes:
        experiment: its name.
        metric: the averaged column.
        settings: in which the runs differ.
        rows: a row per mean: text of each setting, mean ± standard error, number of runs.
        warnings: see `Means`.
        address: the figure as a data: address.
    """

    experiment: str
    metric: str
    settings: list[str]
    rows: list[list[str]]
    warnings: list[str]
    address: str


def sweeps(table: pd.DataFrame) -> list[Sweep]:
    """Summarise every experiment in a table of runs whose runs differ in more than the seed.

    Args:
        table: a row per run, as `blockspike collect` writes.
    """
    found = []
    for experiment, rows in table.groupby("experiment"):
        own = pd.DataFrame(rows)
        try:
            chosen = roles(own)
        except ValueError:  # none has a score, or they differ in the seed alone
            continue
        found.append(_sweep(str(experiment), own, chosen))
    return found


def _sweep(experiment: str, table: pd.DataFrame, chosen: Roles) -> Sweep:
    found = means(table, chosen.all)
    figure = sweep_figure(found, chosen, experiment)
    return Sweep(
        experiment=experiment,
        metric=found.metric,
        settings=found.by,
        rows=_rows(found),
        warnings=found.warnings,
        address=address_of(figure),
    )


def _rows(found: Means) -> list[list[str]]:
    settings = found.points[found.by].to_numpy(object).tolist()
    numbers = zip(rounded(found.points), found.points["n"].tolist(), strict=True)
    return [
        [*map(text_of, own), mean, str(n)] for own, (mean, n) in zip(settings, numbers, strict=True)
    ]


def address_of(figure: Figure) -> str:
    """Draw as a data: address of an SVG, sharp at any size, or of a PNG if that is too large."""
    svg = _drawn(figure, "svg")
    if len(svg) <= LARGEST_SVG_BYTES:
        return data_address(svg, "svg+xml")
    return data_address(_drawn(figure, "png"), "png")


def data_address(picture: bytes, kind: str) -> str:
    """The data: address of a picture of a kind, "svg+xml" or "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def _drawn(figure: Figure, kind: str) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, dpi=200, bbox_inches="tight")
    return file.getvalue()
