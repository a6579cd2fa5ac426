"""Populations of independent neurons: cells to fit × starting points of each."""

import math
from collections.abc import Mapping
from dataclasses import fields

import torch
from torch import Tensor, nn

from blockspike.fitting import escape, escape_cpu
from blockspike.fitting.distance import Window, check_target, squared_distance
from blockspike.fitting.distance_cpu import Drive, fitting_distance
from blockspike.fitting.parameters import (
    Coefficients,
    NeuronParameters,
    of_coefficients,
    with_noise,
)
from blockspike.fitting.voltage import RecordedVoltage, driven_membrane, unexplained_voltage
from blockspike.networks.bounded import BoundedParameters, Bounds
from blockspike.networks.layer import check_counts, decay
from blockspike.neurons import Method, MultiGaussian, Surrogate, alif
from blockspike.neurons.alif import ALIF
from blockspike.neurons.simulate import check_arp, simulate


class NeuronPopulation(BoundedParameters):
    """n_cells × n_starts independent neurons, N = C · K: K consecutive starts for each cell.

    Args:
        n_cells, n_starts: C and K.
        dt_ms: length of a step.
        surrogate, method: see `alif`; spikes in the reset are detached.
        n_trials: trials, each with noise of its own, whose mean is compared to the recording; 0 =
            one trial without noise.

    Raises:
        ValueError: a value outside its range, naming the argument.
    """

    neuron: str
    """Name of the neurons, for tables."""
    clamps_after_step = False  # `NeuronFittingModule` does, once it has replaced the worst starts
    searched: list[str]
    """Names of parameters without a gradient, which are found by selection alone."""

    def __init__(
        self,
        n_cells: int,
        n_starts: int,
        *,
        dt_ms: float,
        surrogate: Surrogate,
        method: Method,
        n_trials: int = 0,
    ):
        super().__init__()
        if n_trials < 0:
            raise ValueError(f"n_trials: expected an integer ≥ 0, got {n_trials}")
        check_counts(n_cells=n_cells, n_starts=n_starts)
        self.n_cells, self.n_starts, self.dt_ms = n_cells, n_starts, dt_ms
        self.n_trials = n_trials
        self.searched: list[str] = []
        self.surrogate = surrogate
        self.method: Method = method

    def coefficients(self) -> Coefficients:
        """Coefficients of the neurons, differentiable."""
        raise NotImplementedError

    def physical(self) -> NeuronParameters:
        """Present parameters of the neurons in physical units, in float64."""
        raise NotImplementedError

    def forward(self, current: Tensor, draws: Tensor | None = None) -> Tensor:
        """Spikes [T, B, C · K] for the cells' currents [T, B, C].

        With draws [T, B, R] from `draw`, the mean over R trials with noise.

        Raises:
            ValueError: the current or the draws have another shape.
        """
        self._check(current, draws)
        c = self.coefficients()
        weight, bias = (x.view(self.n_cells, self.n_starts) for x in c.drive[:2])
        drive = torch.addcmul(bias, current.unsqueeze(-1), weight).flatten(2)
        if draws is not None:
            drive = with_noise(drive, c.drive.noise, draws)
        start, own = {"membrane": c.drive.start}, c.parameters
        if self.method == "blocks":
            arp = int(c.constants[0])
            trace = alif(
                drive, own["beta"], own["p"], own["b"], arp=arp, surrogate=self.surrogate,
                state=start, method="blocks",
            )  # fmt: skip
        else:
            trace = simulate(
                c.model, drive, own, c.constants, surrogate=self.surrogate, state=start,
                method=self.method,
            )  # fmt: skip
        return trace.spikes if draws is None else trace.spikes.unflatten(1, draws.shape[1:]).mean(2)

    def draw(self, n_steps: int, n_segments: int, seed: int) -> Tensor | None:
        """Standard normal draws of `n_trials` trials, [T, B, R] float32, shared by all neurons.

        None without trials. The noise of a step is `Drive.noise` times its draw.
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
        c = self.coefficients()
        return fitting_distance(
            current, target, c.model, c.constants, tuple(c.parameters.values()), c.drive,
            draws=draws, surrogate=self.surrogate, decay=filter_decay, window=window,
        )  # fmt: skip

    def log_likelihoods(
        self, current: Tensor, trains: Tensor, is_there: Tensor, window: Window
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of recorded spikes over fitted and over held-out steps, [B, N] each.

        Args:
            current: [T, B, C].
            trains, is_there: recorded spikes [T, R, B, C], and whether there is such a trial.
            window: the steps that are fitted and those held out.

        Raises:
            ValueError: the neurons have no escape noise.
        """
        raise ValueError(f"loss: expected a distance for {self.neuron}, got likelihood")

    def unexplained_voltage(
        self, current: Tensor, recorded: RecordedVoltage, window: Window
    ) -> tuple[Tensor, Tensor]:
        """Shares of the voltage's variance that the neurons do not explain, [B, N] each.

        Arguments and results are those of `voltage.unexplained_voltage`.

        Raises:
            ValueError: the neurons have no such parameters.
        """
        raise ValueError(f"voltage_weight: expected 0 for {self.neuron}, got more")


