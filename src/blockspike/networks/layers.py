"""Layers of spiking neurons (synapses onto one population) and the leaky readout."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, Protocol, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blockspike.networks.bounded import BoundedParameters, Bounds
from blockspike.networks.delays import Delays
from blockspike.networks.last_inputs import join_inputs, last_inputs
from blockspike.networks.normalisation import BatchNorm
from blockspike.networks.synapses import SynapseMode, presynaptic_first, synaptic_current
from blockspike.neurons import Method, MultiGaussian, SpikeTrace, Surrogate, alif, leaky_integrate
from blockspike.neurons.cpu.dropout import dropout_mask
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.euler_adlif import Euler, euler_adlif
from blockspike.neurons.events import EventBatch
from blockspike.neurons.ops import is_traced
from blockspike.neurons.simulate import Detach, ExactMethod, detached
from blockspike.neurons.state import NeuronState, State


def decay(tau_ms: float, dt_ms: float, argument: str = "tau_ms") -> float:
    """Decay per step exp(−dt/τ), for τ, which errors call `argument`, and dt in ms, both > 0."""
    if not tau_ms > 0 or not dt_ms > 0:
        raise ValueError(f"{argument}, dt_ms: expected values > 0, got {tau_ms} and {dt_ms}")
    return math.exp(-dt_ms / tau_ms)


def check_counts(**counts: int) -> None:
    """Raise ValueError naming the first count that is no integer or is below 1."""
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}: expected an integer ≥ 1, got {value!r}")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is in `known`."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class LayerOptions:
    """Keyword arguments shared by the layers of all models.

    Attributes:
        recurrent: whether the layer has all-to-all recurrence.
        recurrent_delay: delay of the recurrent synapses in steps; None = the model's default.
        recurrent_max_delay: longest further delay of the recurrent synapses in steps; if above 0,
            each neuron learns that of its spikes, see `Delays`.
        recurrent_dropout: share of the neurons whose spikes recurrent synapses do not get, drawn
            in training for each call, or piece of `run_in_pieces`; other spikes are scaled up (Gal
            & Ghahramani 2016).
        rf_len: temporal receptive field in steps: input at t − rf_len + 1 … t acts at t.
        max_delay: longest delay of the input synapses in steps; if above 0, each synapse learns
            its own.
        batch_norm: whether the synaptic current of each unit is normalised, see `BatchNorm`;
            currents of recurrent synapses are not.
        surrogate: derivative of the spike with respect to V − θ (docs/paper.md, Surrogates).
        detach_spikes: whether to stop the gradient through spikes in the reset and recurrence, or
            where alone: "reset" or "recurrence".
        method: simulation method, "fused", "standard" or, for ALIF, "blocks".
        synapses: "auto", "events" or "dense", see `synaptic_current`.

    Raises:
        ValueError: a value outside its range, naming the argument.

    Examples:
        >>> import blockspike as bs
        >>> layer = bs.ALIFLayer(20, 5, dt_ms=1.0, recurrent=False, surrogate=bs.FastSigmoid())
        >>> layer.options.recurrent, layer.options.method
        (False, 'fused')
    """

    recurrent: bool = True
    recurrent_delay: int | None = None
    recurrent_max_delay: int = 0
    recurrent_dropout: float = 0.0
    rf_len: int = 1
    max_delay: int = 0
    batch_norm: bool = False
    surrogate: Surrogate = MultiGaussian()
    detach_spikes: Detach = True
    method: str = "fused"
    synapses: SynapseMode = "auto"

    def __post_init__(self):
        check_counts(rf_len=self.rf_len)
        if not isinstance(self.surrogate, Surrogate):
            got = f"{self.surrogate!r}"
            raise ValueError(f"surrogate: expected one such as MultiGaussian(), got {got}")
        detached(self.detach_spikes)
        check_choice("synapses", self.synapses, get_args(SynapseMode))
        if self.recurrent_delay is not None:
            check_counts(recurrent_delay=self.recurrent_delay)
        if not 0 <= self.recurrent_dropout < 1:
            raise ValueError(f"recurrent_dropout: expected 0 ≤ x < 1, got {self.recurrent_dropout}")
        for name in ("recurrent_dropout", "recurrent_max_delay"):
            if getattr(self, name) and not self.recurrent:
                raise ValueError(
                    f"{name}: expected 0 without recurrence, got {getattr(self, name)}"
                )
        longest: object = self.recurrent_max_delay
        is_count = isinstance(longest, int) and not isinstance(longest, bool) and longest >= 0
        if not is_count or (longest and self.method == "blocks"):
            raise ValueError(
                "recurrent_max_delay: expected an integer ≥ 0, and 0 with method=blocks, "
                f"got {longest!r}"
            )
        is_count = isinstance(self.max_delay, Integral) and self.max_delay >= 0
        if not is_count or (self.max_delay and self.rf_len > 1):
            raise ValueError(
                f"max_delay: expected an integer ≥ 0, and 0 with rf_len > 1, got {self.max_delay}"
            )


class NeuronLayer(BoundedParameters):
    """Synapses onto one population of neurons; a subclass adds a model's parameters and `simulate`.

    Weights start as U(±1/√n_inputs), biases at 0, recurrent weights as the identity.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        methods: simulation methods that the model has.
        **options: see `LayerOptions`.

    Raises:
        ValueError: a value outside its range, naming the argument.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> class LIFLayer(bs.NeuronLayer):
        ...     def simulate(self, current, **options):
        ...         beta = torch.full((current.shape[2],), 0.9)
        ...         return bs.alif(current, beta, **options)
        >>> layer = LIFLayer(20, 5, recurrent_delay=1)
        >>> layer.trace(torch.zeros(30, 2, 20)).spikes.shape
        torch.Size([30, 2, 5])
    """

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        methods: tuple[str, ...] = get_args(ExactMethod),
        **options: Any,
    ):
        super().__init__()
        check_counts(n_inputs=n_inputs, n_units=n_units)
        self.options = LayerOptions(**options)
        if self.options.method not in methods:
            raise ValueError(
                f"method: expected one of {', '.join(methods)} for {type(self).__name__}, "
                f"got {self.options.method!r}"
            )
        rf_len, max_delay = self.options.rf_len, self.options.max_delay
        bound = 1 / math.sqrt(n_inputs)
        weight = torch.empty(rf_len, n_units, n_inputs).uniform_(-bound, bound)
        self.weight = nn.Parameter(presynaptic_first(weight))
        self.bias = nn.Parameter(torch.zeros(n_units))
        self.delays = Delays(n_units, n_inputs, max_delay) if max_delay else None
        self.norm = BatchNorm(n_units) if self.options.batch_norm else None
        loop = presynaptic_first(torch.eye(n_units)) if self.options.recurrent else None
        self.recurrent_weight = None if loop is None else nn.Parameter(loop)
        longest = self.options.recurrent_max_delay
        self.recurrent_delays = Delays(n_units, 1, longest) if longest else None

    def extra_repr(self) -> str:
        """Sizes, options that differ from the defaults, and the ranges of the parameters."""
        _, n_units, n_inputs = self.weight.shape
        given = vars(self.options).items()
        options = [f"{name}={x!r}" for name, x in given if x != getattr(LayerOptions, name)]
        parts = (f"{n_inputs}, {n_units}", *options, self.parameters_repr())
        return ", ".join(filter(None, parts))

    @property
    def shortest_recurrent_delay(self) -> int:
        """Delay of the recurrent synapses in steps, without what neurons learn to add."""
        return self.options.recurrent_delay or 1

    @property
    def weight_scale(self) -> Tensor | float:
        """Factor of the initial weights of a model whose step scales its input by the inverse."""
        return 1.0

    def forward(self, x: EventBatch | Tensor) -> Tensor:
        """Spikes [T, B, n_units] for input [T, B, n_inputs]."""
        return self.trace(x).spikes

    def trace(
        self,
        x: EventBatch | Tensor,
        state: State | None = None,
        *,
        events: SpikeEvents | None = None,
        membrane: bool = False,
    ) -> SpikeTrace:
        """Simulate the layer.

        Args:
            x: input [T, B, n_inputs].
            state: `trace.state` of the steps before, or values by name; see `alif`.
            events: see `synaptic_current`.
            membrane: whether the trace has membrane and threshold.
        """
        before: Any = None
        if isinstance(state, NeuronState):
            before = state.inputs
            if before is None and self._n_kept:
                raise ValueError("state: expected inputs, for synapses with delays, got none")
        elif isinstance(state, Mapping):
            before, state = state.get("inputs"), {k: v for k, v in state.items() if k != "inputs"}
        options = self.simulation_options() | {"state": state, "membrane": membrane}
        trace = self.simulate(self.current(x, events, before), **options)
        if not self._n_kept:
            return trace
        inputs = last_inputs(x, before, self._n_kept, self.weight.dtype)
        return replace(trace, state=replace(trace.state, inputs=inputs))

    def simulation_options(self) -> dict[str, Any]:
        """Arguments of a simulation other than current, state and the model's parameters.

        In training, recurrent spikes to drop and their delays are drawn.
        """
        weight, share = self.recurrent_weight, self.options.recurrent_dropout
        if weight is not None and share and self.training:
            weight = weight * F.dropout(torch.ones_like(weight[0]), share)
        options: dict[str, Any] = {
            "recurrent_weight": weight,
            "surrogate": self.options.surrogate,
            "detach_spikes": self.options.detach_spikes,
            "method": self.options.method,
        }
        delays, shortest = self.recurrent_delays, self.shortest_recurrent_delay
        if delays is not None:
            added = delays.drawn() if self.training else delays.steps().to(delays.delay.dtype)
            options["recurrent_delay"] = RecurrentDelays(
                shortest + added[:, 0], shortest + delays.max_delay, delays.span
            )
        elif self.options.recurrent_delay is not None:  # else the model's default
            options["recurrent_delay"] = int(self.options.recurrent_delay)
        return options

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """Simulate the neurons for a synaptic current [T, B, n_units].

        `options` are those of `simulation_options`, `state` and `membrane`.
        """
        raise NotImplementedError

    def current(
        self,
        x: EventBatch | Tensor,
        events: SpikeEvents | None = None,
        before: Tensor | None = None,
    ) -> Tensor:
        """Synaptic current [T, B, n_units] for input [T, B, n_inputs].

        `events`: see `synaptic_current`; `before` [K, B, n_inputs] are the last steps of the input
        before these.
        """
        mode, n_before = self.options.synapses, 0
        if before is not None:
            n_before, (x, events) = len(before), join_inputs(before, x, events)
        norm = self.norm if self.norm is not None and self.norm.training else None
        weight, bias = self.weight_and_bias()
        if self.delays is not None:
            current = self.delays.current(x, weight[0], bias, events, mode)
        else:
            current = synaptic_current(x, weight, bias, events=events, mode=mode)
        current = current[n_before:]
        return current if norm is None else norm(current, self.bias)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Weight [n_taps, n_units, n_inputs] and bias [n_units] of the synaptic current.

        With `batch_norm` they contain the normalisation in evaluation; in training the bias is 0,
        since the normalisation adds it.
        """
        if self.norm is None:
            return self.weight, self.bias
        if self.norm.training:
            return self.weight, torch.zeros_like(self.bias)
        return self.norm.folded(self.weight, self.bias)

    @property
    def _n_kept(self) -> int:
        """Steps of input that synapses deliver later."""
        return max(self.options.rf_len - 1, self.options.max_delay)


