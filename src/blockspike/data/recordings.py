"""Current-clamp recordings to which neurons are fitted: `.npz`, NWB 1 and 2, and Axon files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.signal import find_peaks

from blockspike.data.abf import read_abf
from blockspike.data.limits import read_npz
from blockspike.data.nwb import read_sweeps
from blockspike.data.plausible import (
    check_intervals,
    check_numbers,
    check_peak,
    check_rate,
    check_traces,
    rests,
    swapped,
)
from blockspike.data.sweeps import (
    DT_RANGE_MS,
    VOLTAGE_RANGE_MV,
    Sweep,
    check_current,
    indices_of,
    peak_of,
)

RECORDING_SUFFIXES = (".npz", ".nwb", ".abf")
_HDF5_SUFFIXES = (".nwb", ".h5")
# Least peak of a spike, its least rise above both sides, how far these reach, and the least time
# between peaks.
_MIN_PEAK_MV = -20.0
_MIN_RISE_MV = 20.0
_REACH_MS = 5.0
_MIN_INTERVAL_MS = 1.0
_MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Recording:
    """Responses of one neuron to S stimuli, each given up to R times.

    ``name`` is the stem of the file; ``current_pa`` float64 ``[S, T]``, one sample every
    ``dt_ms``; ``spike_times_s[r][s]`` float64 ``[n]``, sorted, seconds from the start of the
    sweep, or None if stimulus ``s`` has fewer repeats; ``stimuli`` ``[S]`` names, which need not be
    unique, "stimulus 0" and so on if the file has none.

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> recording = bs.Recording(
        ...     name="cell",
        ...     current_pa=np.zeros((1, 1000)),
        ...     spike_times_s=[[np.array([0.01, 0.05])]],
        ...     dt_ms=0.1,
        ...     stimuli=("noise",),
        ... )
        >>> recording.current_pa.shape
        (1, 1000)
    """

    name: str
    current_pa: np.ndarray
    spike_times_s: list[list[np.ndarray | None]]
    dt_ms: float
    stimuli: tuple[str, ...]

    def current(self, dt_ms: float) -> np.ndarray:
        """Return the mean current of each step in pA, float64 ``[S, n_steps]``.

        The recorded current, constant between samples, is integrated exactly: charge is conserved
        at any ``dt_ms``. An incomplete last step is left out.

        Raises:
            ValueError: ``dt_ms`` is not above 0, or is longer than the recording.
        """
        n_steps = self._n_steps(dt_ms)
        edges = np.arange(n_steps + 1) * (dt_ms / self.dt_ms)  # in samples
        samples = np.arange(self.current_pa.shape[1] + 1)
        charge = np.cumsum(self.current_pa, axis=1, dtype=np.float64)
        charge = np.pad(charge, ((0, 0), (1, 0)))  # [S, T + 1] pA·samples
        at_edges = np.stack([np.interp(edges, samples, row) for row in charge])
        return np.diff(at_edges, axis=1) * (self.dt_ms / dt_ms)

    def spike_trains(self, stimulus: int, dt_ms: float) -> np.ndarray:
        """Return spike counts of every repeat of one stimulus, float32 ``[R_s, n_steps]``.

        Raises:
            ValueError: as in `current`, or no such stimulus.
        """
        if not 0 <= stimulus < len(self.stimuli):
            raise ValueError(
                f"stimulus: expected 0 to {len(self.stimuli) - 1} of {self.name}, got {stimulus}"
            )
        n_steps = self._n_steps(dt_ms)
        repeats = [r[stimulus] for r in self.spike_times_s]
        return np.stack([bin_spikes(t, dt_ms, n_steps) for t in repeats if t is not None])

    def sha256(self) -> str:
        """Hash of the name, currents and spike times, as read."""
        digest = hashlib.sha256(repr((self.name, self.dt_ms, self.stimuli)).encode())
        for array in (self.current_pa, *(t for repeat in self.spike_times_s for t in repeat)):
            digest.update(b"none" if array is None else f"{array.shape}".encode())
            digest.update(b"" if array is None else np.ascontiguousarray(array, "<f8").data)
        return digest.hexdigest()

    def _n_steps(self, dt_ms: float) -> int:
        duration_ms = self.current_pa.shape[1] * self.dt_ms
        n_steps = int(duration_ms / dt_ms + 1e-9) if 0 < dt_ms < np.inf else 0
        if n_steps < 1:
            raise ValueError(
                f"dt_ms: expected > 0 and at most the {duration_ms:g} ms of {self.name}, "
                f"got {dt_ms}"
            )
        return n_steps


def bin_spikes(times_s: np.ndarray, dt_ms: float, n_steps: int) -> np.ndarray:
    """Count spikes in steps of ``dt_ms``, float32 ``[n_steps]``; later spikes are dropped.

    Step k holds ``k·dt <= t < (k + 1)·dt``. A spike less than 1e-6 of a step before an edge counts
    after it, so that rounding does not move times on the grid.

    Raises:
        ValueError: ``dt_ms`` is not above 0, or a time is NaN or negative.
    """
    if not 0 < dt_ms < np.inf:
        raise ValueError(f"dt_ms: expected > 0, got {dt_ms}")
    times_s = np.asarray(times_s, np.float64)
    for t in times_s[~(times_s >= 0)][:1]:
        raise ValueError(f"times_s: expected seconds >= 0, got {t}")
    step = np.floor(times_s * 1e3 / dt_ms + 1e-6)
    inside = step[step < n_steps].astype(np.int64)
    return np.bincount(inside, minlength=n_steps).astype(np.float32)


def detect_spikes(voltage_mv: np.ndarray, dt_ms: float) -> np.ndarray:
    """Find the spikes of a membrane potential: its prominent peaks (`scipy.signal.find_peaks`).

    A spike peaks above −20 mV, at least 20 mV above the lowest potential of the 5 ms on either
    side. Its time is where the interpolated upstroke crosses half of that height, within 0.5 ms of
    both its peak and its threshold. Spikes wider than about 5 ms are not found.

    Args:
        voltage_mv: ``[T]`` in mV.
        dt_ms: time between samples.

    Returns:
        Times in seconds from the first sample, float64 ``[n]``, sorted.
    """
    return _spikes_and_widths(voltage_mv, dt_ms)[0]


def _spikes_and_widths(voltage_mv: np.ndarray, dt_ms: float) -> tuple[np.ndarray, np.ndarray]:
    """Times in s of the spikes in a voltage, and their widths at half height in ms."""
    reach = max(1, round(_REACH_MS / dt_ms))
    # The height is measured within 5 ms, so that neither a later after-hyperpolarisation nor a
    # step of the stimulus enters it.
    _, found = find_peaks(
        np.asarray(voltage_mv, np.float64),
        height=_MIN_PEAK_MV,
        distance=max(1, round(_MIN_INTERVAL_MS / dt_ms)),
        prominence=_MIN_RISE_MV,
        width=0,
        rel_height=0.5,
        wlen=2 * reach + 1,
    )
    return found["left_ips"] * (dt_ms * 1e-3), found["widths"] * dt_ms


def _spikes_of(
    where: str, current_pa: np.ndarray, voltage_mv: np.ndarray, dt_ms: float
) -> np.ndarray:
    """Times of the spikes in a voltage, which is checked; see `detect_spikes`."""
    check_numbers(where, voltage_mv)
    if not rests(voltage_mv) and rests(current_pa) and len(detect_spikes(current_pa, dt_ms)):
        raise swapped(where)
    times_s, widths_ms = _spikes_and_widths(voltage_mv, dt_ms)
    check_traces(where, times_s, widths_ms, voltage_mv, dt_ms)
    return times_s


def load_recording(
    path: Path | str,
    stimuli: Sequence[str] | None = None,
    sweeps: Sequence[int] | None = None,
) -> Recording:
    """Read and check a current-clamp recording.

    ``.npz``: ``current_pa`` ``[T]`` or ``[S, T]``, ``dt_ms`` and at least one of

    - ``spike_times_s`` ``[n]`` with ``spike_repeat`` and ``spike_stimulus`` ``[n]``, 0 if left out;
      ``n_repeats``, one number or ``[S]``, is needed if a repeat had no spike,
    - ``voltage_mv``, ``[T]`` or ``[R, T]`` of one stimulus, else ``[R, S, T]``, all NaN where a
      repeat is missing.

    NWB and Axon: sweeps with the same name and equal current are repeats of one stimulus; stimuli
    are in the order of their first sweeps. Spikes that are not stored are detected
    (`detect_spikes`).

    Args:
        path: ``.npz``, ``.nwb`` or ``.h5`` of NWB 1 (Allen Cell Types Database) or NWB 2, or
            ``.abf`` (Axon), of which a recorded current is preferred to the command.
        stimuli: names of the stimuli to read, upper or lower case, or patterns such as "*ramp*";
            None = all.
        sweeps: numbers of the sweeps to read, in an ``.npz`` of the stimuli; None = all of current
            clamp.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged file, missing key, sweep, stimulus, unit or spikes, a voltage-clamp
            sweep, sweeps of different length, a current that is empty, NaN or infinite, implausible
            magnitudes, or a spike outside its sweep; names the file and the sweep, what was
            expected and what was found.

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> np.savez(
        ...     "cell.npz",
        ...     current_pa=np.zeros(1000),
        ...     dt_ms=0.1,
        ...     spike_times_s=np.array([0.01, 0.05]),
        ... )
        >>> recording = bs.load_recording("cell.npz")
        >>> recording.spike_times_s[0][0]
        array([0.01, 0.05])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a recording ({', '.join(RECORDING_SUFFIXES)}), got no file"
        )
    if path.suffix == ".npz":
        return _load_npz(path, stimuli, sweeps)
    if path.suffix in (*_HDF5_SUFFIXES, ".abf"):
        return _load_sweeps(path, stimuli, sweeps)
    raise ValueError(
        f"{path}: expected {', '.join(RECORDING_SUFFIXES)}, "
        f"got a {path.suffix or 'file without suffix'}"
    )


