"""Autocast: neurons are simulated in full precision."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from blockspike.neurons.delays import RecurrentDelays

P = ParamSpec("P")
R = TypeVar("R")


def is_autocast_on(device_type: str) -> bool:
    """Whether autocast is on for this device type; False if the device type has none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors so that autocast does not round its result.

    Under autocast, the function runs with autocast off and gets half-precision arguments as
    float32. Without autocast, nothing is converted.
    """

    @wraps(function)
    def without_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((x.device.type for x in args if isinstance(x, Tensor)), "cpu")
        if not is_autocast_on(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            named = {name: _single_at_least(x) for name, x in kwargs.items()}
            return function(*map(_single_at_least, args), **named)  # pyright: ignore

    return without_autocast


def _single_at_least(x: Any) -> Any:
    if isinstance(x, RecurrentDelays):
        return replace(x, steps=_single_at_least(x.steps))
    if isinstance(x, Mapping):
        return {name: _single_at_least(value) for name, value in x.items()}
    if isinstance(x, tuple | list):
        values: Iterator[Any] = map(_single_at_least, x)
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    is_half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if is_half else x
