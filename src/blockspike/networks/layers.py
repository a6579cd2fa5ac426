"""A layer of each neuron model: its parameters, with ranges and initial values."""

import math
from collections.abc import Sequence
from typing import Any, get_args

import torch
from torch import Tensor, nn

from blockspike.networks.bounded import Bounds
from blockspike.networks.layer import NeuronLayer, decay
from blockspike.neurons.adlif import adlif
from blockspike.neurons.alif import Method, alif
from blockspike.neurons.c_silif import c_silif
from blockspike.neurons.euler_adlif import Euler, euler_adlif
from blockspike.neurons.glif import COUPLED_GLIF, GLIF
from blockspike.neurons.simulate import Detach, check_arp, simulate
from blockspike.neurons.surrogates import Boxcar
from blockspike.neurons.trace import SpikeTrace


class ALIFLayer(NeuronLayer):
    """Adaptive leaky integrate-and-fire neurons, recurrent unless `recurrent=False`.

    The input is [T, B, n_inputs], or [B, T, n_inputs] with `batch_first=True`. Equations:
    neurons/alif.py.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms.
        tau_membrane_ms: initial membrane time constant τ of every neuron; β = exp(−dt/τ).
        tau_adaptation_ms: initial adaptation time constant, which sets p; None = no adaptation.
        b: initial threshold raise per spike.
        arp_ms: absolute refractory period in ms, rounded to steps.
        train_beta, train_p, train_b: whether the parameter is trained.
        beta_bounds, p_bounds, b_bounds: range of each parameter; for method "blocks", p and b ≥ 0.
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

    methods = get_args(Method)
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
        super().__init__(n_inputs, n_units, **options)
        beta = torch.full((n_units,), decay(tau_membrane_ms, dt_ms, "tau_membrane_ms"))
        self.add_bounded("beta", beta, beta_bounds, train_beta, "tau_membrane_ms")
        self.arp = round(arp_ms / dt_ms)
        check_arp(self.arp)
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


PerNeuron = float | Sequence[float]
"""One number for all neurons, or one for each."""

_DECAY_BOUNDS, _ANY_NUMBER = (0.001, 0.99999), (-math.inf, math.inf)


class GLIFLayer(NeuronLayer):
    """Generalised leaky integrate-and-fire neurons (GLIF), recurrent unless `recurrent=False`.

    The input is [T, B, n_inputs], or [B, T, n_inputs] with `batch_first=True`. Equations and the
    choices of parts that make LIF, GLIF1 to GLIF4 and GIF: neurons/glif.py. Each number below may
    differ between neurons; a part with amplitude 0 is absent.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms.
        tau_membrane_ms: membrane time constant τ; β = exp(−dt/τ).
        reset_share: share of V that a reset leaves, 0 to 1.
        refractory_ms: steps after a spike in which V stays at its reset, in ms, rounded to steps.
        after_spike_currents: up to two pairs of an amplitude, in threshold units per step, and a
            time constant in ms.
        threshold_kernels: up to two pairs of an amplitude, in threshold units, and a time constant
            in ms.
        threshold_coupling: rise of the threshold per rise of V, its time constant in ms, the onset
            and the half-width of the bend, both in threshold units; None = no coupling.
        trainable: names of the parameters that are trained: "beta", "reset_share", "current_1",
            "current_decay_1", "threshold_1", "threshold_decay_1" (and 2), "coupling",
            "coupling_decay", "coupling_onset", "coupling_width"; of parts that are given.
        **options: see `LayerOptions`; `method` is "fused" or "standard".

    Raises:
        ValueError: a value outside its range, or an unknown name, naming the argument.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> layer = bs.GLIFLayer(
        ...     700, 3, dt_ms=2.0, tau_membrane_ms=[10.0, 20.0, 30.0], refractory_ms=4.0,
        ...     threshold_kernels=[([0.5, 0.0, 1.0], 100.0)], trainable=["beta", "threshold_1"],
        ... )
        >>> spikes = (torch.rand(50, 8, 700) < 0.1).float()  # [T, B, n_inputs]
        >>> layer.trace(spikes).spikes.shape
        torch.Size([50, 8, 3])
    """  # fmt: skip

    beta: Tensor
    coupling_width: Tensor
    refractory: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        dt_ms: float,
        tau_membrane_ms: PerNeuron = 20.0,
        reset_share: PerNeuron = 0.0,
        refractory_ms: PerNeuron = 0.0,
        after_spike_currents: tuple[Any, ...] = (),
        threshold_kernels: tuple[Any, ...] = (),
        threshold_coupling: tuple[Any, ...] | None = None,
        trainable: tuple[str, ...] = ("beta",),
        **options: Any,
    ):
        super().__init__(n_inputs, n_units, **options)

        def of_each(x: PerNeuron, argument: str) -> Tensor:
            values = torch.as_tensor(x, dtype=torch.float32)
            if values.numel() not in (1, n_units):
                raise ValueError(
                    f"{argument}: expected a number, or one for each of {n_units} neurons, "
                    f"got {values.numel()}"
                )
            return values.expand(n_units).clone()

        self.model = GLIF if threshold_coupling is None else COUPLED_GLIF
        given: list[tuple[str, PerNeuron, Bounds, str]] = [
            ("beta", tau_membrane_ms, _DECAY_BOUNDS, "tau_membrane_ms"),
            ("reset_share", reset_share, (0.0, 1.0), "reset_share"),
        ]
        for name, argument, kernels in (
            ("current", "after_spike_currents", after_spike_currents),
            ("threshold", "threshold_kernels", threshold_kernels),
        ):
            for i, (amplitude, tau_ms) in enumerate(kernels, 1):
                given.append((f"{name}_{i}", amplitude, _ANY_NUMBER, argument))
                given.append((f"{name}_decay_{i}", tau_ms, _DECAY_BOUNDS, argument))
        if threshold_coupling is not None:
            names = ("coupling", "coupling_decay", "coupling_onset", "coupling_width")
            bounds = (_ANY_NUMBER, _DECAY_BOUNDS, _ANY_NUMBER, (1e-3, math.inf))
            parts = zip(names, threshold_coupling, bounds, strict=True)
            given += [(*part, "threshold_coupling") for part in parts]
        known = {name for name, *_ in given}
        if unknown := {*trainable} - known:
            expected = f"some of {', '.join(sorted(known))}"
            raise ValueError(f"trainable: expected {expected}, got {', '.join(unknown)}")
        for name, x, bounds, argument in given:
            value = of_each(x, argument)
            if bounds == _DECAY_BOUNDS:
                value = torch.exp(-dt_ms / value)
            self.add_bounded(name, value, bounds, name in trainable, argument)
        refractory = of_each(refractory_ms, "refractory_ms")
        self.register_buffer("refractory", (refractory / dt_ms).round())

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `NeuronLayer`."""
        own = {name: getattr(self, name, None) for name in self.model.parameters}
        if self.model is COUPLED_GLIF:
            own["quarter_of_inverse_width"] = 0.25 / self.coupling_width
        absent = torch.zeros_like(self.beta)
        parameters = {name: absent if x is None else x for name, x in own.items()}
        return simulate(self.model, current, parameters, **options)


