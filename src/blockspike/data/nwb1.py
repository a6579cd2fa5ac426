"""NWB 1 files of the Allen Cell Types Database, read by h5py.

AllenSDK compares bytes with str under h5py 3, so it takes every file for one of the oldest and
skips the conversion factor. Here the factor is applied and the result checked.
"""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from blockspike.data.hdf5 import DatasetReader, attribute
from blockspike.data.limits import ReadLimit
from blockspike.data.spikes import as_double
from blockspike.data.sweeps import (
    VOLTAGE_CLAMP,
    Sweep,
    check_current,
    converted_to,
    dt_ms_of,
    text_of,
)

# AllenSDK's rule: files of earlier pipelines hold SI values and a wrong conversion factor.
_FIRST_RIGHT_PIPELINE = (1, 1)
_UNITS = {"A": re.compile(r"a|amps?|amperes?", re.I), "V": re.compile(r"v|volts?", re.I)}


def allen_sweeps(path: Path, file: h5py.File) -> list[_AllenSweep]:
    """List the sweeps of an open file without reading them.

    Raises:
        ValueError: the file has none.
    """
    epochs = file.get("epochs")
    if not isinstance(epochs, h5py.Group):
        raise ValueError(
            f"{path}: expected NWB 1 of the Allen Cell Types Database, or NWB 2, got no epochs"
        )
    numbers = [int(m[1]) for m in (re.fullmatch(r"Sweep_(\d+)", str(key)) for key in epochs) if m]
    reader = DatasetReader(file, path, ReadLimit(path))
    return [_AllenSweep(path, file, reader, number) for number in numbers]


class _AllenSweep:
    def __init__(self, path: Path, file: h5py.File, reader: DatasetReader, number: int) -> None:
        self.number = number
        self.where = f"{path}, sweep {number}"
        self.file = file
        self.reader = reader
        self.stimulus = self._name()

    def other_mode(self) -> str:
        return VOLTAGE_CLAMP if self._unit("stimulus") == "V" else ""

    def read(self) -> Sweep:
        start = self._dataset("stimulus/timeseries/starting_time")
        return Sweep(
            number=self.number,
            stimulus=self.stimulus,
            is_shared_name=True,
            dt_ms=dt_ms_of(self.where, attribute(start, "rate")),
            current_pa=self._current_pa(),
            voltage_mv=self._voltage_mv(),
            spike_times_s=self._spike_times_s(),
        )

    def _name(self) -> str:
        for folder in ("acquisition/timeseries", "stimulus/presentation"):
            dataset = self.file.get(f"{folder}/Sweep_{self.number}/aibs_stimulus_name")
            if isinstance(dataset, h5py.Dataset):
                return text_of(self.reader.read(dataset)).strip()
        return ""

    def _current_pa(self) -> np.ndarray:
        dataset = self._dataset("stimulus/timeseries/data")
        raw = self.reader.read(dataset)
        check_current(self.where, raw)
        return self._in_si(dataset, raw, "current")

    def _voltage_mv(self) -> np.ndarray | None:
        if self._get("response/timeseries/data") is None:
            return None
        if self._unit("response") != "V":
            raise ValueError(
                f"{self.where}: expected a response in volts, got stimulus and response in amperes"
            )
        dataset = self._dataset("response/timeseries/data")
        return self._in_si(dataset, self.reader.read(dataset), "voltage")

    def _in_si(self, dataset: h5py.Dataset, raw: np.ndarray, quantity: str) -> np.ndarray:
        given = np.asarray(attribute(dataset, "conversion", 1.0)).reshape(-1)
        if not given.size:
            raise ValueError(f"{self.where}: conversion of the {quantity}: expected a number")
        conversion = float(given[0])
        is_old = _pipeline_version(self.file, self.reader) < _FIRST_RIGHT_PIPELINE
        return converted_to(self.where, raw, quantity, conversion, may_be_si=is_old)

    def _spike_times_s(self) -> np.ndarray | None:
        for key in ("spike_times", "aibs_spike_times"):
            dataset = self.file.get(f"analysis/{key}/Sweep_{self.number}")
            if isinstance(dataset, h5py.Dataset):
                return as_double(np.asarray(self.reader.read(dataset))).reshape(-1)
        return None

    def _unit(self, side: str) -> str:
        unit = attribute(self._dataset(f"{side}/timeseries/data"), "unit")
        if unit is None:
            raise ValueError(f"{self.where}: unit of the {side}: expected A or V, got none")
        text = text_of(unit).strip()
        for short, pattern in _UNITS.items():
            if pattern.fullmatch(text):
                return short
        raise ValueError(f"{self.where}: unit of the {side}: expected A or V, got {text!r}")

    def _dataset(self, key: str) -> h5py.Dataset:
        found = self._get(key)
        if not isinstance(found, h5py.Dataset):
            full = f"epochs/Sweep_{self.number}/{key}"
            raise ValueError(f"{self.where}: {full}: expected a dataset, got none")
        return found

    def _get(self, key: str) -> Any:
        return self.file.get(f"epochs/Sweep_{self.number}/{key}")


def _pipeline_version(file: h5py.File, reader: DatasetReader) -> tuple[int, int]:
    """Version of Allen's pipeline, or (0, 0); ``generated_by`` lists keys and values in turn."""
    dataset = file.get("general/generated_by")
    if not isinstance(dataset, h5py.Dataset):
        return 0, 0
    words = [text_of(word).strip() for word in np.asarray(reader.read(dataset), object).reshape(-1)]
    for key, value in pairwise(words):
        match = re.match(r"(\d+)\.(\d+)", value)
        if key == "version" and match:
            return int(match[1]), int(match[2])
    return 0, 0
