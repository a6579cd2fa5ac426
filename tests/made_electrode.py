"""A neuron behind a known electrode, recorded with its voltage."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import lfilter

from blockspike.data.electrode import Stretch
from blockspike.data.spikes import between_spikes

DT_MS, SUBSTEPS = 0.1, 3
REST_MV, THRESHOLD_MV, RESET_MV = -65.0, -48.0, -58.0
MEMBRANE_MOHM, MEMBRANE_MS = 100.0, 15.0


class Cell(NamedTuple):
    """Current, recorded voltage, that of the membrane, and the samples of the spikes."""

    current_pa: np.ndarray
    voltage_mv: np.ndarray
    membrane_mv: np.ndarray
    spikes: np.ndarray

    def between(self) -> np.ndarray:
        """Samples between spikes."""
        fired = np.isin(np.arange(len(self.current_pa)), self.spikes)
        return between_spikes(fired[:, None], DT_MS)[:, 0]

    def stretch(self) -> Stretch:
        """The whole recording."""
        return Stretch(self.current_pa, self.voltage_mv, self.spikes)


def noise_pa(n: int, seed: int = 0) -> np.ndarray:
    """Ornstein-Uhlenbeck current of 3 ms, 150 ± 160 pA."""
    keep = np.exp(-DT_MS / 3.0)
    white = np.random.default_rng(seed).normal(size=n)
    return 150 + 160 * np.asarray(lfilter([np.sqrt(1 - keep**2)], [1, -keep], white))


def cell_behind(mohm: float, tau_ms: float, current_pa: np.ndarray | None = None) -> Cell:
    """A neuron with noise of its own, whose current passes an RC electrode first; 6 s."""
    current = noise_pa(60_000) if current_pa is None else current_pa
    rng, h = np.random.default_rng(1), DT_MS / SUBSTEPS
    keep = np.exp(-h / tau_ms) if tau_ms else 0.0
    passed = np.asarray(lfilter([1 - keep], [1, -keep], np.repeat(current, SUBSTEPS)))
    own_mv = rng.normal(size=len(passed)) * np.sqrt(2 * h / MEMBRANE_MS)
    v, adaptation, left = REST_MV, 0.0, 0
    membrane, spikes = np.empty(len(current)), []
    for t, (input_, noise) in enumerate(zip(passed.tolist(), own_mv.tolist(), strict=True)):
        adaptation *= 1 - h / 100
        if left > 0:
            left -= 1
        else:
            drive = MEMBRANE_MOHM * (input_ - adaptation) / 1000
            v += h / MEMBRANE_MS * (REST_MV - v + drive) + noise
            if v > THRESHOLD_MV:
                spikes.append(t // SUBSTEPS)
                v, adaptation, left = RESET_MV, adaptation + 30, round(2 / h)
        membrane[t // SUBSTEPS] = v
    across = mohm * passed[SUBSTEPS - 1 :: SUBSTEPS] / 1000
    voltage = membrane + across + rng.normal(0, 0.1, len(membrane))
    for s in spikes:
        voltage[s : s + 10] += 80 * np.exp(-np.arange(len(voltage[s : s + 10])) * DT_MS / 0.3)
    return Cell(current, voltage, membrane, np.array(spikes, int))


def write_cell(cell: Cell, path: Path) -> None:
    """Write current, voltage and spikes as `.npz`."""
    np.savez(
        path, current_pa=cell.current_pa, dt_ms=DT_MS, voltage_mv=cell.voltage_mv,
        spike_times_s=(cell.spikes + 0.5) * DT_MS / 1000, spike_repeat=np.zeros_like(cell.spikes),
    )  # fmt: skip
