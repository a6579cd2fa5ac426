"""Causal convolution of many inputs with many long kernels, by way of their frequencies.

With D taps a step costs D products of spikes and weights when added up tap by tap; in the frequency
domain about five, whatever D is. All of it is matrix products, the Fourier transforms of so few
steps too.
"""

import math

import torch
from torch import Tensor

from blockspike.neurons.autograd import in_full_precision

_BLOCK_OF_TAPS = 4
"""Steps that are transformed together, in lengths of the kernel: longer, and the kernel takes more
memory; shorter, and more of each transform is tail."""


@in_full_precision
def causal_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """y[t, b, n] = Σ_d Σ_k kernel[d, n, k] x[t − d, b, k], within rounding, differentiable in both.

    What comes after t, and before its kernel, counts in y[t] as a rounding error: about 1e-7 of
    the block's largest value in float32, and all of it if that is NaN.

    Args:
        x: [T, B, K].
        kernel: [D, N, K] (post, pre), of the type of x.

    Returns:
        [T, B, N].

    Raises:
        ValueError: shapes do not fit, or one is empty.
    """
    if x.ndim != 3 or kernel.ndim != 3 or x.shape[2] != kernel.shape[2]:
        raise ValueError(
            "x, kernel: expected [T, B, K] and [D, N, K], "
            f"got {list(x.shape)} and {list(kernel.shape)}"
        )
    if not x.numel() or not kernel.numel():
        raise ValueError(
            f"x, kernel: expected non-empty tensors, got {list(x.shape)} and {list(kernel.shape)}"
        )
    n_steps, batch_size, n_inputs = x.shape
    kernel = kernel[:n_steps]
    n_taps, n_units, _ = kernel.shape
    n_blocks = -(-n_steps // (_BLOCK_OF_TAPS * n_taps))
    block = -(-n_steps // n_blocks)
    rows, length = n_blocks * batch_size, block + n_taps - 1
    x = torch.cat((x, x.new_zeros(n_blocks * block - n_steps, batch_size, n_inputs)))
    x = x.view(n_blocks, block, batch_size * n_inputs).transpose(0, 1).flatten(1)

    waves = _waves(length, x)  # real and imaginary parts go side by side: [n_frequencies, 2, …]
    x = waves[..., :block].flatten(0, 1) @ x
    kernel = waves[..., :n_taps].flatten(0, 1) @ kernel.flatten(1)
    product = x.view(len(waves), -1, n_inputs) @ kernel.view(len(waves), -1, n_inputs).mT
    product = product.view(-1, 2, rows, 2, n_units)
    real = product[:, 0, :, 0] - product[:, 1, :, 1]
    imaginary = product[:, 0, :, 1] + product[:, 1, :, 0]

    count = waves.new_full((len(waves), 1, 1), 2 / length)  # each but the first stands for two
    count[0] /= 2
    if length % 2 == 0:
        count[-1] /= 2
    y = (waves * count).flatten(0, 1).T @ torch.stack((real, imaginary), 1).flatten(2).flatten(0, 1)
    y = y.view(length, n_blocks, batch_size, n_units).transpose(0, 1)
    tail = y[:-1, block:]  # of a block, heard in the next: no block is shorter than the kernel - 1
    out = y[:, :block].contiguous()
    out[1:, : n_taps - 1] += tail
    return out.flatten(0, 1)[:n_steps]


def _waves(length: int, like: Tensor) -> Tensor:
    """cos and sin of each frequency at each step, [length // 2 + 1, 2, length]."""
    steps = torch.arange(length)  # on the CPU: not every device has float64
    angle = 2 * math.pi / length * (steps[: length // 2 + 1, None] * steps % length).double()
    return torch.stack((angle.cos(), angle.sin()), 1).to(like)