class EulerAdLIFLayer(NeuronLayer):
    """SE-adLIF or EF-adLIF neurons, recurrent unless `recurrent=False`.

    The input is [T, B, n_inputs], or [B, T, n_inputs] with `batch_first=True`. Equations:
    neurons/euler_adlif.py. Parameters start evenly spaced over their ranges, in random order.
    Recurrent weights start orthogonal, and weights as U(±1/√n_inputs) / (1 − α), since the model
    scales its input by 1 − α.

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
        options |= {"recurrent_delay": recurrent_delay, "detach_spikes": detach_spikes}
        super().__init__(n_inputs, n_units, **options)
        self.euler: Euler = euler
        self.q = q
        if self.recurrent_weight is not None:
            nn.init.orthogonal_(self.recurrent_weight)
        for name, argument, (low, high) in (
            ("alpha", "tau_membrane_ms", tau_membrane_ms),
            ("beta", "tau_adaptation_ms", tau_adaptation_ms),
            ("a", "a", a),
            ("b", "b", b),
        ):
            values = torch.linspace(low, high, n_units)[torch.randperm(n_units)]
            bounds = (float(low), float(high))
            if argument != name:
                bounds = (decay(low, dt_ms, argument), decay(high, dt_ms, argument))
                values = torch.exp(-dt_ms / values).clamp(*bounds)
            self.add_bounded(name, values, bounds, True, argument)
        self.compensate_()

    @property
    def input_scale(self) -> Tensor:
        """1 − α of each neuron, [n_units, 1]."""
        return 1 - self.alpha[:, None]

    def extra_repr(self) -> str:
        """See `NeuronLayer`; with Euler's method and the scale of the couplings."""
        return f"{super().extra_repr()}, euler={self.euler!r}, q={self.q:g}"

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `NeuronLayer`."""
        neurons = (self.alpha, self.beta, self.a, self.b)
        return euler_adlif(current, *neurons, q=self.q, euler=self.euler, **options)


# Options of the authors' code of adLIF and C-SiLIF, where a layer is not told otherwise.
_OF_AUTHORS: dict[str, Any] = {
    "batch_norm": True,
    "surrogate": Boxcar(),
    "detach_spikes": False,
    "recurrent_delay": 1,
}


class AdLIFLayer(NeuronLayer):
    """adLIF neurons, or RadLIF if `recurrent`, as Bittar & Garner (2022) train them.

    The input is [T, B, n_inputs], or [B, T, n_inputs] with `batch_first=True`. Equations:
    neurons/adlif.py. As in the authors' code, parameters start uniform over their ranges, weights
    as U(±1/√n_inputs), recurrent weights orthogonal, and no neuron receives its own spikes. Two
    things differ. There, neurons also start from random states in evaluation; here they start from
    0, so that a network gives an input one answer. There, parameters are clamped in the forward
    pass; here after each step of the optimiser, see `BoundedParameters`.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms; not used, since the authors' time constants are in steps.
        tau_membrane_steps, tau_adaptation_steps: ranges of the time constants in steps;
            α = exp(−1/τ).
        a, b: ranges of the couplings to membrane and spike.
        random_start: whether u, w and s of each sample start as U(0, 1) in training, unless a state
            is given. They are drawn by PyTorch's generator.
        **options: see `LayerOptions`. By default currents are normalised, the surrogate is the
            boxcar, nothing is detached, and recurrence takes a step, as in the authors' code.
            `method` is "fused" or "standard".

    Raises:
        ValueError: a value outside its range, naming the argument.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> layer = bs.AdLIFLayer(700, 64, dt_ms=10.0)
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
        tau_membrane_steps: Bounds = (5.0, 25.0),
        tau_adaptation_steps: Bounds = (30.0, 120.0),
        a: Bounds = (-1.0, 1.0),
        b: Bounds = (0.0, 2.0),
        random_start: bool = True,
        **options: Any,
    ):
        super().__init__(n_inputs, n_units, **_OF_AUTHORS | options)
        self.random_start = random_start
        if self.recurrent_weight is not None:
            nn.init.orthogonal_(self.recurrent_weight)
        for name, argument, (low, high) in (
            ("alpha", "tau_membrane_steps", tau_membrane_steps),
            ("beta", "tau_adaptation_steps", tau_adaptation_steps),
            ("a", "a", a),
            ("b", "b", b),
        ):
            if argument != name:
                low, high = decay(low, 1, argument), decay(high, 1, argument)
            bounds = (float(low), float(high))
            self.add_bounded(name, _uniform(n_units, *bounds), bounds, True, argument)

    def simulation_options(self) -> dict[str, Any]:
        """See `NeuronLayer`; without the recurrent weight of a neuron to itself."""
        options = super().simulation_options()
        weight = options["recurrent_weight"]
        if weight is not None:
            own = torch.eye(len(weight), dtype=torch.bool, device=weight.device)
            options["recurrent_weight"] = weight.masked_fill(own, 0.0)
        return options

    def random_state(self, spikes: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The state that u, w and s, [B, n_units], lead to."""
        u, w = first, second
        adaptation = self.beta * w + self.a * u + self.b * spikes
        return {"membrane": u - spikes, "adaptation": adaptation}

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `NeuronLayer`."""
        return adlif(current, self.alpha, self.beta, self.a, self.b, **options)


class CSiLIFLayer(NeuronLayer):
    """C-SiLIF neurons with a learned time step and frequency, as Fabre et al. (2025) train them.

    The input is [T, B, n_inputs], or [B, T, n_inputs] with `batch_first=True`. Equations:
    neurons/c_silif.py. As in the authors' code, the logarithms of decay rate and time step are
    trained, and the frequency and b; none has bounds. Time steps start log-uniform over their
    range, b as U(0, 1), and weights as U(±1/√n_inputs). Unlike there, neurons start from 0 in
    evaluation, so that a network gives an input one answer.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms; not used, since each neuron learns its time step.
        rate: initial decay rate of every neuron, per unit of time.
        frequency: initial angular frequency of every neuron in radians per unit of time.
        time_step: range of the initial time steps in units of time.
        recurrent: whether the layer has all-to-all recurrence; the authors' has none.
        random_start: whether real and imaginary part and s of each sample start as U(0, 1) in
            training, unless a state is given.
        **options: see `AdLIFLayer`.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> layer = bs.CSiLIFLayer(700, 64, dt_ms=4.0)
        >>> spikes = (torch.rand(50, 8, 700) < 0.1).float()  # [T, B, n_inputs]
        >>> layer.trace(spikes).spikes.shape
        torch.Size([50, 8, 64])
    """

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        dt_ms: float,
        rate: float = 0.5,
        frequency: float = math.pi,
        time_step: Bounds = (0.01, 0.5),
        recurrent: bool = False,
        random_start: bool = True,
        **options: Any,
    ):
        super().__init__(n_inputs, n_units, recurrent=recurrent, **_OF_AUTHORS | options)
        self.random_start = random_start
        low, high = map(math.log, time_step)
        self.log_rate = nn.Parameter(torch.full((n_units,), math.log(rate)))
        self.log_time_step = nn.Parameter(_uniform(n_units, low, high))
        self.frequency = nn.Parameter(torch.full((n_units,), float(frequency)))
        self.b = nn.Parameter(torch.rand(n_units))

    def random_state(self, spikes: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The state that real and imaginary part and s, [B, n_units], lead to."""
        return {"membrane": 2 * first - spikes, "imaginary": 2 * second}

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `NeuronLayer`."""
        neurons = (self.log_rate.exp(), self.frequency, self.log_time_step.exp(), self.b)
        return c_silif(current, *neurons, **options)


def _uniform(n: int, low: float, high: float) -> Tensor:
    return torch.empty(n).uniform_(low, high).clamp(low, high)