Range = tuple[float, float]
# Wide: they only keep a diverging start from overflowing.
TAU_BOUNDS, SLOW_TAU_BOUNDS = (-1, 7), (-1, 10)
GAIN_BOUNDS, LEVEL_BOUNDS, NOISE_BOUNDS = (-7, 5), (-9, 9), (-7, 2)


ESCAPE_WIDTH: Range = (0.05, 0.5)


def noise_range(
    escape_noise: bool, noise: Range, escape_width: Range
) -> dict[str, tuple[Range, Bounds]]:
    """Range and bounds of the parameter of the neurons' noise."""
    if escape_noise:
        return {"log_escape_width": (escape_width, NOISE_BOUNDS)}
    return {"log_noise": (noise, NOISE_BOUNDS)}


def arp_steps(arp_ms: float, dt_ms: float) -> int:
    """Absolute refractory period in steps.

    Raises:
        ValueError: it is not a time ≥ 0, or longer than can be counted.
    """
    if not 0 <= arp_ms < math.inf:
        raise ValueError(f"arp_ms: expected a value ≥ 0, got {arp_ms}")
    arp = round(arp_ms / dt_ms)
    check_arp(arp)
    return arp


class DrawnPopulation(NeuronPopulation):
    """Neurons whose starts are drawn uniformly from ranges, of values or of their logarithms."""

    is_coupled = False
    escape_noise: bool
    _priors: dict[str, tuple[float, float]]

    def _draw(
        self, ranges: Mapping[str, tuple[Range, Bounds]], fixed: tuple[str, ...], seed: int
    ) -> None:
        """Register parameters [N] by (range, bounds); a name that begins with log_ is a logarithm.

        Those of `fixed` get no gradient.
        """
        draw = torch.Generator().manual_seed(seed)
        self._priors = {}
        for name, ((low, high), bounds) in ranges.items():
            is_log = name.startswith("log_")
            unit = "_ms" if name.startswith(("log_tau_", "log_arp")) else ""
            argument = f"{name.removeprefix('log_')}{unit}"
            least, most = (math.exp(x) for x in bounds) if is_log else bounds
            slack = 1e-3 if is_log else 0.0  # of the digits that the error shows
            if not least * (1 - slack) <= low <= high <= most * (1 + slack):
                raise ValueError(
                    f"{argument}: expected a range within {least:.3g} to {most:.3g}, "
                    f"got {low:g} to {high:g}"
                )
            if is_log:
                low, high = math.log(low), math.log(high)
            low, high = max(low, bounds[0]), min(high, bounds[1])
            value = low + (high - low) * torch.rand(self.n_cells * self.n_starts, generator=draw)
            self.add_bounded(name, value, bounds, name not in fixed, argument)
            if name not in fixed and low < high:
                self._priors[name] = (low + high) / 2, (high - low) / math.sqrt(12)

    def minus_log_prior(self) -> Tensor:
        """Minus the logarithm of the neurons' prior [N], 0 at its maximum.

        It is normal in each parameter that is fitted, or its logarithm, with the mean and the
        standard deviation of the range from which starts are drawn, unless that has no width.
        """
        cost = torch.zeros_like(self.get_parameter("rest"))
        for name, (mean, sd) in self._priors.items():
            cost = cost + ((self.get_parameter(name) - mean) / sd).square() / 2
        return cost

    def _value(self, name: str) -> Tensor:
        """A parameter by its name or that of its logarithm; 0 if the neurons have no such part."""
        if f"log_{name}" in self._parameters:
            return self.get_parameter(f"log_{name}").exp()
        if name in self._parameters:
            return self.get_parameter(name)
        return torch.zeros_like(self.get_parameter("rest"))

    @torch.no_grad()
    def start_around(self, values: Mapping[str, Tensor], deviation: float, seed: int) -> None:
        """Start each cell around its values, [C] each by the parameters' names.

        Starts deviate by so much, as a standard deviation, in each parameter that is fitted.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            apart = deviation * torch.randn(self.n_cells, self.n_starts, generator=generator)
            if not parameter.requires_grad and name not in self.searched:
                apart[:] = 0
            parameter.copy_((values[name].unsqueeze(1) + apart.to(parameter)).flatten())
        self.project_()

    def log_likelihoods(
        self, current: Tensor, trains: Tensor, is_there: Tensor, window: Window
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of recorded spikes; see `NeuronPopulation`."""
        if not self.escape_noise:
            return super().log_likelihoods(current, trains, is_there, window)
        values = self.values()
        c = values.coefficients(self.dt_ms, self.is_coupled)
        is_fused = self.method == "fused" and current.device.type == "cpu"
        return (escape_cpu if is_fused else escape).escape_likelihood(
            current, trains, is_there, c.model, tuple(c.parameters.values()),
            c.drive._replace(noise=1 / values.escape_width),
            at_threshold=escape.log_rate_at_threshold(self.dt_ms), window=window,
        )  # fmt: skip

    def unexplained_voltage(
        self, current: Tensor, recorded: RecordedVoltage, window: Window
    ) -> tuple[Tensor, Tensor]:
        """Shares of the voltage's variance that are not explained; see `NeuronPopulation`."""
        membrane = driven_membrane(self.values(), self.dt_ms, current, recorded.spikes)
        return unexplained_voltage(membrane, current, recorded, window)

    def arp_ms(self) -> Tensor:
        """Absolute refractory period [N], a whole number of steps."""
        raise NotImplementedError

    def values(self) -> NeuronParameters:
        """Present parameters of the neurons in physical units, differentiable."""
        names = [x.name for x in fields(NeuronParameters)]
        own = {name: self._value(name.removesuffix("_ms")) for name in names}
        own["arp_ms"] = self.arp_ms()
        if not self.n_trials or self.escape_noise:
            own["noise"] = torch.zeros_like(own["noise"])
        return NeuronParameters(**own)

    @torch.no_grad()
    def physical(self) -> NeuronParameters:
        """Present parameters of the neurons in physical units, in float64."""
        return NeuronParameters(*(x.double() for x in vars(self.values()).values()))


