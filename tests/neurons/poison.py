"""Allocators that fill what they return, so that reading it uninitialised is seen."""

import numpy as np
import torch


def poison(monkeypatch, owner, name) -> list:
    """Make an allocator return NaN, or for integers the least value; the list counts its calls."""
    original, calls = getattr(owner, name), []

    def poisoned(*args, **kwargs):
        calls.append(name)
        array = original(*args, **kwargs)
        if isinstance(array, np.ndarray):
            array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min)
        else:
            is_float = array.is_floating_point()
            array.fill_(
                float("nan") if is_float else 199 if array.dtype == torch.uint8 else -(2**30)
            )
        return array

    monkeypatch.setattr(owner, name, poisoned)
    return calls
