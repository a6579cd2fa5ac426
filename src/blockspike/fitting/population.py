"""Populations of independent neurons: cells to fit × starting points of each."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from blockspike.fitting.distance import Window, check_target, squared_distance
from blockspike.fitting.distance_cpu import fitting_distance
from blockspike.networks.bounded import BoundedParameters, Bounds
from blockspike.networks.layers import decay
from blockspike.neurons import Method, MultiGaussian, Surrogate, alif


class Coefficients(NamedTuple):
    """Coefficients of a simulation at one dt, [N] each.

    I[t] = weight · current[t] + bias + noise · ξ[t] with standard normal ξ, new for each trial.
    """

    beta: Tensor
    p: Tensor
    b: Tensor
    weight: Tensor
    bias: Tensor
    noise: Tensor


@dataclass(frozen=True)
class NeuronParameters:
    """Parameters of neurons in units that do not depend on dt; [N] float64 each.

    τ_m dV/dt = −(V − rest) + gain · current, with V = 0 after a spike and threshold 1; each spike
    raises the threshold by b, which decays with τ_a.

    Attributes:
        tau_membrane_ms, tau_adaptation_ms: time constants.
        b: increase of the threshold per spike, in thresholds.
        gain: thresholds per unit of current.
        rest: resting potential in thresholds; a spike resets V to 0.
        noise: standard deviation of V, in thresholds, under the neuron's own white noise while it
            does not fire.
    """

    tau_membrane_ms: Tensor
    tau_adaptation_ms: Tensor
    b: Tensor
    gain: Tensor
    rest: Tensor
    noise: Tensor

    def coefficients(self, dt_ms: float) -> Coefficients:
        """Coefficients per step: β = exp(−dt/τ_m), weight = (1 − β) gain, bias = (1 − β) rest.

        The noise of a step is √(1 − β²) noise, so that the noise of V does not depend on dt.
        """
        beta, p = (torch.exp(-dt_ms / x) for x in (self.tau_membrane_ms, self.tau_adaptation_ms))
        share, own = 1 - beta, torch.sqrt(1 - beta * beta) * self.noise
        return Coefficients(beta, p, self.b, share * self.gain, share * self.rest, own)


def of_coefficients(c: Coefficients, dt_ms: float) -> NeuronParameters:
    """Invert `NeuronParameters.coefficients`; p = 0 gives τ_a = 0."""
    tau_membrane_ms, tau_adaptation_ms = (-dt_ms / torch.log(x) for x in (c.beta, c.p))
    share = 1 - c.beta
    return NeuronParameters(
        tau_membrane_ms, tau_adaptation_ms, c.b, c.weight / share, c.bias / share,
        c.noise / torch.sqrt(1 - c.beta * c.beta),
    )  # fmt: skip


class NeuronPopulation(BoundedParameters):
    """n_cells × n_starts independent ALIF neurons, N = C · K: K consecutive starts for each cell.

    Args:
        n_cells, n_starts: C and K.
        dt_ms: length of a step.
        arp_ms: absolute refractory period, rounded to steps.
        surrogate, method: see `alif`; spikes in the reset are detached.
        n_trials: trials, each with noise of its own, whose mean is compared to the recording; 0 =
            one trial without noise.

    Raises:
        ValueError: a value outside its range, naming the argument.
    """

    clamps_after_step = False  # `FittingModule` does, once it has replaced the worst starts

    def __init__(
        self,
        n_cells: int,
        n_starts: int,
        *,
        dt_ms: float,
        arp_ms: float,
        surrogate: Surrogate,
        method: Method,
        n_trials: int = 0,
    ):
        super().__init__()
        if n_trials < 0:
            raise ValueError(f"n_trials: expected an integer ≥ 0, got {n_trials}")
        for name, value in (("n_cells", n_cells), ("n_starts", n_starts)):
            if value < 1:
                raise ValueError(f"{name}: expected an integer ≥ 1, got {value}")
        if not 0 <= arp_ms < math.inf:
            raise ValueError(f"arp_ms: expected a value ≥ 0, got {arp_ms}")
        self.n_cells, self.n_starts, self.dt_ms = n_cells, n_starts, dt_ms
        self.n_trials = n_trials
        self.arp = round(arp_ms / dt_ms)
        self.surrogate = surrogate
        self.method: Method = method

    @abstractmethod
    def coefficients(self) -> Coefficients:
        """Coefficients of the neurons, [N] each, differentiable."""

    @torch.no_grad()
    def physical(self) -> NeuronParameters:
        """Present parameters of the neurons in physical units, in float64."""
        c = Coefficients(*(x.double() for x in self.coefficients()))
        return of_coefficients(c, self.dt_ms)

    def forward(self, current: Tensor, draws: Tensor | None = None) -> Tensor:
        """Spikes [T, B, C · K] for the cells' currents [T, B, C].

        With draws [T, B, R] from `draw`, the mean over R trials with noise.

        Raises:
            ValueError: the current or the draws have another shape.
        """
        self._check(current, draws)
        c = self.coefficients()
        weight, bias = (x.view(self.n_cells, self.n_starts) for x in (c.weight, c.bias))
        drive = torch.addcmul(bias, current.unsqueeze(-1), weight).flatten(2)
        if draws is not None:
            drive = _with_noise(drive, c.noise, draws)
        spikes = alif(
            drive, c.beta, c.p, c.b, arp=self.arp, surrogate=self.surrogate, method=self.method
        ).spikes
        return spikes if draws is None else spikes.unflatten(1, draws.shape[1:]).mean(2)

    def draw(self, n_steps: int, n_segments: int, seed: int) -> Tensor | None:
        """Standard normal draws of `n_trials` trials, [T, B, R] float32, shared by all neurons.

        None without trials. The noise of a step is `Coefficients.noise` times its draw.
        """
        if not self.n_trials:
            return None
        generator = torch.Generator().manual_seed(seed)
        shape = (n_steps, n_segments, self.n_trials)
        return torch.randn(shape, generator=generator, dtype=torch.float32)  # also in 64-true

    def _check(self, current: Tensor, draws: Tensor | None) -> None:
        if current.ndim != 3 or current.shape[2] != self.n_cells:
            raise ValueError(
                f"current: expected [T, B, {self.n_cells} cells], got {list(current.shape)}"
            )
        shape = current.shape[:2]
        if draws is not None and (draws.shape[:2] != shape or draws.ndim != 3 or not draws.numel()):
            raise ValueError(
                f"draws: expected [{shape[0]}, {shape[1]}, trials], got {list(draws.shape)}"
            )

    def distance(
        self,
        current: Tensor,
        target: Tensor,
        filter_decay: float,
        window: Window,
        draws: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Squared distances to the recorded trains [T, B, C], as `squared_distance` returns them.

        With draws [T, B, R], the distances of the mean over R trials; the variance of the trials
        over R is part of them. The fused method on a CPU takes one pass; otherwise the neurons are
        simulated first and compared afterwards.

        Raises:
            ValueError: a shape or the window does not fit.
        """
        if self.method != "fused" or current.device.type != "cpu":
            return squared_distance(self(current, draws), target, filter_decay, window)
        self._check(current, draws)
        check_target(target, torch.Size((*current.shape[:2], self.n_cells * self.n_starts)), window)
        return fitting_distance(
            current, target, *self.coefficients(), draws=draws, arp=self.arp,
            surrogate=self.surrogate, decay=filter_decay, window=window,
        )  # fmt: skip


