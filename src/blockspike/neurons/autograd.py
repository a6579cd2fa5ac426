"""What the package's autograd functions have in common: one derivative, in full precision."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors whose result autocast must not round.

    Under autocast it runs without, and arguments of half precision come to it as float32. Without
    autocast nothing is converted.
    """

    @wraps(function)
    def without_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        device = _device_type((*args, *kwargs.values()))
        if not is_autocast_on(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            own = {name: _single_at_least(x) for name, x in kwargs.items()}
            return function(*map(_single_at_least, args), **own)  # pyright: ignore

    return without_autocast


def is_autocast_on(device_type: str) -> bool:
    """Whether autocast is on for this type of device, which need not have any."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _device_type(values: Iterable[Any]) -> str:
    """Of the first tensor."""
    return next((x.device.type for x in values if isinstance(x, Tensor)), "cpu")


def _single_at_least(x: Any) -> Any:
    if isinstance(x, Mapping):
        return {name: _single_at_least(value) for name, value in x.items()}
    is_half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if is_half else x


def differentiable_once(operation: str, instead: str) -> Callable[[Callable], Callable]:
    """Decorate the `backward` of an autograd function that autograd cannot differentiate.

    PyTorch's `once_differentiable` complains only if the incoming gradient itself requires one;
    otherwise it hands out gradients that a second derivative silently takes for constants. The
    `backward` runs without autocast, as the forward does.

    Args:
        operation: what the function computes, for the message.
        instead: what has a second derivative.

    Raises:
        RuntimeError: from `backward`, if a graph of it is asked for (`create_graph=True`).
    """

    def decorate(backward: Callable) -> Callable:
        @wraps(backward)
        def guarded(ctx: Any, *grads: Tensor | None) -> Any:
            if torch.is_grad_enabled():  # in a backward pass only with create_graph=True
                raise RuntimeError(
                    f"{operation}: no second derivative, which create_graph=True asks for; "
                    f"use {instead}"
                )
            device = _device_type(grads)
            if not is_autocast_on(device):
                return backward(ctx, *grads)
            with torch.autocast(device, enabled=False):
                return backward(ctx, *grads)

        return guarded

    return decorate
