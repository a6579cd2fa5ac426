"""Layers and networks of ALIF neurons."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blockspike.networks.bounded import BoundedParameters, Bounds
from blockspike.networks.delays import Delays
from blockspike.networks.synapses import SynapseMode, synaptic_current
from blockspike.neurons import ALIFTrace, Method, MultiGaussian, Surrogate, alif, leaky_integrate
from blockspike.neurons.adlif import adlif
from blockspike.neurons.adlif.step import Euler
from blockspike.neurons.cpu.events import Fired
from blockspike.neurons.events import EventBatch
from blockspike.neurons.simulate import LoopOrFused

Scores = Literal["sum", "mean", "softmax"]


def decay(tau_ms: float, dt_ms: float) -> float:
    """exp(−dt/τ): the decay per step of a time constant; both in ms and above 0."""
    if not tau_ms > 0 or not dt_ms > 0:
        raise ValueError(f"tau_ms, dt_ms: expected values > 0, got {tau_ms} and {dt_ms}")
    return math.exp(-dt_ms / tau_ms)


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name}: expected an integer ≥ 1, got {value}")


class NeuronLayer(BoundedParameters):
    """Synapses onto one population of neurons; a model's layer adds its parameters and `trace`.

    Weights start as U(±1/√n_inputs), biases at 0, recurrent weights as the identity.

    Args:
        n_inputs: units that feed the layer.
        n_units: neurons.
        recurrent: all-to-all recurrence.
        recurrent_delay: of it, in steps; None = the model's own.
        rf_len: temporal receptive field in steps: input at t − rf_len + 1 … t acts at t.
        max_delay: longest delay of synapses from inputs, in steps; above 0, each learns its own.
        surrogate, detach_spikes: see `alif`.
        method: one of `methods`.
        synapses: see `synaptic_current`.
        methods: those that the model has.

    Raises:
        ValueError: a value outside its range, naming the argument.
    """

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        recurrent: bool = True,
        recurrent_delay: int | None = 1,
        rf_len: int = 1,
        max_delay: int = 0,
        surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
        detach_spikes: bool = True,
        method: str = "fused",
        synapses: SynapseMode = "auto",
        methods: tuple[str, ...] = get_args(LoopOrFused),
    ):
        super().__init__()
        _check_counts(n_inputs=n_inputs, n_units=n_units, rf_len=rf_len)
        if not isinstance(surrogate, get_args(Surrogate)):
            raise ValueError(f"surrogate: expected a surrogate derivative, got {surrogate!r}")
        for name, value, known in (
            ("method", method, methods),
            ("synapses", synapses, get_args(SynapseMode)),
        ):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if recurrent_delay is not None:
            _check_counts(recurrent_delay=recurrent_delay)
        if max_delay < 0 or (max_delay and rf_len > 1):
            raise ValueError(
                f"max_delay: expected an integer ≥ 0, and 0 with rf_len > 1, got {max_delay}"
            )
        self.recurrent_delay = recurrent_delay
        self.surrogate, self.detach_spikes = surrogate, detach_spikes
        self.method = method
        self.synapses: SynapseMode = synapses

        bound = 1 / math.sqrt(n_inputs)
        self.weight = nn.Parameter(torch.empty(rf_len, n_units, n_inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(n_units))
        self.delays = Delays(n_units, n_inputs, max_delay) if max_delay else None
        self.recurrent_weight = nn.Parameter(torch.eye(n_units)) if recurrent else None

    @property
    def options(self) -> dict[str, Any]:
        """What simulating any model takes beside the current and the model's parameters."""
        return {
            "recurrent_weight": self.recurrent_weight,
            "recurrent_delay": self.recurrent_delay,
            "surrogate": self.surrogate,
            "detach_spikes": self.detach_spikes,
            "method": self.method,
        }

    def forward(self, x: EventBatch | Tensor) -> Tensor:
        """Spikes [T, B, n_units] for input [T, B, n_inputs]."""
        return self.trace(x).spikes

    def current(self, x: EventBatch | Tensor, fired: Fired | None = None) -> Tensor:
        """Synaptic current [T, B, n_units] for input [T, B, n_inputs]; `fired`: as there."""
        if self.delays is not None:
            return self.delays.current(x, self.weight[0], self.bias, fired, self.synapses)
        return synaptic_current(x, self.weight, self.bias, fired=fired, mode=self.synapses)

    def trace(self, x: EventBatch | Tensor, fired: Fired | None = None) -> ALIFTrace:
        """The whole result for input [T, B, n_inputs]; `fired` as in `synaptic_current`."""
        raise NotImplementedError


