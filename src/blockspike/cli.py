"""`blockspike COMMAND [overrides]`."""

import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from blockspike.memory import keep_freed_memory
from blockspike.runs import Run
from blockspike.sweeps import RecordSweep, run_states, sweep_summary

CONF = Path(__file__).parent / "conf"

COMMANDS = (
    "prepare", "train", "evaluate", "figures", "benchmark", "status", "collect", "report",
)  # fmt: skip
# Errors that say what was wrong with the input; anything else is a defect and keeps its traceback.
EXPECTED = (ValueError, FileNotFoundError, ConnectionError, HydraException, OmegaConfBaseException)

HELP = """blockspike: train and fit adaptive spiking neurons, exactly and fast

usage: blockspike COMMAND [overrides]

  prepare    recordings → one prepared file:    blockspike prepare data=nmnist_sample
  train      one run, or a sweep with -m:       blockspike train data=nmnist_sample model=fused
             or neurons fitted to recordings:   blockspike train experiment=fit_my_recording …
  evaluate   a finished run on its test data:   blockspike evaluate run=outputs/…
             a fitted neuron on a recording:    blockspike evaluate neuron=….json recording=…
  figures    pictures of a finished run:        blockspike figures run=outputs/…
             or of a table of runs:             blockspike figures figure=classification
  benchmark  speed, side by side:               blockspike benchmark study=length
  status     how far the runs of sweeps are:    blockspike status
  collect    all finished runs → one table:     blockspike collect
  report     all there is on one page:          blockspike report run=outputs/…

blockspike COMMAND --help lists a command's options, --cfg job prints its configuration,
and `eval "$(blockspike train -sc install=bash)"` switches on tab completion.
"""


def _command(name: str) -> Callable[[DictConfig], object]:
    if name not in COMMANDS:
        raise ValueError(f"command: expected one of {', '.join(COMMANDS)}, got {name!r}")
    return getattr(import_module(f"blockspike.commands.{name}"), name)


def main() -> None:
    """Entry point. Exit code 0, or 2 with one line that says what was wrong.

    A traceback is printed for errors that are not the user's, and for all with
    HYDRA_FULL_ERROR=1.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(HELP)
        return
    full = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, we print
    # Before PyTorch starts: its waiting threads spin for milliseconds otherwise, on a core that the
    # kernels' threads or another process want.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    program = sys.argv[0]
    RecordSweep.runs = None
    failed: list[Exception] = []
    try:
        function = _command(name)
        # Overrides last: Hydra's parser takes no flag between them.
        arguments = sorted(sys.argv[2:], key=_is_override)
        sys.argv = [f"blockspike {name}", *(_as_override(name, a) for a in arguments)]
        import_module("blockspike.config").register_schemas()

        def job(cfg: DictConfig) -> object:
            keep_freed_memory()
            # What Lightning starts its further processes with: this run alone, also in a sweep.
            sys.argv = [program, name, *HydraConfig.get().overrides.task]
            sweeps = HydraConfig.get().mode is RunMode.MULTIRUN
            try:  # here, since Hydra would print the job's overrides first and stop a sweep's exit
                return function(cfg)
            except Exception as error:
                if not sweeps and not isinstance(error, EXPECTED):
                    raise
                _report(name, error, full)
                failed.append(error)
                if sweeps and "run_dir" in cfg:
                    Run(Path(cfg.run_dir)).write_error()

        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command again continues")
    except EXPECTED as error:
        _report(name, error, full)
        sys.exit(2)
    if not _sweep_is_done() or failed:
        sys.exit(2)


def _sweep_is_done() -> bool:
    """Print how a sweep ended, whatever process ran its jobs; True also if there was none."""
    if RecordSweep.runs is None:
        return True
    states = run_states(RecordSweep.output_dir, RecordSweep.runs)
    print(sweep_summary(states, RecordSweep.output_dir))
    return bool((states["state"] == "done").all())


def _is_override(argument: str) -> bool:
    """Whether it is an override (key=value, ~key), not a flag or a flag's value."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


_LISTS = ("study", "n_steps", "arp_steps", "batch_size", "n_units", "n_layers", "contenders")


def _as_override(command: str, argument: str) -> str:
    """What people write → what Hydra reads: paths in quotes, lists in brackets, --check.

    run=outputs/a=1,b=2 → run='outputs/a=1,b=2'; study=length,layers → study=['length','layers'].
    """
    name, _, value = argument.partition("=")
    if command == "benchmark":
        if argument == "--check":
            return "check=true"
        if name in _LISTS and value[:1] not in ("", "[") and value != "null":
            items = (item if item.isdigit() else f"'{item}'" for item in value.split(","))
            return f"{name}=[{','.join(items)}]"
    if name not in ("run", "neuron", "recording", "data.path") or value[:1] in ("'", '"', ""):
        return argument
    return f"{name}='{value}'"


def _report(name: str, error: Exception, full: bool) -> None:
    if full:
        traceback.print_exc()
    print(f"blockspike {name}: {one_line(error)}", file=sys.stderr)


def one_line(error: Exception) -> str:
    """The error and, where Hydra hides it behind a general one, its cause, on one line."""
    parts: list[str] = []
    # Hydra's instantiation error only repeats its cause.
    cause = error.__cause__ if isinstance(error, InstantiationException) else error
    while cause is not None:
        text = " ".join(str(cause).split())
        if text and not any(text in part for part in parts):
            parts.append(text)
        cause = cause.__cause__
    return ": ".join(parts) or type(error).__name__


if __name__ == "__main__":
    main()