def _check_times(where: str, times_s: np.ndarray, duration_s: float) -> np.ndarray:
    # Comparisons with NaN are false, so this also finds NaN.
    for t in times_s[~((times_s >= 0) & (times_s < duration_s))][:1]:
        raise ValueError(
            f"{where}: expected spikes at 0 to {duration_s:g} s, the length of the sweep, got one "
            f"at {t:g} s"
        )
    return np.sort(times_s)


def _no_spikes(where: str) -> ValueError:
    return ValueError(f"{where}: expected spike times or a voltage to find spikes in, got neither")


def sweeps_of(
    path: Path, stimuli: Sequence[str] | None = None, sweeps: Sequence[int] | None = None
) -> Iterator[Sweep]:
    """Current-clamp sweeps of an NWB or Axon file; see `nwb.read_sweeps` and `abf.read_abf`."""
    read = read_abf if path.suffix == ".abf" else read_sweeps
    return read(path, stimuli, sweeps)


def _load_sweeps(
    path: Path, stimuli: Sequence[str] | None, sweeps: Sequence[int] | None
) -> Recording:
    kinds: list[Sweep] = []
    trains: list[list[np.ndarray]] = []
    for sweep in sweeps_of(path, stimuli, sweeps):
        times_s = _sweep_times(f"{path}, sweep {sweep.number}", sweep)
        if kinds:
            _check_alike(path, kinds[0], sweep)
        kind = next((i for i, other in enumerate(kinds) if _is_repeat(sweep, other)), len(kinds))
        if kind == len(kinds):
            kinds.append(replace(sweep, voltage_mv=None))
            trains.append([])
        trains[kind].append(times_s)
    return Recording(
        name=path.stem,
        current_pa=np.stack([kind.current_pa for kind in kinds]),
        spike_times_s=_by_repeat(trains),
        dt_ms=kinds[0].dt_ms,
        stimuli=tuple(kind.stimulus or f"stimulus {i}" for i, kind in enumerate(kinds)),
    )


