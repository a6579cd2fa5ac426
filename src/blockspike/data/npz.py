"""Recordings in `.npz` files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from blockspike.data.limits import read_npz
from blockspike.data.plausible import (
    aborted_at,
    check_intervals,
    check_peak,
    check_rate,
    check_rest,
    check_span,
    warn,
)
from blockspike.data.spikes import as_double, check_shown, check_times, no_spikes, spikes_of
from blockspike.data.sweeps import (
    DT_RANGE_MS,
    check_current,
    check_voltage_peak,
    indices_of,
    n_samples_of,
)

_MOST_REPEATS = 10_000  # of all stimuli together, where the file gives their numbers


class NpzContent(NamedTuple):
    """Chosen stimuli of an `.npz`.

    Attributes:
        stimuli: names, [S].
        current_pa: float64 [S, T], a sample every `dt_ms`, NaN after the end of a shorter stimulus.
        dt_ms: time between samples.
        trains: spike times in s of each stimulus and repeat, [S][R_s].
        voltages: voltages in mV of each stimulus and repeat, as far as the file has them.
    """

    stimuli: tuple[str, ...]
    current_pa: np.ndarray
    dt_ms: float
    trains: list[list[np.ndarray]]
    voltages: list[list[np.ndarray]]


def read_stimuli(
    path: Path, stimuli: Sequence[str] | None, sweeps: Sequence[int] | None
) -> NpzContent:
    """Read and check an `.npz`; arguments and errors as in `load_recording`."""
    arrays = read_npz(path)
    current = np.atleast_2d(_required(path, arrays, "current_pa"))
    if current.ndim != 2 or not len(current):
        raise ValueError(
            f"{path}: current_pa: expected [T] or [S, T] with S >= 1, got shape {current.shape}"
        )
    if len(current) > 10 * current.shape[1] > 0:
        raise ValueError(
            f"{path}: current_pa: expected [S, T], S stimuli of T samples each, got shape "
            f"{current.shape}, far more stimuli than samples; transposed?"
        )
    rows = _without_padding(current, arrays.get("voltage_mv"))
    for s, row in enumerate(rows):
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
    voltages = _npz_voltage(path, arrays, rows, dt_ms)
    trains = _npz_trains(path, arrays, voltages, rows, dt_ms)
    check_rest(str(path), [float(np.nanmedian(v)) for row in voltages for v in row.values()])
    longest = max(len(rows[s]) for s in kept)
    return NpzContent(
        stimuli=tuple(names[s] for s in kept),
        current_pa=current[list(kept), :longest].astype(np.float64),
        dt_ms=dt_ms,
        trains=[trains[s] for s in kept],
        voltages=[list(voltages[s].values()) for s in kept],
    )


def _without_padding(current: np.ndarray, voltage: np.ndarray | None) -> list[np.ndarray]:
    """Rows without the NaNs at their end; with them, if all end so and a voltage does not."""
    if current.dtype.kind != "f":
        return list(current)
    n_samples = [n_samples_of(row) or len(row) for row in current]
    after = max(n_samples)
    is_padded = (
        after == current.shape[1]
        or voltage is None
        or (voltage.dtype.kind == "f" and voltage.ndim and np.isnan(voltage[..., after:]).all())
    )
    return [row[:n] if is_padded else row for row, n in zip(current, n_samples, strict=True)]


def _required(path: Path, arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    if key not in arrays:
        found = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path}: expected {key} in a recording, got {found}")
    return arrays[key]


def _npz_dt_ms(path: Path, arrays: dict[str, np.ndarray]) -> float:
    dt_ms = _required(path, arrays, "dt_ms")
    low, high = DT_RANGE_MS
    if dt_ms.size != 1 or dt_ms.dtype.kind not in "fiu" or not low <= dt_ms.item() <= high:
        found = repr(dt_ms.item()) if dt_ms.size == 1 else f"shape {dt_ms.shape}"
        expected = f"one number, {low:g} to {high:g}"
        raise ValueError(f"{path}: dt_ms: expected {expected}, got {found}")
    return float(dt_ms.item())


def _npz_trains(
    path: Path,
    arrays: dict[str, np.ndarray],
    voltage: list[dict[int, np.ndarray]],
    current: list[np.ndarray],
    dt_ms: float,
) -> list[list[np.ndarray]]:
    """Spike times [S][R_s]; the first repeat that has a voltage comes first."""
    if "spike_times_s" in arrays:
        durations_s = [len(row) * dt_ms * 1e-3 for row in current]
        trains = _stored_trains(path, arrays, voltage, durations_s, dt_ms)
        for s, row in enumerate(current):
            for r, train in enumerate(trains[s]):
                where = f"{path}, stimulus {s}, repeat {r}"
                check_span(where, train, row, dt_ms)
                if r in voltage[s]:
                    check_shown(where, train, voltage[s][r], dt_ms)
            first = min(voltage[s], default=0)  # the one whose voltage is kept
            trains[s].insert(0, trains[s].pop(first))
        return trains
    for s, of_stimulus in enumerate(voltage):
        if not of_stimulus:
            raise no_spikes(f"{path}, stimulus {s}")
    return [
        [
            spikes_of(f"{path}, stimulus {s}, repeat {r}", current[s], v, dt_ms)
            for r, v in of_stimulus.items()
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
    n_repeats = np.broadcast_to(stored.reshape(-1), n_stimuli)
    if (n_all := n_repeats.sum(dtype=np.int64)) > _MOST_REPEATS:
        raise ValueError(
            f"{path}: n_repeats: expected at most {_MOST_REPEATS} of all stimuli, got {n_all}"
        )
    return [int(n) for n in n_repeats]


def _npz_voltage(
    path: Path, arrays: dict[str, np.ndarray], current: list[np.ndarray], dt_ms: float
) -> list[dict[int, np.ndarray]]:
    """Voltages [S] of [T] by repeat, without those that are missing."""
    n_stimuli, n_samples = np.atleast_2d(arrays["current_pa"]).shape
    if "voltage_mv" not in arrays:
        return [{} for _ in range(n_stimuli)]
    stored = arrays["voltage_mv"]
    voltage = np.atleast_2d(stored)
    if voltage.ndim == 2:  # repeats of one stimulus, or one repeat of several
        voltage = voltage[:, None] if n_stimuli == 1 else voltage[None]
    if (
        voltage.ndim != 3
        or voltage.shape[1:] != (n_stimuli, n_samples)
        or stored.dtype.kind not in "fiu"
    ):
        expected = "[T] or [R, T]" if n_stimuli == 1 else f"[{n_stimuli}, T] or [R, {n_stimuli}, T]"
        raise ValueError(
            f"{path}: voltage_mv: expected numbers {expected} as long as the current, "
            f"T = {n_samples}, got shape {stored.shape} and {stored.dtype}"
        )
    rows = [
        {r: v for r, v in enumerate(voltage[:, s, : len(row)]) if not np.isnan(v).all()}
        for s, row in enumerate(current)
    ]
    for s, row in enumerate(rows):
        for r, v in row.items():
            where = f"{path}, stimulus {s}, repeat {r}"
            check_voltage_peak(where, v)
            filled = np.nan_to_num(v) if "spike_times_s" in arrays else v  # else NaN are refused
            if (end := aborted_at(current[s], filled, dt_ms)) is not None:
                warn(
                    f"{where}: voltage_mv: 0 or NaN from {end * dt_ms * 1e-3:.6g} s on, while the "
                    "current continues; was the sweep stopped there?"
                )
    return rows


def _stored_trains(
    path: Path,
    arrays: dict[str, np.ndarray],
    voltage: list[dict[int, np.ndarray]],
    durations_s: list[float],
    dt_ms: float,
) -> list[list[np.ndarray]]:
    times_s = arrays["spike_times_s"]
    if times_s.ndim != 1 or times_s.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: spike_times_s: expected numbers [n], got shape {times_s.shape} and "
            f"{times_s.dtype}"
        )
    check_times(str(path), times_s, max(durations_s))
    repeats = _n_repeats(path, arrays, len(voltage))
    if len(voltage) > 1 and len(times_s) and "spike_stimulus" not in arrays:
        raise _index_missing(path, "spike_stimulus", times_s, f"there are {len(voltage)} stimuli")
    stimulus = _indices(path, arrays, "spike_stimulus", len(voltage))
    for s in np.unique(stimulus) if "spike_repeat" not in arrays else ():
        if (n := repeats[s] or 1) > 1:
            raise _index_missing(path, "spike_repeat", times_s, f"n_repeats is {n}")
        if (n := len(voltage[s])) > 1:
            of = f"there are voltages of {n} repeats"
            raise _index_missing(path, "spike_repeat", times_s, of)
    repeat = _indices(path, arrays, "spike_repeat", _MOST_REPEATS)
    trains = []
    for s, n_repeats in enumerate(repeats):
        own, known = stimulus == s, list(voltage[s])
        _check_repeats(f"{path}, stimulus {s}", repeat[own], known, n_repeats)
        at_least = n_repeats or max(known, default=0) + 1
        trains.append(_repeats_of(times_s[own], repeat[own], at_least))
    for s, of_stimulus in enumerate(trains):
        for r, train in enumerate(of_stimulus):
            where = f"{path}, stimulus {s}, repeat {r}"
            check_times(where, train, durations_s[s])
            check_intervals(where, train)
            check_rate(where, train, durations_s[s], dt_ms)
    return trains


def _index_missing(path: Path, key: str, times_s: np.ndarray, why: str) -> ValueError:
    return ValueError(f"{path}: {key}: expected one per spike, {len(times_s)}, as {why}, got none")


def _check_repeats(where: str, repeat: np.ndarray, known: list[int], n_repeats: int | None) -> None:
    """Refuse numbers of repeats beyond `n_repeats` or, without it, with gaps.

    A repeat that is `known`, as it has a voltage, may be silent.
    """
    last = int(repeat.max()) if len(repeat) else -1
    if n_repeats is not None:
        for key, most in (("spike_repeat", last), ("voltage_mv, repeat", max(known, default=-1))):
            if most >= n_repeats:
                raise ValueError(
                    f"{where}: {key}: expected 0 to {n_repeats - 1}, as there are {n_repeats} "
                    f"repeats, got {most}"
                )
        return
    last = max([last, *known])
    for silent in np.setdiff1d(np.arange(last), [*repeat, *known])[:1]:
        raise ValueError(
            f"{where}: spike_repeat: expected spikes in each of the repeats 0 to {last}, got none "
            f"in repeat {silent}; are repeats numbered from 1? If one was silent, add n_repeats"
        )


def _repeats_of(times_s: np.ndarray, repeat: np.ndarray, at_least: int) -> list[np.ndarray]:
    n_repeats = max(at_least, int(repeat.max()) + 1 if len(repeat) else 0)
    order = np.lexsort((times_s, repeat))
    starts = np.searchsorted(repeat[order], np.arange(1, n_repeats))
    return np.split(as_double(times_s[order]), starts)


def _indices(path: Path, arrays: dict[str, np.ndarray], key: str, end: int) -> np.ndarray:
    n_spikes = len(arrays["spike_times_s"])
    index = arrays.get(key, np.zeros(n_spikes, np.int64))
    if index.shape != (n_spikes,):
        raise ValueError(f"{path}: {key}: expected one per spike, {n_spikes}, got {index.size}")
    if index.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {key}: expected integers, got an array of {index.dtype}")
    wrong = ~((index >= 0) & (index < end) & (index % 1 == 0))
    for i in np.flatnonzero(wrong)[:1]:
        raise ValueError(f"{path}: {key}: expected integers >= 0 below {end}, got {index[i]}")
    return index.astype(np.int64)
