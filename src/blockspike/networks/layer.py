"""`NeuronLayer`: synapses onto one population of neurons, the base of every layer."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blockspike.networks.bounded import BoundedParameters
from blockspike.networks.delays import Delays
from blockspike.networks.last_inputs import join_inputs, last_inputs
from blockspike.networks.normalisation import BatchNorm
from blockspike.networks.synapses import SynapseMode, presynaptic_first, synaptic_current
from blockspike.neurons import MultiGaussian, SpikeTrace, Surrogate
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.delays import RecurrentDelays, longest_delay
from blockspike.neurons.events import EventBatch
from blockspike.neurons.simulate import Detach, ExactMethod
from blockspike.neurons.state import NeuronState, State


def decay(tau_ms: float, dt_ms: float, argument: str = "tau_ms") -> float:
    """Decay per step exp(−dt/τ), for τ and dt in ms.

    Raises:
        ValueError: τ is so short or long, in steps, that it may be in s or µs; it names `argument`.
    """
    if not dt_ms / 7 <= tau_ms <= 1e7 * dt_ms:
        raise ValueError(
            f"{argument}: expected ms, from a seventh of a step of {dt_ms:g} ms to 10,000,000 "
            f"steps, got {tau_ms:g}"
        )
    return math.exp(-dt_ms / tau_ms)


def check_counts(**counts: int) -> None:
    """Raise ValueError naming the first count that is no integer or is below 1."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name}: expected an integer ≥ 1, got {value!r}")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is in `known`."""
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")


@dataclass(frozen=True)
class LayerOptions:
    """Keyword arguments shared by the layers of all models.

    Attributes:
        recurrent: whether the neurons of the layer are connected, all to all.
        recurrent_delay: delay of the recurrent synapses in steps; None = the model's default.
        recurrent_max_delay: longest further delay of the recurrent synapses in steps; if above 0,
            each neuron learns that of its spikes, see `Delays`.
        recurrent_dropout: share of the neurons whose spikes recurrent synapses do not get, drawn
            in training for each call, or piece of `run_in_pieces`; other spikes are scaled up (Gal
            & Ghahramani 2016).
        max_delay: longest delay of the input synapses in steps; if above 0, each synapse learns
            its own.
        batch_norm: whether the synaptic current of each unit is normalised, see `BatchNorm`;
            currents of recurrent synapses are not.
        surrogate: derivative of the spike with respect to V − θ (docs/paper.md, Surrogates).
        detach_spikes: whether to stop the gradient through spikes in the reset and recurrence, or
            where alone: "reset" or "recurrence".
        method: simulation method, "fused", "standard" or, for ALIF, "blocks".
        synapses: "auto", "events" or "dense", see `synaptic_current`.
        batch_first: whether tensors are [B, T, N], as input and in the trace, instead of [T, B, N].

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
    max_delay: int = 0
    batch_norm: bool = False
    surrogate: Surrogate = MultiGaussian()
    detach_spikes: Detach = True
    method: str = "fused"
    synapses: SynapseMode = "auto"
    batch_first: bool = False