class PhysicalPopulation(DrawnPopulation):
    """ALIF neurons fitted by rest and the logarithms of τ_m, τ_a, b, gain and noise, at any dt.

    Each start draws rest and each logarithm uniformly from its range.

    Args:
        n_cells, n_starts, dt_ms, surrogate, method, n_trials: as for `NeuronPopulation`.
        arp_ms: absolute refractory period, rounded to steps.
        tau_membrane_ms, tau_adaptation_ms, b, gain, rest, noise: ranges of the starts. Currents are
            in standard deviations of the cell's training current (see `RecordingsDataModule`).
            Without trials there is no noise.
        seed: seed of the draw.
        escape_noise: whether the neurons have escape noise instead, for `log_likelihoods`.
        escape_width: its range.
    """

    neuron = "ALIF"

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
        escape_noise: bool = False,
        escape_width: Range = ESCAPE_WIDTH,
    ):
        super().__init__(
            n_cells, n_starts, dt_ms=dt_ms, surrogate=surrogate, method=method, n_trials=n_trials
        )
        self.escape_noise = escape_noise
        self.arp = arp_steps(arp_ms, dt_ms)
        ranges = {
            "log_tau_membrane": (tau_membrane_ms, TAU_BOUNDS),
            "log_tau_adaptation": (tau_adaptation_ms, SLOW_TAU_BOUNDS),
            "log_b": (b, (-10, 3)),
            "log_gain": (gain, GAIN_BOUNDS),
            "rest": (rest, LEVEL_BOUNDS),
            **noise_range(escape_noise, noise, escape_width),
        }
        self._draw(ranges, () if n_trials else ("log_noise",), seed)

    def arp_ms(self) -> Tensor:
        """Absolute refractory period [N], a whole number of steps."""
        return torch.full_like(self.get_parameter("rest"), self.arp * self.dt_ms)

    def coefficients(self) -> Coefficients:
        """Coefficients of the neurons, differentiable."""
        return self.values().alif_coefficients(self.dt_ms, self.arp)