def _sweep_times(where: str, sweep: Sweep) -> np.ndarray:
    n_samples = len(sweep.current_pa)
    if sweep.voltage_mv is not None and sweep.voltage_mv.shape != (n_samples,):
        raise ValueError(
            f"{where}: expected a voltage as long as the current, {n_samples}, got shape "
            f"{sweep.voltage_mv.shape}"
        )
    if sweep.spike_times_s is not None:
        times_s = _check_times(where, sweep.spike_times_s, n_samples * sweep.dt_ms * 1e-3)
        check_intervals(where, times_s)
        return times_s
    if sweep.voltage_mv is None:
        raise _no_spikes(where)
    return _spikes_of(where, sweep.current_pa, sweep.voltage_mv, sweep.dt_ms)


def _check_alike(path: Path, first: Sweep, sweep: Sweep) -> None:
    if len(sweep.current_pa) == len(first.current_pa) and np.isclose(sweep.dt_ms, first.dt_ms):
        return
    described = " and ".join(
        f"sweep {s.number} ({s.stimulus or 'unnamed'}) of {len(s.current_pa)} samples at "
        f"{s.dt_ms:g} ms"
        for s in (first, sweep)
    )
    raise ValueError(
        f"{path}: expected one length and dt, got {described}; choose with stimuli= or sweeps="
    )


def _is_repeat(sweep: Sweep, other: Sweep) -> bool:
    same_name = sweep.stimulus.casefold() == other.stimulus.casefold()
    may_be = same_name or not (sweep.is_shared_name or other.is_shared_name)
    if sweep.command_pa is not None and other.command_pa is not None:  # without a recorder's noise
        return may_be and np.array_equal(sweep.command_pa, other.command_pa)
    return may_be and np.allclose(sweep.current_pa, other.current_pa)


