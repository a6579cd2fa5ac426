"""What a classifier does on a few recordings, as the raster shows it."""

import numpy as np
from torch import Tensor

from blockspike.networks.classifier import ClassifierOutput
from blockspike.neurons.events import EventBatch

_SHOWN_SAMPLES = 3


def shown_samples(labels: Tensor) -> np.ndarray:
    """Positions of the first samples of different classes, three at most; labels [B]."""
    _, first = np.unique(labels.numpy(), return_index=True)
    return np.sort(first)[:_SHOWN_SAMPLES]


def activity(
    output: ClassifierOutput, events: EventBatch, labels: Tensor, dt_ms: float
) -> dict[str, np.ndarray]:
    """Events of input and layers, and readout, of the first samples of different classes.

    Args:
        output: of the network for `events`, [T, B, …].
        events: of the input, [T, B, n_inputs].
        labels: [B].
        dt_ms: length of a step.

    Returns:
        The arrays that `raster` draws; `activity.npz` holds them.
    """
    layers = [events.dense(), *output.spikes]
    read_as = output.mean_over_views(len(labels)).argmax(1).numpy()
    arrays: dict[str, np.ndarray] = {"dt_ms": np.array(dt_ms)}
    for k, sample in enumerate(shown_samples(labels)):
        for i, spikes in enumerate(layers):
            step, unit = np.nonzero(spikes[:, sample].numpy())
            arrays[f"sample{k}_layer{i}"] = np.stack([step, unit]).astype(np.int32)
            arrays[f"n_units_layer{i}"] = np.array(spikes.shape[2])
        arrays[f"sample{k}_readout"] = output.readout[:, sample].numpy()
        arrays[f"sample{k}_label"] = labels[sample].numpy()
        arrays[f"sample{k}_predicted"] = read_as[sample]
    return arrays
