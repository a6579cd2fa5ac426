"""Classes that a configuration may name by `_target_`.

A run's `config.yaml` may come from somebody else, and Hydra calls whatever a `_target_` names. So
only some classes of a few packages are allowed, and packages that the user trusts.
"""

import inspect
import os
import sys
from importlib import import_module
from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from blockspike.neurons.surrogates import Surrogate

_CLASSES: dict[str, tuple[type, ...]] = {  # package → base classes of what it allows
    "blockspike": (pl.LightningDataModule, pl.Callback, nn.Module, Optimizer, Surrogate),
    "pytorch_lightning": (pl.Trainer, pl.Callback),
    "torch.optim": (Optimizer, LRScheduler),
}
_OTHERS = (
    "blockspike.app.mlflow_run.mlflow_logger",
    "blockspike.app.wandb_run.wandb_logger",
    "pytorch_lightning.loggers.CSVLogger",
    "pytorch_lightning.loggers.TensorBoardLogger",
)
_ALLOW = "BLOCKSPIKE_ALLOW"  # environment variable: packages or modules, separated by commas


def checked_targets(node: Any, key: str) -> Any:
    """Check every `_target_` of a node, at any depth, and replace it by its definition's name.

    Nothing is imported before every name is known to be in an allowed package.

    Args:
        node: resolved dicts and lists.
        key: the node's key in the configuration, for messages.

    Raises:
        ValueError: a target is not allowed, does not exist or is not defined in its package, or
            has positional arguments; names the key.
    """
    _check_names(node, key)
    return _defined(node, key)


def _check_names(node: Any, key: str) -> None:
    for name, item in _items(node):
        _check_names(item, f"{key}.{name}")
    if not isinstance(node, dict) or "_target_" not in node:
        return
    target = node["_target_"]
    if not isinstance(target, str) or "." not in target:
        raise ValueError(f"{key}._target_: expected package.module.Class, got {target!r}")
    if "_args_" in node:
        raise ValueError(f"{key}._args_: expected arguments by name, got positional ones")
    if not _is_within(target, (*_CLASSES, *_trusted())):
        package = target.partition(".")[0]
        raise ValueError(
            f"{key}._target_: expected a class of {', '.join(_CLASSES)}, got {target}; if you "
            f"trust the code of {package}, set {_ALLOW}={package}"
        )


def _defined(node: Any, key: str) -> Any:
    if isinstance(node, list):
        return [_defined(item, f"{key}.{i}") for i, item in _items(node)]
    if not isinstance(node, dict):
        return node
    found = {name: _defined(item, f"{key}.{name}") for name, item in node.items()}
    if "_target_" in found:
        found["_target_"] = _definition(found["_target_"], f"{key}._target_")
    return found


def _definition(target: str, key: str) -> str:
    """The name under which the target's own module defines it."""
    module, _, name = target.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # an import runs the module
        raise ValueError(
            f"{key}: expected a name that can be imported, got {target} ({error})"
        ) from error
    home = getattr(found, "__module__", None) or ""
    is_plain = (inspect.isclass(found) or inspect.isfunction(found)) and (
        getattr(sys.modules.get(home), found.__name__, None) is found
    )
    of_ours = (kinds for package, kinds in _CLASSES.items() if _is_within(home, (package,)))
    kinds = next(of_ours, ())
    if not is_plain or not (
        _is_within(home, _trusted())
        or target in _OTHERS
        or (inspect.isclass(found) and issubclass(found, kinds))
    ):
        expected = " or ".join(kind.__name__ for kind in kinds) or f"code of {', '.join(_CLASSES)}"
        raise ValueError(
            f"{key}: expected {expected}, got {target}; a package named by {_ALLOW} must define "
            "the target itself"
        )
    return f"{home}.{found.__name__}"


def _items(node: Any) -> list[tuple[Any, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list) else []


def _is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _trusted() -> tuple[str, ...]:
    return tuple(p for p in (p.strip() for p in os.environ.get(_ALLOW, "").split(",")) if p)