def _by_repeat(trains: Sequence[Sequence[np.ndarray | None]]) -> list[list[np.ndarray | None]]:
    """Turn [S][R_s] into [R][S], with None for missing repeats."""
    n_repeats = max(len(of_stimulus) for of_stimulus in trains)
    return [[t[r] if r < len(t) else None for t in trains] for r in range(n_repeats)]


def _load_npz(path: Path, stimuli: Sequence[str] | None, sweeps: Sequence[int] | None) -> Recording:
    arrays = read_npz(path)
    current = np.atleast_2d(_required(path, arrays, "current_pa"))
    if current.ndim != 2 or not len(current):
        raise ValueError(
            f"{path}: current_pa: expected [T] or [S, T] with S >= 1, got shape {current.shape}"
        )
    for s, row in enumerate(current):
        check_current(f"{path}, stimulus {s}", row)
    check_peak(str(path), current)
    names = tuple(f"stimulus {s}" for s in range(len(current)))
    kept = range(len(names)) if stimuli is None else indices_of(path, names, stimuli)
    if sweeps is not None:
        for number in set(sweeps) - set(range(len(names))):
            raise ValueError(f"{path}: expected a sweep of 0 to {len(names) - 1}, got {number}")
        kept = [s for s in kept if s in set(sweeps)]
    if not kept:
        raise ValueError(f"{path}: stimuli: expected some of {', '.join(names)}, got none")
    dt_ms = _npz_dt_ms(path, arrays)
    trains = _npz_trains(path, arrays, current, dt_ms)
    return Recording(
        name=path.stem,
        current_pa=current[list(kept)].astype(np.float64),
        spike_times_s=_by_repeat([trains[s] for s in kept]),
        dt_ms=dt_ms,
        stimuli=tuple(names[s] for s in kept),
    )


def _required(path: Path, arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    if key not in arrays:
        found = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path}: expected {key} in a recording, got {found}")
    return arrays[key]


def _npz_dt_ms(path: Path, arrays: dict[str, np.ndarray]) -> float:
    dt_ms = _required(path, arrays, "dt_ms")
    low, high = DT_RANGE_MS
    if dt_ms.size != 1 or dt_ms.dtype.kind not in "fiu" or not low <= dt_ms.item() <= high:
        found = dt_ms.item() if dt_ms.size == 1 else f"of shape {dt_ms.shape}"
        expected = f"one number, {low:g} to {high:g}"
        raise ValueError(f"{path}: dt_ms: expected {expected}, got {found}")
    return float(dt_ms.item())


def _npz_trains(
    path: Path, arrays: dict[str, np.ndarray], current: np.ndarray, dt_ms: float
) -> list[list[np.ndarray]]:
    """Spike times [S][R_s]."""
    voltage = _npz_voltage(path, arrays, current.shape)
    if "spike_times_s" in arrays:
        return _stored_trains(path, arrays, [len(x) for x in voltage], current.shape[1], dt_ms)
    for s, of_stimulus in enumerate(voltage):
        if not of_stimulus:
            raise _no_spikes(f"{path}, stimulus {s}")
    return [
        [
            _spikes_of(f"{path}, stimulus {s}, repeat {r}", current[s], v, dt_ms)
            for r, v in enumerate(of_stimulus)
        ]
        for s, of_stimulus in enumerate(voltage)
    ]


def _n_repeats(path: Path, arrays: dict[str, np.ndarray], n_stimuli: int) -> list[int | None]:
    """Repeats of each stimulus, as the file says; None where it does not."""
    if "n_repeats" not in arrays:
        return [None] * n_stimuli
    stored = arrays["n_repeats"]
    fits = stored.size in (1, n_stimuli) and stored.dtype.kind in "iu"
    if not fits or not ((stored >= 1) & (stored <= _MOST_REPEATS)).all():
        raise ValueError(
            f"{path}: n_repeats: expected an integer ≥ 1, or one for each of {n_stimuli} stimuli, "
            f"got shape {stored.shape} and {stored.dtype}"
        )
    return [int(n) for n in np.broadcast_to(stored.reshape(-1), n_stimuli)]


