"""Autocast: neurons are simulated in full precision."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from blockspike.neurons.delays import RecurrentDelays

HALF = (torch.float16, torch.bfloat16)
P = ParamSpec("P")
R = TypeVar("R")


def is_autocast_on(device_type: str) -> bool:
    """Whether autocast is on for this device type; False if the device type has none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors so that it computes in float32 or float64.

    Under autocast, and for half-precision tensors on a CPU, the function runs with autocast off and
    gets half-precision arguments as float32.
    """

    @wraps(function)
    def without_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        device = next((x.device.type for x in args if isinstance(x, Tensor)), "cpu")
        is_half = device == "cpu" and (_is_half(args) or _is_half(kwargs))
        if not is_half and not is_autocast_on(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            named = {name: _single_at_least(x) for name, x in kwargs.items()}
            return function(*map(_single_at_least, args), **named)  # pyright: ignore

    return without_autocast


def _is_half(x: Any) -> bool:
    if isinstance(x, dict):
        return any(map(_is_half, x.values()))
    return any(map(_is_half, x)) if isinstance(x, tuple) else getattr(x, "dtype", None) in HALF


def _single_at_least(x: Any) -> Any:
    if isinstance(x, dict):
        return {name: _single_at_least(value) for name, value in x.items()}
    if isinstance(x, tuple) and _is_half(x):
        values = map(_single_at_least, x)
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    if isinstance(x, RecurrentDelays):
        return replace(x, steps=_single_at_least(x.steps))
    return x.float() if isinstance(x, Tensor) and x.dtype in HALF else x
