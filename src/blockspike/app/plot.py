"""`blockspike plot`: pictures of a run, a sweep, a search or the paper."""

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

plot = typer.Typer(
    help="Draw runs, sweeps, searches and the paper's figures.", no_args_is_help=True
)

_Table = Annotated[
    Path | None, typer.Option(help=".csv or .parquet; default: OUTPUT_DIR/tables/runs.csv.")
]
_Color = Annotated[str | None, typer.Option(help="Settings with colours, as in model,seed.")]
_Metric = Annotated[str | None, typer.Option(help="A column of numbers.")]
_Experiment = Annotated[str | None, typer.Option(help="Only runs of this experiment.")]
_OutputDir = Annotated[Path, typer.Option(help="Folder of the runs; figures/ in it is written.")]
_OUTPUTS = Path("outputs")


@plot.command("run")
def plot_run(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """A finished run: learning curve, raster and confusion matrix, or traces of fitted cells."""
    _draw(run=str(run))


@plot.command()
def sweep(
    x: Annotated[str | None, typer.Option(help="Setting on the horizontal axis.")] = None,
    color: Annotated[
        str | None, typer.Option(help="Settings with colours, as in model,seed.")
    ] = None,
    facet: Annotated[str | None, typer.Option(help="Setting with a panel for each value.")] = None,
    metric: _Metric = None,
    experiment: _Experiment = None,
    table: _Table = None,
    output_dir: _OutputDir = _OUTPUTS,
) -> None:
    """Means and standard errors of any metric against any setting."""
    colors = color.split(",") if color else None
    more = {"experiment_name": experiment, "table": table, "output_dir": output_dir}
    _draw(figure="sweep", x=x, color=colors, facet=facet, metric=metric, **more)


@plot.command()
def epochs(
    color: Annotated[
        str | None, typer.Option(help="Settings with colours, as in model,seed.")
    ] = None,
    experiment: _Experiment = None,
    table: _Table = None,
    output_dir: _OutputDir = _OUTPUTS,
) -> None:
    """Mean learning curves over seeds or folds."""
    colors = color.split(",") if color else None
    more = {"experiment_name": experiment, "table": table, "output_dir": output_dir}
    _draw(figure="epochs", color=colors, **more)


@plot.command()
def search(output_dir: _OutputDir = _OUTPUTS) -> None:
    """The trials of every search."""
    _draw(figure="search", output_dir=output_dir)


@plot.command()
def fits(
    experiment: _Experiment = None, table: _Table = None, output_dir: _OutputDir = _OUTPUTS
) -> None:
    """Test scores of fits side by side."""
    _draw(figure="fits", experiment_name=experiment, table=table, output_dir=output_dir)


@plot.command()
def paper(
    name: Annotated[
        str,
        typer.Argument(
            help="classification, surrogates, detach, neurons, recordings, speed or tradeoff."
        ),
    ],
    experiment: _Experiment = None,
    table: _Table = None,
    output_dir: _OutputDir = _OUTPUTS,
) -> None:
    """A figure of the paper, from a table of runs or speeds."""
    _draw(figure=name, experiment_name=experiment, table=table, output_dir=output_dir)


def _draw(**given: Any) -> None:
    from omegaconf import OmegaConf

    names = ("run", "figure", "x", "color", "facet", "metric", "experiment_name")
    folder = given.get("output_dir", _OUTPUTS)
    cfg = dict.fromkeys(names) | given | {"output_dir": str(folder)}
    cfg["table"] = str(given.get("table") or folder / "tables" / "runs.csv")
    import_module("blockspike.app.figures").figures(OmegaConf.create(cfg))
