"""Activity of a classifier on a few recordings, for the raster plot."""

import numpy as np
from torch import Tensor

from blockspike.networks.classifier import ClassifierOutput
from blockspike.neurons.events import EventBatch

_SHOWN_SAMPLES = 3


def shown_samples(labels: Tensor) -> np.ndarray:
    """Positions of the first sample of each class, at most three, in order; labels [B]."""
    _, first = np.unique(labels.numpy(), return_index=True)
    return np.sort(first)[:_SHOWN_SAMPLES]


def activity(
    output: ClassifierOutput, events: EventBatch, labels: Tensor, dt_ms: float
) -> dict[str, np.ndarray]:
    """Input events, spikes of the layers and readout for the `shown_samples`.

    Args:
        output: the network's output for `events`, [T, B, …].
        events: the input, [T, B, n_inputs].
        labels: true classes, [B].
        dt_ms: length of a step.

    Returns:
        The arrays of `activity.npz`, which `raster` draws.
    """
    layers = [events.dense(), *output.spikes]
    predicted = output.mean_over_views(len(labels)).argmax(1).numpy()
    arrays: dict[str, np.ndarray] = {"dt_ms": np.array(dt_ms)}
    for k, sample in enumerate(shown_samples(labels)):
        for i, spikes in enumerate(layers):
            step, unit = np.nonzero(spikes[:, sample].numpy())
            arrays[f"sample{k}_layer{i}"] = np.stack([step, unit]).astype(np.int32)
            arrays[f"n_units_layer{i}"] = np.array(spikes.shape[2])
        arrays[f"sample{k}_readout"] = output.readout[:, sample].numpy()
        arrays[f"sample{k}_label"] = labels[sample].numpy()
        arrays[f"sample{k}_predicted"] = predicted[sample]
    return arrays
