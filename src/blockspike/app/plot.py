"""`blockspike plot`: pictures of a run, a sweep or a search.

What draws is imported when a command runs, so that help and tab completion are quick.
"""

import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import pandas as pd

plot = typer.Typer(
    help="Draw runs, sweeps, searches and the paper's figures.", no_args_is_help=True
)

_Table = Annotated[
    Path | None, typer.Option(help=".csv or .parquet; default: OUTPUT_DIR/tables/runs.csv.")
]
_Color = Annotated[str | None, typer.Option(help="Settings with colours, as in model,seed.")]
_Experiment = Annotated[str | None, typer.Option(help="Only runs of this experiment.")]
_OutputDir = Annotated[Path, typer.Option(help="Folder of the runs; figures/ in it is written.")]
_OUTPUTS = Path("outputs")


@plot.callback()
def _style() -> None:
    import_module("blockspike.plots.style").use_style()


@plot.command("run")
def plot_run(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """A finished run: learning curve, raster and confusion matrix, or traces of fitted cells."""
    for path in draw_run(run):
        print(path)


@plot.command()
def sweep(
    x: Annotated[str | None, typer.Option(help="Setting on the horizontal axis.")] = None,
    color: _Color = None,
    facet: Annotated[str | None, typer.Option(help="Setting with a panel for each value.")] = None,
    metric: Annotated[str | None, typer.Option(help="A column of numbers.")] = None,
    experiment: _Experiment = None,
    table: _Table = None,
    output_dir: _OutputDir = _OUTPUTS,
) -> None:
    """Means and standard errors of any metric against any setting."""
    from blockspike.plots import sweep
    from blockspike.plots.means import means

    rows = _rows(table, output_dir, experiment)
    chosen = sweep.roles(rows, x, color.split(",") if color else None, facet, metric)
    found = means(rows, chosen.all, metric)
    _warn(found.caveats)
    print(sweep.sweep(found, chosen, _title(rows), output_dir / "figures"))


@plot.command()
def epochs(
    color: _Color = None,
    experiment: _Experiment = None,
    table: _Table = None,
    output_dir: _OutputDir = _OUTPUTS,
) -> None:
    """Mean learning curves over seeds or folds."""
    from blockspike.plots.epochs import best_epochs, epochs, mean_curves
    from blockspike.training.metrics_table import read_metrics

    rows = _rows(table, output_dir, experiment)
    metrics = [read_metrics(output_dir / run / "metrics.csv") for run in rows["run"]]
    found = mean_curves(rows, metrics, color.split(",") if color else None)
    _warn(found.caveats)
    print(*best_epochs(found), sep="\n")
    print(epochs(found, _title(rows), output_dir / "figures"))


@plot.command()
def search(output_dir: _OutputDir = _OUTPUTS) -> None:
    """The trials of every search."""
    from blockspike.plots.search import search
    from blockspike.runs.studies import studies

    if not (found := studies(output_dir)):
        raise FileNotFoundError(
            f"{output_dir}: expected the study of a search, got none; "
            "`blockspike search nmnist_sample` makes one"
        )
    for study in found:
        for path in search(study, output_dir / "figures"):
            print(path)


@plot.command()
def fits(
    experiment: _Experiment = None, table: _Table = None, output_dir: _OutputDir = _OUTPUTS
) -> None:
    """Test scores of fits side by side."""
    from blockspike.plots.fits import fits

    print(*fits(_rows(table, output_dir, experiment), output_dir / "figures"), sep="\n")


# Figure of the paper → its module and function.
_PAPER = {
    "classification": "classification", "surrogates": "surrogates", "detach": "surrogates",
    "neurons": "neurons", "recordings": "recordings", "speed": "speed", "tradeoff": "speed",
}  # fmt: skip


@plot.command()
def paper(
    name: Annotated[str, typer.Argument(help=f"{', '.join(_PAPER)}.")],
    experiment: _Experiment = None,
    table: _Table = None,
    output_dir: _OutputDir = _OUTPUTS,
) -> None:
    """A figure of the paper, from a table of runs or speeds."""
    if name not in _PAPER:
        raise ValueError(f"figure: expected one of {', '.join(_PAPER)}, got {name!r}")
    draw = getattr(import_module(f"blockspike.figures.{_PAPER[name]}"), name)
    print(*draw(_rows(table, output_dir, experiment), output_dir / "figures"), sep="\n")


def draw_run(folder: Path) -> list[Path]:
    """Draw the pictures of a finished run into its folder; returns the PNGs.

    Raises:
        FileNotFoundError: the run is not finished or not evaluated.
        ValueError: it is a fold of a cross-validation, which is not tested, or a file is damaged.
    """
    import numpy as np

    from blockspike.data.limits import read_npz
    from blockspike.files import read_json
    from blockspike.plots.cells import cells_of
    from blockspike.plots.confusion import confusion_matrix
    from blockspike.plots.learning_curve import learning_curve
    from blockspike.plots.raster import raster
    from blockspike.plots.recording import recording_fit
    from blockspike.runs.run import Run
    from blockspike.training.metrics_table import read_metrics

    row, scores, figures = Run(folder).result(), read_json(folder / "evaluation.json"), "figures"
    if row is not None and "fit_s" in row:
        cells = cells_of(read_npz(folder / "traces.npz"))
        return [recording_fit(cells, folder / figures / "recording")]
    if row is not None and "test_accuracy" not in row:
        raise ValueError(f"{folder}: expected a tested run, got a fold of cross-validation")
    if row is None or not scores:
        raise FileNotFoundError(
            f"{folder}: expected a finished, evaluated run, got none; "
            f"run `blockspike evaluate {folder}`"
        )
    metrics = read_metrics(folder / "metrics.csv")
    place, epoch = folder / figures / "learning_curve", row["chosen_epoch"]
    return [
        learning_curve(metrics, scores, epoch, row["test_accuracy"], place),
        raster(read_npz(folder / "activity.npz"), folder / figures / "raster"),
        confusion_matrix(np.array(scores["confusion"]), folder / figures / "confusion"),
    ]


def _rows(table: Path | None, output_dir: Path, experiment: str | None) -> "pd.DataFrame":
    from blockspike.plots.means import of_experiment, read_table

    return of_experiment(read_table(table or output_dir / "tables" / "runs.csv"), experiment)


def _title(rows: "pd.DataFrame") -> str:
    """The experiment of the rows, or `all` of several."""
    names = rows["experiment"].unique()
    return str(names[0]) if len(names) == 1 else "all"


def _warn(caveats: list[str]) -> None:
    for text in caveats:
        warnings.warn(text, stacklevel=2)