class NeuronLayer(BoundedParameters):
    """Synapses onto one population, input [T, B, n_inputs]; subclasses add neurons by `simulate`.

    The input is time first, unless `batch_first=True`; a tensor [T, n_inputs] is one sample. The
    layer is recurrent unless `recurrent=False`. Weights start as U(±1/√n_inputs), biases at 0,
    recurrent weights as the identity. Half-precision layers run in float32 on a CPU.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        **options: see `LayerOptions`.

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

    methods: tuple[str, ...] = get_args(ExactMethod)
    """Simulation methods of the model."""
    random_start = False
    """Whether samples start from `random_state` in training, unless a state is given."""
    random_state: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]]
    """State after spikes and two random values, all U(0, 1) [B, n_units]."""

    def __init__(self, n_inputs: int, n_units: int, **options: Any):
        super().__init__()
        self.options = LayerOptions(**options)
        check_choice("method", self.options.method, self.methods)
        max_delay, longest = self.options.max_delay, self.options.recurrent_max_delay
        given = {"max_delay": max_delay, "recurrent_max_delay": longest}
        check_counts(
            n_inputs=n_inputs, n_units=n_units, **{name: x for name, x in given.items() if x}
        )
        bound = 1 / math.sqrt(n_inputs)
        weight = torch.empty(n_units, n_inputs).uniform_(-bound, bound)
        self.weight = nn.Parameter(presynaptic_first(weight))
        self.bias = nn.Parameter(torch.zeros(n_units))
        self.delays = Delays(n_units, n_inputs, max_delay) if max_delay else None
        self.norm = BatchNorm(n_units) if self.options.batch_norm else None
        loop = presynaptic_first(torch.eye(n_units)) if self.options.recurrent else None
        self.recurrent_weight = None if loop is None else nn.Parameter(loop)
        self.recurrent_delays = Delays(n_units, 1, longest) if longest else None

    def extra_repr(self) -> str:
        """Sizes, options that differ from the defaults, and the ranges of the parameters."""
        n_units, n_inputs = self.weight.shape
        given = vars(self.options).items()
        options = [f"{name}={x!r}" for name, x in given if x != getattr(LayerOptions, name)]
        parts = (f"{n_inputs}, {n_units}", *options, self.parameters_repr())
        return ", ".join(filter(None, parts))

    @property
    def shortest_recurrent_delay(self) -> int:
        """Delay of the recurrent synapses in steps, without what neurons learn to add."""
        return self.options.recurrent_delay or 1

    @property
    def input_scale(self) -> Tensor | None:
        """Factor [n_units, 1] by which the step scales its input, such as 1 − α; None = 1."""
        return None

    @torch.no_grad()
    def compensate_(self) -> None:
        """Divide the initial weights by `input_scale`; layers with one call it when made."""
        scale = self.input_scale
        if scale is not None:
            self.weight /= scale
            if self.norm is not None:
                self.norm.gain.div_(scale[:, 0])

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
            x: input [T, B, n_inputs], [B, T, n_inputs] with `batch_first`, or [T, n_inputs].
            state: `trace.state` of the steps before, or values by name; see `alif`.
            events: see `synaptic_current`.
            membrane: whether the trace has membrane and threshold.
        """
        if isinstance(x, Tensor) and x.ndim == 2:
            if isinstance(state, NeuronState):
                state = state.map(lambda x: x.unsqueeze(1))
            trace = self._trace(x[:, None], state, events, membrane)
            return trace.map(lambda x: x.squeeze(1), of_state=True)
        if not self.options.batch_first:
            return self._trace(x, state, events, membrane)
        if isinstance(x, Tensor):
            x = x.transpose(0, 1)
        return self._trace(x, state, events, membrane).map(lambda x: x.transpose(0, 1))

    def _trace(
        self,
        x: EventBatch | Tensor,
        state: State | None,
        events: SpikeEvents | None,
        membrane: bool,
    ) -> SpikeTrace:
        before: Any = None
        if isinstance(state, NeuronState):
            before = state.inputs
            if before is None and self._n_kept:
                raise ValueError("state: expected inputs, for synapses with delays, got none")
        elif isinstance(state, Mapping):
            before, state = state.get("inputs"), {k: v for k, v in state.items() if k != "inputs"}
        current = self.current(x, events, before)
        options = self.simulation_options() | {"state": state, "membrane": membrane}
        if state is None and self.random_start and self.training:
            current = self._start_randomly(current, options)
        trace = self.simulate(current, **options)
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
            options["recurrent_delay"] = self.options.recurrent_delay
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
            current = self.delays.current(x, weight, bias, events, mode)
        else:
            current = synaptic_current(x, weight[None], bias, events=events, mode=mode)
        current = current[n_before:]
        return current if norm is None else norm(current, self.bias)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Weight [n_units, n_inputs] and bias [n_units] of the synaptic current.

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
        return self.options.max_delay

    def _start_randomly(self, current: Tensor, options: dict[str, Any]) -> Tensor:
        """Draw the state in `options`; return the current with what its spikes deliver."""
        size = current.shape[1:]
        spikes, *values = torch.rand(3, *size, dtype=self.weight.dtype, device=current.device)
        options["state"] = self.random_state(spikes, *values)
        weight = options["recurrent_weight"]
        if weight is None:
            return current
        delay = options.get("recurrent_delay", self.shortest_recurrent_delay)
        longest = longest_delay(delay)
        own = delay.whole if isinstance(delay, RecurrentDelays) else torch.tensor(delay)
        index = (own - 1).to(spikes.device).expand(1, *size)
        arriving = spikes.new_zeros(longest, *size).scatter(0, index, spikes[None])[: len(current)]
        steps = torch.arange(len(arriving), device=current.device)
        return current.index_add(0, steps, F.linear(arriving, weight).to(current.dtype))
