"""Active electrode compensation: the electrode's share of a recorded voltage, found and subtracted.

Brette et al. 2008, "High-resolution intracellular recordings using a real-time computational model
of the electrode"; with derivatives in time, as Badel et al. 2008, "Dynamic I-V curves are reliable
predictors of naturalistic pyramidal-neuron voltage traces".
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.signal import lfilter

from blockspike.data.recordings import Recording
from blockspike.data.spikes import between_spikes, bin_spikes, shows_spikes

_KERNEL_MS = 3.0  # length of the electrode's kernel
_MEMBRANE_MS = 3.0, 200.0  # range of the membrane's time constant
_LEAST_INTERVAL_MS = 10.0
_LEAST_MS = 1000.0  # between spikes, in all
_LEAST_CHANGES = 0.05  # share of samples at which the current changes
_LEAST_DIRECTIONS, _NEGLIGIBLE = 5, 1e-6  # in which the current varies within a kernel; share
_MOST_VALUES = 30_000_000  # of the equations: 240 MB
_N_BLOCKS = 10  # of the jackknife
_SMALL_MOHM, _LARGEST_MOHM = 5.0, 500.0
_SLOWEST_MS = 1.0
_LARGEST_ERROR = 0.2  # relative


class Stretch(NamedTuple):
    """A recorded sweep or a part of it.

    Attributes:
        current_pa, voltage_mv: [T].
        spike_steps: samples of the spikes in that voltage, [n].
    """

    current_pa: np.ndarray
    voltage_mv: np.ndarray
    spike_steps: np.ndarray


@dataclass(frozen=True)
class Electrode:
    """An electrode, whose voltage is the current filtered by a kernel.

    Attributes:
        kernel_mohm: [K], from lag 0 on, a number per sample.
        error_mohm: standard error of the resistance.
        dt_ms: time between samples.
    """

    kernel_mohm: np.ndarray
    error_mohm: float
    dt_ms: float

    @property
    def resistance_mohm(self) -> float:
        """Resistance: the sum of the kernel."""
        return float(self.kernel_mohm.sum())

    @property
    def tau_ms(self) -> float:
        """Time constant of an exponential that decays as the kernel; 0 if it lasts one sample."""
        return -self.dt_ms / np.log(max(_decay(self.kernel_mohm, self.dt_ms), 1e-12))

    def voltage_mv(self, current_pa: np.ndarray) -> np.ndarray:
        """Voltage [T] across the electrode; before the first sample, the current was as there."""
        earlier = np.full(len(self.kernel_mohm) - 1, current_pa[0])
        padded = np.concatenate([earlier, current_pa])
        return np.convolve(padded, self.kernel_mohm, "valid") / 1000


def electrode_of(recording: Recording, parts: Sequence[tuple[int, slice]]) -> Electrode:
    """Electrode that the voltage of parts of a recording shows; see `estimate_electrode`.

    Args:
        recording: with the voltage of the first trial of its stimuli.
        parts: stimulus and samples of each.

    Raises:
        ValueError: there is no voltage, or as in `estimate_electrode`; names the recording.
    """
    stretches = []
    for stimulus, samples in parts:
        voltage = None if recording.voltage_mv is None else recording.voltage_mv[stimulus]
        times_s = recording.spike_times_s[0][stimulus]
        if voltage is None or times_s is None:
            continue
        counts = bin_spikes(times_s, recording.dt_ms, samples.stop)[samples]
        current_pa = recording.current_pa[stimulus, samples]
        stretches.append(Stretch(current_pa, voltage[samples], np.flatnonzero(counts)))
    if not stretches:
        raise ValueError(
            f"{recording.name}: compensation: expected a voltage in the training part, got none"
        )
    return estimate_electrode(recording.name, stretches, recording.dt_ms)


def without_electrode(recording: Recording, electrode: Electrode) -> Recording:
    """The recording with the electrode's share of its voltages subtracted.

    Raises:
        ValueError: it has another time between samples than the electrode's kernel.
    """
    if recording.dt_ms != electrode.dt_ms:
        raise ValueError(
            f"{recording.name}: compensation: expected samples every {electrode.dt_ms:g} ms, as in "
            f"the training part, got {recording.dt_ms:g} ms"
        )
    voltages: list[np.ndarray | None] = []
    for stimulus, voltage in enumerate(recording.voltage_mv or []):
        if voltage is not None:
            across = electrode.voltage_mv(recording.current_pa[stimulus, : len(voltage)])
            voltage = (voltage - across).astype(np.float32)
        voltages.append(voltage)
    return replace(recording, voltage_mv=voltages or None)


def estimate_electrode(where: str, stretches: Sequence[Stretch], dt_ms: float) -> Electrode:
    """Estimate the electrode that the current passed on its way into a neuron.

    Between spikes, the voltage is fitted by least squares with a kernel of 3 ms and an exponential
    membrane, whose potential after each spike is free; both are taken in differences from sample to
    sample. If K_m is the kernel of the membrane, the electrode's kernel K_e of resistance R_e is
    then found from K = K_e + K_m ∗ K_e / R_e.

    Args:
        where: names the recording in errors.
        stretches: parts of it.
        dt_ms: time between samples.

    Raises:
        ValueError: the voltage is not that of the spikes, less than 1 s of it is between spikes,
            the current does not fluctuate, or the estimate is uncertain or implausible.
    """
    n_taps = round(_KERNEL_MS / dt_ms)
    if n_taps < 3:
        raise ValueError(f"{where}: compensation: expected samples of at most 1 ms, got {dt_ms:g}")
    parts = [part for x in stretches for part in _between(where, x, dt_ms, n_taps)]
    _check(where, parts, dt_ms)
    equations = _Equations(_thinned(parts, n_taps), dt_ms)
    if equations.n_directions() < _LEAST_DIRECTIONS:
        raise ValueError(
            f"{where}: compensation: expected a current that fluctuates within {_KERNEL_MS:g} ms, "
            "got one that is smooth"
        )
    nearest: Any = minimize_scalar(
        lambda x: equations.solve(np.exp(x))[0], bounds=np.log(_MEMBRANE_MS), method="bounded",
        options={"xatol": 0.03},
    )  # fmt: skip
    tau_ms = float(np.exp(nearest.x))
    _, found, without_block = equations.solve(tau_ms, wants_blocks=True)
    spread = np.array([x[:-1].sum() for x in without_block])
    error = float(1000 * np.sqrt((len(spread) - 1) * spread.var()))
    fast, membrane_mohm = 1000 * found[:-1], 1000 * found[-1]
    if fast.sum() > max(_SMALL_MOHM, 3 * error):
        fast = _behind_electrode(fast, membrane_mohm, np.exp(-dt_ms / tau_ms), dt_ms)
    electrode = Electrode(fast, error, dt_ms)
    _check_plausible(where, electrode, membrane_mohm)
    return electrode


class _Interval(NamedTuple):
    """Samples between two spikes: voltage [n], and the current before and in them, [K + n]."""

    voltage: np.ndarray
    current: np.ndarray


def _between(where: str, stretch: Stretch, dt_ms: float, n_taps: int) -> list[_Interval]:
    fired = np.zeros((len(stretch.voltage_mv), 1), bool)
    fired[stretch.spike_steps] = True
    if not shows_spikes(fired, stretch.voltage_mv[:, None], dt_ms):
        raise ValueError(
            f"{where}: compensation: expected the voltage of the first trial, got one without its "
            "spikes"
        )
    is_between = between_spikes(fired, dt_ms)[:, 0] & np.isfinite(stretch.voltage_mv)
    is_between[:n_taps] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[0], is_between.astype(np.int8), [0]])))
    return [
        _Interval(
            stretch.voltage_mv[start:stop].astype(float),
            stretch.current_pa[start - n_taps : stop].astype(float),
        )
        for start, stop in edges.reshape(-1, 2)
        if (stop - start) * dt_ms >= _LEAST_INTERVAL_MS
    ]


def _thinned(parts: list[_Interval], n_taps: int) -> list[_Interval]:
    """Intervals, and as much of each as memory has room for; at least those of the jackknife."""
    n_values = sum(len(x.voltage) for x in parts) * (n_taps + 3)
    stride = min(-(-n_values // _MOST_VALUES), len(parts) // _N_BLOCKS)
    parts = parts[::stride]
    n_values = sum(len(x.voltage) for x in parts) * (n_taps + 3)
    if n_values <= _MOST_VALUES:
        return parts
    most = _MOST_VALUES // ((n_taps + 3) * len(parts))
    return [_Interval(x.voltage[:most], x.current[: n_taps + most]) for x in parts]


class _Equations:
    """Differences of the voltage between spikes, and of what it is fitted with."""

    def __init__(self, parts: Sequence[_Interval], dt_ms: float):
        self._parts, self._dt_ms = parts, dt_ms
        n_taps = len(parts[0].current) - len(parts[0].voltage)
        stops = np.cumsum([len(x.voltage) - 1 for x in parts]).tolist()
        self._slices = [slice(*x) for x in zip([0, *stops[:-1]], stops, strict=True)]
        self._rows = np.empty((stops[-1], n_taps + 2))  # taps, membrane (see `solve`), voltage
        for (voltage, current), own in zip(parts, self._slices, strict=True):
            lagged = np.lib.stride_tricks.sliding_window_view(np.diff(current), n_taps)[:, ::-1]
            self._rows[own, :n_taps] = lagged[-len(voltage) + 1 :]
            self._rows[own, -1] = np.diff(voltage)
        self._n_taps = n_taps

    def n_directions(self) -> int:
        """Independent ways in which the current varies within a kernel."""
        taps = self._rows[:, : self._n_taps]
        sizes = np.linalg.eigvalsh(taps.T @ taps)
        return int((sizes > _NEGLIGIBLE * sizes[-1]).sum())

    def solve(
        self, tau_ms: float, wants_blocks: bool = False
    ) -> tuple[float, np.ndarray, list[np.ndarray]]:
        """Squared error for a membrane of this time constant; the kernel and its resistance.

        The last are the same without each block of a jackknife.
        """
        beta = np.exp(-self._dt_ms / tau_ms)
        begun = []  # what each interval may begin with
        for (_, current), own in zip(self._parts, self._slices, strict=True):
            filtered = np.asarray(lfilter([1 - beta], [1, -beta], current[self._n_taps :]))
            self._rows[own, self._n_taps] = np.diff(filtered)
            after_spike = beta ** np.arange(own.stop - own.start)
            begun.append(after_spike @ self._rows[own] / np.linalg.norm(after_spike))
        blocks = []
        for part in np.array_split(np.arange(len(begun)), _N_BLOCKS if wants_blocks else 1):
            own = self._rows[self._slices[part[0]].start : self._slices[part[-1]].stop]
            first = np.stack([begun[i] for i in part])
            blocks.append(own.T @ own - first.T @ first)
        total = np.sum(blocks, 0)
        found = _solved(total)
        error = total[-1, -1] - found @ total[:-1, -1]
        return error, found, [_solved(total - block) for block in blocks if wants_blocks]


def _solved(products: np.ndarray) -> np.ndarray:
    return np.linalg.lstsq(products[:-1, :-1], products[:-1, -1], rcond=1e-12)[0]


def _decay(kernel: np.ndarray, dt_ms: float) -> float:
    """Decay per sample of a kernel behind its peak, as if it were an exponential."""
    peak = int(kernel.argmax())
    share = kernel[peak + 1 :].sum() / kernel[peak:].sum()
    return float(np.clip(share, 0, np.exp(-dt_ms / (2 * _SLOWEST_MS))))


def _behind_electrode(
    fast: np.ndarray, membrane_mohm: float, beta: float, dt_ms: float
) -> np.ndarray:
    """Kernel of the electrode, given what exceeds an exponential membrane that begins at lag 0.

    The current reaches the membrane through the electrode, so that the response of the membrane
    begins more slowly than its exponential tail, continued to lag 0.
    """
    lags = np.arange(len(fast))
    decay = _decay(fast, dt_ms)
    passed = (1 - decay) * decay ** np.maximum(lags - fast.argmax(), 0) * (lags >= fast.argmax())
    tail = (1 - beta) * beta**lags
    behind = np.convolve(passed, tail)[: len(fast)] / (passed @ beta ** -lags.astype(float))
    return fast + membrane_mohm * (tail - behind)


def _check(where: str, parts: Sequence[_Interval], dt_ms: float) -> None:
    duration_ms = sum(len(x.voltage) for x in parts) * dt_ms
    if duration_ms < _LEAST_MS or len(parts) < _N_BLOCKS:
        raise ValueError(
            f"{where}: compensation: expected at least {_LEAST_MS / 1000:g} s of voltage in "
            f"{_N_BLOCKS} intervals between spikes, got {duration_ms / 1000:.3g} s in {len(parts)}"
        )
    changes = np.concatenate([np.diff(x.current) != 0 for x in parts]).mean()
    if changes < _LEAST_CHANGES:
        raise ValueError(
            f"{where}: compensation: expected a current that fluctuates, got one that changes in "
            f"{100 * changes:.2g} % of its samples"
        )


def _check_plausible(where: str, electrode: Electrode, membrane_mohm: float) -> None:
    mohm, error = electrode.resistance_mohm, electrode.error_mohm
    found = f"got {mohm:.3g} ± {error:.2g} MΩ and {electrode.tau_ms:.2g} ms"
    if not error < max(_SMALL_MOHM, _LARGEST_ERROR * mohm):
        raise ValueError(
            f"{where}: compensation: expected an electrode known to {100 * _LARGEST_ERROR:g} %, "
            f"{found}; the current fluctuates too little"
        )
    if not -_SMALL_MOHM < mohm < _LARGEST_MOHM or (
        mohm > _SMALL_MOHM and electrode.tau_ms > _SLOWEST_MS
    ):
        raise ValueError(
            f"{where}: compensation: expected an electrode of {-_SMALL_MOHM:g} to "
            f"{_LARGEST_MOHM:g} MΩ and, above {_SMALL_MOHM:g} MΩ, at most {_SLOWEST_MS:g} ms, "
            f"{found}"
        )
    if not membrane_mohm > 0:
        raise ValueError(
            f"{where}: compensation: expected a voltage that follows the current, got a membrane "
            f"of {membrane_mohm:.3g} MΩ"
        )
