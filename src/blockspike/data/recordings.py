"""Current-clamp recordings to which neurons are fitted, in files of several formats."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence, Sized
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from blockspike.data.abf import read_abf
from blockspike.data.ibw import SUFFIX as IBW_SUFFIX
from blockspike.data.ibw import read_ibw
from blockspike.data.npz import read_stimuli
from blockspike.data.nwb import read_sweeps
from blockspike.data.parts import beside
from blockspike.data.plausible import (
    aborted_at,
    check_intervals,
    check_peak,
    check_rest,
    check_span,
    warn,
)
from blockspike.data.spikes import bin_spikes, check_shown, check_times, no_spikes, spikes_of
from blockspike.data.sweeps import Sweep, choose_electrode, n_samples_of, peak_of

RECORDING_SUFFIXES = (".npz", ".nwb", ".abf")
_HDF5_SUFFIXES = (".nwb", ".h5")
_CHOOSE = (
    "choose some by sweeps= or stimuli=, for a fit by data.train_sweeps and data.test_sweeps, or "
    "data.train_stimulus and data.test_stimulus"
)
_MOST_PADDING_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class Recording:
    """Responses of one neuron to S stimuli, each given up to R times.

    ``name`` is the stem of the file, with "_" and the electrode if the file has several;
    ``current_pa`` float64 ``[S, T]``, one sample every ``dt_ms``, NaN after the end of a stimulus
    shorter than T; ``spike_times_s[r][s]`` float64 ``[n]``, sorted, seconds from the start of the
    sweep, or None if stimulus ``s`` has fewer repeats; ``stimuli`` ``[S]`` names, which need not be
    unique, "stimulus 0" and so on if the file has none; ``voltage_mv[s]`` float32, of the first
    repeat of stimulus ``s`` and as long as it, or None, as ``voltage_mv`` is if the file has no
    voltage.

    Raises:
        ValueError: ``current_pa`` has no row for each stimulus, a repeat no entry for each, a
            stimulus no repeat, or a voltage another length than its stimulus.

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
    voltage_mv: list[np.ndarray | None] | None = None

    def __post_init__(self) -> None:
        n, is_array = len(self.stimuli), isinstance(self.current_pa, np.ndarray)
        if not is_array or self.current_pa.ndim != 2 or len(self.current_pa) != n:
            got = list(self.current_pa.shape) if is_array else type(self.current_pa).__name__
            raise ValueError(f"current_pa: expected [{n}, T] for {n} stimuli, got {got}")
        _check_trains(self.spike_times_s, self.stimuli)
        if self.voltage_mv is not None:
            given = [None if voltage is None else np.size(voltage) for voltage in self.voltage_mv]
            own = [self.n_samples(s) for s in range(n)]
            if len(given) != n or not all(x in (None, y) for x, y in zip(given, own, strict=True)):
                raise ValueError(f"voltage_mv: expected lengths {own}, or None, got {given}")

    def n_samples(self, stimulus: int) -> int:
        """Samples of a stimulus.

        Raises:
            ValueError: no such stimulus.
        """
        if not 0 <= stimulus < len(self.stimuli):
            raise ValueError(
                f"stimulus: expected 0 to {len(self.stimuli) - 1} of {self.name}, got {stimulus}"
            )
        return n_samples_of(self.current_pa[stimulus])

    def duration_s(self, stimulus: int) -> float:
        """Duration of a stimulus."""
        return self.n_samples(stimulus) * self.dt_ms / 1000

    def current(self, dt_ms: float) -> np.ndarray:
        """Return the mean current of each step in pA, float64 ``[S, n_steps]``.

        The recorded current, constant between samples, is integrated exactly: charge is conserved
        at any ``dt_ms``. An incomplete last step is left out. Shorter stimuli end with NaN.

        Raises:
            ValueError: ``dt_ms`` is not above 0, or is longer than a stimulus.
        """
        return beside([self._current(number, dt_ms) for number in range(len(self.stimuli))]).T

    def _current(self, stimulus: int, dt_ms: float) -> np.ndarray:
        edges = np.arange(self._n_steps(stimulus, dt_ms) + 1) * (dt_ms / self.dt_ms)  # in samples
        n_samples = self.n_samples(stimulus)
        charge = np.cumsum(self.current_pa[stimulus, :n_samples], dtype=np.float64)  # pA·samples
        at_edges = np.interp(edges, np.arange(n_samples + 1), np.pad(charge, (1, 0)))
        return np.diff(at_edges) * (self.dt_ms / dt_ms)

    def spike_trains(self, stimulus: int, dt_ms: float) -> np.ndarray:
        """Return spike counts of every repeat of one stimulus, float32 ``[R_s, n_steps]``.

        Raises:
            ValueError: as in `current`, or no such stimulus.
        """
        n_steps = self._n_steps(stimulus, dt_ms)
        repeats = [r[stimulus] for r in self.spike_times_s]
        return np.stack([bin_spikes(t, dt_ms, n_steps) for t in repeats if t is not None])

    def voltage(
        self, stimulus: int, dt_ms: float, of_step: Literal["largest", "mean"] = "largest"
    ) -> np.ndarray | None:
        """Return the voltage of each step in mV, float32 ``[n_steps]``.

        It is that of the first repeat of a stimulus; None if the file has none. The largest is for
        plots, since spikes are shorter than many a step.

        Raises:
            ValueError: as in `spike_trains`, or ``of_step`` is neither "largest" nor "mean".
        """
        if of_step not in ("largest", "mean"):
            raise ValueError(f"of_step: expected largest or mean, got {of_step!r}")
        n_steps = self._n_steps(stimulus, dt_ms)
        voltage = None if self.voltage_mv is None else self.voltage_mv[stimulus]
        if voltage is None:
            return None
        starts = (np.arange(n_steps) * (dt_ms / self.dt_ms) + 1e-6).astype(np.int64)
        end = max(starts[-1] + 1, round(n_steps * dt_ms / self.dt_ms))
        if of_step == "largest":
            return np.maximum.reduceat(voltage[:end], starts)
        sums = np.add.reduceat(voltage[:end].astype(np.float64), starts)
        n_samples = np.diff(np.append(starts, end)).clip(1)  # 0 where steps share a sample
        return (sums / n_samples).astype(np.float32)

    def sha256(self) -> str:
        """Hash of the name, currents, spike times and voltage, as read.

        The voltage is part of every fit: it gives the scales in mV, also without a weight.
        """
        digest = hashlib.sha256(repr((self.name, self.dt_ms, self.stimuli)).encode())
        for array in (self.current_pa, *(t for repeat in self.spike_times_s for t in repeat)):
            digest.update(b"none" if array is None else f"{array.shape}".encode())
            digest.update(b"" if array is None else np.ascontiguousarray(array, "<f8").data)
        for voltage in self.voltage_mv or ():
            digest.update(b"none" if voltage is None else np.ascontiguousarray(voltage, "<f4").data)
        return digest.hexdigest()

    def _n_steps(self, stimulus: int, dt_ms: float) -> int:
        duration_ms = self.n_samples(stimulus) * self.dt_ms
        n_steps = int(duration_ms / dt_ms + 1e-9) if 0 < dt_ms < np.inf else 0
        if n_steps < 1:
            raise ValueError(
                f"dt_ms: expected > 0 and at most the {duration_ms:g} ms of {self.name}, "
                f"got {dt_ms}"
            )
        return n_steps


