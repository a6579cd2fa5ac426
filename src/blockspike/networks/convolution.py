"""Causal convolution of many inputs with many long kernels, in the frequency domain.

Summed tap by tap, a step with D taps costs D products of spikes and weights. In the frequency
domain it costs about four, whatever D is.
"""

import torch
from torch import Tensor

from blockspike.neurons.precision import in_full_precision

_FACTOR = 32  # of the length, so that it has small prime factors


@in_full_precision
def causal_convolution(x: Tensor, kernel: Tensor) -> Tensor:
    """Convolve: y[t, b, n] = Σ_d Σ_k kernel[d, n, k] x[t − d, b, k], differentiable in both.

    Other steps, such as those after t, affect y[t] by rounding only: in float32, by about 1e-7 of
    the largest value. A NaN makes all steps NaN.

    Args:
        x: [T, B, K].
        kernel: [D, N, K] (post, pre), of the same dtype as x.

    Returns:
        [T, B, N].
    """
    length = len(x) + len(kernel) - 1
    length += -length % _FACTOR
    # Fourier transforms lay out steps next to each other, which is slow in products, and so is
    # their gradient; it is copied where it passes `flatten`.
    of_x, of_kernel = (torch.fft.rfft(v, length, dim=0).contiguous() for v in (x, kernel))
    product = of_x @ of_kernel.mT
    product = product.flatten().view(product.shape)
    return torch.fft.irfft(product, length, dim=0)[: len(x)]