class ALIFLayer(NeuronLayer):
    """Synapses and one population of ALIF neurons (docs/paper.md, The neuron).

    Weights start as U(±1/√n_inputs), biases at 0, recurrent weights as the identity.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms.
        tau_membrane_ms: initial membrane time constant τ of every neuron; β = exp(−dt/τ).
        tau_adaptation_ms: initial adaptation time constant, which sets p; None = no adaptation.
        b: initial threshold raise per spike.
        arp_ms: absolute refractory period in ms, rounded to steps.
        train_beta, train_p, train_b: whether the parameter is trained.
        beta_bounds, p_bounds, b_bounds: range of each parameter.
        **options: see `LayerOptions`; `recurrent_delay` defaults to arp + 1.

    Raises:
        ValueError: a value outside its range, naming the argument.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> layer = bs.ALIFLayer(700, 64, dt_ms=2.0, arp_ms=4.0)
        >>> spikes = (torch.rand(50, 8, 700) < 0.1).float()  # [T, B, n_inputs]
        >>> layer.trace(spikes).spikes.shape
        torch.Size([50, 8, 64])
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
        train_beta: bool = True,
        train_p: bool = True,
        train_b: bool = False,
        beta_bounds: Bounds = (0.001, 0.999),
        p_bounds: Bounds = (0.0, 0.999),
        b_bounds: Bounds = (0.0, 1.0),
        **options: Any,
    ):
        super().__init__(n_inputs, n_units, methods=get_args(Method), **options)
        if not 0 <= arp_ms < math.inf:
            raise ValueError(f"arp_ms: expected a value ≥ 0, got {arp_ms}")
        for name, (low, high) in (("p_bounds", p_bounds), ("b_bounds", b_bounds)):
            if self.options.method == "blocks" and low < 0:
                raise ValueError(f"{name}: expected bounds ≥ 0 for 'blocks', got {[low, high]}")
        beta = torch.full((n_units,), decay(tau_membrane_ms, dt_ms, "tau_membrane_ms"))
        self.add_bounded("beta", beta, beta_bounds, train_beta, "tau_membrane_ms")
        self.arp = round(arp_ms / dt_ms)
        if tau_adaptation_ms is None:
            self.p = self.b = None
        else:
            p = torch.full((n_units,), decay(tau_adaptation_ms, dt_ms, "tau_adaptation_ms"))
            self.add_bounded("p", p, p_bounds, train_p, "tau_adaptation_ms")
            self.add_bounded("b", torch.full((n_units,), float(b)), b_bounds, train_b, "b")

    def extra_repr(self) -> str:
        """See `NeuronLayer`; with the refractory period in steps."""
        return f"{super().extra_repr()}, arp={self.arp}"

    @property
    def shortest_recurrent_delay(self) -> int:
        """See `NeuronLayer`; arp + 1 by default."""
        return self.options.recurrent_delay or self.arp + 1

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `NeuronLayer`."""
        return alif(current, self.beta, self.p, self.b, arp=self.arp, **options)