def _check_trains(
    spike_times_s: Sequence[Sequence[np.ndarray | None]], stimuli: Sequence[str]
) -> None:
    """Raise ValueError unless they are arrays [n], or None, by repeat and then by stimulus."""
    n = len(stimuli)
    for r, repeat in enumerate(spike_times_s):
        where = f"spike_times_s[{r}]"
        if not isinstance(repeat, list | tuple) or len(repeat) != n:
            kind = type(repeat).__name__
            got = f"{len(repeat)} in a {kind}" if isinstance(repeat, Sized) else kind
            raise ValueError(f"{where}: expected a list with times of {n} stimuli, got {got}")
        for s, times_s in enumerate(repeat):
            if times_s is not None and np.ndim(times_s) != 1:
                raise ValueError(f"{where}[{s}]: expected an array [n] or None, got {times_s!r}")
    for s, name in enumerate(stimuli):
        if all(repeat[s] is None for repeat in spike_times_s):
            raise ValueError(f"spike_times_s: expected a repeat of {name}, got none")


def load_recording(
    path: Path | str,
    stimuli: Sequence[str] | None = None,
    sweeps: Sequence[int] | None = None,
    electrode: str | int | None = None,
) -> Recording:
    """Read and check a current-clamp recording.

    ``.npz``: ``current_pa`` ``[T]`` or ``[S, T]``, NaN after the end of a shorter stimulus,
    ``dt_ms`` and at least one of

    - ``spike_times_s`` ``[n]`` with ``spike_repeat`` and ``spike_stimulus`` ``[n]``, which may be
      left out of one repeat or stimulus; ``n_repeats``, one number or ``[S]``, is needed if a
      repeat had no spike,
    - ``voltage_mv``, ``[T]`` or ``[R, T]`` of one stimulus, else ``[S, T]`` or ``[R, S, T]``, all
      NaN where a repeat is missing; the first repeat with a voltage becomes the first of all.

    NWB, Axon and Igor: sweeps with the same name and equal current are repeats of one stimulus;
    stimuli are in the order of their first sweeps. Spikes that are not stored are detected
    (`detect_spikes`). In NWB 2 and Igor waves, stimulus and response may be of different length or
    rate: both are cut to their common time, and the current is averaged over the steps of the
    voltage, or repeated.

    Args:
        path: ``.npz``; ``.nwb`` or ``.h5`` of NWB 1 (Allen Cell Types Database) or NWB 2; ``.abf``
            (Axon), of which a recorded current is preferred to the command; or the folder of a
            cell's ``.ibw`` files (Igor), a voltage and a current of each sweep with the number of
            the sweep at the end of their names, and with units.
        stimuli: names of the stimuli to read, upper or lower case, or patterns such as "*ramp*";
            None = all.
        sweeps: numbers of the sweeps to read, in an ``.npz`` of the stimuli; None = all of current
            clamp.
        electrode: name of an electrode of NWB 2, or its number from 0; None = the only one. Each
            is a cell of its own.

    Raises:
        FileNotFoundError: no such file.
        ValueError: several electrodes and none chosen, damaged file, missing key, sweep, stimulus,
            unit or spikes, a sweep that is not in current clamp, sweeps of different dt, or of such
            different length that padding would take over 256 MiB, clocks of stimulus and response
            that do not fit, a current that is empty, NaN or infinite, implausible magnitudes, or a
            spike outside its sweep; names the file and the sweep, what was expected and what was
            found.

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
    if sweeps is not None and not isinstance(sweeps, Iterable):
        raise ValueError(f"sweeps: expected a list of numbers, got {sweeps!r}")
    if is_folder_of_waves(path):
        with closing(sweeps_of(path, stimuli, sweeps, electrode)) as found:
            return _load_sweeps(path, found)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a recording ({', '.join(RECORDING_SUFFIXES)}, or a folder of .ibw), "
            "got none"
        )
    suffix = path.suffix.lower()
    if suffix == ".npz":
        choose_electrode(path, [], electrode)
        found = read_stimuli(path, stimuli, sweeps)
        trains = _by_repeat(found.trains)
        voltage_mv = _or_none([_first_voltage(repeats) for repeats in found.voltages])
        return Recording(
            path.stem, found.current_pa, trains, found.dt_ms, found.stimuli, voltage_mv
        )
    if suffix in (*_HDF5_SUFFIXES, ".abf"):
        with closing(sweeps_of(path, stimuli, sweeps, electrode)) as found:
            return _load_sweeps(path, found)
    if suffix == IBW_SUFFIX:
        raise ValueError(f"{path}: expected the folder of a cell's .ibw files, got one of them")
    raise ValueError(
        f"{path}: expected {', '.join(RECORDING_SUFFIXES)}, "
        f"got a {path.suffix or 'file without suffix'}"
    )


def is_folder_of_waves(path: Path) -> bool:
    """Whether a path is a folder with Igor waves, which is one recording."""
    return path.is_dir() and any(x.suffix.lower() == IBW_SUFFIX for x in path.iterdir())


def name_of(path: Path) -> str:
    """Name of the recording at a path: the stem of a file, the name of a folder."""
    return path.name if path.is_dir() else path.stem


def sweeps_of(
    path: Path,
    stimuli: Sequence[str] | None = None,
    sweeps: Sequence[int] | None = None,
    electrode: str | int | None = None,
) -> Generator[Sweep]:
    """Current-clamp sweeps of NWB and Axon files and folders of Igor waves.

    See `nwb.read_sweeps`, `abf.read_abf` and `ibw.read_ibw`.
    """
    is_abf = path.suffix.lower() == ".abf"
    read = read_ibw if path.is_dir() else read_abf if is_abf else read_sweeps
    with closing(read(path, stimuli, sweeps, electrode)) as found:
        for sweep in found:
            yield _until_aborted(f"{path}, sweep {sweep.number}", sweep)


def _until_aborted(where: str, sweep: Sweep) -> Sweep:
    """Cut off the end of a sweep in which its voltage is filled with zeros."""
    current_pa, voltage_mv = sweep.current_pa, sweep.voltage_mv
    if voltage_mv is None or len(voltage_mv) != len(current_pa):
        return sweep
    end = aborted_at(current_pa, voltage_mv, sweep.dt_ms)
    if end is None:
        return sweep
    warn(
        f"{where}: the voltage is exactly 0 from {end * sweep.dt_ms * 1e-3:.6g} s on, while the "
        "current continues; the sweep is cut there"
    )
    command_pa = None if sweep.command_pa is None else sweep.command_pa[:end]
    return replace(
        sweep, current_pa=current_pa[:end], voltage_mv=voltage_mv[:end], command_pa=command_pa
    )


def _load_sweeps(path: Path, sweeps: Iterator[Sweep]) -> Recording:
    kinds: list[Sweep] = []
    trains: list[list[np.ndarray]] = []
    clocks: dict[str, list[str]] = {}
    voltages: list[np.ndarray | None] = []
    medians_mv: list[float] = []
    for sweep in sweeps:
        if sweep.voltage_mv is not None:
            medians_mv.append(float(np.median(sweep.voltage_mv)))
        times_s = _sweep_times(f"{path}, sweep {sweep.number}", sweep)
        _count(clocks, sweep)
        if len(clocks) > 1:
            raise _unlike(path, clocks, sweeps)
        kind = next((i for i, other in enumerate(kinds) if _is_repeat(sweep, other)), len(kinds))
        if kind == len(kinds):
            kinds.append(replace(sweep, voltage_mv=None))
            voltages.append(_first_voltage([] if sweep.voltage_mv is None else [sweep.voltage_mv]))
            trains.append([])
            _check_padding(path, [len(other.current_pa) for other in kinds])
        trains[kind].append(times_s)
    check_rest(str(path), medians_mv)
    largest = max(kinds, key=lambda kind: peak_of(kind.current_pa))
    check_peak(f"{path}, sweep {largest.number}", largest.current_pa)
    return Recording(
        name=name_of(path) + (f"_{kinds[0].electrode}" if kinds[0].electrode else ""),
        current_pa=np.ascontiguousarray(beside([kind.current_pa for kind in kinds]).T),
        spike_times_s=_by_repeat(trains),
        dt_ms=kinds[0].dt_ms,
        stimuli=tuple(kind.stimulus or f"stimulus {i}" for i, kind in enumerate(kinds)),
        voltage_mv=_or_none(voltages),
    )


def _check_padding(path: Path, n_samples: list[int]) -> None:
    padding = 8 * (len(n_samples) * max(n_samples) - sum(n_samples))
    if padding > _MOST_PADDING_BYTES:
        raise ValueError(
            f"{path}: expected sweeps of similar length, got {min(n_samples):,} to "
            f"{max(n_samples):,} samples in {len(n_samples)} of them; {_CHOOSE}"
        )


def _first_voltage(repeats: Sequence[np.ndarray]) -> np.ndarray | None:
    """Voltage of the first repeat, as float32 of its own: half the memory."""
    return np.array(repeats[0], np.float32) if len(repeats) else None


def _or_none(voltages: list[np.ndarray | None]) -> list[np.ndarray | None] | None:
    return None if all(voltage is None for voltage in voltages) else voltages


def _sweep_times(where: str, sweep: Sweep) -> np.ndarray:
    n_samples = len(sweep.current_pa)
    if sweep.voltage_mv is not None and sweep.voltage_mv.shape != (n_samples,):
        raise ValueError(
            f"{where}: expected a voltage as long as the current, {n_samples}, got shape "
            f"{sweep.voltage_mv.shape}"
        )
    if sweep.spike_times_s is not None:
        times_s = check_times(where, sweep.spike_times_s, n_samples * sweep.dt_ms * 1e-3)
        check_intervals(where, times_s)
        check_span(where, times_s, sweep.current_pa, sweep.dt_ms)
        if sweep.voltage_mv is not None:
            check_shown(where, times_s, sweep.voltage_mv, sweep.dt_ms)
        return times_s
    if sweep.voltage_mv is None:
        raise no_spikes(where)
    return spikes_of(where, sweep.current_pa, sweep.voltage_mv, sweep.dt_ms)


def _count(clocks: dict[str, list[str]], sweep: Sweep) -> None:
    """Add a sweep to those of its dt."""
    sweeps = clocks.setdefault(f"{sweep.dt_ms:.6g} ms", [])
    sweeps.append(f"{sweep.number} ({sweep.stimulus or 'unnamed'})")


def _unlike(path: Path, clocks: dict[str, list[str]], rest: Iterator[Sweep]) -> ValueError:
    """Error that lists the sweeps by dt, the unread `rest` included."""
    for sweep in rest:
        _count(clocks, sweep)
    listed = " and ".join(f"{dt} in {', '.join(sweeps)}" for dt, sweeps in clocks.items())
    return ValueError(f"{path}: expected sweeps of one dt, got {listed}; {_CHOOSE}")


def _is_repeat(sweep: Sweep, other: Sweep) -> bool:
    if len(sweep.current_pa) != len(other.current_pa):
        return False
    same_name = sweep.stimulus.casefold() == other.stimulus.casefold()
    may_be = same_name or not (sweep.is_shared_name or other.is_shared_name)
    if sweep.command_pa is not None and other.command_pa is not None:  # without a recorder's noise
        return may_be and np.array_equal(sweep.command_pa, other.command_pa)
    return may_be and np.allclose(sweep.current_pa, other.current_pa)


def _by_repeat(trains: Sequence[Sequence[np.ndarray | None]]) -> list[list[np.ndarray | None]]:
    """Turn [S][R_s] into [R][S], with None for missing repeats."""
    n_repeats = max(len(of_stimulus) for of_stimulus in trains)
    return [[t[r] if r < len(t) else None for t in trains] for r in range(n_repeats)]
