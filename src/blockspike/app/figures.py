"""The work of `blockspike plot`."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from blockspike.app.search_figures import draw_searches
from blockspike.data.limits import read_npz
from blockspike.figures.cell_traces import cells_of
from blockspike.figures.classification import classification
from blockspike.figures.confusion import confusion_matrix
from blockspike.figures.epochs import epochs, mean_curves
from blockspike.figures.fits import fits
from blockspike.figures.learning_curve import learning_curve
from blockspike.figures.means import of_experiment
from blockspike.figures.neurons import neurons
from blockspike.figures.raster import raster
from blockspike.figures.recording import recording_fit
from blockspike.figures.recordings import recordings
from blockspike.figures.speed import speed, tradeoff
from blockspike.figures.surrogates import detach, surrogates
from blockspike.figures.sweep import roles, sweep
from blockspike.figures.tables import read_table, require_columns
from blockspike.files import read_json
from blockspike.plots.style import use_style
from blockspike.runs.run import Run
from blockspike.training.metrics_table import read_metrics

SEARCH = "search"  # drawn from studies, not from a table
# name of the figure → function of a table of runs and the folder to write to
FIGURES = {
    "classification": classification,
    "surrogates": surrogates,
    "detach": detach,
    "neurons": neurons,
    "recordings": recordings,
    "fits": fits,
    "speed": speed,
    "tradeoff": tradeoff,
}
# figure → the arguments that it takes
_OPTIONS = {
    "sweep": ("x", "color", "facet", "metric", "experiment_name"),
    "epochs": ("color", "experiment_name"),
    "recordings": ("experiment_name",),
    "fits": ("experiment_name",),
}
_NAMES = tuple({**FIGURES, **_OPTIONS})


def figures(cfg: DictConfig) -> None:
    """Draw one run's pictures into its folder, or a figure of a sweep, of searches or of the paper.

    Raises:
        ValueError: the figure, a setting or the metric is unknown.
        FileNotFoundError: the run is not finished or not evaluated, or the table or a study is
            missing.
    """
    known = [*_NAMES, SEARCH]
    if cfg.figure is not None and cfg.figure not in known:
        raise ValueError(f"figure: expected one of {', '.join(known)}, got {cfg.figure!r}")
    use_style()
    for path in _of_run(Run(Path(cfg.run))) if cfg.run is not None else _of_table(cfg):
        print(path)


def _of_run(run: Run) -> list[Path]:
    row, scores = run.result(), read_json(run.folder / "evaluation.json")
    if row is not None and "fit_s" in row:
        traces = cells_of(read_npz(run.folder / "traces.npz"))
        return [recording_fit(traces, run.folder / "figures" / "recording")]
    if row is not None and "test_accuracy" not in row:
        found = "a fold of cross-validation"
        raise ValueError(f"{run.folder}: expected a tested run, got {found}")
    if row is None or not scores:
        raise FileNotFoundError(
            f"{run.folder}: expected a finished, evaluated run, got none; "
            f"run `blockspike evaluate {run.folder}`"
        )
    metrics = read_metrics(run.folder / "metrics.csv")
    folder = run.folder / "figures"
    curve = learning_curve(
        metrics, scores, row["chosen_epoch"], row["test_accuracy"], folder / "learning_curve"
    )
    counts = np.array(scores["confusion"])
    return [
        curve,
        raster(read_npz(run.folder / "activity.npz"), folder / "raster"),
        confusion_matrix(counts, folder / "confusion"),
    ]


def _of_table(cfg: DictConfig) -> list[Path]:
    if cfg.figure == SEARCH:
        if not (paths := draw_searches(Path(cfg.output_dir))):
            raise FileNotFoundError(
                f"{cfg.output_dir}: expected the study of a search, got none; "
                "`blockspike search nmnist_sample` makes one"
            )
        return paths
    table, source = read_table(Path(cfg.table))
    table = of_experiment(table, cfg.experiment_name)
    folder = Path(cfg.output_dir) / "figures"
    if cfg.figure == "sweep":
        paths = [_sweep(table, folder, cfg)]
    elif cfg.figure == "epochs":
        paths = [_epochs(table, folder, cfg)]
    else:
        paths = FIGURES[cfg.figure](table, folder)
    given = {name: cfg[name] for name in _OPTIONS.get(cfg.figure, ()) if cfg[name] is not None}
    option = {"experiment_name": "experiment"}
    arguments = [
        f"--{option.get(name, name)}={','.join(x) if name == 'color' else x}"
        for name, x in given.items()
    ]
    for path in paths:
        replace(source, arguments=shlex.join(arguments)).write_beside(path)
    return paths


def _sweep(table: pd.DataFrame, folder: Path, cfg: DictConfig) -> Path:
    chosen = roles(table, cfg.x, cfg.color, cfg.facet, cfg.metric)
    path, found = sweep(table, folder, chosen, cfg.metric)
    for warning in found.warnings:
        print(f"blockspike plot: {warning}", file=sys.stderr)
    return path


def _epochs(table: pd.DataFrame, folder: Path, cfg: DictConfig) -> Path:
    require_columns(table, ("run", "experiment"))
    metrics = [read_metrics(Path(cfg.output_dir) / run / "metrics.csv") for run in table["run"]]
    curves = mean_curves(table, metrics, cfg.color)
    for curve in curves:
        print(curve)
    return epochs(curves, folder)
