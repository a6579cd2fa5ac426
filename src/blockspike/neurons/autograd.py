"""What the package's autograd functions have in common: one derivative, in full precision."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def differentiable_once(operation: str, instead: str) -> Callable[[Callable], Callable]:
    """Decorate the `backward` of an autograd function that autograd cannot differentiate.

    PyTorch's `once_differentiable` complains only if the incoming gradient itself requires one;
    otherwise it hands out gradients that a second derivative silently takes for constants.

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
            return backward(ctx, *grads)

        return guarded

    return decorate
