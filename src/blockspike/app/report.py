"""`blockspike report`: one page about one run, or about several and their sweeps."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from blockspike.data.limits import read_npz
from blockspike.files import read_json, write_text
from blockspike.plots import report as page
from blockspike.plots.cells import cells_of
from blockspike.plots.fits import compared, scores_table
from blockspike.plots.means import labels_of, read_table, varied_settings
from blockspike.plots.search import search_plots
from blockspike.runs.results import finished_rows, fits_of
from blockspike.runs.run import Run, provenance
from blockspike.runs.status import run_states
from blockspike.runs.studies import load_optuna, studies
from blockspike.training.confusion import read_confusion
from blockspike.training.metrics_table import read_metrics


def report(runs: Sequence[Path], table: Path | None, output_dir: Path) -> Path:
    """Write `report.html`, which needs no network: into the folder of a run, or of all runs.

    Args:
        runs: folders. Of one run, its learning curves, its activity or cells; otherwise what all
            have in common and in which they differ. None = all below the output folder.
        table: compare the runs of this table instead of the folders.
        output_dir: folder of the runs.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: a folder holds no run, or the table is missing.
        ValueError: the run is not finished, or a file is damaged.
    """
    if len(runs) == 1:
        title, sections = str(runs[0]), _of_run(Run(runs[0]))
        path = runs[0] / "report.html"
    else:
        title, sections = f"Runs in {output_dir}", _of_runs(runs, table, output_dir)
        path = output_dir / "report.html"
    html = page.render(title, sections, provenance())
    write_text(path, html)
    print(f"{path}: {len(html) / 1e6:.1f} MB")
    return path
