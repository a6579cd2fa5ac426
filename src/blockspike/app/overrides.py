"""Overrides on the command line, and how Hydra takes them."""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

COMMANDS = (
    "prepare", "train", "fit", "search", "evaluate", "inspect", "publish", "figures", "benchmark",
    "status", "collect", "report",
)  # fmt: skip
RUNS = ("train", "fit")  # the commands that make runs and can sweep
# Errors caused by the input; any other is a bug and keeps its traceback.
EXPECTED = (ValueError, OSError, ModuleNotFoundError, HydraException, OmegaConfBaseException)
# Hydra also raises these for extreme overrides: 3,000 digits, 500 brackets.
OF_OVERRIDES = (*EXPECTED, OverflowError, RecursionError)

_PATHS = (
    "run",
    "pretrained",
    "neuron",
    "recording",
    "data.path",
    "path",
    "init_from",
    "resume_from",
)
_KEY_OF_PATH = {  # command → the key of the path that a user may have given alone
    "fit": "data.path", "evaluate": "run", "publish": "run", "figures": "run", "report": "run",
}  # fmt: skip
_LAUNCHERS = {  # choice of `sweep=` → the package it needs, from the extra `sweep`
    "joblib": "hydra-joblib-launcher",
    "slurm": "hydra-submitit-launcher",
}
_LISTS = {  # command → its options that take several values
    "benchmark": (
        "study", "n_steps", "arp_steps", "batch_size", "n_units", "n_layers", "contenders",
    ),
    "collect": ("by",),
    "figures": ("color",),
}  # fmt: skip


def is_override(argument: str) -> bool:
    """Return whether `argument` is an override (key=value, ~key), not a flag or its value."""
    return argument.startswith("~") or ("=" in argument and not argument.startswith("-"))


def check_has_key(command: str, argument: str) -> None:
    """Raise ValueError if an argument that is no flag has no key, as a lone path."""
    key = _KEY_OF_PATH.get(command)
    name = argument.partition("=")[0]
    is_path = key is not None and "/" in name and Path(argument).exists()  # such as a/seed=0
    if is_path or not is_override(argument) or not name.strip("+~@ "):
        example = f", such as {key}={argument.strip('+~@= '):.80}" if key else ""
        raise ValueError(f"override: expected key=value{example}, got {argument:.80}")


def as_override(command: str, argument: str) -> str:
    """Translate an override for Hydra: quote paths, put lists in brackets.

    run=outputs/a=1,b=2 → run='outputs/a=1,b=2'; study=length,layers → study=['length','layers'].
    """
    name, _, value = argument.partition("=")
    if name == "sweep" and value in _LAUNCHERS:
        _check_launcher(value)
    if name in _LISTS.get(command, ()) and value[:1] not in ("", "[") and value != "null":
        items = (item if item.isdigit() else quoted(item) for item in value.split(","))
        return f"{name}=[{','.join(items)}]"
    if name not in _PATHS or value == "null" or value[:1] in ("'", '"', ""):
        return argument
    return f"{name}={quoted(value)}"


def quoted(value: str) -> str:
    """A value that Hydra takes as it is."""
    escaped = value.replace("'", "\\'")
    return f"'{escaped}'"


def _check_launcher(name: str) -> None:
    """Raise ValueError if the launcher is not installed; Hydra's own message does not say so."""
    try:
        version(_LAUNCHERS[name])
    except PackageNotFoundError:
        raise ValueError(
            f"sweep: expected serial, since the launcher of {name} is not installed, got {name}; "
            "install it with pip install 'blockspike[sweep]'"
        ) from None
