"""The leaky integrator: V[t] = β V[t−1] + I[t], no spike. Readout, spike filter, adaptation."""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.kernels import borrowed, kernel, run

_TILE = 256


def leaky_integrate(current: Tensor, beta: Tensor) -> Tensor:
    """V[t] = β V[t−1] + I[t] from V[−1] = 0 (SPEC section 1, leaky readout).

    Args:
        current: [T, B, N] float32 or float64.
        beta: [N] decay per step.

    Returns:
        V [T, B, N], differentiable in both arguments.

    Raises:
        ValueError: shapes do not match.
    """
    if current.ndim != 3 or beta.shape != current.shape[2:]:
        raise ValueError(
            f"leaky_integrate: expected current [T, B, N] and beta [N], "
            f"got current {list(current.shape)} and beta {list(beta.shape)}"
        )
    return _LeakyIntegrate.apply(current, beta)  # pyright: ignore[reportReturnType]


class _LeakyIntegrate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, current: Tensor, beta: Tensor) -> Tensor:
        membrane = _scan(current.detach(), beta.detach(), reverse=False)
        ctx.save_for_backward(membrane, beta)
        return membrane

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        membrane, beta = ctx.saved_tensors
        grad_current = _scan(grads[0], beta, reverse=True)
        grad_beta = None
        if ctx.needs_input_grad[1]:
            grad_beta = (grad_current[1:] * membrane[:-1]).sum(dim=(0, 1))
        return grad_current, grad_beta


def _scan(x: Tensor, beta: Tensor, reverse: bool) -> Tensor:
    if x.device.type == "cpu":
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        n_items = x.shape[1] * -(-x.shape[2] // _TILE)
        arrays = x.contiguous().numpy(), beta.contiguous().numpy()
        run(_scan_cpu, n_items, *arrays, reverse, out.numpy())
        return out
    return _scan_by_doubling(x.flip(0), beta).flip(0) if reverse else _scan_by_doubling(x, beta)


def _scan_by_doubling(x: Tensor, beta: Tensor) -> Tensor:
    """The scan in log2(T) whole-array steps, for devices where a loop over time is slow."""
    shift, decay = 1, beta
    while shift < len(x):
        x = torch.cat([x[:shift], x[shift:] + decay * x[:-shift]])
        shift, decay = 2 * shift, decay * decay
    return x


@kernel
def _scan_cpu(first, last, x, beta, reverse, out):
    x, beta, out = borrowed(x), borrowed(beta), borrowed(out)
    n_steps, _, n_units = x.shape
    n_tiles = (n_units + _TILE - 1) // _TILE
    for item in range(first, last):
        sample, start = item // n_tiles, (item % n_tiles) * _TILE
        stop = min(n_units, start + _TILE)
        state = np.zeros(stop - start, x.dtype)
        decay = beta[start:stop]
        for step in range(n_steps):
            t = n_steps - 1 - step if reverse else step
            row, out_row = x[t, sample, start:stop], out[t, sample, start:stop]
            for i in range(row.size):
                state[i] = decay[i] * state[i] + row[i]
                out_row[i] = state[i]
