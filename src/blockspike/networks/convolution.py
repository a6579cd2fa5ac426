"""Causal convolution of many inputs with many long kernels, in the frequency domain.

Summed tap by tap, a step with D taps costs D products of spikes and weights. In the frequency
domain it costs about five, whatever D is. The Fourier transforms are so short that they are matrix
products too.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.neurons.precision import in_full_precision

_BLOCK_OF_TAPS = 4
"""Steps transformed together, in kernel lengths. More steps need more memory for the kernel; with
fewer, a larger part of each transform is tail."""


@in_full_precision
def causal_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve: y[t, b, n] = Σ_d Σ_k kernel[d, n, k] x[t − d, b, k], differentiable in both.

    Other steps, such as those after t, affect y[t] by rounding only: in float32, by about 1e-7 of
    the largest value in the block. A NaN in the block makes all of it NaN.

    Args:
        x: [T, B, K].
        kernel: [D, N, K] (post, pre), of the same dtype as x.

    Returns:
        [T, B, N].
    """
    n_steps, batch_size, n_inputs = x.shape
    kernel = kernel[:n_steps]
    n_taps, n_units, _ = kernel.shape
    n_blocks = -(-n_steps // (_BLOCK_OF_TAPS * n_taps))
    block = -(-n_steps // n_blocks)
    rows, length = n_blocks * batch_size, block + n_taps - 1
    x = F.pad(x, (0, 0, 0, 0, 0, n_blocks * block - n_steps))
    x = x.view(n_blocks, block, batch_size * n_inputs).transpose(0, 1).flatten(1)

    waves = _waves(length, x)  # real and imaginary parts side by side: [n_frequencies, 2, …]
    x = waves[..., :block].flatten(0, 1) @ x
    kernel = waves[..., :n_taps].flatten(0, 1) @ kernel.flatten(1)
    product = x.view(len(waves), -1, n_inputs) @ kernel.view(len(waves), -1, n_inputs).mT
    product = product.view(-1, 2, rows, 2, n_units)
    real = product[:, 0, :, 0] - product[:, 1, :, 1]
    imaginary = product[:, 0, :, 1] + product[:, 1, :, 0]

    count = waves.new_full((len(waves), 1, 1), 2 / length)  # all but the first count twice
    count[0] /= 2
    if length % 2 == 0:
        count[-1] /= 2
    y = (waves * count).flatten(0, 1).T @ torch.stack((real, imaginary), 1).flatten(2).flatten(0, 1)
    y = y.view(length, n_blocks, batch_size, n_units).transpose(0, 1)
    out = y[:, :block].contiguous()
    out[1:, : n_taps - 1] += y[:-1, block : block + n_taps - 1]  # no further: block ≥ n_taps − 1
    return out.flatten(0, 1)[:n_steps]


def _waves(length: int, like: Tensor) -> Tensor:
    """Cosine and sine of each frequency at each step, [length // 2 + 1, 2, length]."""
    steps = torch.arange(length)  # on the CPU: not every device has float64
    angle = 2 * math.pi / length * (steps[: length // 2 + 1, None] * steps % length).double()
    return torch.stack((angle.cos(), angle.sin()), 1).to(like)