def _with_noise(drive: Tensor, noise: Tensor, draws: Tensor) -> Tensor:
    """Drives [T, B · R, N] of R noisy trials, from drives [T, B, N] and draws [T, B, R]."""
    return torch.addcmul(drive.unsqueeze(2), draws.to(drive).unsqueeze(3), noise).flatten(1, 2)


Range = tuple[float, float]


class PhysicalPopulation(NeuronPopulation):
    """Neurons fitted by rest and the logarithms of τ_m, τ_a, b, gain and noise, at any dt.

    Each start draws rest and each logarithm uniformly from its range.

    Args:
        n_cells, n_starts, dt_ms, arp_ms, surrogate, method, n_trials: as for `NeuronPopulation`.
        tau_membrane_ms, tau_adaptation_ms, b, gain, rest, noise: ranges of the starts. Currents are
            in standard deviations of the cell's training current (see `RecordingsDataModule`).
            Without trials there is no noise.
        seed: seed of the draw.
    """

    NAMES = ("log_tau_membrane", "log_tau_adaptation", "log_b", "log_gain", "rest", "log_noise")
    # Wide: they only keep a diverging start from overflowing.
    _BOUNDS: tuple[Bounds, ...] = ((-1, 7), (-1, 10), (-10, 3), (-7, 5), (-9, 9), (-7, 2))

    def __init__(
        self,
        n_cells: int,
        n_starts: int = 64,
        *,
        dt_ms: float,
        arp_ms: float = 0.5,
        tau_membrane_ms: Range = (5.0, 40.0),
        tau_adaptation_ms: Range = (20.0, 400.0),
        b: Range = (0.02, 1.0),
        gain: Range = (0.25, 2.5),
        rest: Range = (-0.5, 0.8),
        noise: Range = (0.05, 0.3),
        n_trials: int = 6,
        surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
        method: Method = "fused",
        seed: int = 0,
    ):
        super().__init__(
            n_cells, n_starts, dt_ms=dt_ms, arp_ms=arp_ms, surrogate=surrogate, method=method,
            n_trials=n_trials,
        )  # fmt: skip
        draw = torch.Generator().manual_seed(seed)
        ranges = (tau_membrane_ms, tau_adaptation_ms, b, gain, rest, noise)
        for name, (low, high), bounds in zip(self.NAMES, ranges, self._BOUNDS, strict=True):
            if name.startswith("log_"):
                if not 0 < low <= high:
                    raise ValueError(
                        f"{name.removeprefix('log_')}: expected a range above 0, got {(low, high)}"
                    )
                low, high = math.log(low), math.log(high)
            value = low + (high - low) * torch.rand(n_cells * n_starts, generator=draw)
            trained = n_trials > 0 or name != "log_noise"
            self.add_bounded(name, value, bounds, trained, name.removeprefix("log_"))

    def coefficients(self) -> Coefficients:
        """Coefficients of the neurons, [N] each, differentiable."""
        tau_m, tau_a, b, gain, rest, noise = (self.get_parameter(name) for name in self.NAMES)
        noise = noise.exp() if self.n_trials else torch.zeros_like(rest)
        parameters = NeuronParameters(tau_m.exp(), tau_a.exp(), b.exp(), gain.exp(), rest, noise)
        return parameters.coefficients(self.dt_ms)


