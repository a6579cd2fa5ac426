"""`SpikingClassifier`: hidden layers of spiking neurons and a leaky readout."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, get_args

from torch import Tensor, nn

from blockspike.networks.bounded import BoundedParameters
from blockspike.networks.delays import Delays
from blockspike.networks.layers import (
    ALIFLayer,
    LeakyReadout,
    MakeLayer,
    check_choice,
    check_counts,
    drop_spikes,
    run_layers,
)
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons import SpikeTrace
from blockspike.neurons.events import EventBatch

Scores = Literal["sum", "mean", "softmax"]


@dataclass(frozen=True)
class ClassifierOutput:
    """The result of a SpikingClassifier.

    Attributes:
        scores: [B, n_classes], over time the sum (or mean) of the readout's membrane, or
            of its softmax over classes.
        spikes: per hidden layer, [T, B, n_hidden].
        readout: membrane of the readout, [T, B, n_classes].
    """

    scores: Tensor
    spikes: list[Tensor]
    readout: Tensor

    def mean_over_views(self, n_samples: int) -> Tensor:
        """[n_samples, n_classes]: means over the views of each sample, if B holds several.

        The batch is all samples, then all again, … (`EventDataset`).
        """
        return self.scores.unflatten(0, (-1, n_samples)).mean(0)


class SpikingClassifier(nn.Module):
    """n_inputs → hidden layers of spiking neurons → leaky readout.

    Args:
        n_inputs, n_classes: fixed by the data.
        n_hidden: neurons of each hidden layer.
        n_layers: hidden layers.
        dt_ms: length of a step.
        tau_membrane_ms, train_beta: of the hidden layers and of the readout.
        scores: what is made of the readout's membrane: its sum over time, its mean, or the sum of
            its softmax over classes at each step (Bittar & Garner 2022).
        dropout: share of the hidden spikes that the next layer does not get in training.
        input_events: events of a recording count so that they add up to this, however loud it is;
            None = as they are.
        synapses: see `synaptic_current`.
        layer: makes the hidden layers, of any model; None = `ALIFLayer`s with the arguments
            above and `neurons`.
        **neurons: further arguments of `ALIFLayer`.
    """

    def __init__(
        self,
        n_inputs: int,
        n_classes: int,
        n_hidden: int = 256,
        n_layers: int = 2,
        *,
        dt_ms: float,
        tau_membrane_ms: float = 20.0,
        train_beta: bool = True,
        scores: Scores = "sum",
        dropout: float = 0.0,
        input_events: float | None = None,
        synapses: SynapseMode = "auto",
        layer: MakeLayer | None = None,
        **neurons,
    ):
        super().__init__()
        check_counts(n_inputs=n_inputs, n_classes=n_classes, n_hidden=n_hidden, n_layers=n_layers)
        check_choice("scores", scores, get_args(Scores))
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout: expected 0 ≤ x < 1, got {dropout}")
        if input_events is not None and not input_events > 0:
            raise ValueError(f"input_events: expected a number > 0 or null, got {input_events}")
        if layer is not None and neurons:
            raise TypeError(f"layer: expected no {', '.join(neurons)} beside it")
        shared: dict[str, Any] = {
            "tau_membrane_ms": tau_membrane_ms,
            "train_beta": train_beta,
            "synapses": synapses,
        }
        make = layer or partial(ALIFLayer, **{**shared, **neurons})
        sizes = [n_inputs] + [n_hidden] * n_layers
        self.layers = nn.ModuleList(
            make(n_in, n_out, dt_ms=dt_ms) for n_in, n_out in pairwise(sizes)
        )
        self.readout = LeakyReadout(n_hidden, n_classes, dt_ms=dt_ms, **shared)
        self.scores: Scores = scores
        self.dropout = dropout
        self.input_events = input_events

    def forward(self, x: EventBatch | Tensor) -> ClassifierOutput:
        """Scores and activity for spikes [T, B, n_inputs], any T; see `synaptic_current`."""
        return self.read(list(self.run_layers(x)))

    def run_layers(self, x: EventBatch | Tensor) -> Iterator[SpikeTrace]:
        """The hidden layers' results, one after another."""
        if isinstance(x, Tensor) and not x.is_floating_point():
            x = x.to(self.readout.weight.dtype)
        if self.input_events is not None:
            if isinstance(x, EventBatch):
                x = x.scaled_to(self.input_events)
            else:
                x = x * (self.input_events / x.sum((0, 2)).clamp(min=1))[:, None]
        return run_layers(self.layers, x, self._dropout_now)

    @property
    def _dropout_now(self) -> float:
        return self.dropout if self.training else 0.0

    def read(self, traces: list[SpikeTrace]) -> ClassifierOutput:
        """Class scores from the traces of the hidden layers."""
        last = drop_spikes(traces[-1], self._dropout_now)
        readout = self.readout(*last)
        if self.scores == "mean":
            scores = readout.mean(0)
        else:
            scores = (readout.softmax(-1) if self.scores == "softmax" else readout).sum(0)
        return ClassifierOutput(scores, [trace.spikes for trace in traces], readout)

    def anneal_(self, progress: float) -> None:
        """Sharpen the learned delays for this share of the training, 0 to 1."""
        for module in self.modules():
            if isinstance(module, Delays):
                module.anneal_(progress)

    def project_(self) -> None:
        """Put the neurons' parameters back into their ranges; call after each optimiser step."""
        for module in self.modules():
            if isinstance(module, BoundedParameters):
                module.project_()
