"""NWB 2 files, read by pynwb.

Rübel et al. 2022, "The Neurodata Without Borders ecosystem for neurophysiological data science",
eLife 11:e78362.
"""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from blockspike.data.hdf5 import check_tree
from blockspike.data.limits import ReadLimit
from blockspike.data.sweeps import (
    Sweep,
    check_current,
    choose,
    converted_to,
    dt_ms_of,
    one_line,
    text_of,
)


def read_nwb2(
    path: Path, stimuli: Sequence[str] | None, sweeps: Sequence[int] | None
) -> Iterator[Sweep]:
    """Read sweeps one by one; arguments and errors as in `nwb.read_sweeps`."""
    check_tree(path)
    try:
        with _open_nwb2(path) as io, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for stored in choose(path, _nwb2_sweeps(path, io.read()), stimuli, sweeps):
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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about older schemas, which pynwb still reads
            pynwb = importlib.import_module("pynwb")
            return pynwb.NWBHDF5IO(str(path), "r", load_namespaces=True)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: expected pynwb, which reads NWB 2, got none; pip install 'blockspike[nwb]'"
        ) from error


def _nwb2_sweeps(path: Path, content: Any) -> list[_Nwb2Sweep]:
    table = content.intracellular_recordings
    has_rows = table is not None and len(table)
    rows = _table_pairs(content, table) if has_rows else _pairs(path, content)
    limit = ReadLimit(path)
    found = [_Nwb2Sweep(path, limit, *row) for row in rows]
    for number, count in Counter(sweep.number for sweep in found).items():
        if count > 1:
            raise ValueError(
                f"{path}, sweep {number}: expected one response and stimulus, got {count}; files "
                "with several electrodes are not supported"
            )
    return found


def _table_pairs(content: Any, table: Any) -> Iterator[tuple[int, str, _Part | None, _Part | None]]:
    """(number, stimulus type, stimulus, response) of the rows of ``intracellular_recordings``."""
    types = _stimulus_types(content)
    for row in range(len(table)):
        stimulus = _Part.of_reference(table["stimuli"]["stimulus"][row])
        response = _Part.of_reference(table["responses"]["response"][row])
        numbers = [p.series.sweep_number for p in (response, stimulus) if p is not None]
        number = next((int(n) for n in numbers if n is not None), row)
        yield number, types.get(row, ""), stimulus, response


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
    """(number, "", stimulus, response) by ``sweep_number``, for files without a table."""
    responses = _by_number(path, content.acquisition, "ClampSeries")
    stimuli = _by_number(path, content.stimulus, "ClampStimulusSeries")
    for number in sorted(responses.keys() | stimuli.keys()):
        # Several of one number are several electrodes; pairing all lets the caller refuse them.
        for response in responses.get(number, [None]):
            for stimulus in stimuli.get(number, [None]):
                yield number, "", stimulus, response


def _by_number(path: Path, folder: Any, kind: str) -> dict[int, list[_Part]]:
    found: dict[int, list[_Part]] = {}
    for series in folder.values():
        name = type(series).__name__
        if not name.endswith(kind) or name.startswith("IZero"):  # the latter have no current
            continue
        if series.sweep_number is None:
            raise ValueError(
                f"{path}: {series.name}: expected a row of intracellular_recordings or a "
                "sweep_number, to pair stimulus and response, got neither"
            )
        found.setdefault(int(series.sweep_number), []).append(_Part(series))
    return found


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

    def is_voltage_clamp(self) -> bool:
        return type(self.series).__name__.startswith("VoltageClamp")

    def raw(self, limit: ReadLimit) -> np.ndarray:
        data = self.series.data
        if isinstance(data, h5py.Dataset):  # many series may share one
            limit.take(data.nbytes, str(data.name))
        return np.asarray(data[self.samples or slice(None)])

    def converted(self, where: str, raw: np.ndarray, quantity: str) -> np.ndarray:
        conversion, offset = float(self.series.conversion), float(self.series.offset)
        return converted_to(where, raw, quantity, conversion, offset)


class _Nwb2Sweep:
    def __init__(
        self,
        path: Path,
        limit: ReadLimit,
        number: int,
        stimulus_type: str,
        stimulus: _Part | None,
        response: _Part | None,
    ) -> None:
        self.number = number
        self.where = f"{path}, sweep {number}"
        self.limit = limit
        self.stimulus_part = stimulus
        self.response_part = response
        self.shared_name = _description(stimulus) or _description(response) or stimulus_type
        self.stimulus = self.shared_name or (stimulus.series.name if stimulus else "")

    def is_voltage_clamp(self) -> bool:
        return any(p is not None and p.is_voltage_clamp() for p in self._parts())

    def read(self) -> Sweep:
        if self.stimulus_part is None:
            raise ValueError(
                f"{self.where}: stimulus: expected a CurrentClampStimulusSeries, got none"
            )
        current = self.stimulus_part.raw(self.limit)
        check_current(self.where, current)
        response = self.response_part
        voltage = None if response is None else response.raw(self.limit)
        return Sweep(
            number=self.number,
            stimulus=self.stimulus,
            is_shared_name=bool(self.shared_name),
            dt_ms=dt_ms_of(self.where, self.stimulus_part.series.rate),
            current_pa=self.stimulus_part.converted(self.where, current, "current"),
            voltage_mv=None
            if response is None or voltage is None
            else response.converted(self.where, voltage, "voltage"),
            spike_times_s=None,
        )

    def _parts(self) -> tuple[_Part | None, _Part | None]:
        return self.stimulus_part, self.response_part


def _description(part: _Part | None) -> str:
    text = text_of(getattr(part.series, "stimulus_description", "")).strip() if part else ""
    return "" if text == "N/A" else text
