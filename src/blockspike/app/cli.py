"""`blockspike COMMAND [overrides]`.

Modules that load PyTorch are imported only when a command runs, so `--help` and tab completion
are quick.
"""

import io
import os
import re
import select
import sys
import traceback
import warnings
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from blockspike.app.completion import SCRIPTS, candidates
from blockspike.app.overrides import (
    COMMANDS,
    EXPECTED,
    OF_OVERRIDES,
    RUNS,
    as_override,
    check_has_key,
    is_override,
)
from blockspike.files import CONF

HELP = """blockspike: train and fit adaptive spiking neurons, exactly and fast

usage: blockspike COMMAND [overrides]

  prepare    turn recordings into one file:     blockspike prepare data=nmnist_sample
  train      train a classifier; -m sweeps:     blockspike train data=nmnist_sample model=fused
  fit        fit neurons to recordings:         blockspike fit data.path=my_cell.npz
  search     look for hyperparameters:          blockspike search nmnist_sample
  evaluate   test a finished run:               blockspike evaluate run=outputs/…
             or a trained network:              blockspike evaluate pretrained=nmnist_sample_alif
             or a fitted neuron:                blockspike evaluate neuron=….json recording=…
  inspect    list a recording's sweeps:         blockspike inspect my_cell.abf
  publish    export a network with its card:    blockspike publish run=outputs/… name=…
  figures    draw a finished run:               blockspike figures run=outputs/…
             or a table of runs:                blockspike figures figure=classification
  benchmark  compare speeds side by side:       blockspike benchmark study=length
  status     show the progress of all runs:     blockspike status
  collect    gather finished runs in a table:   blockspike collect
  report     put everything on one page:        blockspike report run=outputs/…
             or the cells of a fit:             blockspike report run=outputs/fit/…

`blockspike COMMAND --help` lists a command's options, `--cfg job` prints its configuration,
`blockspike --version` the version, and `eval "$(blockspike completion bash)"` (or zsh) switches on
tab completion.
"""


_PYTHON_LINES = warnings.formatwarning
_WITH_VALUE = (  # Hydra's flags that are followed by a value
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn",
    "--config-dir", "-cd", "--experimental-rerun", "--info", "-i",
)  # fmt: skip


