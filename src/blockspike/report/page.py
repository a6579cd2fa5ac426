"""The report's page, a single self-contained HTML file."""

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
from blockspike.report.sweeps import LARGEST_SVG_BYTES, Sweep, data_address

_HERE = Path(__file__).parent
# first part of the file names, name of the figure in `blockspike plot paper`, caption
_KINDS = (
    (
        "sweep", "sweep",
        "A metric of the runs of a sweep, with means and standard errors over seeds.",
    ),
    (
        "classification", "classification",
        "Test accuracy and seconds per epoch against the absolute refractory period.",
    ),
    (
        "surrogates", "surrogates",
        "Test accuracy with the three surrogate gradients.",
    ),
    ("detach", "detach", "Test accuracy with attached and detached spikes."),
    (
        "neurons", "neurons",
        "Test accuracy of every neuron model against the number of spikes of its hidden neurons.",
    ),
    (
        "recordings", "recordings",
        "Neurons fitted to recordings: explained variance against time step and refractory "
        "period, and fit time per cell.",
    ),
    ("speed", "speed", "Speed of a layer relative to the step loop."),
    ("libraries", "speed", "Times of other libraries relative to fused."),
    ("tradeoff", "tradeoff", "Error of spike times against the cost of the simulation."),
    ("fits", "fits", "Test scores of fits: means over runs, with standard errors."),
    ("epochs", "epochs", "Validation accuracy by epoch: means over runs."),
    (
        "search", "search",
        "Trials of a search, and how much each parameter matters for a validation value among "
        "its best.",
    ),
)  # fmt: skip
_OF_RUNS = (
    "sweep", "classification", "surrogates", "detach", "neurons", "recordings", "fits", "epochs",
)  # fmt: skip
_NOT_MISSED = ("sweep", "search", "fits", "epochs")  # the page, or a sweep itself, draws them


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure embedded in the page.

    Attributes:
        name: name of its file, without suffix.
        figure: its name in `blockspike plot paper`; None = not one of ours.
        caption: text below it.
        address: the picture as a data: address.
        table: the table that it was drawn from; None = unknown.
        is_of_runs: whether it is drawn from a table of runs.
        drawn_s: the file's modification time in seconds.
    """

    name: str
    figure: str | None
    caption: str
    address: str
    table: Source | None
    is_of_runs: bool
    drawn_s: float


def found_figures(folder: Path) -> tuple[list[EmbeddedFigure], dict[str, str]]:
    """Embed the figures in a folder and list the missing ones.

    Returns:
        The figures in the order of the paper, then any others; and missing kind → the command
        that draws it.
    """
    stems = sorted({path.stem for path in folder.glob("*") if path.suffix in (".png", ".svg")})
    figures: list[EmbeddedFigure] = []
    missing: dict[str, str] = {}
    for kind, figure, caption in _KINDS:
        own = [stem for stem in stems if stem.startswith(kind)]
        figures += [_embedded(folder / stem, figure, caption, kind in _OF_RUNS) for stem in own]
        stems = [stem for stem in stems if stem not in own]
        if not own and kind not in _NOT_MISSED:
            missing[kind] = _command(figure, folder.parent, kind in _OF_RUNS)
    return figures + [_embedded(folder / stem, None, "") for stem in stems], missing


def _command(figure: str, output_dir: Path, is_of_runs: bool) -> str:
    """The command that draws a figure from the tables in this output folder."""
    words = ["blockspike", "plot", "paper", figure]
    if not is_of_runs:
        words += ["--table", str(output_dir / "tables" / "speed.csv")]
    if output_dir != Path("outputs"):
        words += ["--output-dir", str(output_dir)]
    return shlex.join(words)


def _embedded(
    stem: Path, figure: str | None, caption: str, is_of_runs: bool = False
) -> EmbeddedFigure:
    """Embed the SVG, which is sharp at any size, or the PNG if the SVG is too large."""
    svg, png = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".svg", ".png"))
    sharp = svg.is_file() and (not png.is_file() or svg.stat().st_size <= LARGEST_SVG_BYTES)
    picture, kind = (svg, "svg+xml") if sharp else (png, "png")
    table = source_beside(png)
    return EmbeddedFigure(
        name=stem.name,
        figure=figure,
        caption=caption,
        address=data_address(picture.read_bytes(), kind),
        table=table,
        is_of_runs=is_of_runs and (figure != "fits" or table is not None),  # a sweep has no table
        drawn_s=picture.stat().st_mtime,
    )


def render(
    made_by: dict[str, Any],
    figures: Sequence[EmbeddedFigure],
    missing_figures: dict[str, str],
    sweeps: Sequence[Sweep],
    comparisons: Sequence[Comparison],
    table: Source | None,
    states: pd.DataFrame,
    traces: dict[str, Any] | None,
    run_name: str | None,
    confusion: str | None = None,
) -> str:
    """Render the page as HTML that loads nothing from elsewhere.

    Args:
        made_by: commit, versions and machine, from `blockspike.runs.run.provenance`.
        figures, missing_figures: see `found_figures`.
        sweeps: see `blockspike.report.sweeps`.
        comparisons: see `blockspike.report.comparison`.
        table: the table behind `comparisons`; None = no table. Figures of runs drawn from another
            table are named, not shown.
        states: a row per run: run, state, epochs, started, seconds, val_score, test_score,
            last_val_score, error.
        traces: see `blockspike.report.viewer`; None = no viewer.
        run_name: the run that `traces` belong to.
        confusion: its confusion matrix as a data: address; None = it was not tested.
    """
    return render_template(
        "page.html.j2",
        made_by,
        "viewer.js",
        figures=[f for f in figures if not f.is_of_runs or f.table == table],
        other_figures=[f for f in figures if f.is_of_runs and f.table != table],
        missing_figures=missing_figures,
        sweeps=sweeps,
        comparisons=comparisons,
        table=table,
        runs=[_texts(row) for row in states.to_dict("records")],
        counts=states["state"].value_counts().to_dict(),
        traces=traces,
        run_name=run_name,
        confusion=confusion,
    )


def render_template(name: str, made_by: dict[str, Any], script: str, **content: Any) -> str:
    """Render a template with the style, `plot.js` and a script of its own.

    `made_by` is as in `render`.
    """
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(
        made=time.strftime("%Y-%m-%d %H:%M %z"),
        made_by=made_by,
        style=(_HERE / "style.css").read_text(encoding="utf-8"),
        plot_script=(_HERE / "plot.js").read_text(encoding="utf-8"),
        script=(_HERE / script).read_text(encoding="utf-8"),
        **content,
    )


def _texts(row: dict[Any, Any]) -> dict[str, str]:
    """A run's row as text; unknown values are empty."""
    known = {str(name): "" if pd.isna(value) else value for name, value in row.items()}
    digits = {"epochs": 0, "seconds": 0, "val_score": 3, "test_score": 3, "last_val_score": 3}
    for name, n in digits.items():
        known[name] = known[name] if known[name] == "" else f"{known[name]:.{n}f}"
    return {name: str(value) for name, value in known.items()}
