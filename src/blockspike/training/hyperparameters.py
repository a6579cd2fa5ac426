"""What builds a module again: its arguments as plain values, for checkpoints and loggers."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import partial
from importlib import import_module
from typing import Any

from torch import Tensor

_TARGET = "_target_"
_OURS = ("blockspike.", "torch.")  # packages whose classes a checkpoint may name


def plain(value: Any) -> Any:
    """Numbers, words, lists and dicts for an argument of a module.

    A class, or a `partial` of one, becomes {"_target_": its name, **its arguments}, and so do
    dataclasses and networks with a dict of their `arguments`.
    """
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return {_TARGET: f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, partial):
        return plain(value.func) | plain(value.keywords)
    if isinstance(value, Mapping):
        return {str(key): plain(x) for key, x in value.items()}
    if isinstance(value, list | tuple):
        return [plain(x) for x in value]
    if isinstance(value, Tensor):
        return value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    arguments = vars(value) if is_dataclass(value) else getattr(value, "arguments", {})
    return plain(type(value)) | plain(arguments)


def made(value: Any, name: str) -> Any:
    """The argument that `plain` described, with a `partial` for a class that is no dataclass.

    Raises:
        ValueError: it needs code of another package; `name` is the argument.
    """
    if isinstance(value, list):
        return [made(x, name) for x in value]
    if not isinstance(value, Mapping):
        return value
    given = {key: made(x, name) for key, x in value.items() if key != _TARGET}
    if _TARGET not in value:
        return given
    module, _, attribute = value[_TARGET].rpartition(".")
    found = getattr(import_module(module), attribute, None) if module.startswith(_OURS) else None
    if not isinstance(found, type):
        raise ValueError(
            f"{name}: expected load_from_checkpoint(PATH, {name}=…), as the checkpoint names "
            f"{value[_TARGET]}, which it does not run, got nothing"
        )
    return found(**given) if is_dataclass(found) else partial(found, **given)