class SpikingLayer(NeuronLayer):
    """Synapses and one population of ALIF neurons (SPEC sections 1 and 3).

    Weights start as U(±1/√n_inputs), biases at 0, recurrent weights as the identity.

    Args:
        n_inputs: units that feed the layer.
        n_units: neurons.
        dt_ms: length of a step.
        tau_membrane_ms: β starts at exp(−dt/τ) for every neuron.
        tau_adaptation_ms: p likewise; None = no adaptation.
        b: threshold raise per spike at the start.
        arp_ms: absolute refractory period, rounded to steps.
        recurrent: all-to-all recurrence.
        recurrent_delay: of it, in steps; None = arp + 1.
        rf_len: temporal receptive field in steps: input at t − rf_len + 1 … t acts at t.
        max_delay: see `NeuronLayer`.
        train_beta, train_p, train_b: whether the optimiser may change them.
        beta_bounds, p_bounds, b_bounds: ranges they are kept in.
        surrogate, detach_spikes, method: see `alif`.
        synapses: see `synaptic_current`.

    Raises:
        ValueError: a value outside its range, naming the argument.
    """

    beta: Tensor
    p: Tensor | None
    b: Tensor | None

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        dt_ms: float,
        tau_membrane_ms: float = 20.0,
        tau_adaptation_ms: float | None = 150.0,
        b: float = 1.0,
        arp_ms: float = 0.0,
        recurrent: bool = True,
        recurrent_delay: int | None = None,
        rf_len: int = 1,
        max_delay: int = 0,
        train_beta: bool = True,
        train_p: bool = True,
        train_b: bool = False,
        beta_bounds: Bounds = (0.001, 0.999),
        p_bounds: Bounds = (0.0, 0.999),
        b_bounds: Bounds = (0.0, 1.0),
        surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
        detach_spikes: bool = True,
        method: Method = "fused",
        synapses: SynapseMode = "auto",
    ):
        super().__init__(
            n_inputs,
            n_units,
            recurrent=recurrent,
            recurrent_delay=recurrent_delay,
            rf_len=rf_len,
            max_delay=max_delay,
            surrogate=surrogate,
            detach_spikes=detach_spikes,
            method=method,
            synapses=synapses,
            methods=get_args(Method),
        )
        if not 0 <= arp_ms < math.inf:
            raise ValueError(f"arp_ms: expected a value ≥ 0, got {arp_ms}")
        for name, (low, high) in (("p_bounds", p_bounds), ("b_bounds", b_bounds)):
            if method == "blocks" and low < 0:
                raise ValueError(f"{name}: expected bounds ≥ 0 for 'blocks', got {[low, high]}")
        beta = torch.full((n_units,), decay(tau_membrane_ms, dt_ms))
        self.add_bounded("beta", beta, beta_bounds, train_beta, "tau_membrane_ms")
        self.arp = round(arp_ms / dt_ms)
        if tau_adaptation_ms is None:
            self.p = self.b = None
        else:
            p = torch.full((n_units,), decay(tau_adaptation_ms, dt_ms))
            self.add_bounded("p", p, p_bounds, train_p, "tau_adaptation_ms")
            self.add_bounded("b", torch.full((n_units,), float(b)), b_bounds, train_b, "b")

    def trace(self, x: EventBatch | Tensor, fired: Fired | None = None) -> ALIFTrace:
        """The whole result for input [T, B, n_inputs]; `fired` as in `synaptic_current`."""
        current = self.current(x, fired)
        return alif(current, self.beta, self.p, self.b, arp=self.arp, **self.options)


