"""The least errors with which spikes determine the synthetic GIF cells, by any unbiased fit.

`python tools/least_errors.py` prints, for the cells of `blockspike fit experiment=recovery_gif
data.noise=escape fit=likelihood`, the Cramér–Rao bound: the inverse of the Fisher information that
the fitted seconds hold (Gerstner et al. 2014, "Neuronal Dynamics", chapter 10; Kay 1993,
"Fundamentals of Statistical Signal Processing: Estimation Theory", chapter 3).
"""

import numpy as np
import torch
from torch import Tensor

from blockspike.fitting.escape import LOG_RATES, log_rate_at_threshold
from blockspike.fitting.identified import identified
from blockspike.fitting.likelihood import margins_at
from blockspike.fitting.parameters import NeuronParameters
from blockspike.fitting.synthetic_cells import SyntheticCells

FITTED = (
    "tau_membrane_ms", "gain", "rest", "escape_width", "b", "tau_adaptation_ms", "b_2",
    "tau_adaptation_2_ms", "current_1", "tau_current_1_ms", "current_2", "tau_current_2_ms",
)  # fmt: skip
_H = 1e-3  # difference: relative for time constants, gain and width, else absolute
_DT_MS, _FITTED_S = 0.5, 9.6  # 80 % of the 80 % of 15 s that are for training


def differences(parameters: NeuronParameters) -> list[tuple[NeuronParameters, NeuronParameters]]:
    """The neurons with each of the `FITTED` parameters a little larger, and smaller."""
    return [(_moved(parameters, name, _H), _moved(parameters, name, -_H)) for name in FITTED]


def _moved(parameters: NeuronParameters, name: str, by: float) -> NeuronParameters:
    is_scale = name.startswith("tau_") or name in ("gain", "escape_width")
    value = vars(parameters)[name]
    return NeuronParameters(
        **vars(parameters) | {name: value * np.exp(by) if is_scale else value + by}
    )


def log_rate_slopes(
    parameters: NeuronParameters, current: Tensor, trains: Tensor, dt_ms: float
) -> tuple[np.ndarray, np.ndarray]:
    """Logarithm of each step's rate and its slopes in the `FITTED` parameters.

    Args:
        parameters: of N neurons.
        current, trains: [T, R, N] as for `margins_at`.
        dt_ms: length of a step.

    Returns:
        [T, R, N] and [T, R, N, D]; within the refractory period the lowest rate, and 0.
    """

    def log_rates(neurons: NeuronParameters) -> np.ndarray:
        margins = margins_at(neurons, current, trains, dt_ms) / neurons.escape_width.numpy()
        return np.clip(margins + log_rate_at_threshold(dt_ms), *LOG_RATES)

    slopes = [(log_rates(up) - log_rates(down)) / (2 * _H) for up, down in differences(parameters)]
    return log_rates(parameters), np.stack(slopes, -1)


def information(log_rate: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Fisher information [N, D, D] of spikes, P = 1 − exp(−rate) in each step."""
    rate = np.exp(log_rate)
    weight = rate**2 / np.expm1(rate)  # (dP/d log rate)² / (P (1 − P))
    return np.einsum("trn,trni,trnj->nij", weight, slopes, slopes, optimize=True)


def quantities(parameters: NeuronParameters) -> dict[str, np.ndarray]:
    """What is compared with the truth."""
    found = {"tau_membrane_ms": parameters.tau_membrane_ms, **identified(parameters)}
    return {name: x.numpy() for name, x in found.items()}


def least_errors(
    parameters: NeuronParameters, current: Tensor, trains: Tensor, dt_ms: float
) -> dict[str, np.ndarray]:
    """Least standard deviation of each quantity [N], relative to it; arguments as above."""
    inverse = np.linalg.inv(information(*log_rate_slopes(parameters, current, trains, dt_ms)))
    sides = [(quantities(up), quantities(down)) for up, down in differences(parameters)]
    found = {}
    for name, value in quantities(parameters).items():
        slope = np.stack([(up[name] - down[name]) / (2 * _H) for up, down in sides], -1)
        variance = np.einsum("ni,nij,nj->n", slope, inverse, slope)
        found[name] = np.sqrt(variance) / np.abs(value)
    return found


def main(n_cells: int = 50) -> None:
    """Print the medians over the cells that a fit at the bound would have."""
    cells = SyntheticCells(
        n_cells, 6, 15.0, trial_noise=0.0, cell_arp_ms=3.0, neuron="gif", noise="escape"
    )
    n_steps = round(1000 * _FITTED_S / _DT_MS)
    recordings = cells.cells()
    drive = np.stack([x.current(_DT_MS)[0, :n_steps] / 100 for x in recordings], -1)
    trains = np.stack([x.spike_trains(0, _DT_MS)[:, :n_steps].T for x in recordings], -1)
    current = torch.from_numpy(drive)[:, None].expand(trains.shape)
    rng = np.random.default_rng(0)
    for name, spread in least_errors(
        cells.truth, current, torch.from_numpy(trains), _DT_MS
    ).items():
        draws = np.median(np.abs(rng.standard_normal((10_000, n_cells)) * spread), 1)
        low, middle, high = 100 * np.quantile(draws, (0.05, 0.5, 0.95))
        print(f"{name}: median error {middle:.1f} %, in 90 % of cases {low:.1f} to {high:.1f} %")


if __name__ == "__main__":
    main()
