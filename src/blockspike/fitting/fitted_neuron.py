"""Fitted neurons: one small JSON file each, to simulate on any current."""

import math
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from blockspike.files import read_json, write_json
from blockspike.fitting.parameters import NeuronParameters, simulate

_RANGES = {
    "dt_ms": (1e-4, 1e3),
    # A time constant of 0 is an effect that is gone after a step.
    "tau_adaptation_ms": (0.0, math.inf),
    "tau_adaptation_2_ms": (0.0, math.inf),
    "tau_current_1_ms": (0.0, math.inf),
    "tau_current_2_ms": (0.0, math.inf),
    "tau_coupling_ms": (0.0, math.inf),
    "arp_ms": (0.0, 1e3),
    "reset_share": (0.0, 1.0),
    "noise": (0.0, math.inf),
    "escape_width": (0.0, math.inf),
    "coupling_width": (0.0, math.inf),
}
_LARGEST = 1e300  # larger parameters would overflow in products
_TRIALS_AT_ONCE = 10  # bounds the memory of a long current


@dataclass(frozen=True)
class FittedNeuron:
    """One fitted neuron in physical units: τ_m dV/dt = −(V − rest) + gain · (current − Σ w_k).

    V is in units of the threshold without adaptation: a spike resets it to 0, and the neuron fires
    where V exceeds 1 plus the adaptation. The parts of GLIF (neurons/glif.py) that a neuron
    does not have are 0; without them it is an ALIF neuron.

    Attributes:
        name: the recorded cell.
        tau_membrane_ms: time constant of the membrane.
        tau_adaptation_ms: time constant of the adaptation.
        b: increase of the threshold per spike.
        gain_per_pa: thresholds per pA.
        rest: resting potential.
        noise: standard deviation of V under the neuron's own white noise while it does not fire.
        arp_ms: absolute refractory period, in which the input has no effect.
        dt_ms: step of the fit, also used by `simulate`.
        b_2, tau_adaptation_2_ms: second increase of the threshold per spike.
        current_1_pa, tau_current_1_ms, current_2_pa, tau_current_2_ms: currents w_k that a spike
            leaves behind, which are subtracted from the input and decay.
        reset_share: share of V that a reset leaves, 0 to 1. The neuron stays there for arp_ms, and
            fires again at once where that is above the threshold.
        coupling, tau_coupling_ms, coupling_onset, coupling_width: how the threshold follows V.
        escape_width: width of the escape noise, in thresholds: the neuron fires at 1 kHz times
            exp((V − θ) / width), not where V exceeds θ; 0 = without. A neuron has either noise.

    Raises:
        ValueError: a value is not a number or out of range, the membrane's time constant is not
            > 0, or the neuron has both kinds of noise.

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> neuron = bs.FittedNeuron(
        ...     name="cell", tau_membrane_ms=10.0, tau_adaptation_ms=100.0, b=0.2, gain_per_pa=0.01,
        ...     rest=0.0, arp_ms=2.0, dt_ms=0.5,
        ... )
        >>> spikes = neuron.simulate(np.full(1000, 200.0))  # pA, in steps of dt_ms
        >>> spikes.shape
        (1000,)
    """

    name: str
    tau_membrane_ms: float
    tau_adaptation_ms: float
    b: float
    gain_per_pa: float
    rest: float
    arp_ms: float
    dt_ms: float
    noise: float = 0.0
    b_2: float = 0.0
    tau_adaptation_2_ms: float = 0.0
    current_1_pa: float = 0.0
    tau_current_1_ms: float = 0.0
    current_2_pa: float = 0.0
    tau_current_2_ms: float = 0.0
    reset_share: float = 0.0
    coupling: float = 0.0
    tau_coupling_ms: float = 0.0
    coupling_onset: float = 0.0
    coupling_width: float = 0.0
    escape_width: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"name: expected a text, got {self.name!r:.80}")
        numbers = {key: x for key, x in asdict(self).items() if key != "name"}
        for name, value in numbers.items():
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or (isinstance(value, int) and abs(value) > _LARGEST):
                raise ValueError(f"{name}: expected a number, got {value!r:.80}")
            object.__setattr__(self, name, float(value))  # also of NumPy, which JSON does not take
        # Not a word of NaN, which a cell that could not be fitted has.
        if self.tau_membrane_ms <= 0:
            raise ValueError(f"tau_membrane_ms: expected > 0, got {self.tau_membrane_ms:g}")
        for name, (low, high) in _RANGES.items():
            if numbers[name] < low or numbers[name] > high:
                raise ValueError(f"{name}: expected {low:g} to {high:g}, got {numbers[name]:g}")
        if self.noise > 0 and self.escape_width > 0:
            raise ValueError(
                "noise, escape_width: expected at most one of them above 0, "
                f"got {self.noise:g} and {self.escape_width:g}"
            )

    @classmethod
    def of(
        cls, parameters: NeuronParameters, cell: int, name: str, scale_pa: float, dt_ms: float
    ) -> "FittedNeuron":
        """Neuron of the parameters of one cell, whose current was divided by `scale_pa`."""
        own = {key: float(x[cell]) for key, x in vars(parameters).items()}
        own["gain_per_pa"] = own.pop("gain") / scale_pa
        for key in ("current_1", "current_2"):
            own[f"{key}_pa"] = own.pop(key) / own["gain_per_pa"]
        return cls(name=name, dt_ms=dt_ms, **own)

    @property
    def is_noisy(self) -> bool:
        """Whether trials differ."""
        return self.noise > 0 or self.escape_width > 0

    def parameters(self) -> NeuronParameters:
        """Parameters for a current in pA, [1] each."""
        own = {
            x.name: getattr(self, x.name) for x in fields(NeuronParameters) if hasattr(self, x.name)
        }
        own["gain"] = self.gain_per_pa
        for key in ("current_1", "current_2"):
            own[key] = getattr(self, f"{key}_pa") * self.gain_per_pa
        return NeuronParameters(
            **{key: torch.tensor([x], dtype=torch.float64) for key, x in own.items()}
        )

    def simulate(
        self, current_pa: ArrayLike, n_trials: int | None = None, seed: int = 0
    ) -> np.ndarray:
        """Simulate spikes, 0 or 1, for a current in steps of ``dt_ms``.

        `Recording.current(dt_ms)` gives the recorded currents in such steps; where one is shorter
        than another, simulate it alone, without the NaN at its end.

        Args:
            current_pa: [T] or [S, T].
            n_trials: trials with noise; None = one trial without noise, in which a neuron with
                escape noise fires at the median of the times at which it could.
            seed: seed of the noise.

        Returns:
            Spikes of the current's shape; with R trials, [R, T] or [S, R, T], whose mean over R
            predicts the probability of a spike in each step.

        Raises:
            ValueError: the current is empty, has more dimensions or is not finite, a parameter is
                not finite, or n_trials is not an integer ≥ 1.
        """
        is_count = isinstance(n_trials, Integral) and not isinstance(n_trials, bool)
        if n_trials is not None and not (is_count and n_trials >= 1):
            raise ValueError(f"n_trials: expected an integer ≥ 1 or None, got {n_trials}")
        current = np.asarray(current_pa, float)
        if current.ndim not in (1, 2) or not current.size:
            raise ValueError(f"current_pa: expected [T] or [S, T], got {list(current.shape)}")
        if not np.isfinite(current).all():
            raise ValueError("current_pa: expected finite values, got NaN or Inf")
        self.check_finite()
        columns = torch.from_numpy(np.ascontiguousarray(np.atleast_2d(current).T)).unsqueeze(2)
        parameters = self.parameters()
        if n_trials is None:
            spikes = simulate(parameters, columns, self.dt_ms)
            return spikes[:, :, 0].T.numpy().reshape(current.shape)
        generator = torch.Generator().manual_seed(seed)
        draws = torch.randn(*columns.shape[:2], n_trials, generator=generator)
        trials = np.empty((columns.shape[1], n_trials, len(columns)), np.uint8)
        for first in range(0, n_trials, _TRIALS_AT_ONCE):
            part = slice(first, first + _TRIALS_AT_ONCE)
            spikes = simulate(parameters, columns, self.dt_ms, draws[:, :, part])
            trials[:, part] = spikes[..., 0].permute(1, 2, 0).numpy()
        return trials.reshape(*current.shape[:-1], n_trials, -1)

    def check_finite(self) -> None:
        """Raise ValueError if a parameter is not finite, as those of a cell that was not fitted."""
        for name, value in asdict(self).items():
            if name != "name" and not abs(value) < _LARGEST:
                raise ValueError(f"{name}: expected a finite number, got {value:g}")

    def save(self, path: str | Path) -> None:
        """Write the JSON file."""
        write_json(Path(path), asdict(self))


def load_neuron(path: str | Path) -> FittedNeuron:
    """Load a fitted neuron from the file that `FittedNeuron.save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else; names what is missing, unknown or not a number.

    Examples:
        >>> import blockspike as bs
        >>> neuron = bs.FittedNeuron("cell", 10.0, 100.0, 0.2, 0.01, 0.0, arp_ms=2.0, dt_ms=0.5)
        >>> neuron.save("cell.json")
        >>> bs.load_neuron("cell.json") == neuron
        True
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no fitted neuron here")
    try:
        neuron = FittedNeuron(**read_json(path))
        neuron.check_finite()
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: not a fitted neuron ({error})") from error
    return neuron