def _npz_voltage(
    path: Path, arrays: dict[str, np.ndarray], shape: tuple[int, ...]
) -> list[list[np.ndarray]]:
    """Voltages [S][R_s] of [T]."""
    n_stimuli, n_samples = shape
    if "voltage_mv" not in arrays:
        return [[] for _ in range(n_stimuli)]
    stored = arrays["voltage_mv"]
    voltage = np.atleast_2d(stored)
    if n_stimuli == 1 and voltage.ndim == 2:
        voltage = voltage[:, None]
    if voltage.ndim != 3 or voltage.shape[1:] != shape or stored.dtype.kind not in "fiu":
        expected = "[T] or [R, T]" if n_stimuli == 1 else f"[R, {n_stimuli}, T]"
        raise ValueError(
            f"{path}: voltage_mv: expected numbers {expected} as long as the current, "
            f"T = {n_samples}, got shape {stored.shape} and {stored.dtype}"
        )
    rows = [[v for v in voltage[:, s] if not np.isnan(v).all()] for s in range(n_stimuli)]
    for s, row in enumerate(rows):
        _check_magnitudes(f"{path}, stimulus {s}", row)
    return rows


def _check_magnitudes(where: str, voltages: list[np.ndarray]) -> None:
    low, high = VOLTAGE_RANGE_MV
    for peak in (peak_of(v) for v in voltages):
        if not low <= peak <= high:
            raise ValueError(
                f"{where}: expected a peak voltage of {low:g} to {high:g} mV, got {peak:.3g} mV"
            )


def _stored_trains(
    path: Path, arrays: dict[str, np.ndarray], n_voltages: list[int], n_samples: int, dt_ms: float
) -> list[list[np.ndarray]]:
    duration_s = n_samples * dt_ms * 1e-3
    times_s = arrays["spike_times_s"]
    if times_s.ndim != 1 or times_s.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: spike_times_s: expected numbers [n], got shape {times_s.shape} and "
            f"{times_s.dtype}"
        )
    _check_times(str(path), times_s, duration_s)
    repeat = _indices(path, arrays, "spike_repeat", _MOST_REPEATS)
    stimulus = _indices(path, arrays, "spike_stimulus", len(n_voltages))
    trains = []
    for s, n_repeats in enumerate(_n_repeats(path, arrays, len(n_voltages))):
        own = stimulus == s
        _check_repeats(f"{path}, stimulus {s}", repeat[own], n_voltages[s], n_repeats)
        trains.append(_repeats_of(times_s[own], repeat[own], n_repeats or max(1, n_voltages[s])))
    for s, of_stimulus in enumerate(trains):
        for r, train in enumerate(of_stimulus):
            where = f"{path}, stimulus {s}, repeat {r}"
            check_intervals(where, train)
            check_rate(where, train, duration_s, dt_ms)
    return trains


def _check_repeats(where: str, repeat: np.ndarray, n_voltages: int, n_repeats: int | None) -> None:
    """Refuse numbers of repeats beyond `n_repeats` or, without it, with gaps.

    A repeat that has a voltage may be silent.
    """
    last = int(repeat.max()) if len(repeat) else -1
    if n_repeats is not None:
        if last >= n_repeats:
            raise ValueError(
                f"{where}: spike_repeat: expected 0 to {n_repeats - 1}, as there are {n_repeats} "
                f"repeats, got {last}"
            )
        return
    for silent in np.setdiff1d(np.arange(n_voltages, last), repeat)[:1]:
        raise ValueError(
            f"{where}: spike_repeat: expected spikes in each of the repeats 0 to {last}, got none "
            f"in repeat {silent}; are repeats numbered from 1? If one was silent, add n_repeats"
        )


def _repeats_of(times_s: np.ndarray, repeat: np.ndarray, at_least: int) -> list[np.ndarray]:
    n_repeats = max(at_least, int(repeat.max()) + 1 if len(repeat) else 0)
    order = np.lexsort((times_s, repeat))
    starts = np.searchsorted(repeat[order], np.arange(1, n_repeats))
    return np.split(times_s[order].astype(np.float64), starts)


def _indices(path: Path, arrays: dict[str, np.ndarray], key: str, end: int) -> np.ndarray:
    n_spikes = len(arrays["spike_times_s"])
    index = arrays.get(key, np.zeros(n_spikes, np.int64))
    if index.shape != (n_spikes,):
        raise ValueError(f"{path}: {key}: expected one per spike, {n_spikes}, got {index.size}")
    integral = index.dtype.kind in "iu" or not n_spikes
    wrong = (index < 0) | (index >= end) if integral else np.ones(n_spikes, bool)
    for i in np.flatnonzero(wrong)[:1]:
        raise ValueError(f"{path}: {key}: expected integers >= 0 below {end}, got {index[i]}")
    return index
