"""Dropout on the CPU, as a hash of each element's index.

torch draws one number after another from a single state, which took a third of a training step. A
hash has no state, so LLVM computes several at once and threads need not share a generator.
"""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.cpu.kernels import kernel, kernel_part
from blockspike.neurons.cpu.threads import run

_PIECE = 4096  # elements


def dropout_mask(like: Tensor, share: float) -> Tensor:
    """Draw a mask like the tensor `like`: 0 with probability `share`, else 1 / (1 − share).

    The probability is rounded to 2⁻³². Each element's number is a hash of its index and of a seed
    drawn by torch's generator, so it depends neither on the order nor on the number of threads.
    """
    mask = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    flat = mask.view(-1).numpy()
    seed = torch.randint(2**32, (2,), device="cpu").numpy().astype(np.uint32)
    least = np.uint32(min(round(share * 2**32), 2**32 - 1))
    run(_fill_mask, -(-len(flat) // _PIECE), flat, seed, least, flat.dtype.type(1 / (1 - share)))
    return mask


@kernel
def _fill_mask(first, last, mask, seed, least, kept):
    none = kept - kept  # 0 in the mask's type
    for piece in range(first, last):
        # The piece's number is hashed once; within it, 32-bit indices fill whole registers.
        key = _hash(_hash(np.uint32(piece) ^ seed[0]) ^ seed[1])
        own = mask[piece * _PIECE : (piece + 1) * _PIECE]
        for i in range(np.uint32(len(own))):
            own[i] = kept if _hash(_hash(i ^ key) ^ seed[1]) >= least else none


@kernel_part
def _hash(x):
    """The finaliser of MurmurHash3: each bit of x changes each bit of the result (A. Appleby)."""
    x = np.uint32(x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = np.uint32(x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return np.uint32(x ^ (x >> np.uint32(16)))
