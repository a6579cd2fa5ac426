"""`blockspike report`: one page of figures, numbers, runs and a view inside a network or a fit."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd

from blockspike.app.search_figures import draw_searches
from blockspike.data.limits import read_npz
from blockspike.figures.cell_traces import cells_of
from blockspike.figures.confusion import confusion_figure
from blockspike.figures.tables import read_table
from blockspike.files import read_json, write_text
from blockspike.plots.style import use_style
from blockspike.report.comparison import comparisons
from blockspike.report.fit_page import render_fit
from blockspike.report.page import EmbeddedFigure, found_figures, render
from blockspike.report.sweeps import Sweep, address_of, sweeps
from blockspike.runs.identity import is_fit
from blockspike.runs.results import finished_rows, fits_of
from blockspike.runs.run import Run, provenance
from blockspike.runs.status import run_states
from blockspike.training.confusion import read_confusion


def report(
    run: Path | None = None, table: Path | None = None, threads: int | None = None,
    output_dir: Path = Path("outputs"),
) -> Path:  # fmt: skip
    """Write `report.html`, a single self-contained file, into the output folder.

    The studies of searches are drawn first.
    The page of a fit has its cells only, and is written into the folder of the run.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: the folder `run` holds no run, or the file `table` is missing.
        ValueError: the run is not finished, a file of the run is damaged, or the table cannot be
            read or compared.
    """
    if run is not None and is_fit(Run(run).config()):
        return _report_fit(Run(run))
    try:
        draw_searches(output_dir)
    except ValueError as error:  # without Optuna
        print(f"{error}; searches are not redrawn", file=sys.stderr)
    figures, missing = found_figures(output_dir / "figures")
    file = table or _table(output_dir, figures)
    rows, source = (None, None) if file is None else read_table(file)
    page = render(
        made_by=provenance(),
        figures=figures,
        missing_figures=missing,
        sweeps=_sweeps(output_dir),
        comparisons=comparisons(rows),
        table=source,
        states=run_states(output_dir),
        traces=None if run is None else _traces(Run(run), threads),
        run_name=None if run is None else str(run),
        confusion=None if run is None else confusion_of(Run(run)),
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "report.html"
    write_text(path, page)
    print(f"{path}: {len(page) / 1e6:.1f} MB, numbers from {file or 'no table'}")
    return path


def _sweeps(output_dir: Path) -> list[Sweep]:
    """The sweeps of all finished runs, also of those that no table holds yet; no searches."""
    if not any(output_dir.rglob("result.json")):
        return []
    try:
        table = finished_rows(output_dir)
    except ValueError as error:  # a damaged file, which the list of runs names too
        print(f"blockspike report: no sweeps: {error}", file=sys.stderr)
        return []
    use_style()
    return sweeps(pd.DataFrame(table[~table["experiment"].str.startswith("search/")]))


def _traces(run: Run, threads: int | None) -> dict[str, Any]:
    """Traces for the viewer, whose libraries load only for a page that has one."""
    return import_module("blockspike.app.viewer_traces").traces_of(run, threads)


def confusion_of(run: Run) -> str | None:
    """Draw the confusion matrix of a run as a data: address; None if it was not tested.

    Raises:
        ValueError: its file is damaged.
    """
    file = run.folder / "confusion.csv"
    if not file.is_file():
        return None
    use_style()
    return address_of(confusion_figure(read_confusion(file)))


def _report_fit(run: Run) -> Path:
    """Write the page of a finished fit into its folder."""
    row = run.finished()
    cells = cells_of(read_npz(run.folder / "traces.npz"))
    failed = read_json(run.folder / "failed.json")
    page = render_fit(
        made_by=provenance(),
        run_name=str(run.folder),
        title=str(row["data_set"]),
        table=fits_of(run),
        cells=cells,
        failed={name: str(reason) for name, reason in failed.items()},
    )
    path = run.folder / "report.html"
    write_text(path, page)
    n = len(cells)
    print(f"{path}: {len(page.encode()) / 1e6:.1f} MB, {n} cell{'s' if n != 1 else ''}")
    return path


def _table(output_dir: Path, figures: Sequence[EmbeddedFigure]) -> Path | None:
    """The table of the newest figure of runs, else that of `collect`."""
    newest_first = sorted(figures, key=lambda figure: -figure.drawn_s)
    files = [Path(f.table.path) for f in newest_first if f.is_of_runs and f.table is not None]
    files.append(output_dir / "tables" / "runs.csv")
    return next((file for file in files if file.is_file()), None)
