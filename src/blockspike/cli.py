"""`blockspike COMMAND [overrides]`.

What loads PyTorch is imported once a command is to run: `--help` and tab completion are quick.
"""

import os
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from blockspike.commands.completion import SCRIPTS, candidates
from blockspike.files import CONF

COMMANDS = (
    "prepare", "train", "fit", "evaluate", "publish", "figures", "benchmark", "status", "collect",
    "report",
)  # fmt: skip
RUNS = ("train", "fit")  # the commands that make runs, of which there are sweeps
# Errors that say what was wrong with the input; anything else is a defect and keeps its traceback.
EXPECTED = (ValueError, OSError, HydraException, OmegaConfBaseException)
# What else Hydra raises for overrides: 3,000 digits, 500 brackets.
OF_OVERRIDES = (*EXPECTED, OverflowError, RecursionError)

HELP = """blockspike: train and fit adaptive spiking neurons, exactly and fast

usage: blockspike COMMAND [overrides]

  prepare    recordings → one prepared file:    blockspike prepare data=nmnist_sample
  train      a classifier, or a sweep with -m:  blockspike train data=nmnist_sample model=fused
  fit        neurons fitted to recordings:      blockspike fit data.path=my_cell.npz
  evaluate   a finished run on its test data:   blockspike evaluate run=outputs/…
             a trained network that is shipped: blockspike evaluate pretrained=nmnist_sample_alif
             a fitted neuron on a recording:    blockspike evaluate neuron=….json recording=…
  publish    its network as a file with a card: blockspike publish run=outputs/… name=…
  figures    pictures of a finished run:        blockspike figures run=outputs/…
             or of a table of runs:             blockspike figures figure=classification
  benchmark  speed, side by side:               blockspike benchmark study=length
  status     how far the runs of sweeps are:    blockspike status
  collect    all finished runs → one table:     blockspike collect
  report     all there is on one page:          blockspike report run=outputs/…

blockspike COMMAND --help lists a command's options, --cfg job prints its configuration,
and `eval "$(blockspike completion bash)"` (or zsh) switches on tab completion.
"""


def main() -> None:
    """Entry point. Exit code 0, or 2 with one line that says what was wrong.

    A traceback is printed for errors that are not the user's, and for all with
    HYDRA_FULL_ERROR=1.
    """
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(HELP)
        return
    if name == "completion":
        _completion(sys.argv[2:])
        return
    # Before PyTorch starts: its waiting threads spin for milliseconds otherwise, on a core that the
    # kernels' threads or another process want.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # MKL's sums in an order that does not depend on how many threads share them.
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
    if not _succeeds(name):
        sys.exit(2)


def _succeeds(name: str) -> bool:
    """Run the command, once or for each run of a sweep; print what was wrong."""
    from blockspike.runs.jobs import report, run_here, run_in_subprocess
    from blockspike.runs.renamed import check_names
    from blockspike.runs.run import remove_if_empty
    from blockspike.runs.sweeps import RecordSweep, run_folder, sweep_is_done

    wished = os.environ.get("HYDRA_FULL_ERROR", "0")
    full = wished == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises, we print
    RecordSweep.planned = None
    failed = composed = False

    def job(cfg: DictConfig) -> None:
        nonlocal failed, composed
        composed = True
        try:
            if name in RUNS:
                cfg.run_dir = str(run_folder(cfg))
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                run_in_subprocess(name, cfg, full)  # the sweep's states tell how it ended
            else:
                run_here(name, cfg)
        except EXPECTED as error:  # here, since Hydra would print its overrides first
            report(name, error, full)
            failed = True
        finally:
            if name in RUNS:  # Hydra makes the run's folder before the run may have one
                made = Path(HydraConfig.get().runtime.output_dir)
                remove_if_empty(made, Path(cfg.output_dir))

    try:
        if name not in COMMANDS:
            raise ValueError(f"command: expected one of {', '.join(COMMANDS)}, got {name!r}")
        # Overrides last: Hydra's parser takes no flag between them.
        arguments = sorted(sys.argv[2:], key=_is_override)
        sys.argv = [f"blockspike {name}", *(_as_override(name, a) for a in arguments)]
        if name in RUNS:
            check_names(name, sys.argv[1:])
        elif {"-m", "--multirun"} & set(arguments):
            raise ValueError(f"-m: expected {' or '.join(RUNS)}, got {name}")
        import_module("blockspike.config.schemas").register_schemas()
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=name)(job)()
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command again continues")
    except Exception as error:
        expected = EXPECTED if composed else OF_OVERRIDES
        if RecordSweep.planned is None and not isinstance(error, expected):
            raise
        report(name, error, full)  # in a sweep: its launcher failed, and runs may be missing
        failed = True
    finally:
        os.environ["HYDRA_FULL_ERROR"] = wished
    return sweep_is_done() and not failed


def _completion(arguments: list[str]) -> None:
    """Print a shell's completion script, or what may complete a line of it."""
    kind = arguments[0] if arguments else "none"
    if kind == "query":
        print("\n".join(candidates(COMMANDS, " ".join(arguments[1:]))))
    elif kind in SCRIPTS:
        print(SCRIPTS[kind])
    else:
        shells = " or ".join(SCRIPTS)
        print(f"blockspike completion: expected {shells}, got {kind}", file=sys.stderr)
        sys.exit(2)


def _is_override(argument: str) -> bool:
    """Whether it is an override (key=value, ~key), not a flag or a flag's value."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


_PATHS = ("run", "pretrained", "neuron", "recording", "data.path", "replay")
_LAUNCHERS = {  # of `sweep=`: the package, of the extra `sweep`
    "joblib": "hydra-joblib-launcher",
    "slurm": "hydra-submitit-launcher",
    "submitit_local": "hydra-submitit-launcher",
}
_LISTS = ("study", "n_steps", "arp_steps", "batch_size", "n_units", "n_layers", "contenders")


def _as_override(command: str, argument: str) -> str:
    """What people write → what Hydra reads: paths in quotes, lists in brackets, --check.

    run=outputs/a=1,b=2 → run='outputs/a=1,b=2'; study=length,layers → study=['length','layers'].
    """
    name, _, value = argument.partition("=")
    if not name.strip("+~@ "):
        raise ValueError(f"expected key=value, got {argument:.80}")
    if name == "sweep" and value in _LAUNCHERS:
        _check_launcher(value)
    if command == "benchmark":
        if argument == "--check":
            return "check=true"
        if name in _LISTS and value[:1] not in ("", "[") and value != "null":
            items = (item if item.isdigit() else f"'{item}'" for item in value.split(","))
            return f"{name}=[{','.join(items)}]"
    if name not in _PATHS or value[:1] in ("'", '"', ""):
        return argument
    return f"{name}='{value}'"


def _check_launcher(name: str) -> None:
    """Raise ValueError if the launcher is not installed: Hydra only says that it knows no such."""
    try:
        version(_LAUNCHERS[name])
    except PackageNotFoundError:
        raise ValueError(
            f"sweep: expected serial, since no launcher of {name} is installed, got {name}; "
            "pip install 'blockspike[sweep]' brings it"
        ) from None


if __name__ == "__main__":
    main()