def main() -> None:
    """Run the command line: exit code 0, or 2 with one line that says what was wrong.

    The code is 1 if the command is interrupted, a speed is below its floor (`benchmark --check`) or
    nobody reads what is printed. A traceback is printed for bugs, and for every error if
    HYDRA_FULL_ERROR=1.
    """
    try:
        try:
            _main()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except BrokenPipeError as error:
        if sys.stdout is None or not _is_unread(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the rest of it
        sys.exit(1)


def _main() -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every locale has all letters that we print
            stream.reconfigure(errors="backslashreplace")
    os.environ.setdefault("PYTHONIOENCODING", ":backslashreplace")  # of the processes of a run
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(HELP)
        return
    if name == "--version":
        print(f"blockspike {version('blockspike')}")
        return
    if name == "completion":
        _completion(sys.argv[2:])
        return
    if name in COMMANDS and name not in RUNS and {"-h", "--help"} & set(sys.argv[2:]):
        print(_help(name))
        return
    warnings.formatwarning = _warning_line
    # Set before PyTorch starts: the order of MKL's sums must not depend on the number of threads.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if not _succeeds(name):
        sys.exit(2)


def _help(command: str) -> str:
    """Text of a command without runs: its configuration file, whose comments explain each value."""
    if command == "search":
        files = sorted((CONF / "search").glob("*.yaml"))
        return "\n".join(file.read_text(encoding="utf-8") for file in files)
    text = (CONF / f"{command}.yaml").read_text(encoding="utf-8")
    about, defaults, values = re.split(r"^defaults:\n((?:  - .*\n)+)\n", text, flags=re.MULTILINE)
    for group, option in re.findall(r"  - (\w+): (\w+)\n", defaults):
        others = sorted(x.stem for x in (CONF / group).glob("*.yaml") if x.stem != option)
        values += f"{group}: {option} # or {', '.join(others)}\n"
    about = re.sub(r"^# ?", "", about, flags=re.MULTILINE)
    return f"{about}\nOptions, set by NAME=VALUE, with their defaults:\n\n{values.rstrip()}"


def _warning_line(message: Any, category: Any, file: str, *place: Any) -> str:
    """Our own warnings without the line of code that gave them; others as Python prints them."""
    ours = Path(file).is_relative_to(Path(__file__).parents[1])
    return f"warning: {message}\n" if ours else _PYTHON_LINES(message, category, file, *place)


def _is_unread(error: Exception) -> bool:
    """Whether an error is that the reader of what we print, such as `head`, has gone."""
    if not isinstance(error, BrokenPipeError) or sys.stdout is None:
        return False
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _succeeds(name: str) -> bool:
    """Run the command, once or for each run of a sweep; print what was wrong."""
    from blockspike.app.choices import explained, hide_schemas

    wished = os.environ.get("HYDRA_FULL_ERROR", "0")
    full = wished == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, we print
    failed: list[str] = []

    def job(cfg: DictConfig) -> None:
        try:
            _run(name, cfg)
        except Exception as error:
            is_sweep = HydraConfig.get().mode is RunMode.MULTIRUN
            if _is_unread(error) or not (is_sweep or _is_expected(error)):
                raise
            shows_trace = full or not _is_expected(error)
            message = _report(name, explained(error, sys.argv[1:]), shows_trace)
            failed.append(f"{cfg.get('run_dir')}: {message}")
            if is_sweep:
                raise  # Hydra goes on with the other runs

    try:
        if name == "search":
            run_search = import_module("blockspike.app.search").search
            run_search(*_search_arguments(sys.argv[2:]))
            return True
        sys.argv = [f"blockspike {name}", *_arguments(name)]
        hide_schemas()
        import_module("blockspike.app.top_level").register_for(name)
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command resumes it")
    except Exception as error:
        if _is_unread(error) or not (failed or _is_expected(error, OF_OVERRIDES)):
            raise
        if failed:  # runs of a sweep in this process
            print(f"{len(failed)} failed:", *failed, sep="\n  ", file=sys.stderr)
            print("the same command runs what is not done", file=sys.stderr)
        else:
            failed.append(_report(name, explained(error, sys.argv[1:]), full))
    finally:
        os.environ["HYDRA_FULL_ERROR"] = wished
    return not failed


def _run(name: str, cfg: DictConfig) -> None:
    """Run a command with its configuration; its processes, if any, by this run's command line."""
    if name in RUNS:
        hydra = HydraConfig.get()
        folders = [x.path for x in hydra.runtime.config_sources if x.provider == "command-line"]
        arguments = [*(f"--config-dir={folder}" for folder in folders), *hydra.overrides.task]
        arguments += [x for x in hydra.overrides.hydra if not x.startswith("hydra.mode=")]
        folder = str(cfg.run_dir).replace("'", "\\'")
        sys.argv = [sys.argv[0], name, *arguments, f"run_dir='{folder}'"]
    getattr(import_module(f"blockspike.app.{name}"), name)(cfg)


def _is_expected(error: Exception, kinds: tuple[type[Exception], ...] = EXPECTED) -> bool:
    """Whether the input caused the error; any other is a bug and keeps its traceback."""
    return isinstance(error, kinds) or type(error).__name__ == "MisconfigurationException"


def _report(name: str, error: Exception, full: bool) -> str:
    """Print a command's error on one line, which is returned; if `full`, after its traceback."""
    from blockspike.runs.run import one_line

    if full:
        traceback.print_exception(error)
    print(f"blockspike {name}: {one_line(error)}", file=sys.stderr)
    return one_line(error)


def _search_arguments(given: list[str]) -> tuple[str, list[str]]:
    if not given or "=" in given[0] or given[0].startswith("-"):
        raise ValueError("search: expected `blockspike search NAME [overrides]`, as in conf/search")
    return given[0], given[1:]


def _arguments(name: str) -> list[str]:
    """Arguments of the command as Hydra takes them: overrides go last, with no flag between.

    Raises:
        ValueError: there is no such command, or an argument is bad.
    """
    from blockspike.app.choices import check_choices

    if name not in COMMANDS:
        hint = "; flags follow the command" if name.startswith("-") else ""
        raise ValueError(f"command: expected one of {', '.join(COMMANDS)}, got {name!r}{hint}")
    flags, given = [], []
    for before, word in pairwise(["", *sys.argv[2:]]):
        is_value = before in _WITH_VALUE
        argument = word if is_value else _with_key(name, word)
        (flags if is_value or not is_override(argument) else given).append(argument)
    if sum(x.startswith("path=") for x in given) > 1:
        raise ValueError(f"path: expected one path, got {' and '.join(sys.argv[2:])}")
    if name == "benchmark" and "--check" in flags:
        flags.remove("--check")
        given.append("check=true")
    arguments = [*flags, *(as_override(name, argument) for argument in given)]
    if name not in RUNS and {"-m", "--multirun"} & set(flags):
        raise ValueError(f"-m: expected {' or '.join(RUNS)}, got {name}")
    check_choices(arguments)
    return arguments


def _completion(arguments: list[str]) -> None:
    """Print a shell's completion script, or the candidates for a line typed in it."""
    kind = arguments[0] if arguments else "none"
    if kind == "query":
        print("\n".join(candidates(COMMANDS, " ".join(arguments[1:]))))
    elif kind in SCRIPTS:
        print(SCRIPTS[kind])
    else:
        shells = " or ".join(SCRIPTS)
        print(f"blockspike completion: expected {shells}, got {kind}", file=sys.stderr)
        sys.exit(2)


def _with_key(command: str, argument: str) -> str:
    """Turn the path that `inspect` takes without a key into an override; refuse another one."""
    if argument.startswith("-"):
        return argument
    if command == "inspect" and not is_override(argument):
        return f"path={argument}"
    check_has_key(command, argument)
    return argument
