"""`SpikingClassifier`: hidden layers of spiking neurons and a leaky readout."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.export import register_dataclass
from torch.nn import functional as F

from blockspike.networks.bounded import BoundedParameters
from blockspike.networks.delays import Delays
from blockspike.networks.dropout_cpu import dropout_mask
from blockspike.networks.initialisation import Init, RecurrentInit, initialise_
from blockspike.networks.layer import NeuronLayer, check_choice
from blockspike.networks.layers import ALIFLayer
from blockspike.networks.normalisation import BatchNorm
from blockspike.networks.readout import LeakyReadout
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons import SpikeTrace
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.events import EventBatch
from blockspike.neurons.ops import is_traced
from blockspike.neurons.state import Changeable, NeuronState, as_indices

Scores = Literal["sum", "mean", "softmax"]


@dataclass(frozen=True, eq=False)
class ClassifierState(Changeable):
    """State of a `SpikingClassifier` after some steps of its input.

    Attributes:
        layers: state of each hidden layer.
        readout: membrane of the readout, [B, n_classes].

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(20, 3, n_hidden=5, dt_ms=1.0)
        >>> x = torch.ones(30, 4, 20)
        >>> first = network(x[:10])
        >>> second = network(x[10:], first.state)
        >>> torch.allclose(first.scores + second.scores, network(x).scores, rtol=1e-4)
        True
    """

    layers: tuple[NeuronState, ...]
    readout: Tensor

    def __getitem__(self, samples: Any) -> ClassifierState:
        """The state of some samples: an index, a slice, or a list or tensor of indices."""
        chosen = as_indices(samples)
        return ClassifierState(tuple(layer[chosen] for layer in self.layers), self.readout[chosen])

    def map(self, change: Callable[[Tensor], Tensor]) -> ClassifierState:
        """The state with each of its tensors changed."""
        return ClassifierState(
            tuple(layer.map(change) for layer in self.layers), change(self.readout)
        )


@dataclass(frozen=True)
class ClassifierOutput:
    """Result of a `SpikingClassifier`.

    Attributes:
        scores: [B, n_classes], sum (or mean) over time of the readout's membrane, or sum over time
            of its softmax over classes.
        spikes: one tensor [T, B, n_hidden] per hidden layer, or [B, T, n_hidden] if `batch_first`.
        readout: membrane of the readout, [T, B, n_classes], or [B, T, n_classes].
        state: state of the network after the last step; the second argument of the next call.
        membrane_power: mean square of the membrane of each hidden layer, [n_layers], if the network
            was called with `membrane=True`, else None.
        batch_first: whether the network is.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(20, 3, n_hidden=5, n_layers=2, dt_ms=1.0)
        >>> output = network(torch.ones(30, 4, 20))
        >>> [spikes.shape for spikes in output.spikes], output.readout.shape
        ([torch.Size([30, 4, 5]), torch.Size([30, 4, 5])], torch.Size([30, 4, 3]))
    """

    scores: Tensor
    spikes: list[Tensor]
    readout: Tensor
    state: ClassifierState
    membrane_power: Tensor | None = None
    batch_first: bool = False

    @property
    def rates(self) -> list[Tensor]:
        """Mean of the spikes of each hidden layer, spikes per neuron and step."""
        return [spikes.mean() for spikes in self.spikes]

    @property
    def rates_by_neuron(self) -> list[Tensor]:
        """Mean of the spikes over time, [B, n_hidden] for each hidden layer."""
        return [spikes.mean(int(self.batch_first)) for spikes in self.spikes]

    def mean_over_views(self, n_samples: int) -> Tensor:
        """Mean scores over the views of each sample, [n_samples, n_classes].

        A batch with several views holds the first view of every sample, then the second, and so
        on (see `EventDataset`).
        """
        return mean_over_views(self.scores, n_samples)


# torch.export writes and reads networks that take and give these.
for _kind in (ClassifierState, ClassifierOutput):
    register_dataclass(_kind, serialized_type_name=f"blockspike.{_kind.__name__}")


def hidden_sizes(n_hidden: int | Sequence[int], n_layers: int) -> list[int]:
    """Number of neurons in each of `n_layers` hidden layers; arguments of `SpikingClassifier`."""
    sizes = list(n_hidden) if isinstance(n_hidden, Sequence) else [n_hidden] * n_layers
    if len(sizes) != n_layers or not sizes:
        raise ValueError(
            f"n_hidden, n_layers: expected a number for each of 1 or more layers, got {sizes} for "
            f"{n_layers}"
        )
    return sizes


def mean_over_views(scores: Tensor, n_samples: int) -> Tensor:
    """See `ClassifierOutput.mean_over_views`."""
    return scores.unflatten(0, (-1, n_samples)).mean(0)


MakeLayer = Callable[..., nn.Module]
"""Function of (n_inputs, n_units, dt_ms=…) that returns a module with `NeuronLayer.trace`."""


def run_layers(
    layers: Iterable[nn.Module],
    x: EventBatch | Tensor,
    dropout: float = 0.0,
    states: Sequence[NeuronState] | None = None,
    membrane: bool = False,
) -> Iterator[SpikeTrace]:
    """Run hidden layers one after another and yield each trace; its events feed the next layer.

    Args:
        layers: the layers, each with the method `trace` of `NeuronLayer`.
        x: input [T, B, n_inputs] of the first.
        dropout: share of a layer's spikes that the next layer does not get.
        states: state of each layer at the start; None = 0.
        membrane: whether traces have membrane and threshold.
    """
    trace = None
    for i, layer in enumerate(layers):
        own_x, events = (x, None) if trace is None else drop_spikes(trace, dropout)
        if layer._forward_pre_hooks or layer._forward_hooks:
            warnings.warn(
                f"layers.{i}: hooks of hidden layers do not run, so nothing is pruned, normalised "
                "(weight_norm) or recorded by them; see docs/howto/python.md",
                stacklevel=3,
            )
        state = None if states is None else states[i]
        trace = cast(NeuronLayer, layer).trace(own_x, state, events=events, membrane=membrane)
        yield trace


def drop_spikes(trace: SpikeTrace, share: float) -> tuple[Tensor, SpikeEvents]:
    """Drop each spike [T, B, N] with probability `share`; return the rest, dense and as events.

    The rest are scaled by 1 / (1 − share), which keeps the mean (Srivastava et al. 2014).
    """
    if share == 0:
        return trace.spikes, trace.events
    if trace.spikes.device.type == "cpu" and not is_traced(trace.spikes):
        kept = trace.spikes * dropout_mask(trace.spikes, share)
    else:
        kept = F.dropout(trace.spikes, share)
    return kept, SpikeEvents((kept.detach() != 0).view(torch.uint8), 1 / (1 - share))


class SpikingClassifier(nn.Module):
    """Hidden layers of spiking neurons and a leaky readout, input [T, B, n_inputs].

    The input is time first, unless `batch_first=True`; see docs/paper.md, The network.

    Args:
        n_inputs, n_classes: number of input units and of classes.
        n_hidden: neurons in each hidden layer, or a list with the number in each.
        n_layers: number of hidden layers.
        dt_ms: length of a step in ms.
        tau_membrane_ms, train_beta: see `ALIFLayer`; apply to hidden layers and readout.
        scores: how the readout's membrane gives the class scores: its sum over time, its mean, or
            the sum of its softmax over classes at each step (Bittar & Garner 2022).
        skip_steps: steps at the beginning of a sample that do not count for the scores; a first
            piece has to have more. A call with a state skips nothing.
        dropout: share of hidden spikes that are dropped on the way to the next layer in training.
        init: rule by which input weights are drawn; "default" is each layer's own, see `ALIFLayer`.
        recurrent_init: the same for recurrent weights.
        input_events: total that the events of each sample are scaled to, so that loud and quiet
            recordings weigh the same; None = no scaling.
        synapses: see `synaptic_current`.
        batch_first: whether the input and outputs over time are [B, T, …] instead of [T, B, …].
        layer: makes the hidden layers, of any model; None = `ALIFLayer` with the arguments above.
        **neurons: further arguments of the hidden layers.

    Raises:
        ValueError: a value outside its range, naming the argument.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> network = bs.SpikingClassifier(700, 20, n_hidden=64, dt_ms=2.0, arp_ms=4.0)
        >>> output = network((torch.rand(50, 8, 700) < 0.1).float())  # [T, B, n_inputs]
        >>> output.scores.shape
        torch.Size([8, 20])
    """

    def __init__(
        self,
        n_inputs: int,
        n_classes: int,
        n_hidden: int | Sequence[int] = 256,
        n_layers: int = 2,
        *,
        dt_ms: float,
        tau_membrane_ms: float = 20.0,
        train_beta: bool = True,
        scores: Scores = "sum",
        skip_steps: int = 0,
        dropout: float = 0.0,
        init: Init = "default",
        recurrent_init: RecurrentInit = "default",
        input_events: float | None = None,
        synapses: SynapseMode = "auto",
        batch_first: bool = False,
        layer: MakeLayer | None = None,
        **neurons: Any,
    ):
        given = {k: x for k, x in locals().items() if k not in ("self", "neurons", "__class__")}
        super().__init__()
        self.arguments: dict[str, Any] = given | neurons  # what builds it again
        check_choice("scores", scores, get_args(Scores))
        if skip_steps < 0 or not 0 <= dropout < 1:
            raise ValueError(
                "skip_steps, dropout: expected a number ≥ 0 and a share from 0 to below 1, got "
                f"{skip_steps} and {dropout}"
            )
        shared: dict[str, Any] = {
            "tau_membrane_ms": tau_membrane_ms,
            "train_beta": train_beta,
            "synapses": synapses,
        }
        make = layer or partial(ALIFLayer, **shared)
        sizes = [n_inputs, *hidden_sizes(n_hidden, n_layers)]
        self.layers = nn.ModuleList(
            make(n_in, n_out, dt_ms=dt_ms, **neurons) for n_in, n_out in pairwise(sizes)
        )
        self.readout = LeakyReadout(sizes[-1], n_classes, dt_ms=dt_ms, **shared)
        initialise_([*self.layers, self.readout], init, recurrent_init)
        self.scores: Scores = scores
        self.skip_steps = skip_steps
        self.dropout = dropout
        self.input_events = input_events
        self.batch_first = batch_first

    def forward(
        self,
        x: EventBatch | Tensor,
        state: ClassifierState | None = None,
        *,
        membrane: bool = False,
    ) -> ClassifierOutput:
        """Scores and activity for some steps of the input.

        Args:
            x: spikes [T, B, n_inputs], any T, or [B, T, n_inputs] with `batch_first`; see
                `synaptic_current`.
            state: `output.state` of the steps before; None = 0.
            membrane: whether the output has `membrane_power`.
        """
        if self.batch_first and isinstance(x, Tensor):
            x = x.transpose(0, 1)
        output = self.read(list(self.run_layers(x, state, membrane=membrane)), state)
        if not self.batch_first:
            return output
        spikes = [spikes.transpose(0, 1) for spikes in output.spikes]
        readout = output.readout.transpose(0, 1)
        return replace(output, spikes=spikes, readout=readout, batch_first=True)

    def run_layers(
        self,
        x: EventBatch | Tensor,
        state: ClassifierState | None = None,
        *,
        membrane: bool = False,
    ) -> Iterator[SpikeTrace]:
        """Traces of the hidden layers, one after another, for input [T, B, n_inputs]."""
        if state is not None and self.input_events is not None:
            raise ValueError(
                "input_events: expected null for a network that runs in pieces, since the events "
                f"of a whole sample are counted, got {self.input_events}"
            )
        if isinstance(x, Tensor) and not x.is_floating_point():
            x = x.to(self.readout.weight.dtype)
        if self.input_events is not None:
            if isinstance(x, EventBatch):
                x = x.scaled_to(self.input_events)
            else:
                x = x * (self.input_events / x.sum((0, 2)).clamp(min=1))[:, None]
        layers = None if state is None else state.layers
        return run_layers(self.layers, x, self._dropout_now, layers, membrane)

    @property
    def _dropout_now(self) -> float:
        return self.dropout if self.training else 0.0

    def read(
        self, traces: list[SpikeTrace], state: ClassifierState | None = None
    ) -> ClassifierOutput:
        """Class scores from the traces of the hidden layers; `state` as in `forward`."""
        last = drop_spikes(traces[-1], self._dropout_now)
        readout = self.readout(*last, start=None if state is None else state.readout)
        counted = readout[self.skip_steps :] if state is None else readout
        if not len(counted):
            raise ValueError(
                f"x: expected more than skip_steps = {self.skip_steps} steps, got {len(readout)}"
            )
        if self.scores == "mean":
            scores = counted.mean(0)
        else:
            scores = (counted.softmax(-1) if self.scores == "softmax" else counted).sum(0)

        levels = [trace.membrane for trace in traces if trace.membrane is not None]
        power = None
        if len(levels) == len(traces):
            power = torch.stack([x.square().mean() for x in levels])
        last = readout[-1].clone()  # a view would keep all steps in memory
        after = ClassifierState(tuple(trace.state for trace in traces), last)
        return ClassifierOutput(scores, [x.spikes for x in traces], readout, after, power)

    @property
    def has_batch_norm(self) -> bool:
        """Whether a layer normalises its synaptic current over the samples and time of a batch."""
        return any(isinstance(module, BatchNorm) and module.training for module in self.modules())

    def anneal_(self, progress: float) -> None:
        """Sharpen the learned delays; `progress` is the share of training completed, 0 to 1."""
        for module in self.modules():
            if isinstance(module, Delays):
                module.anneal_(progress)

    def project_(self) -> None:
        """Clamp the neurons' parameters to their ranges; for values set by hand."""
        for module in self.modules():
            if isinstance(module, BoundedParameters):
                module.project_()
