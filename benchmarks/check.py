"""Only contenders that compute the same are timed."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_TOLERANCE = 1e-4  # of float32 gradients, relative to the largest


def require_equal(
    name: str,
    spikes: Sequence[Tensor],
    expected: Sequence[Tensor],
    grads: Mapping[str, Tensor] | None = None,
    expected_grads: Mapping[str, Tensor] | None = None,
    least_scale: float = 0.0,
) -> None:
    """Compare a contender's spikes, and its gradients if given, with those of `standard`.

    Args:
        name: the contender.
        spikes, expected: spikes of each layer, which must be equal.
        grads, expected_grads: gradients by name, which may differ by rounding.
        least_scale: size of the terms whose sums the gradients are, since terms may cancel.

    Raises:
        RuntimeError: they differ.
    """
    if not all(map(torch.equal, spikes, expected)):
        raise RuntimeError(f"spikes of {name} differ: no time is reported")
    for key, grad in (grads or {}).items():
        wanted = (expected_grads or {})[key]
        scale = max(wanted.abs().max().item(), least_scale)
        if not (grad - wanted).abs().max() <= _TOLERANCE * scale:
            raise RuntimeError(f"gradients of {name} differ ({key}): no time is reported")
