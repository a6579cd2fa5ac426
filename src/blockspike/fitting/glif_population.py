"""`GLIFPopulation`: GLIF neurons with the parts that a fit is to have."""

from torch import Tensor

from blockspike.fitting.parameters import Coefficients
from blockspike.fitting.population import (
    ESCAPE_WIDTH,
    GAIN_BOUNDS,
    LEVEL_BOUNDS,
    SLOW_TAU_BOUNDS,
    TAU_BOUNDS,
    DrawnPopulation,
    Range,
    noise_range,
)
from blockspike.neurons import Method, MultiGaussian, Surrogate
from blockspike.neurons.glif import N_KERNELS

_AMPLITUDE_BOUNDS = (-5, 5)
_ARP_BOUNDS = (-4, 4)


# after-spike currents, threshold kernels, partial reset, threshold coupling → name
_NAMES = {
    (0, 0, False, False): "LIF",
    (0, 1, False, False): "ALIF, ARP fitted",
    (0, 1, True, False): "GLIF2",
    (2, 0, False, False): "GLIF3",
    (2, 1, True, False): "GLIF4",
    (2, 1, True, True): "GLIF4, coupled threshold",
    (2, 2, False, False): "GIF",
    (2, 2, False, True): "GIF, coupled threshold",
}


def _name(n_currents: int, n_kernels: int, is_partial: bool, is_coupled: bool) -> str:
    """Name of the neuron with these parts, or the list of them."""
    parts = [f"{n_currents} currents", f"{n_kernels} kernels"]
    parts += ["partial reset"] * is_partial + ["coupled threshold"] * is_coupled
    of_parts = f"GLIF ({', '.join(parts)})"
    return _NAMES.get((n_currents, n_kernels, is_partial, is_coupled), of_parts)


class GLIFPopulation(DrawnPopulation):
    """GLIF neurons with chosen parts (equations: neurons/glif.py), at any dt.

    With no part they are LIF neurons. Each start draws every parameter uniformly from its range;
    time constants, gain, noise and refractory period are drawn, and fitted, as logarithms. The
    refractory period is a whole number of steps, which has no gradient: it is found by selection
    among the starts.

    Args:
        n_cells, n_starts, dt_ms, surrogate, method, n_trials: as for `NeuronPopulation`.
        after_spike_currents, threshold_kernels: how many of each, 0 to 2.
        partial_reset: whether a reset leaves a share of V; otherwise it sets V to 0.
        threshold_coupling: whether the threshold follows V.
        tau_membrane_ms, gain, rest, noise, arp_ms: ranges of the starts. Currents are in standard
            deviations of the cell's training current (see `RecordingsDataModule`).
        current_1, tau_current_1_ms, current_2, tau_current_2_ms, b, tau_adaptation_ms, b_2,
            tau_adaptation_2_ms, reset_share, coupling, tau_coupling_ms, coupling_onset,
            coupling_width: ranges of the parts; see `NeuronParameters`.
        seed: seed of the draw.
        escape_noise, escape_width: as for `PhysicalPopulation`.

    Raises:
        ValueError: a value outside its range, naming the argument.
    """

    def __init__(
        self,
        n_cells: int,
        n_starts: int = 64,
        *,
        dt_ms: float,
        after_spike_currents: int = 2,
        threshold_kernels: int = 2,
        partial_reset: bool = False,
        threshold_coupling: bool = False,
        tau_membrane_ms: Range = (5.0, 40.0),
        gain: Range = (0.25, 2.5),
        rest: Range = (-0.5, 0.8),
        noise: Range = (0.05, 0.3),
        arp_ms: Range = (1.0, 6.0),
        current_1: Range = (-0.2, 0.5),
        tau_current_1_ms: Range = (3.0, 30.0),
        current_2: Range = (0.0, 0.3),
        tau_current_2_ms: Range = (30.0, 300.0),
        b: Range = (0.02, 0.6),
        tau_adaptation_ms: Range = (30.0, 400.0),
        b_2: Range = (0.0, 0.6),
        tau_adaptation_2_ms: Range = (3.0, 30.0),
        reset_share: Range = (0.0, 0.5),
        coupling: Range = (0.0, 0.5),
        tau_coupling_ms: Range = (2.0, 20.0),
        coupling_onset: Range = (0.0, 0.8),
        coupling_width: Range = (0.1, 0.5),
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
        for name, count in (
            ("after_spike_currents", after_spike_currents),
            ("threshold_kernels", threshold_kernels),
        ):
            if isinstance(count, bool) or count not in range(N_KERNELS + 1):
                raise ValueError(f"{name}: expected 0 to {N_KERNELS}, got {count!r}")
        if method == "blocks":
            raise ValueError("method: expected 'fused' or 'standard' for GLIF, got 'blocks'")
        self.is_coupled, self.escape_noise = threshold_coupling, escape_noise
        self.neuron = _name(
            after_spike_currents, threshold_kernels, partial_reset, threshold_coupling
        )
        ranges = {
            "log_tau_membrane": (tau_membrane_ms, TAU_BOUNDS),
            "log_gain": (gain, GAIN_BOUNDS),
            "rest": (rest, LEVEL_BOUNDS),
            **noise_range(escape_noise, noise, escape_width),
            "log_arp": (arp_ms, _ARP_BOUNDS),
        }
        currents = ((current_1, tau_current_1_ms), (current_2, tau_current_2_ms))
        for i, (amplitude, tau_ms) in enumerate(currents[:after_spike_currents], 1):
            ranges[f"current_{i}"] = (amplitude, _AMPLITUDE_BOUNDS)
            ranges[f"log_tau_current_{i}"] = (tau_ms, SLOW_TAU_BOUNDS)
        thresholds = (("", b, tau_adaptation_ms), ("_2", b_2, tau_adaptation_2_ms))
        for suffix, amplitude, tau_ms in thresholds[:threshold_kernels]:
            ranges[f"b{suffix}"] = (amplitude, _AMPLITUDE_BOUNDS)
            ranges[f"log_tau_adaptation{suffix}"] = (tau_ms, SLOW_TAU_BOUNDS)
        if partial_reset:
            ranges["reset_share"] = (reset_share, (0, 0.95))
        if threshold_coupling:
            ranges |= {
                "coupling": (coupling, _AMPLITUDE_BOUNDS),
                "log_tau_coupling": (tau_coupling_ms, SLOW_TAU_BOUNDS),
                "coupling_onset": (coupling_onset, LEVEL_BOUNDS),
                "log_coupling_width": (coupling_width, (-4, 2)),
            }
        self._draw(ranges, ("log_arp",) if n_trials else ("log_arp", "log_noise"), seed)
        self.searched = ["log_arp"] if arp_ms[0] < arp_ms[1] else []

    def arp_ms(self) -> Tensor:
        """Absolute refractory period [N], a whole number of steps."""
        return (self._value("arp").detach() / self.dt_ms).round() * self.dt_ms

    def coefficients(self) -> Coefficients:
        """Coefficients of the neurons, differentiable."""
        return self.values().coefficients(self.dt_ms, self.is_coupled)