class AdLIFLayer(NeuronLayer):
    """Synapses and one population of adLIF or SE-adLIF neurons (neurons/adlif/README.md).

    Parameters start evenly spread over their ranges, in an order drawn for each, recurrent weights
    orthogonal, weights as U(±1/√n_inputs) / (1 − α), to make up for the factor of the input.

    Args:
        n_inputs, n_units, rf_len, max_delay, surrogate, synapses: see `NeuronLayer`.
        dt_ms: length of a step.
        euler: "symplectic" for SE-adLIF, "forward" for adLIF.
        tau_membrane_ms, tau_adaptation_ms: ranges of τ_u and τ_w.
        a, b: ranges of the couplings to membrane and spike.
        q: scale of both.
        recurrent: all-to-all recurrence.
        recurrent_delay: of it, in steps.
        detach_spikes: see `alif`; by default gradient flows through reset and recurrence.
        method: "fused" or "standard".

    Raises:
        ValueError: a value outside its range, naming the argument.
    """

    alpha: Tensor
    beta: Tensor
    a: Tensor
    b: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        dt_ms: float,
        euler: Euler = "symplectic",
        tau_membrane_ms: Bounds = (5.0, 25.0),
        tau_adaptation_ms: Bounds = (60.0, 300.0),
        a: Bounds = (0.0, 1.0),
        b: Bounds = (0.0, 2.0),
        q: float = 120.0,
        recurrent: bool = True,
        recurrent_delay: int = 1,
        rf_len: int = 1,
        max_delay: int = 0,
        surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
        detach_spikes: bool = False,
        method: LoopOrFused = "fused",
        synapses: SynapseMode = "auto",
    ):
        super().__init__(
            n_inputs,
            n_units,
            recurrent=recurrent,
            recurrent_delay=recurrent_delay,
            rf_len=rf_len,
            max_delay=max_delay,
            surrogate=surrogate,
            detach_spikes=detach_spikes,
            method=method,
            synapses=synapses,
        )
        if euler not in get_args(Euler):
            known = ", ".join(get_args(Euler))
            raise ValueError(f"euler: expected one of {known}, got {euler!r}")
        self.euler: Euler = euler
        self.q = q
        if self.recurrent_weight is not None:
            nn.init.orthogonal_(self.recurrent_weight)
        for name, argument, limits in (
            ("alpha", "tau_membrane_ms", tau_membrane_ms),
            ("beta", "tau_adaptation_ms", tau_adaptation_ms),
            ("a", "a", a),
            ("b", "b", b),
        ):
            if len(limits) != 2 or not 0 <= limits[0] <= limits[1]:
                raise ValueError(f"{argument}: expected [least, most] ≥ 0, got {list(limits)}")
            low, high = limits
            values = torch.linspace(low, high, n_units)[torch.randperm(n_units)]
            bounds = (float(low), float(high))
            if argument.startswith("tau"):
                bounds = (decay(low, dt_ms), decay(high, dt_ms))
                values = torch.exp(-dt_ms / values).clamp(*bounds)
            self.add_bounded(name, values, bounds, True, argument)
        with torch.no_grad():
            self.weight /= 1 - self.alpha[:, None]

    def trace(self, x: EventBatch | Tensor, fired: Fired | None = None) -> ALIFTrace:
        """The whole result for input [T, B, n_inputs]; `fired` as in `synaptic_current`."""
        parameters = (self.alpha, self.beta, self.a, self.b)
        current = self.current(x, fired)
        return adlif(current, *parameters, q=self.q, euler=self.euler, **self.options)


class HiddenLayer(Protocol):
    """What a network needs of a layer of neurons; `SpikingLayer` is one, yours can be another."""

    def trace(self, x: EventBatch | Tensor, fired: Fired | None = None) -> ALIFTrace:
        """Spikes, membrane and threshold [T, B, n_units] for input [T, B, n_inputs]."""
        ...


