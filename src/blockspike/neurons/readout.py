"""Leaky integrator V[t] = β V[t−1] + I[t], for the readout, filtered spikes and adaptation."""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.cpu.kernels import kernel, without_refcount
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.cpu.tiles import columns
from blockspike.neurons.ops import Operator
from blockspike.neurons.precision import in_full_precision

_TILE = 1024  # columns whose state stays in the L1 cache


@in_full_precision
def leaky_integrate(current: Tensor, beta: Tensor, start: Tensor | None = None) -> Tensor:
    """Integrate V[t] = β V[t−1] + I[t] (docs/paper.md, The neuron).

    Args:
        current: [T, B, N] float32 or float64; under autocast half precision becomes float32.
        beta: [N] decay per step, of the same dtype as the current.
        start: [B, N], V[−1]; None = 0.

    Returns:
        V [T, B, N], differentiable in all arguments.

    Raises:
        ValueError: shapes or dtypes do not match.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.ones(3, 1, 1)  # [T, B, N]
        >>> bs.leaky_integrate(current, torch.tensor([0.5])).flatten()
        tensor([1.0000, 1.5000, 1.7500])
    """
    fits = current.ndim == 3 and (beta.shape, beta.dtype) == (current.shape[2:], current.dtype)
    if not fits or current.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            "current, beta: expected [T, B, N] and [N] of float32 or of float64, "
            f"got {list(current.shape)} of {current.dtype} and {list(beta.shape)} of {beta.dtype}"
        )
    if start is not None and len(current):
        current = torch.cat([current[:1] + beta * start, current[1:]])  # rounds as the scan does
    return _leaky_integrate(current, beta, False)


def _setup(ctx, inputs, output):
    _, beta, ctx.reverse = inputs
    ctx.save_for_backward(output, beta)


def _backward(ctx, grad):
    """Each direction is the other's derivative, so that there are derivatives of any order."""
    membrane, beta = ctx.saved_tensors
    grad_current = _leaky_integrate(grad, beta, not ctx.reverse)
    grad_beta = None
    if ctx.needs_input_grad[1]:
        earlier, later = (grad_current, membrane) if ctx.reverse else (membrane, grad_current)
        grad_beta = (later[1:] * earlier[:-1]).sum(dim=(0, 1))
    return grad_current, grad_beta, None


def _scan(x: Tensor, beta: Tensor, reverse: bool) -> Tensor:
    """Scan V[t] = β V[t∓1] + I[t], from the last step if `reverse`."""
    x, beta = x.detach(), beta.detach()
    if x.device.type == "cpu":
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        n_columns = x.shape[1] * x.shape[2]
        # An array of steps, since LLVM does not vectorise inside a loop that counts down.
        steps = np.arange(len(x), dtype=np.uintp)[:: -1 if reverse else 1].copy()
        decay = columns(beta, x.shape[1])
        flat = x.contiguous().view(-1).numpy(), decay, steps, out.view(-1).numpy()
        run(_scan_cpu, -(-n_columns // _TILE), *flat)
        return out
    return _scan_by_doubling(x.flip(0), beta).flip(0) if reverse else _scan_by_doubling(x, beta)


def _scan_by_doubling(x: Tensor, beta: Tensor) -> Tensor:
    """Scan in log2(T) whole-array steps, for devices on which a loop over time is slow."""
    shift, decay = 1, beta
    x = x.clone() if len(x) == 1 else x  # never the argument itself
    while shift < len(x):
        x = torch.cat([x[:shift], x[shift:] + decay * x[:-shift]])
        shift, decay = 2 * shift, decay * decay
    return x


_leaky_integrate = Operator(
    "leaky_integrate",
    _scan,
    lambda x, beta, reverse: torch.empty_like(x, memory_format=torch.contiguous_format),
    _setup,
    _backward,
)


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