class PaperPopulation(NeuronPopulation):
    """Neurons fitted by the paper's β, p, b, weight and bias per step, within the paper's bounds.

    As published, the membrane is 0 before the first step; a `FittedNeuron` made of them starts at
    rest. The parameters start, at dt = ds · 0.1 ms, from τ_m 20 ms, τ_a 100 ms, b 0.1/ds, weight ds
    and bias 0 (docs/paper.md, Fitting recordings). Where p starts above its bound (dt ≤ 0.1 ms), it
    is set to the bound and not trained: the published clamp stops its gradient there.

    Args:
        n_cells, dt_ms, surrogate, method: as for `NeuronPopulation`.
        arp_ms: absolute refractory period, rounded to steps.
        beta_bounds, p_bounds, b_bounds: ranges of the parameters.
    """

    neuron = "ALIF, published recipe"

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
        super().__init__(n_cells, 1, dt_ms=dt_ms, surrogate=surrogate, method=method)
        self.arp = arp_steps(arp_ms, dt_ms)
        down_sampling = dt_ms / 0.1
        p, b = decay(100.0, dt_ms), 0.1 / down_sampling
        full = torch.ones(n_cells)
        self.add_bounded("beta", full * decay(20.0, dt_ms), beta_bounds, True, "dt_ms")
        self.add_bounded("p", full * min(p, p_bounds[1]), p_bounds, p <= p_bounds[1], "dt_ms")
        self.add_bounded("b", full * min(b, b_bounds[1]), b_bounds, True, "dt_ms")
        self.weight = nn.Parameter(full * down_sampling)
        self.bias = nn.Parameter(torch.zeros(n_cells))

    def coefficients(self) -> Coefficients:
        """Coefficients of the neurons, differentiable; without noise, from a membrane of 0."""
        own: dict[str, Tensor] = dict(self.named_parameters())
        nothing = torch.zeros_like(self.bias)
        drive = Drive(own.pop("weight"), own.pop("bias"), nothing, nothing)
        return Coefficients(ALIF, (float(self.arp),), own, drive)

    @torch.no_grad()
    def physical(self) -> NeuronParameters:
        """Present parameters of the neurons in physical units, in float64."""
        c = self.coefficients()
        own = {name: x.double() for name, x in c.parameters.items()}
        drive = Drive(*(x.double() for x in c.drive))
        return of_coefficients(c._replace(parameters=own, drive=drive), self.dt_ms)
