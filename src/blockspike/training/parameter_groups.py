"""An optimiser's parameters in groups: learning rates by name, weight decay for weights alone."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from inspect import signature
from typing import Any

from torch import nn
from torch.optim import Optimizer

_OTHERS = "others"  # name of the group of parameters that no pattern matches
_ABSOLUTE = ("max_lr", "base_lr")  # arguments of schedulers that set a learning rate


def pattern_of(names: Iterable[str], patterns: Iterable[str]) -> dict[str, str]:
    """The pattern that matches each name; names that none matches are left out.

    A pattern may have `*` and `?`. It matches whole names and their ends: `beta` and `readout.*`
    both match `readout.beta`.

    Raises:
        ValueError: a pattern matches no name, or two match the same.
    """
    names, found = list(names), {}
    for pattern in patterns:
        matched = [n for n in names if fnmatchcase(f".{n}", f"*.{pattern}")]
        if not matched:
            raise ValueError(
                f"lr_factors.{pattern}: expected a trained parameter ({', '.join(names)}), got none"
            )
        for name in matched:
            if name in found:
                raise ValueError(
                    f"lr_factors: expected one pattern for {name}, got {found[name]} and {pattern}"
                )
            found[name] = pattern
    return found


@contextmanager
def _naming(what: str) -> Iterator[None]:
    """Raise errors of PyTorch at values of a wrong type as a ValueError that names their group."""
    try:
        yield
    except (TypeError, IndexError, ZeroDivisionError) as error:
        raise ValueError(f"{what}: expected values that PyTorch takes, got {error}") from error


@_naming("optimizer")
def make_optimizer(
    make: Callable[[Any], Optimizer],
    parameters: Mapping[str, nn.Parameter],
    factors: Mapping[str, float],
) -> Optimizer:
    """Make an optimiser whose learning rates and weight decay differ among parameters.

    Weight decay acts on synaptic weights alone: biases, delays and the neurons' parameters, which
    decay would pull to 0, are in groups without it. With neither, all parameters are one group.

    Args:
        make: makes the optimiser from parameters or groups of them.
        parameters: the parameters by name; the last part of a weight's name ends in "weight".
        factors: factors of the learning rate by pattern, see `pattern_of`.

    Raises:
        ValueError: see `pattern_of`; `make` is an optimiser; or a value has the wrong type.
    """
    if isinstance(make, Optimizer):
        raise ValueError(
            "optimizer: expected what makes one, such as partial(torch.optim.Adam, lr=1e-3), or "
            f"_partial_: true in a configuration, got {type(make).__name__}"
        )
    optimizer = make(list(parameters.values()))
    has_decay = bool(optimizer.defaults.get("weight_decay"))
    if not factors and not has_decay:
        return optimizer
    matched = pattern_of(parameters, factors)
    groups: dict[str, dict[str, Any]] = {}
    for name, parameter in parameters.items():
        name_of_group = pattern = matched.get(name, _OTHERS)
        factor = factors.get(pattern, 1.0)
        options = {"pattern": pattern, "lr_factor": factor}
        options["lr"] = optimizer.defaults["lr"] * factor
        if has_decay and not name.endswith("weight"):
            name_of_group, options["weight_decay"] = f"{pattern} (no decay)", 0.0
        group = groups.setdefault(name_of_group, {"name": name_of_group, "params": []} | options)
        group["params"].append(parameter)
    return make(list(groups.values()))


@_naming("scheduler")
def make_scheduler(
    make: Callable[..., Any], optimizer: Optimizer, n_steps: Callable[[], float]
) -> dict[str, Any]:
    """Make a scheduler that keeps the ratios between the groups' learning rates.

    Most schedulers scale each group's rate. OneCycleLR and CyclicLR set rates instead: theirs are
    multiplied for each group.

    Args:
        make: makes the scheduler from the optimiser; if it is a `partial`, its keywords count.
        optimizer: see `make_optimizer`.
        n_steps: counts the optimiser's steps of the whole training.

    Returns:
        The scheduler with its interval, for Lightning: "epoch", or "step" of a scheduler that is
        given `epochs`, no `total_steps`, and takes `steps_per_epoch`, as OneCycleLR does.

    Raises:
        ValueError: the scheduler has a floor, and factors differ from 1; or a value of it has the
            wrong type.
    """
    factors = [group.get("lr_factor", 1.0) for group in optimizer.param_groups]
    given = getattr(make, "keywords", {})
    interval = "epoch"
    if "epochs" in given and "total_steps" not in given and _takes_steps_per_epoch(make):
        interval = "step"
        if "steps_per_epoch" not in given:
            make = partial(make, steps_per_epoch=math.ceil(n_steps() / given["epochs"]))
    if all(factor == 1 for factor in factors):
        return {"scheduler": make(optimizer), "interval": interval}
    for name in ("eta_min", "min_lr"):
        if given.get(name):
            raise ValueError(
                f"scheduler.{name}: expected 0 with training.lr_factors, whose ratios a common "
                f"floor would not keep, got {given[name]}"
            )
    rates = {
        name: [given[name] * factor for factor in factors]
        for name in _ABSOLUTE
        if isinstance(given.get(name), int | float)
    }
    return {"scheduler": make(optimizer, **rates), "interval": interval}


def _takes_steps_per_epoch(make: Callable[..., Any]) -> bool:
    return "steps_per_epoch" in signature(getattr(make, "func", make)).parameters
