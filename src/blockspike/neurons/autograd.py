"""Decorators for autograd functions: full precision under autocast, first derivatives only.

They also keep PyTorch's compiler out. Transforms of `torch.func` are known here too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from blockspike.neurons.recurrent_delays import RecurrentDelays

P = ParamSpec("P")
R = TypeVar("R")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of tensors so that autocast does not round its result.

    Under autocast, the function runs with autocast off and gets half-precision arguments as
    float32. Without autocast, nothing is converted. `torch.compile` leaves the function as it is.

    Raises:
        RuntimeError: raised by the function in `torch.export` and `torch.jit`.
    """

    @wraps(function)
    def without_autocast(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return _not_compiled(function)(*args, **kwargs)
        device = _device_type((*args, *kwargs.values()))
        if not is_autocast_on(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            named = {name: _single_at_least(x) for name, x in kwargs.items()}
            return function(*map(_single_at_least, args), **named)  # pyright: ignore

    # PyTorch's compiler counts versions for each code object, which all functions would share.
    own: Any = without_autocast
    own.__code__ = own.__code__.replace()
    return without_autocast


def is_transformed() -> bool:
    """Whether a transform of `torch.func` runs, where values need not be there to look at."""
    return torch._C._are_functorch_transforms_active()


def refuse_transforms(function: str, method: str) -> None:
    """Raise RuntimeError in a transform of `torch.func`, unless the method is "standard"."""
    if method != "standard" and is_transformed():
        raise RuntimeError(
            f"{function}: expected method='standard' in a transform of torch.func (grad, vmap, …), "
            f"got {method!r}"
        )


def refuse_tangents(function: str, *inputs: Any) -> None:
    """Raise RuntimeError if an input has a tangent, of forward-mode differentiation."""
    if getattr(forward_ad, "_current_level", -1) < 0 or is_transformed():
        return
    if any(isinstance(x, Tensor) and forward_ad.unpack_dual(x).tangent is not None for x in inputs):
        raise RuntimeError(
            f"{function}: expected no forward-mode differentiation, got an input with a tangent"
        )


def _not_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run as it is by a graph that `torch.compile` makes."""
    is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)()
    if is_exporting or not torch.compiler.is_dynamo_compiling():
        raise RuntimeError(
            f"{function.__name__}: expected to run eagerly, got torch.export or torch.jit, which "
            "cannot hold blockspike's kernels; to_nir exports a network"
        )
    return _disabled(function)


def run_as_it_is(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function that `torch.compile` must not look into.

    PyTorch's compiler, which takes as long to import as PyTorch, is imported only where it runs.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_compiling():
            return _disabled(function)(*args, **kwargs)
        return function(*args, **kwargs)

    return run


def _disabled(function: Callable[P, R]) -> Callable[P, R]:
    return torch.compiler.disable(function)  # pyright: ignore[reportReturnType]


def is_autocast_on(device_type: str) -> bool:
    """Whether autocast is on for this device type; False if the device type has none."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)


def _device_type(values: Iterable[Any]) -> str:
    """Device type of the first tensor among the values; "cpu" if there is none."""
    return next((x.device.type for x in values if isinstance(x, Tensor)), "cpu")


def _single_at_least(x: Any) -> Any:
    if isinstance(x, RecurrentDelays):
        return replace(x, steps=_single_at_least(x.steps))
    if isinstance(x, Mapping):
        return {name: _single_at_least(value) for name, value in x.items()}
    if isinstance(x, tuple | list):
        values = map(_single_at_least, x)
        return type(x)(*values) if hasattr(x, "_fields") else tuple(values)
    is_half = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
    return x.float() if is_half else x


def _is_batched(x: Tensor) -> bool:
    of: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
    return of.is_batchedtensor(x) or of.is_legacy_batchedtensor(x)


def differentiable_once(operation: str, instead: str) -> Callable[[Callable], Callable]:
    """Decorate the `backward` of an autograd function that has no second derivative.

    PyTorch's `once_differentiable` raises only if the incoming gradient itself requires a gradient.
    Otherwise it returns gradients that a second derivative silently treats as constants. The
    `backward` runs with autocast off, as the forward does.

    Args:
        operation: what the function computes, for the message.
        instead: an alternative that has a second derivative, for the message.

    Raises:
        RuntimeError: raised by `backward` under `create_graph=True`, or for batched gradients.
    """

    def decorate(backward: Callable) -> Callable:
        @wraps(backward)
        def guarded(ctx: Any, *grads: Tensor | None) -> Any:
            if torch.is_grad_enabled():  # in a backward pass only with create_graph=True
                raise RuntimeError(
                    f"{operation}: expected no second derivative, got create_graph=True; "
                    f"use {instead}"
                )
            if any(x is not None and _is_batched(x) for x in grads):
                raise RuntimeError(
                    f"{operation}: expected no batch of gradients, got is_grads_batched or "
                    f"vectorize=True; use {instead}"
                )
            device = _device_type(grads)
            if not is_autocast_on(device):
                return backward(ctx, *grads)
            with torch.autocast(device, enabled=False):
                return backward(ctx, *grads)

        return guarded

    return decorate