MakeLayer = Callable[..., nn.Module]
"""(n_inputs, n_units, dt_ms=…) → a module that is a `HiddenLayer`."""


def run_layers(
    layers: Iterable[nn.Module], x: EventBatch | Tensor, dropout: float = 0.0
) -> Iterator[ALIFTrace]:
    """The results of `HiddenLayer`s one after another, each as events for the next.

    `dropout`: share of a layer's spikes that the next one does not get.
    """
    trace = None
    for layer in layers:
        given = (x, None) if trace is None else drop_spikes(trace, dropout)
        trace = cast(HiddenLayer, layer).trace(*given)
        yield trace


def drop_spikes(trace: ALIFTrace, share: float) -> tuple[Tensor, Fired]:
    """Spikes [T, B, N] and the same as events: each left out at random, the others scaled up.

    Scaled by 1 / (1 − share), which keeps their mean (Srivastava et al. 2014).
    """
    if share == 0:
        return trace.spikes, trace.fired
    kept = F.dropout(trace.spikes, share)
    return kept, Fired((kept.detach() != 0).view(torch.uint8), 1 / (1 - share))


class LeakyReadout(BoundedParameters):
    """Leaky integrators without spikes: V[t] = β V[t−1] + W S[t] + bias (SPEC section 1)."""

    beta: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        dt_ms: float,
        tau_membrane_ms: float = 20.0,
        train_beta: bool = True,
        beta_bounds: Bounds = (0.001, 0.999),
        synapses: SynapseMode = "auto",
    ):
        super().__init__()
        _check_counts(n_inputs=n_inputs, n_units=n_units)
        self.synapses: SynapseMode = synapses
        bound = 1 / math.sqrt(n_inputs)
        self.weight = nn.Parameter(torch.empty(1, n_units, n_inputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(n_units))
        beta = torch.full((n_units,), decay(tau_membrane_ms, dt_ms))
        self.add_bounded("beta", beta, beta_bounds, train_beta, "tau_membrane_ms")

    def forward(self, spikes: Tensor, fired: Fired | None = None) -> Tensor:
        """Membrane [T, B, n_units] for spikes [T, B, n_inputs]; `fired`: see `synaptic_current`."""
        current = synaptic_current(spikes, self.weight, self.bias, fired=fired, mode=self.synapses)
        return leaky_integrate(current, self.beta)


@dataclass(frozen=True)
class ClassifierOutput:
    """What a SpikingClassifier returns.

    Attributes:
        scores: [B, n_classes], over time the sum (or mean) of the readout's membrane, or
            of its softmax over classes.
        spikes: per hidden layer, [T, B, n_hidden].
        readout: membrane of the readout, [T, B, n_classes].
    """

    scores: Tensor
    spikes: list[Tensor]
    readout: Tensor

    def scores_of(self, n_samples: int) -> Tensor:
        """[n_samples, n_classes]: means over the views of each sample, if B holds several.

        The batch is all samples, then all again, … (`EventDataset`).
        """
        return self.scores.unflatten(0, (-1, n_samples)).mean(0)


class SpikingClassifier(nn.Module):
    """n_inputs → hidden layers of spiking neurons → leaky readout, as in the paper's E3 and E4.

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
        layer: makes the hidden layers, of any model; None = `SpikingLayer`s with the arguments
            above and `neurons`.
        **neurons: further arguments of `SpikingLayer`.
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
        _check_counts(n_inputs=n_inputs, n_classes=n_classes, n_hidden=n_hidden, n_layers=n_layers)
        if scores not in get_args(Scores):
            known = ", ".join(get_args(Scores))
            raise ValueError(f"scores: expected one of {known}, got {scores!r}")
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
        make = layer or partial(SpikingLayer, **{**shared, **neurons})
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

    def run_layers(self, x: EventBatch | Tensor) -> Iterator[ALIFTrace]:
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

    def read(self, traces: list[ALIFTrace]) -> ClassifierOutput:
        """What the readout makes of the hidden layers' results."""
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