class EulerAdLIFLayer(NeuronLayer):
    """Synapses and one population of SE-adLIF or EF-adLIF neurons (neurons/euler_adlif.py).

    Parameters start evenly spaced over their ranges, in random order. Recurrent weights start
    orthogonal, and weights as U(±1/√n_inputs) / (1 − α), since the model scales its input by 1 − α.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms.
        euler: "symplectic" for SE-adLIF, "forward" for EF-adLIF.
        tau_membrane_ms, tau_adaptation_ms: ranges of τ_u and τ_w in ms.
        a, b: ranges of the couplings to membrane and spike.
        q: scale of both couplings.
        recurrent_delay: delay of the recurrent synapses in steps.
        detach_spikes: see `simulate`; "reset" as in the authors' code.
        **options: see `LayerOptions`; `method` is "fused" or "standard".

    Raises:
        ValueError: a value outside its range, naming the argument.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> layer = bs.EulerAdLIFLayer(700, 64, dt_ms=2.0, euler="symplectic")
        >>> spikes = (torch.rand(50, 8, 700) < 0.1).float()  # [T, B, n_inputs]
        >>> layer.trace(spikes).spikes.shape
        torch.Size([50, 8, 64])
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
        recurrent_delay: int = 1,
        detach_spikes: Detach = "reset",
        **options: Any,
    ):
        check_choice("euler", euler, get_args(Euler))
        if not math.isfinite(q):
            raise ValueError(f"q: expected a finite number, got {q}")
        options |= {"recurrent_delay": recurrent_delay, "detach_spikes": detach_spikes}
        super().__init__(n_inputs, n_units, **options)
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
                if high < dt_ms / 7 or low > 1e5 * dt_ms or high > 1e7 * dt_ms:  # seconds
                    raise ValueError(
                        f"{argument}: expected ms, of a seventh of a step to 100,000 steps (the "
                        f"most: 10,000,000) of {dt_ms:g} ms, got {list(limits)}"
                    )
                bounds = (decay(low, dt_ms, argument), decay(high, dt_ms, argument))
                values = torch.exp(-dt_ms / values).clamp(*bounds)
            self.add_bounded(name, values, bounds, True, argument)
        with torch.no_grad():
            self.weight /= 1 - self.alpha[:, None]
            if self.norm is not None:
                self.norm.gain.div_(1 - self.alpha)

    @property
    def weight_scale(self) -> Tensor:
        """1 / (1 − α) of each neuron, [n_units, 1]."""
        return 1 / (1 - self.alpha[:, None])

    def extra_repr(self) -> str:
        """See `NeuronLayer`; with Euler's method and the scale of the couplings."""
        return f"{super().extra_repr()}, euler={self.euler!r}, q={self.q:g}"

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `NeuronLayer`."""
        neurons = (self.alpha, self.beta, self.a, self.b)
        return euler_adlif(current, *neurons, q=self.q, euler=self.euler, **options)


class HiddenLayer(Protocol):
    """Interface that a network expects of its hidden layers; `ALIFLayer` implements it."""

    def trace(
        self,
        x: EventBatch | Tensor,
        state: State | None = None,
        *,
        events: SpikeEvents | None = None,
        membrane: bool = False,
    ) -> SpikeTrace:
        """Trace of n_units for input [T, B, n_inputs]."""
        ...


MakeLayer = Callable[..., nn.Module]
"""Function of (n_inputs, n_units, dt_ms=…) that returns a `HiddenLayer` module."""


def run_layers(
    layers: Iterable[nn.Module],
    x: EventBatch | Tensor,
    dropout: float = 0.0,
    states: Sequence[NeuronState] | None = None,
    membrane: bool = False,
) -> Iterator[SpikeTrace]:
    """Run hidden layers one after another and yield each trace; its events feed the next layer.

    Args:
        layers: the layers, each a `HiddenLayer`.
        x: input [T, B, n_inputs] of the first.
        dropout: share of a layer's spikes that the next layer does not get.
        states: state of each layer at the start; None = 0.
        membrane: whether traces have membrane and threshold.
    """
    trace = None
    for i, layer in enumerate(layers):
        own_x, events = (x, None) if trace is None else drop_spikes(trace, dropout)
        own = cast(HiddenLayer, layer)
        if layer._forward_pre_hooks or layer._forward_hooks:
            warnings.warn(
                f"layers.{i}: hooks of hidden layers do not run, so nothing is pruned, normalised "
                "(weight_norm) or recorded by them; see docs/howto/python.md",
                stacklevel=3,
            )
        state = None if states is None else states[i]
        trace = own.trace(own_x, state, events=events, membrane=membrane)
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


class LeakyReadout(BoundedParameters):
    """Leaky integrators that do not spike: V[t] = β V[t−1] + W S[t] + bias.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> readout = bs.LeakyReadout(64, 10, dt_ms=2.0)
        >>> readout(torch.zeros(50, 8, 64)).shape  # [T, B, n_units]
        torch.Size([50, 8, 10])
    """

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
        check_counts(n_inputs=n_inputs, n_units=n_units)
        self.synapses: SynapseMode = synapses
        bound = 1 / math.sqrt(n_inputs)
        weight = torch.empty(1, n_units, n_inputs).uniform_(-bound, bound)
        self.weight = nn.Parameter(presynaptic_first(weight))
        self.bias = nn.Parameter(torch.zeros(n_units))
        beta = torch.full((n_units,), decay(tau_membrane_ms, dt_ms, "tau_membrane_ms"))
        self.add_bounded("beta", beta, beta_bounds, train_beta, "tau_membrane_ms")

    def extra_repr(self) -> str:
        """Sizes, and the range of β."""
        _, n_units, n_inputs = self.weight.shape
        return f"{n_inputs}, {n_units}, {self.parameters_repr()}"

    def forward(
        self, spikes: Tensor, events: SpikeEvents | None = None, start: Tensor | None = None
    ) -> Tensor:
        """Membrane [T, B, n_units] for spikes [T, B, n_inputs] and their events.

        `events`: see `synaptic_current`; `start` [B, n_units] is the membrane before; None = 0.
        """
        current = synaptic_current(
            spikes, self.weight, self.bias, events=events, mode=self.synapses
        )
        return leaky_integrate(current, self.beta, start)
