"""The command line: `train`, `fit` and `prepare` belong to Hydra, the other commands to Typer.

Modules that load PyTorch are imported only when a command runs, so help and tab completion are
quick.
"""

import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from omegaconf import DictConfig

from blockspike.app.plot import plot
from blockspike.files import CONF

HYDRA_COMMANDS = ("train", "fit", "prepare")

app = typer.Typer(
    help="blockspike: train and fit adaptive spiking neurons, exactly and fast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_PYTHON_LINES = warnings.formatwarning


def main() -> None:
    """Run the command line.

    The exit code is 0, 2 after one line that says what was wrong, or 1 for an interrupted command.
    A bug ends with its traceback, and so does every error if HYDRA_FULL_ERROR=1.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every locale has all letters that we print
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("PYTHONIOENCODING", ":backslashreplace")  # of the processes of a run
    # Set before PyTorch starts: the order of MKL's sums must not depend on the number of threads.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    warnings.formatwarning = _warning_line
    command = " ".join(["blockspike", *sys.argv[1:2]])
    try:
        app(prog_name="blockspike")
    except Exception as error:
        if not _is_expected(error) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"{command}: {_one_line(error)}", file=sys.stderr)
        sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"blockspike {version('blockspike')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Version.")
    ] = False,
) -> None: ...


def _complete(ctx: typer.Context, incomplete: str) -> list[str]:
    """Hydra's completions of an override."""
    import hydra
    from hydra.core.config_store import ConfigStore

    words = [x for x in ctx.params["overrides"] or [] if not x.startswith("-")]
    # Bash splits words at "=": `model=fu` is completed as the words `model`, `=` and `fu`.
    is_key = not incomplete and bool(words) and "=" not in words[-1]  # Click drops a last "="
    words += ["=", ""] if is_key else [incomplete]
    start = f"{words[-3]}=" if len(words) > 2 and words[-2] == "=" else ""
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    for name in {name for text in texts for name in re.findall(r"/schema/(\w+)", text)}:
        ConfigStore.instance().store(group="schema", name=name, node={})  # quick: no PyTorch
    os.environ["COMP_LINE"] = re.sub(r" = ?", "=", " ".join(["blockspike", *words]))
    sys.argv = ["blockspike", "--shell-completion", "query=bash"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=ctx.info_name)(print)()
    return [word.removeprefix(start) for word in printed.getvalue().split()]


_Overrides = Annotated[
    list[str], typer.Argument(autocompletion=_complete, show_default=False, metavar="[OVERRIDES]")
]
_BY_HYDRA: dict[str, Any] = {
    "context_settings": {"ignore_unknown_options": True},
    "add_help_option": False,
}


@app.command(**_BY_HYDRA)
def train(overrides: _Overrides = []) -> None:  # noqa: B006
    """Train a classifier; -m sweeps:  blockspike train data=nmnist_sample model=fused"""
    _run("train", overrides)


@app.command(**_BY_HYDRA)
def fit(overrides: _Overrides = []) -> None:  # noqa: B006
    """Fit neurons to recordings; -m sweeps:  blockspike fit data.path=my_cell.npz"""
    _run("fit", overrides)


@app.command(**_BY_HYDRA)
def prepare(overrides: _Overrides = []) -> None:  # noqa: B006
    """Turn a data set's recordings into one file:  blockspike prepare data=nmnist_sample"""
    _run("prepare", overrides)


@app.command(context_settings={"ignore_unknown_options": True})
def search(
    name: Annotated[str, typer.Argument(help="A file of conf/search.")],
    overrides: Annotated[
        list[str],
        typer.Argument(help="As of `train`; search.KEY=VALUE changes a value of that file."),
    ] = [],  # noqa: B006
) -> None:
    """Search for hyperparameters; rerun the same command to continue."""
    try:
        import_module("blockspike.app.search").search(name, overrides)
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes it")


_OutputDir = Annotated[Path, typer.Option(help="Folder of the runs.")]
_DataDir = Annotated[Path, typer.Option(help="Folder of prepared data, for a trained network.")]
_Experiment = Annotated[str | None, typer.Option(help="Only runs of this experiment.")]
_Trust = Annotated[bool, typer.Option("--trust", help="Run the code that the configuration names.")]


@app.command()
def evaluate(
    what: Annotated[
        str,
        typer.Argument(help="Folder of a run, name or file of a network, or .json of a neuron."),
    ],
    recording: Annotated[
        Path | None, typer.Option(help="Recording to compare a fitted neuron with.")
    ] = None,
    stimulus: Annotated[str | None, typer.Option(help="Only this stimulus of it.")] = None,
    electrode: Annotated[str | None, typer.Option(help="One of its electrodes.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: PyTorch's.")] = None,
    data_dir: _DataDir = Path("data"),
    trust: _Trust = False,
) -> None:
    """Test a finished run or a trained network on its test data, or a neuron on a recording."""
    module = import_module("blockspike.app.evaluate")
    import_module("blockspike.app.trainer").use_threads(threads)
    if (recording is None) == what.endswith(".json"):
        raise ValueError(f"--recording: expected for the .json of a neuron alone, got {what}")
    if recording is not None:
        neuron = import_module("blockspike.app.evaluate_neuron")
        neuron.evaluate_neuron(Path(what), recording, stimulus, electrode)
    elif Path(what).is_dir():
        module.evaluate(Path(what), trust)
    else:
        module.evaluate_pretrained(what, data_dir, trust)


@app.command()
def inspect(
    files: Annotated[list[Path], typer.Argument(help="Recordings, or folders of them.")],
    sweeps: Annotated[list[int] | None, typer.Option(help="Only this sweep; repeatable.")] = None,
) -> None:
    """List the sweeps of recordings, and what a fit would use."""
    import_module("blockspike.app.inspect").inspect(files, sweeps or None)


@app.command()
def status(output_dir: _OutputDir = Path("outputs"), experiment: _Experiment = None) -> None:
    """Show the progress of all runs, and the errors of those that failed."""
    import_module("blockspike.app.status").status(output_dir, experiment)


@app.command()
def collect(
    by: Annotated[
        str | None,
        typer.Option(help="Settings to tell means apart, as in model,data,network.n_hidden."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="A column of numbers to average.")] = None,
    experiment: _Experiment = None,
    output_dir: _OutputDir = Path("outputs"),
) -> None:
    """Gather finished runs in OUTPUT_DIR/tables/runs.csv; with --by, print means over seeds."""
    names = by.split(",") if by else []
    import_module("blockspike.app.collect").collect(output_dir, names, metric, experiment)


@app.command()
def publish(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    name: Annotated[str, typer.Argument(help="Letters, digits and _.")],
    output_dir: _OutputDir = Path("outputs"),
    trust: _Trust = False,
) -> None:
    """Export a run's network with its card: OUTPUT_DIR/published/NAME.{safetensors,md}."""
    import_module("blockspike.app.publish").publish(run, name, output_dir, trust)


app.add_typer(plot, name="plot")


@app.command()
def report(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a classifier to look into, or of a fit.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Default: of the newest figures, else of `collect`.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Default: PyTorch's.")] = None,
    output_dir: _OutputDir = Path("outputs"),
) -> None:
    """Put everything on one page, OUTPUT_DIR/report.html, or the cells of a fit in its folder."""
    import_module("blockspike.app.report").report(run, table, threads, output_dir)


@app.command(context_settings={"ignore_unknown_options": True})
def benchmark(
    overrides: Annotated[
        list[str], typer.Argument(help="Values of conf/benchmark.yaml, as in study=length,layers.")
    ] = [],  # noqa: B006
    check: Annotated[
        bool, typer.Option("--check", help="Fail if a speed ratio is below its floor.")
    ] = False,
) -> None:
    """Compare speeds side by side in OUTPUT_DIR/tables/speed.csv; rerun to continue."""
    import_module("blockspike.app.benchmark").benchmark_of(overrides, check)


def _run(command: str, arguments: list[str]) -> None:
    """Run a command by Hydra, once or for each run of a sweep."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from blockspike.app.compose import with_quoted_path
    from blockspike.app.schemas import check_keys, register_schemas

    register_schemas()
    wrong: list[Exception] = []
    failed: list[str] = []
    sys.argv = [f"blockspike {command}", *map(with_quoted_path, arguments)]
    wished = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, we print

    def job(cfg: DictConfig) -> None:
        try:
            check_keys(command, cfg)
            sys.argv = [sys.argv[0], command, *_arguments(cfg)]  # starts the run's processes
            getattr(import_module(f"blockspike.app.{command}"), command)(cfg)
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                if not _is_expected(error) or wished == "1":
                    traceback.print_exc()
                failed.append(f"{cfg.get('run_dir')}: {_one_line(error)}")
                print(f"blockspike {command}: {failed[-1]}", file=sys.stderr)
                raise  # Hydra goes on with the other runs
            wrong.append(error)  # raised here, Hydra would print a line of its own

    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=command)(job)()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes it")
    except Exception:
        if not failed:
            raise
        print(f"{len(failed)} failed:", *failed, sep="\n  ", file=sys.stderr)
        print("the same command runs what is not done", file=sys.stderr)
        sys.exit(2)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wished is not None:
            os.environ["HYDRA_FULL_ERROR"] = wished
    if wrong:
        raise wrong[0]


def _arguments(cfg: DictConfig) -> list[str]:
    """Arguments that start this run alone, in its folder."""
    from hydra.core.hydra_config import HydraConfig

    config = HydraConfig.get()
    folders = [x.path for x in config.runtime.config_sources if x.provider == "command-line"]
    found = [*(f"--config-dir={folder}" for folder in folders), *config.overrides.task]
    found += [x for x in config.overrides.hydra if not x.startswith("hydra.mode=")]
    folder = str(cfg.get("run_dir", ".")).replace("'", "\\'")
    return [*found, f"run_dir='{folder}'"]


def _is_expected(error: Exception) -> bool:
    """Whether the input caused the error; any other is a bug and keeps its traceback."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    kinds = (ValueError, OSError, ModuleNotFoundError, MemoryError)
    return (
        isinstance(error, (*kinds, HydraException, OmegaConfBaseException))
        or type(error).__name__ in ("MisconfigurationException", "OutOfMemoryError")
        or "can't allocate memory" in str(error)
    )


def _one_line(error: Exception) -> str:
    from blockspike.runs.run import one_line

    return one_line(error)


def _warning_line(message: Any, category: Any, file: str, *place: Any) -> str:
    """Our warnings without the line of code that gave them; others as Python prints them."""
    ours = Path(file).is_relative_to(Path(__file__).parents[1])
    return f"warning: {message}\n" if ours else _PYTHON_LINES(message, category, file, *place)
