"""Recordings of synthetic cells with known parameters, to test fits and their speed."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from blockspike.data.datamodule import require, require_whole
from blockspike.data.recordings import Recording
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.fitting.parameters import NeuronParameters, simulate
from blockspike.neurons import leaky_integrate

_DT_MS = 0.1
_UNIT_PA = 100.0  # standard deviation of the current
_NOISE_TAU_MS = 3.0
# Plausible for cortical pyramidal cells; gain and rest in thresholds, for a current of _UNIT_PA.
RANGES = {
    "tau_membrane_ms": (8.0, 30.0),
    "tau_adaptation_ms": (50.0, 300.0),
    "b": (0.05, 0.6),
    "gain": (0.6, 1.5),
    "rest": (-0.3, 0.7),
}
GIF_RANGES = RANGES | {
    "b": (0.05, 0.4),
    "b_2": (0.0, 0.4),
    "tau_adaptation_2_ms": (5.0, 25.0),
    "current_1": (0.0, 0.4),
    "tau_current_1_ms": (5.0, 25.0),
    "current_2": (0.0, 0.2),
    "tau_current_2_ms": (50.0, 250.0),
    "noise": (0.05, 0.25),  # the standard deviation of the membrane, or the width of escape noise
}
_RATE_HZ = (3.0, 30.0)
_MOST_DRAWS = 100  # without a cell that fires at such a rate
_OF_SEVERAL_SWEEPS = (
    "train_stimulus", "test_stimulus", "train_sweeps", "test_sweeps", "n_folds", "electrode",
)  # fmt: skip


class SyntheticCells(RecordingsDataModule):
    """Cells drawn from plausible ranges, each driven by its own frozen noise at 0.1 ms.

    τ_m, τ_a, b, gain and rest are uniform in `RANGES`; cells that fire at less than 3 or more than
    30 Hz are drawn again. Each trial has its own extra noise current. After `setup`, `truth` holds
    the parameters; the noise of ALIF cells is 0, because that of their trials is not white.

    Args:
        n_cells, n_trials, duration_s: size of the data.
        trial_noise: standard deviation of a trial's own current relative to the common one.
        cell_arp_ms: absolute refractory period of the cells.
        seed: seed of all draws.
        neuron: "alif", or "gif", whose further parameters are uniform in `GIF_RANGES`. GIF cells
            have noise of their own, and need no `trial_noise`.
        noise: of GIF cells: "membrane", white, or "escape", as in `FittedNeuron`.
        **recordings: arguments of `RecordingsDataModule` except `fixed_arguments`.

    Raises:
        ValueError: an argument is out of range, chooses among sweeps, or lets no cell fire at such
            a rate.

    Examples:
        >>> import blockspike as bs
        >>> cells = bs.SyntheticCells(n_cells=2, n_trials=3, duration_s=1.0).cells()
        >>> len(cells), len(cells[0].spike_times_s)
        (2, 3)
    """

    fixed_arguments = ("path", "train_stimulus", "test_stimulus", "name")
    truth: NeuronParameters

    is_recorded = False

    def __init__(
        self,
        n_cells: int = 50,
        n_trials: int = 2,
        duration_s: float = 10.0,
        trial_noise: float = 0.1,
        cell_arp_ms: float = 2.0,
        seed: int = 0,
        neuron: Literal["alif", "gif"] = "alif",
        noise: Literal["membrane", "escape"] = "membrane",
        **recordings: Any,
    ):
        require_whole(n_cells=n_cells, n_trials=n_trials, seed=seed)
        require(n_cells >= 1, "n_cells", n_cells, "at least 1")
        require(n_trials >= 1, "n_trials", n_trials, "at least 1")
        require(0 < duration_s < math.inf, "duration_s", duration_s, "a positive number of s")
        require(neuron in ("alif", "gif"), "neuron", neuron, "alif or gif")
        require(noise == "membrane" or (noise == "escape" and neuron == "gif"), "noise", noise,
                "membrane, or escape of GIF cells")  # fmt: skip
        require(0 <= trial_noise < math.inf, "trial_noise", trial_noise, "a number ≥ 0")
        most_ms = 1000 / _RATE_HZ[0]
        require(0 <= cell_arp_ms < most_ms, "cell_arp_ms", cell_arp_ms, f"0 to {most_ms:.0f} ms")
        for key in _OF_SEVERAL_SWEEPS:
            value = recordings.get(key)
            require(value is None, key, value, "None, since a synthetic cell has a single sweep")
        super().__init__("synthetic", name=f"{n_cells} synthetic cells", **recordings)
        self.neuron, self.noise = neuron, noise
        self.n_cells, self.n_trials, self.duration_s = n_cells, n_trials, duration_s
        self.trial_noise, self.cell_arp_ms, self.seed = trial_noise, cell_arp_ms, seed

    def load(self) -> list[tuple[Recording, Recording]]:
        """Draw the cells; training and test data are parts of one recording."""
        return [(recording, recording) for recording in self.cells()]

    def cells(self) -> list[Recording]:
        """Draw and simulate the cells."""
        n_steps = round(self.duration_s * 1000 / _DT_MS)
        generator = torch.Generator().manual_seed(self.seed)
        current, spikes, parameters = [], [], []
        n_left, n_in_vain = self.n_cells, 0
        while n_left:
            if n_in_vain == _MOST_DRAWS:
                raise ValueError(
                    f"duration_s, cell_arp_ms: expected cells that fire at {_RATE_HZ[0]:g} to "
                    f"{_RATE_HZ[1]:g} Hz, got none in {_MOST_DRAWS} draws of {self.duration_s} s "
                    f"with {self.cell_arp_ms} ms"
                )
            drawn = self._draw(2 * n_left, generator)
            drive = _noise(n_steps, 1, 2 * n_left, generator)
            own = self.trial_noise * _noise(n_steps, self.n_trials, 2 * n_left, generator)
            if drawn.noise.any():
                own = own + _white(drawn, n_steps, self.n_trials, generator)
            if drawn.escape_width.any():
                draws = torch.randn(n_steps, self.n_trials, 1, generator=generator)
                fired = simulate(drawn, drive + own, _DT_MS, draws)[:, :, 0]
            else:
                fired = simulate(drawn, drive + own, _DT_MS)
            rate = fired.sum(0).mean(0) / self.duration_s
            fit = ((rate > _RATE_HZ[0]) & (rate < _RATE_HZ[1])).nonzero().flatten()[:n_left]
            current.append(drive[:, 0, fit])
            spikes.append(fired[:, :, fit])
            parameters.append(torch.stack([x[fit] for x in vars(drawn).values()]))
            n_left -= len(fit)
            n_in_vain = 0 if len(fit) else n_in_vain + 1
        self.truth = NeuronParameters(*torch.cat(parameters, 1))
        return [
            _recording(f"cell_{i:03d}", x, s)
            for i, (x, s) in enumerate(
                zip(torch.cat(current, 1).T, torch.cat(spikes, 2).permute(2, 1, 0), strict=True)
            )
        ]

    def _draw(self, n: int, generator: torch.Generator) -> NeuronParameters:
        """Parameters of n cells."""
        nothing = torch.zeros(n, dtype=torch.float64)
        values = {"noise": nothing} | {
            name: low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
            for name, (low, high) in (GIF_RANGES if self.neuron == "gif" else RANGES).items()
        }
        if self.noise == "escape":
            values |= {"escape_width": values["noise"], "noise": nothing}
        return NeuronParameters(**values, arp_ms=nothing + self.cell_arp_ms)


def _white(
    drawn: NeuronParameters, n_steps: int, n_trials: int, generator: torch.Generator
) -> Tensor:
    """The neurons' own white noise [T, R, n], as a current."""
    _, drive = drawn.drive(_DT_MS)
    shape = (n_steps, n_trials, len(drawn.noise))
    return torch.randn(shape, generator=generator, dtype=torch.float64) * drive.noise / drive.weight


def _noise(n_steps: int, batch: int, n: int, generator: torch.Generator) -> Tensor:
    """Ornstein-Uhlenbeck noise [T, B, n] of standard deviation 1."""
    keep = math.exp(-_DT_MS / _NOISE_TAU_MS)
    white = torch.randn(n_steps, batch, n, generator=generator, dtype=torch.float64)
    white *= math.sqrt(1 - keep * keep)
    return leaky_integrate(white, torch.full((n,), keep, dtype=torch.float64))


def _recording(name: str, current: Tensor, spikes: Tensor) -> Recording:
    # Mid-step: a time on the grid would be ambiguous at coarser steps.
    times: list[list[np.ndarray | None]] = [
        [(np.flatnonzero(trial) + 0.5) * _DT_MS / 1000] for trial in spikes.numpy()
    ]
    return Recording(name, _UNIT_PA * current.numpy()[None], times, _DT_MS, ("noise",))
