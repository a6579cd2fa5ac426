"""Layers of neurons as their authors train them: from a random state, with their ranges."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blockspike.networks.bounded import Bounds
from blockspike.networks.layers import NeuronLayer
from blockspike.neurons.adlif import adlif
from blockspike.neurons.c_silif import c_silif
from blockspike.neurons.delays import RecurrentDelays, longest_delay
from blockspike.neurons.surrogates import Boxcar
from blockspike.neurons.trace import SpikeTrace


class PublishedLayer(NeuronLayer):
    """Layer with the authors' options, whose neurons start in training from random states.

    Args:
        n_inputs, n_units: see `NeuronLayer`.
        random_start: whether states and spikes of each sample start as U(0, 1) in training, unless
            a state is given. They are drawn by PyTorch's generator.
        **options: see `LayerOptions`. By default currents are normalised, the surrogate is the
            boxcar, nothing is detached, and recurrence takes a step, as in the authors' code.
    """

    def __init__(self, n_inputs: int, n_units: int, *, random_start: bool, **options: Any):
        of_authors: dict[str, Any] = {"batch_norm": True, "surrogate": Boxcar()}
        of_authors |= {"detach_spikes": False, "recurrent_delay": 1}
        super().__init__(n_inputs, n_units, **of_authors | options)
        self.random_start = random_start

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `NeuronLayer`."""
        if options["state"] is None and self.random_start and self.training:
            dtype = self.weight.dtype
            spikes, *values = torch.rand(3, *current.shape[1:], dtype=dtype, device=current.device)
            options["state"] = self.start(spikes, *values)
            current = self._with_recurrence_of(spikes, current, options)
        return self.run(current, **options)

    def start(self, spikes: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """State after spikes and two random values, all [B, n_units] within 0 and 1."""
        raise NotImplementedError

    def run(self, current: Tensor, **options: Any) -> SpikeTrace:
        """Simulate from a state that is known; arguments as in `simulate`."""
        raise NotImplementedError

    def _with_recurrence_of(
        self, spikes: Tensor, current: Tensor, options: dict[str, Any]
    ) -> Tensor:
        """The current [T, B, n_units] with what recurrent weights deliver of the spikes before."""
        weight = options["recurrent_weight"]
        if weight is None:
            return current
        delay = options.get("recurrent_delay", self.shortest_recurrent_delay)
        longest = longest_delay(delay)
        if longest > len(current):
            raise ValueError(
                f"current: expected at least recurrent_delay + recurrent_max_delay = {longest} "
                f"steps with random_start, got {len(current)}"
            )
        own = delay.whole if isinstance(delay, RecurrentDelays) else torch.tensor(delay)
        index = (own - 1).to(spikes.device).expand(1, *spikes.shape)
        arriving = spikes.new_zeros(longest, *spikes.shape).scatter(0, index, spikes[None])
        steps = torch.arange(longest, device=current.device)
        return current.index_add(0, steps, F.linear(arriving, weight).to(current.dtype))


class AdLIFLayer(PublishedLayer):
    """Synapses and one population of adLIF neurons, or RadLIF neurons if they are recurrent.

    Equations: neurons/adlif.py. As in the code of Bittar & Garner 2022, parameters start
    uniform over their ranges, weights as U(±1/√n_inputs), recurrent weights orthogonal, and no
    neuron gets its own spikes. Two things differ. There, neurons also start from random states in
    evaluation; here they start from 0, so that a network gives an input one answer. There,
    parameters are clamped in the forward pass; here after each step of the optimiser, see
    `BoundedParameters`.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms; not used, since the authors' time constants are in steps.
        tau_membrane_steps, tau_adaptation_steps: ranges of the time constants in steps;
            α = exp(−1/τ).
        a, b: ranges of the couplings to membrane and spike.
        random_start, **options: see `PublishedLayer`; random are u, w and s. `method` is "fused" or
            "standard".

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
        super().__init__(n_inputs, n_units, random_start=random_start, **options)
        if self.recurrent_weight is not None:
            nn.init.orthogonal_(self.recurrent_weight)
        for name, argument, limits in (
            ("alpha", "tau_membrane_steps", tau_membrane_steps),
            ("beta", "tau_adaptation_steps", tau_adaptation_steps),
            ("a", "a", a),
            ("b", "b", b),
        ):
            is_tau = argument != name
            low, high = _range(argument, limits, above=0.0 if is_tau else -math.inf)
            if is_tau:
                low, high = math.exp(-1 / low), math.exp(-1 / high)
            self.add_bounded(name, _uniform(n_units, low, high), (low, high), True, argument)

    def simulation_options(self) -> dict[str, Any]:
        """See `NeuronLayer`; without the recurrent weight of a neuron to itself."""
        options = super().simulation_options()
        weight = options["recurrent_weight"]
        if weight is not None:
            own = torch.eye(len(weight), dtype=torch.bool, device=weight.device)
            options["recurrent_weight"] = weight.masked_fill(own, 0.0)
        return options

    def start(self, spikes: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The state that u, w and s, [B, n_units], lead to."""
        u, w = first, second
        adaptation = self.beta * w + self.a * u + self.b * spikes
        return {"membrane": u - spikes, "adaptation": adaptation}

    def run(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `PublishedLayer`."""
        return adlif(current, self.alpha, self.beta, self.a, self.b, **options)


class CSiLIFLayer(PublishedLayer):
    """Synapses and one population of C-SiLIF neurons.

    Equations: neurons/c_silif.py. As in the code of Fabre et al. 2025, the logarithms of
    decay rate and time step are trained, and the frequency and b; none has bounds. Time steps start
    log-uniform over their range, b as U(0, 1), and weights as U(±1/√n_inputs). Other than there,
    neurons start from 0 in evaluation, so that a network gives an input one answer.

    Args:
        n_inputs: number of units that feed the layer.
        n_units: number of neurons.
        dt_ms: length of a step in ms; not used, since each neuron learns its time step.
        rate: initial decay rate of every neuron, per unit of time.
        frequency: initial angular frequency of every neuron in radians per unit of time.
        time_step: range of the initial time steps in units of time.
        recurrent: whether the layer has all-to-all recurrence; the authors' has none.
        random_start, **options: see `PublishedLayer`; random are real and imaginary part and s.
            `method` is "fused" or "standard".

    Raises:
        ValueError: a value outside its range, naming the argument.

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
        options["recurrent"] = recurrent
        super().__init__(n_inputs, n_units, random_start=random_start, **options)
        if not 0 < rate < math.inf:
            raise ValueError(f"rate: expected a finite value > 0, got {rate}")
        if not math.isfinite(frequency):
            raise ValueError(f"frequency: expected a finite value, got {frequency}")
        low, high = _range("time_step", time_step, above=0.0)
        self.log_rate = nn.Parameter(torch.full((n_units,), math.log(rate)))
        self.log_time_step = nn.Parameter(_uniform(n_units, math.log(low), math.log(high)))
        self.frequency = nn.Parameter(torch.full((n_units,), float(frequency)))
        self.b = nn.Parameter(torch.rand(n_units))

    def start(self, spikes: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The state that real and imaginary part and s, [B, n_units], lead to."""
        return {"membrane": 2 * first - spikes, "imaginary": 2 * second}

    def run(self, current: Tensor, **options: Any) -> SpikeTrace:
        """See `PublishedLayer`."""
        neurons = (self.log_rate.exp(), self.frequency, self.log_time_step.exp(), self.b)
        return c_silif(current, *neurons, **options)


def _range(argument: str, limits: Bounds, above: float) -> Bounds:
    if len(limits) != 2 or not above < limits[0] <= limits[1] < math.inf:
        expected = "[least, most]" + (f" > {above:g}" if math.isfinite(above) else "")
        raise ValueError(f"{argument}: expected {expected}, got {list(limits)}")
    return float(limits[0]), float(limits[1])


def _uniform(n: int, low: float, high: float) -> Tensor:
    return torch.empty(n).uniform_(low, high).clamp(low, high)
