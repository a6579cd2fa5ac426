"""NWB 2 files, read by pynwb.

Rübel et al. 2022, "The Neurodata Without Borders ecosystem for neurophysiological data science",
eLife 11:e78362.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from blockspike.data.clocks import Clock, clock_of_timestamps, on_one_clock, without_padding
from blockspike.data.hdf5 import check_tree
from blockspike.data.limits import ReadLimit
from blockspike.data.plausible import warn
from blockspike.data.sweeps import (
    VOLTAGE_CLAMP,
    Sweep,
    check_current,
    check_samples,
    choose,
    choose_electrode,
    converted_to,
    dt_ms_of,
    one_line,
    reader_of,
    text_of,
)

_PA_PER_A = 1e12
_MOST_KEPT = 4  # datasets: data and times of a stimulus and of a response


def read_nwb2(
    path: Path,
    stimuli: Sequence[str] | None,
    sweeps: Sequence[int] | None,
    electrode: str | int | None,
) -> Generator[Sweep]:
    """Read sweeps one by one; arguments and errors as in `nwb.read_sweeps`."""
    check_tree(path)
    try:
        with _open_nwb2(path) as io:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = _of_electrode(path, _nwb2_sweeps(path, io.read()), electrode)
            chosen = choose(path, found, stimuli, sweeps)
            _warn_of_bias(path, chosen)
            for stored in chosen:
                yield stored.read()
    except ValueError as error:
        if str(error).startswith(str(path)):
            raise
        raise _unreadable(path, error) from error
    except Exception as error:  # pynwb has no error class of its own
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path}: expected a complete NWB 2 file, got an error of pynwb ({one_line(error)})"
    )


def _open_nwb2(path: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about older schemas, which pynwb still reads
        pynwb = reader_of(path, "pynwb", "pynwb", "nwb")
        return pynwb.NWBHDF5IO(str(path), "r", load_namespaces=True)


def _nwb2_sweeps(path: Path, content: Any) -> list[_Nwb2Sweep]:
    table = content.intracellular_recordings
    has_rows = table is not None and len(table)
    rows = _table_pairs(content, table) if has_rows else _pairs(path, content)
    reader = _Reader(path)
    return [_Nwb2Sweep(path, reader, *row) for row in rows]


def _of_electrode(
    path: Path, found: list[_Nwb2Sweep], electrode: str | int | None
) -> list[_Nwb2Sweep]:
    """Sweeps of the chosen electrode, or of the only one that is in current clamp."""
    usable = [sweep for sweep in found if not sweep.other_mode()] or found
    names = list(dict.fromkeys(sweep.electrode for sweep in usable))
    name = choose_electrode(path, names, electrode)
    own = {}
    for sweep in (sweep for sweep in usable if sweep.electrode == name):
        if sweep.number in own:
            raise ValueError(
                f"{sweep.where}: expected one response and stimulus of electrode {name!r}, got "
                f"{own[sweep.number].series_names} and {sweep.series_names}"
            )
        own[sweep.number] = sweep
        sweep.is_of_several = len(names) > 1
    for sweep in (sweep for sweep in found if sweep.electrode == name):
        own.setdefault(sweep.number, sweep)  # in another mode, for errors
    return list(own.values())


def _warn_of_bias(path: Path, chosen: list[_Nwb2Sweep]) -> None:
    """Name holding currents that are stored apart from the stimulus.

    The schema says "bias current, in amps", and not whether the stimulus includes it.
    """
    bias_pa = {sweep.number: x for sweep in chosen if (x := sweep.bias_pa())}
    if bias_pa:
        low, high = min(bias_pa.values()), max(bias_pa.values())
        value = f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"
        sweeps = f"sweep{'s' * (len(bias_pa) > 1)} {', '.join(map(str, sorted(bias_pa)))}"
        warn(
            f"{path}: bias_current: {value} pA in {sweeps} is not added, since NWB 2 leaves open "
            "whether the stimulus includes it"
        )


def _table_pairs(content: Any, table: Any) -> Iterator[tuple[int, str, _Part | None, _Part | None]]:
    """(number, stimulus type, stimulus, response) of the rows of ``intracellular_recordings``."""
    types = _stimulus_types(content)
    found: list[tuple[int, int, _Part | None, _Part | None]] = []
    for row in range(len(table)):
        stimulus = _Part.of_reference(table["stimuli"]["stimulus"][row])
        response = _Part.of_reference(table["responses"]["response"][row])
        numbers = [p.series.sweep_number for p in (response, stimulus) if p is not None]
        number = next((int(n) for n in numbers if n is not None), row)
        if numbers:
            found.append((row, number, stimulus, response))
    by_row = _numbers_repeat(found)
    for row, number, stimulus, response in found:
        yield row if by_row else number, types.get(row, ""), stimulus, response


def _numbers_repeat(rows: list[tuple[int, int, _Part | None, _Part | None]]) -> bool:
    """Whether rows of different current-clamp data of an electrode share a sweep number."""
    content: dict[tuple[str, int], set[tuple[Any, ...]]] = {}
    for _, number, *sides in rows:
        parts = [part for part in sides if part is not None]
        if all(part.is_kind("CurrentClamp") for part in parts):
            key = parts[-1].electrode, number
            content.setdefault(key, set()).add(tuple(part.identity for part in parts))
    return any(len(different) > 1 for different in content.values())


def _stimulus_types(content: Any) -> dict[int, str]:
    """Stimulus type by row of ``intracellular_recordings``, if the file has it."""
    sequential, simultaneous = (
        content.icephys_sequential_recordings,
        content.icephys_simultaneous_recordings,
    )
    if sequential is None or simultaneous is None:
        return {}
    return {
        int(row): str(kind)
        for i, kind in enumerate(sequential["stimulus_type"][:])
        for group in _rows(sequential["simultaneous_recordings"], i)
        for row in _rows(simultaneous["recordings"], int(group))
    }


def _rows(index: Any, i: int) -> Iterable[int]:
    start = int(index.data[i - 1]) if i else 0
    return index.target.data[start : int(index.data[i])]


def _pairs(path: Path, content: Any) -> Iterator[tuple[int, str, _Part | None, _Part | None]]:
    """(number, "", stimulus, response) of files without a table.

    Those of one electrode are paired by ``sweep_number`` or, if no series has one, by the numbers
    in their names; sweeps are then numbered from 0.
    """
    responses = _series(content.acquisition, "ClampSeries")
    stimuli = _series(content.stimulus, "ClampStimulusSeries")
    everything = [*responses, *stimuli]
    mode = "CurrentClamp" if any(part.is_kind("CurrentClamp") for part in everything) else ""
    clamped = [part for part in everything if part.is_kind(mode)]
    has_number = [part.series.sweep_number is not None for part in clamped]
    if any(has_number) and not all(has_number):
        name = clamped[has_number.index(False)].series.name
        raise ValueError(
            f"{path}: {name}: expected a row of intracellular_recordings or a sweep_number, to "
            "pair stimulus and response, got neither"
        )
    pairs: dict[tuple[tuple[int, ...], str], tuple[list[_Part], list[_Part]]] = {}
    for side, parts in enumerate((stimuli, responses)):
        for part in parts:
            if part.series.sweep_number is None and any(has_number):
                continue  # in another mode, and without a number
            pairs.setdefault((part.numbers(any(has_number)), part.electrode), ([], []))[
                side
            ].append(part)
    order = {key: i for i, key in enumerate(sorted({numbers for numbers, _ in pairs}))}
    for (numbers, electrode), both in sorted(pairs.items(), key=lambda pair: pair[0]):
        own = [[part for part in side if part.is_kind(mode)] for side in both]
        sides = own if any(own) else [side[:1] for side in both]
        names = ", ".join(part.series.name for side in sides for part in side)
        if max(map(len, sides)) > 1:
            raise ValueError(
                f"{path}: expected one stimulus and one response of electrode {electrode!r} with "
                f"the numbers {numbers}, got {names}"
            )
        stimulus, response = (side[0] if side else None for side in sides)
        number = numbers[0] if any(has_number) else order[numbers]
        yield number, "", stimulus, response


def _series(folder: Any, kind: str) -> list[_Part]:
    return [_Part(x) for x in folder.values() if type(x).__name__.endswith(kind)]


@dataclass(frozen=True)
class _Part:
    """A pynwb series, or those of its samples that ``intracellular_recordings`` refers to."""

    series: Any
    samples: slice | None = None

    @classmethod
    def of_reference(cls, reference: Any) -> _Part | None:
        # Without a series, older versions of pynwb give -1, later ones None.
        if reference is None or reference.timeseries is None or reference.idx_start < 0:
            return None
        start, count = int(reference.idx_start), int(reference.count)
        return cls(reference.timeseries, slice(start, start + count))

    @property
    def electrode(self) -> str:
        return str(self.series.electrode.name)

    def is_kind(self, kind: str) -> bool:
        return type(self.series).__name__.startswith(kind)

    @property
    def identity(self) -> tuple[str, int | None]:
        """Identifier of the series, and the first sample of a part of it."""
        return self.series.object_id, self.samples.start if self.samples else None

    def numbers(self, has_number: bool) -> tuple[int, ...]:
        if has_number:
            return (int(self.series.sweep_number),)
        return tuple(map(int, re.findall("[0-9]{1,18}", self.series.name)))

    def raw(self, reader: _Reader) -> np.ndarray:
        return reader.read(self.series.data, self.samples)

    def clock(self, where: str, reader: _Reader) -> Clock:
        series = self.series
        if series.timestamps is not None:
            if len(series.timestamps) != len(series.data):
                raise ValueError(
                    f"{where}: timestamps: expected one for each of {len(series.data)} samples of "
                    f"{series.name}, got {len(series.timestamps)}"
                )
            return clock_of_timestamps(where, reader.read(series.timestamps, self.samples))
        dt_ms = dt_ms_of(where, series.rate)
        first = self.samples.start if self.samples else 0
        return Clock(float(series.starting_time or 0.0) + first * dt_ms * 1e-3, dt_ms)

    def converted(self, where: str, raw: np.ndarray, quantity: str) -> np.ndarray:
        conversion, offset = float(self.series.conversion), float(self.series.offset)
        return converted_to(where, raw, quantity, conversion, offset, may_be_small=True)


class _Reader:
    """Reads series, of which many may share one dataset, up to the limit of their file."""

    def __init__(self, path: Path) -> None:
        self.limit = ReadLimit(path)
        self.last: dict[str, np.ndarray] = {}  # of which parts were read, by name

    def read(self, data: Any, samples: slice | None) -> np.ndarray:
        """Samples of a dataset or, as pynwb has it for links, of an array."""
        if isinstance(data, h5py.Dataset):
            data = self._whole(data, samples is not None)
        return np.asarray(data[samples or slice(None)])

    def _whole(self, data: h5py.Dataset, has_parts: bool) -> np.ndarray:
        name = str(data.name)
        values = self.last.pop(name, None)
        if values is None:
            self.limit.take(data.nbytes, name)
            values = np.asarray(data[()])
        if has_parts:
            self.last = dict(list(self.last.items())[1 - _MOST_KEPT :]) | {name: values}
        return values


class _Nwb2Sweep:
    def __init__(
        self,
        path: Path,
        reader: _Reader,
        number: int,
        stimulus_type: str,
        stimulus: _Part | None,
        response: _Part | None,
    ) -> None:
        self.number = number
        self.where = f"{path}, sweep {number}"
        self.reader = reader
        self.stimulus_part = stimulus
        self.response_part = response
        self.shared_name = _description(stimulus) or _description(response) or stimulus_type
        self.stimulus = self.shared_name or (stimulus.series.name if stimulus else "")
        self.parts = [part for part in (stimulus, response) if part is not None]
        self.series_names = " and ".join(part.series.name for part in self.parts)
        self.electrode = self.parts[-1].electrode if self.parts else ""
        self.is_of_several = False

    def other_mode(self) -> str:
        if any(part.is_kind("VoltageClamp") for part in self.parts):
            return VOLTAGE_CLAMP
        is_unclamped = any(part.is_kind("IZero") for part in self.parts)
        return "I = 0 (the amplifier injects no current)" if is_unclamped else ""

    def bias_pa(self) -> float:
        """Bias current of the response, 0 if it is not known."""
        bias = getattr(self.response_part and self.response_part.series, "bias_current", None)
        bias_pa = 0.0 if bias is None else float(bias) * _PA_PER_A
        return bias_pa if math.isfinite(bias_pa) else 0.0

    def read(self) -> Sweep:
        if self.stimulus_part is None:
            raise ValueError(
                f"{self.where}: stimulus: expected a CurrentClampStimulusSeries for "
                f"{self.series_names}, got none"
            )
        if len({part.electrode for part in self.parts}) > 1:
            raise ValueError(
                f"{self.where}: expected a stimulus and a response of one electrode, got "
                f"{' and '.join(part.electrode for part in self.parts)}"
            )
        stimulus, reader = self.stimulus_part, self.reader
        raw = without_padding(stimulus.raw(reader))
        check_current(self.where, raw)
        current = stimulus.converted(self.where, raw, "current")
        clock, voltage = stimulus.clock(self.where, reader), None
        if self.response_part is not None:
            voltage = self._voltage_mv(self.response_part)
            own_clock = self.response_part.clock(self.where, reader)
            current, voltage = on_one_clock(self.where, current, clock, voltage, own_clock)
            clock = own_clock
        return Sweep(
            number=self.number,
            stimulus=self.stimulus,
            is_shared_name=bool(self.shared_name),
            dt_ms=clock.dt_ms,
            current_pa=current,
            voltage_mv=voltage,
            spike_times_s=None,
            electrode=self.electrode if self.is_of_several else "",
        )

    def _voltage_mv(self, response: _Part) -> np.ndarray:
        raw = without_padding(response.raw(self.reader))
        check_samples(self.where, "voltage", raw)
        return response.converted(self.where, raw, "voltage")


def _description(part: _Part | None) -> str:
    text = text_of(getattr(part.series, "stimulus_description", "")).strip() if part else ""
    return "" if text == "N/A" else text
