"""The report's page: everything it shows is within the one file."""

import base64
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from blockspike.figures.tables import Source, source_beside
from blockspike.report.comparison import Comparison

_HERE = Path(__file__).parent
_LARGEST_SVG_BYTES = 400_000
# what the figures' file names begin with, the figure as `blockspike figures` knows it, caption
_KINDS = (
    (
        "classification", "classification",
        "Test accuracy and seconds an epoch against the absolute refractory period.",
    ),
    (
        "surrogates", "surrogates",
        "Test accuracy with the three surrogate gradients.",
    ),
    ("detach", "detach", "Test accuracy with attached and detached spikes."),
    (
        "neurons", "neurons",
        "Test accuracy of every neuron model against the spikes of its hidden neurons.",
    ),
    (
        "recordings", "recordings",
        "Neurons fitted to recordings: explained variance against time step and refractory "
        "period, and seconds to fit a cell.",
    ),
    ("speed", "speed", "How many times faster than the step loop a layer is."),
    ("libraries", "speed", "How many times as long as fused other libraries take."),
    ("tradeoff", "tradeoff", "Error of spike times against the cost of the simulation."),
)  # fmt: skip
_OF_RUNS = ("classification", "surrogates", "detach", "neurons", "recordings")


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure as the page holds it.

    Attributes:
        name: of its file.
        figure: as `blockspike figures` knows it; None = not one of ours.
        caption: what it shows.
        address: the picture, as a data: address.
        table: that it was drawn from; None = not known.
        is_of_runs: whether that is a table of runs.
        drawn_s: when it was written, in seconds of the file system.
    """

    name: str
    figure: str | None
    caption: str
    address: str
    table: Source | None
    is_of_runs: bool
    drawn_s: float


def found_figures(folder: Path) -> tuple[list[EmbeddedFigure], dict[str, str]]:
    """The figures in a folder, and what is missing there.

    Returns:
        The figures, in the order of the paper, others after them; and of each kind that has none,
        its name and the command that draws it.
    """
    stems = sorted({path.stem for path in folder.glob("*") if path.suffix in (".png", ".svg")})
    figures: list[EmbeddedFigure] = []
    missing: dict[str, str] = {}
    for kind, figure, caption in _KINDS:
        own = [stem for stem in stems if stem.startswith(kind)]
        figures += [_embedded(folder / stem, figure, caption, kind in _OF_RUNS) for stem in own]
        stems = [stem for stem in stems if stem not in own]
        if not own:
            missing[kind] = _command(figure, folder.parent, kind in _OF_RUNS)
    return figures + [_embedded(folder / stem, None, "") for stem in stems], missing


def _command(figure: str, output_dir: Path, is_of_runs: bool) -> str:
    """The command that draws a figure from the tables of this output folder."""
    words = ["blockspike", "figures", f"figure={figure}"]
    if not is_of_runs:
        words.append(f"table={output_dir / 'tables' / 'speed.csv'}")
    if output_dir != Path("outputs"):
        words.append(f"output_dir={output_dir}")
    return shlex.join(words)


def _embedded(
    stem: Path, figure: str | None, caption: str, is_of_runs: bool = False
) -> EmbeddedFigure:
    """The SVG, which is sharp at any size, unless it has so many points that the PNG is lighter."""
    svg, png = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".svg", ".png"))
    sharp = svg.is_file() and (not png.is_file() or svg.stat().st_size <= _LARGEST_SVG_BYTES)
    picture, kind = (svg, "svg+xml") if sharp else (png, "png")
    data = base64.b64encode(picture.read_bytes()).decode()
    return EmbeddedFigure(
        name=stem.name,
        figure=figure,
        caption=caption,
        address=f"data:image/{kind};base64,{data}",
        table=source_beside(png),
        is_of_runs=is_of_runs,
        drawn_s=picture.stat().st_mtime,
    )


def render(
    made_by: dict[str, Any],
    figures: Sequence[EmbeddedFigure],
    missing_figures: dict[str, str],
    comparisons: Sequence[Comparison],
    table: Source | None,
    states: pd.DataFrame,
    traces: dict[str, Any] | None,
    run_name: str | None,
) -> str:
    """The page as HTML that asks for nothing from anywhere.

    Args:
        made_by: commit, versions and machine, as `blockspike.runs.run.provenance` gives them.
        figures, missing_figures: see `found_figures`.
        comparisons: see `blockspike.report.comparison`.
        table: that `comparisons` are of; None = there was none. Figures of runs that were drawn
            from another are named, not shown.
        states: a row per run: run, state, epochs, started, seconds, error.
        traces: see `blockspike.report.viewer`; None = no viewer.
        run_name: the run that `traces` are of.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        made=time.strftime("%Y-%m-%d %H:%M %z"),
        made_by=made_by,
        figures=[f for f in figures if not f.is_of_runs or f.table == table],
        other_figures=[f for f in figures if f.is_of_runs and f.table != table],
        missing_figures=missing_figures,
        comparisons=comparisons,
        table=table,
        runs=[_texts(row) for row in states.to_dict("records")],
        counts=states["state"].value_counts().to_dict(),
        traces=traces,
        run_name=run_name,
        style=(_HERE / "style.css").read_text(),
        script=(_HERE / "viewer.js").read_text(),
    )


def _texts(row: dict[Any, Any]) -> dict[str, str]:
    """A run's row as it is shown: nothing for what is not known."""
    known = {str(name): "" if pd.isna(value) else value for name, value in row.items()}
    for name in ("epochs", "seconds"):
        known[name] = known[name] if known[name] == "" else f"{known[name]:.0f}"
    return {name: str(value) for name, value in known.items()}
