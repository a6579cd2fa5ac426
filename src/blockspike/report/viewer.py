"""Traces of a network's hidden layers, packed as text for the page's viewer."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from blockspike.neurons import SpikeTrace

_LARGEST = 32767  # of a signed 16-bit number
_BYTES_A_VALUE = 16 / 3  # membrane and threshold, two bytes each, as base64
_BUDGET_BYTES = 10_000_000


def pack_traces(
    traces: Sequence[SpikeTrace], samples: Sequence[int], titles: Sequence[str], dt_ms: float
) -> dict[str, Any]:
    """Pack spikes, membranes and thresholds of a few samples for JSON.

    Args:
        traces: the trace of each hidden layer, arrays [T, B, N].
        samples: positions in B. Only the first that fit into 10 MB are packed, but at least one.
        titles: title of each sample.
        dt_ms: length of a step.

    Returns:
        `dt_ms`, `n_steps` and `recordings`. Each recording has a `title` and `layers`, each layer
        `n_units`, `spikes` (base64 of int32: unit · T + step), `membrane` and `threshold` (see
        `pack`).
    """
    n_values = sum(trace.spikes[:, 0].numel() for trace in traces)
    n_shown = max(1, int(_BUDGET_BYTES / (_BYTES_A_VALUE * n_values)))
    return {
        "dt_ms": dt_ms,
        "n_steps": len(traces[0].spikes),
        "recordings": [
            {"title": title, "layers": [_layer(trace, sample) for trace in traces]}
            for sample, title in list(zip(samples, titles, strict=True))[:n_shown]
        ],
    }


def _layer(trace: SpikeTrace, sample: int) -> dict[str, Any]:
    spikes = trace.spikes[:, sample].T.numpy()  # [N, T]
    return {
        "n_units": len(spikes),
        "spikes": _text(np.flatnonzero(spikes).astype("<i4")),
        "membrane": pack(trace.membrane[:, sample]),
        "threshold": pack(trace.threshold[:, sample]),
    }


def pack(values: Tensor) -> dict[str, Any]:
    """Pack values [T, N] as `scale` and `data`, base64 of int16 [N, T]; value = scale · number.

    The error of a value is at most half the scale.
    """
    rows = values.T.double().numpy()
    scale = float(np.abs(rows).max(initial=0)) / _LARGEST or 1.0
    return {"scale": scale, "data": _text(np.round(rows / scale).astype("<i2"))}


def _text(numbers: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(numbers).tobytes()).decode()
