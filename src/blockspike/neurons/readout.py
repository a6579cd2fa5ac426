"""The leaky integrator: V[t] = β V[t−1] + I[t], no spike. Readout, spike filter, adaptation."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.autograd import in_full_precision
from blockspike.neurons.cpu.kernels import kernel, run, without_refcount

_TILE = 1024  # columns whose state stays in the L1 cache


@in_full_precision
def leaky_integrate(current: Tensor, beta: Tensor) -> Tensor:
    """V[t] = β V[t−1] + I[t] from V[−1] = 0 (SPEC section 1, leaky readout).

    Args:
        current: [T, B, N] float32 or float64; under autocast half precision becomes float32.
        beta: [N] decay per step, of the type of the current.

    Returns:
        V [T, B, N], differentiable in both arguments.

    Raises:
        ValueError: shapes or types do not match.
    """
    if current.ndim != 3 or beta.shape != current.shape[2:]:
        raise ValueError(
            f"leaky_integrate: expected current [T, B, N] and beta [N], "
            f"got current {list(current.shape)} and beta {list(beta.shape)}"
        )
    if current.dtype not in (torch.float32, torch.float64) or beta.dtype != current.dtype:
        raise ValueError(
            "leaky_integrate: expected current and beta of one type, float32 or float64, "
            f"got {current.dtype} and {beta.dtype}"
        )
    return _LeakyIntegrate.apply(current, beta, False)  # pyright: ignore[reportReturnType]


class _LeakyIntegrate(torch.autograd.Function):
    """V[t] = β V[t∓1] + I[t], from the last step if `reverse`; differentiable any number of times.

    Each direction is the other's derivative.
    """

    @staticmethod
    def forward(ctx, current: Tensor, beta: Tensor, reverse: bool) -> Tensor:
        membrane = _scan(current.detach(), beta.detach(), reverse)
        ctx.save_for_backward(membrane, beta)
        ctx.reverse = reverse
        return membrane

    @staticmethod
    def backward(ctx, *grads: Tensor):
        membrane, beta = ctx.saved_tensors
        scan: Any = _LeakyIntegrate.apply if torch.is_grad_enabled() else _scan
        grad_current = scan(grads[0], beta, not ctx.reverse)
        grad_beta = None
        if ctx.needs_input_grad[1]:
            earlier, later = (grad_current, membrane) if ctx.reverse else (membrane, grad_current)
            grad_beta = (later[1:] * earlier[:-1]).sum(dim=(0, 1))
        return grad_current, grad_beta, None


def _scan(x: Tensor, beta: Tensor, reverse: bool) -> Tensor:
    if x.device.type == "cpu":
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        n_columns = x.shape[1] * x.shape[2]
        # A list, since inside a loop that counts down LLVM does not vectorise.
        steps = np.arange(len(x), dtype=np.uintp)[:: -1 if reverse else 1].copy()
        decay = beta.repeat(x.shape[1]).numpy()
        flat = x.contiguous().view(-1).numpy(), decay, steps, out.view(-1).numpy()
        run(_scan_cpu, -(-n_columns // _TILE), *flat)
        return out
    return _scan_by_doubling(x.flip(0), beta).flip(0) if reverse else _scan_by_doubling(x, beta)


def _scan_by_doubling(x: Tensor, beta: Tensor) -> Tensor:
    """The scan in log2(T) whole-array steps, for devices where a loop over time is slow."""
    shift, decay = 1, beta
    x = x.clone() if len(x) == 1 else x  # never the argument itself
    while shift < len(x):
        x = torch.cat([x[:shift], x[shift:] + decay * x[:-shift]])
        shift, decay = 2 * shift, decay * decay
    return x


@kernel
def _scan_cpu(first, last, x, beta, steps, out):
    x, out = without_refcount(x), without_refcount(out)
    n_columns = beta.size
    for start in range(first * _TILE, last * _TILE, _TILE):
        decay = beta[start : start + _TILE]
        state = np.zeros(decay.size, x.dtype)
        for step in steps:
            row = step * np.uintp(n_columns) + np.uintp(start)
            for i_ in range(state.size):
                i = np.uintp(i_)
                state[i] = decay[i] * state[i] + x[row + i]
                out[row + i] = state[i]
