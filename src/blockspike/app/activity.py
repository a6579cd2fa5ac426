"""Activity of a classifier on a few recordings, for the raster plot."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from blockspike.networks.classifier import SpikingClassifier

_SHOWN_SAMPLES = 3


def shown_samples(labels: Tensor) -> np.ndarray:
    """Positions of the first sample of each class, at most three, in order; labels [B]."""
    _, first = np.unique(labels.numpy(), return_index=True)
    return np.sort(first)[:_SHOWN_SAMPLES]


@torch.no_grad()
def activity_of(network: SpikingClassifier, data: Any) -> dict[str, np.ndarray]:
    """Activity in the first batch of the test.

    Returns:
        The arrays of `activity.npz`, which `raster` draws: input events, spikes of the layers and
        readout for the `shown_samples`; and the mean rate of each hidden neuron in that batch, Hz.
    """
    x, labels = next(iter(data.test_dataloader()))
    output = network.eval()(x)
    predicted = output.mean_over_views(len(labels)).argmax(1)
    layers = [x if isinstance(x, Tensor) else x.dense(), *output.spikes]
    arrays: dict[str, Any] = {"dt_ms": data.dt_ms}
    for i, spikes in enumerate(layers):
        arrays[f"n_units_layer{i}"] = spikes.shape[2]
        if i:
            arrays[f"rates_layer{i}_hz"] = spikes.mean((0, 1)) * 1000 / data.dt_ms
    for k, sample in enumerate(shown_samples(labels).tolist()):
        for i, spikes in enumerate(layers):
            arrays[f"sample{k}_layer{i}"] = spikes[:, sample].nonzero().T.int()
        arrays[f"sample{k}_readout"] = output.readout[:, sample]
        arrays[f"sample{k}_label"] = labels[sample]
        arrays[f"sample{k}_predicted"] = predicted[sample]
    return {name: np.asarray(x) for name, x in arrays.items()}