class PaperPopulation(NeuronPopulation):
    """Neurons fitted by the paper's β, p, b, weight and bias per step, within the paper's bounds.

    They start, at dt = ds · 0.1 ms, from τ_m 20 ms, τ_a 100 ms, b 0.1/ds, weight ds and bias 0
    (docs/paper.md, Fitting recordings). Where p starts above its bound (dt ≤ 0.1 ms), it is set to
    the bound and not trained: the published clamp stops its gradient there.

    Args:
        n_cells, dt_ms, arp_ms, surrogate, method: as for `NeuronPopulation`.
        beta_bounds, p_bounds, b_bounds: ranges of the parameters.
    """

    NAMES = ("beta", "p", "b", "weight", "bias")

    def __init__(
        self,
        n_cells: int,
        *,
        dt_ms: float,
        arp_ms: float = 2.0,
        beta_bounds: Bounds = (0.001, 0.999),
        p_bounds: Bounds = (0.0, 0.999),
        b_bounds: Bounds = (0.0, 1.0),
        surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
        method: Method = "fused",
    ):
        super().__init__(n_cells, 1, dt_ms=dt_ms, arp_ms=arp_ms, surrogate=surrogate, method=method)
        down_sampling = dt_ms / 0.1
        p, b = decay(100.0, dt_ms), 0.1 / down_sampling
        full = torch.ones(n_cells)
        self.add_bounded("beta", full * decay(20.0, dt_ms), beta_bounds, True, "dt_ms")
        self.add_bounded("p", full * min(p, p_bounds[1]), p_bounds, p <= p_bounds[1], "dt_ms")
        self.add_bounded("b", full * min(b, b_bounds[1]), b_bounds, True, "dt_ms")
        self.weight = nn.Parameter(full * down_sampling)
        self.bias = nn.Parameter(torch.zeros(n_cells))

    def coefficients(self) -> Coefficients:
        """Coefficients of the neurons, [N] each, differentiable; without noise."""
        values = [self.get_parameter(name) for name in self.NAMES]
        return Coefficients(*[*values, torch.zeros_like(self.bias)])


def simulate(
    parameters: NeuronParameters,
    current: Tensor,
    dt_ms: float,
    arp_ms: float,
    draws: Tensor | None = None,
) -> Tensor:
    """Spikes [T, B, N] of neurons, each driven by its own current [T, B, N], in float64.

    With standard normal draws [T, B, R], the spikes [T, B, R, N] of R trials with noise.
    """
    c = parameters.coefficients(dt_ms)
    drive = c.weight * current.double() + c.bias
    if draws is not None:
        drive = _with_noise(drive, c.noise, draws)
    spikes = alif(drive, c.beta, c.p, c.b, arp=round(arp_ms / dt_ms)).spikes
    return spikes if draws is None else spikes.unflatten(1, draws.shape[1:])
