"""Current-clamp sweeps of NWB files: NWB 1 as the Allen Cell Types Database writes it, and NWB 2.

NWB 1 is read with h5py. AllenSDK compares bytes with str under h5py 3, takes every file for one of
its oldest and skips the conversion factor; here it is applied and the result checked. NWB 2
(Rübel et al. 2022, "The Neurodata Without Borders ecosystem for neurophysiological data science",
eLife 11:e78362) is read with pynwb.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import h5py
import numpy as np

CURRENT_RANGE_PA = (1.0, 20_000.0)
VOLTAGE_RANGE_MV = (1.0, 250.0)
_PA_PER_A = 1e12
_MV_PER_V = 1e3
# AllenSDK's rule: files of earlier pipelines hold SI values and a conversion that is wrong.
_FIRST_RIGHT_PIPELINE = (1, 1)
_READ_ERRORS = (OSError, RuntimeError, KeyError)
_UNITS = {"A": re.compile(r"a|amps?|amperes?", re.I), "V": re.compile(r"v|volts?", re.I)}


@dataclass(frozen=True)
class Sweep:
    """One current-clamp sweep.

    ``current_pa`` and ``voltage_mv`` float64 ``[T]``, the latter None where the file has none;
    ``spike_times_s`` float64 ``[n]`` as stored, seconds from the start, None where not stored.
    ``stimulus`` is "" where the file names none; ``is_shared_name`` says that sweeps with the same
    stimulus have the same name, which names of NWB 2 series have not.
    """

    number: int
    stimulus: str
    is_shared_name: bool
    dt_ms: float
    current_pa: np.ndarray
    voltage_mv: np.ndarray | None
    spike_times_s: np.ndarray | None


class _Stored(Protocol):
    """A sweep in a file, before it is read."""

    number: int
    stimulus: str

    def is_voltage_clamp(self) -> bool: ...
    def read(self) -> Sweep: ...


_AnyStored = TypeVar("_AnyStored", bound=_Stored)


def read_sweeps(
    path: Path, stimuli: Sequence[str] | None = None, sweeps: Sequence[int] | None = None
) -> Iterator[Sweep]:
    """Read current-clamp sweeps one by one, in the order of their numbers.

    Args:
        path: NWB 1 of the Allen Cell Types Database, or NWB 2.
        stimuli: names of those to read, upper or lower case; None = all.
        sweeps: numbers of those to read; None = all. Voltage-clamp sweeps that are not listed here
            are passed over.

    Raises:
        ValueError: no complete NWB file, a missing key, sweep, stimulus or unit, a voltage-clamp
            sweep, a current that is empty, NaN or infinite, magnitudes that no neuron has, or
            pynwb is missing; names the file and the sweep.
    """
    try:
        with h5py.File(path, "r") as file:
            is_nwb2 = _text(file.attrs.get("nwb_version", "")).startswith("2")
            if not is_nwb2:
                for stored in _chosen(path, _allen_sweeps(path, file), stimuli, sweeps):
                    yield stored.read()
        if is_nwb2:
            yield from _read_nwb2(path, stimuli, sweeps)
    except _READ_ERRORS as error:
        raise ValueError(f"{path}: not a complete NWB file ({_one_line(error)})") from error


def _chosen(
    path: Path,
    stored: Iterable[_AnyStored],
    stimuli: Sequence[str] | None,
    sweeps: Sequence[int] | None,
) -> list[_AnyStored]:
    found = sorted(stored, key=lambda sweep: sweep.number)
    if sweeps is not None:
        found = _with_numbers(path, found, sweeps)
    if stimuli is not None:
        found = _with_names(path, found, stimuli)
    if not found:
        raise ValueError(f"{path}: found no sweep to read, expected a current-clamp sweep")
    voltage_clamp = [sweep.number for sweep in found if sweep.is_voltage_clamp()]
    if voltage_clamp and (sweeps is not None or len(voltage_clamp) == len(found)):
        raise ValueError(
            f"{path}, sweep {voltage_clamp[0]}: found a voltage-clamp sweep (its stimulus is in "
            "volts), expected current clamp"
        )
    return [sweep for sweep in found if sweep.number not in voltage_clamp]


def _with_numbers(path: Path, stored: list[_AnyStored], sweeps: Sequence[int]) -> list[_AnyStored]:
    there = [sweep.number for sweep in stored]
    for number in sweeps:
        if number not in there:
            raise ValueError(f"{path}: has no sweep {number}, expected one of {there}")
    return [sweep for sweep in stored if sweep.number in set(sweeps)]


def _with_names(path: Path, stored: list[_AnyStored], names: Sequence[str]) -> list[_AnyStored]:
    there = [sweep.stimulus for sweep in stored]
    return [stored[i] for i in indices_of(path, there, names)]


def indices_of(path: Path, there: Sequence[str], names: Sequence[str] | str) -> list[int]:
    """Return the places in ``there`` of stimulus names, upper or lower case.

    Raises:
        ValueError: a name is not there; lists those that are.
    """
    names = [names] if isinstance(names, str) else list(names)
    wanted = [name.strip().casefold() for name in names]
    folded = [name.strip().casefold() for name in there]
    for name, key in zip(names, wanted, strict=True):
        if key not in folded:
            listed = ", ".join(dict.fromkeys(repr(x) for x in there if x)) or "unnamed ones only"
            raise ValueError(f"{path}: has no stimulus {name!r}, found {listed}")
    return [i for i, key in enumerate(folded) if key in wanted]


def check_current(where: str, current: np.ndarray) -> None:
    """Check that a current is ``[T]``, T >= 1, of finite numbers.

    Raises:
        ValueError: it is not; the message starts with ``where``.
    """
    if current.ndim != 1 or current.dtype.kind not in "fiu":
        raise ValueError(
            f"{where}: found a current of shape {current.shape} and {current.dtype}, expected one "
            "number a sample"
        )
    if not len(current):
        raise ValueError(f"{where}: found a current of length 0, expected samples")
    for i in np.flatnonzero(~np.isfinite(current))[:1]:
        raise ValueError(f"{where}: found current {current[i]} in sample {i}, expected finite ones")


def peak_of(values: np.ndarray) -> float:
    """Return the largest finite magnitude, 0 if there is none."""
    magnitude = np.abs(values[np.isfinite(values)])
    return float(magnitude.max()) if magnitude.size else 0.0


def _converted(
    where: str,
    raw: np.ndarray,
    quantity: str,
    conversion: float,
    offset: float = 0.0,
    may_be_si: bool = False,
) -> np.ndarray:
    per_si, unit, (low, high) = {
        "current": (_PA_PER_A, "pA", CURRENT_RANGE_PA),
        "voltage": (_MV_PER_V, "mV", VOLTAGE_RANGE_MV),
    }[quantity]
    converted = (raw.astype(np.float64) * conversion + offset) * per_si
    peak = peak_of(converted)
    if low * (1 - 1e-6) <= peak <= high:
        return converted
    if may_be_si and low * (1 - 1e-6) <= peak_of(raw * per_si) <= high:
        return raw.astype(np.float64) * per_si
    raise ValueError(
        f"{where}: found a peak {quantity} of {peak:.3g} {unit}, expected {low:g} to {high:g} "
        f"{unit}; the conversion factor {conversion:g} looks wrong"
    )


def _dt_ms(where: str, rate: Any) -> float:
    if rate is None:
        raise ValueError(f"{where}: the sampling rate is missing, expected it in Hz")
    rate = float(np.asarray(rate).reshape(-1)[0])
    if not 0 < rate < np.inf:
        raise ValueError(f"{where}: found a sampling rate of {rate} Hz, expected > 0")
    return 1e3 / rate


def _text(value: Any) -> str:
    """Text of an attribute or dataset, whichever of h5py's types it came as; else ""."""
    if isinstance(value, np.ndarray) and value.size:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value) if isinstance(value, str) else ""


def _one_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


# NWB 1


def _allen_sweeps(path: Path, file: h5py.File) -> list[_AllenSweep]:
    epochs = file.get("epochs")
    if not isinstance(epochs, h5py.Group):
        raise ValueError(
            f"{path}: epochs is missing, expected NWB 1 of the Allen Cell Types Database, or NWB 2"
        )
    numbers = [int(m[1]) for m in (re.fullmatch(r"Sweep_(\d+)", str(key)) for key in epochs) if m]
    return [_AllenSweep(path, file, number) for number in numbers]


class _AllenSweep:
    def __init__(self, path: Path, file: h5py.File, number: int) -> None:
        self.number = number
        self.where = f"{path}, sweep {number}"
        self.file = file
        self.stimulus = self._name()

    def is_voltage_clamp(self) -> bool:
        return self._unit("stimulus") == "V"

    def read(self) -> Sweep:
        start = self._dataset("stimulus/timeseries/starting_time")
        return Sweep(
            number=self.number,
            stimulus=self.stimulus,
            is_shared_name=True,
            dt_ms=_dt_ms(self.where, start.attrs.get("rate")),
            current_pa=self._current_pa(),
            voltage_mv=self._voltage_mv(),
            spike_times_s=self._spike_times_s(),
        )

    def _name(self) -> str:
        for folder in ("acquisition/timeseries", "stimulus/presentation"):
            dataset = self.file.get(f"{folder}/Sweep_{self.number}/aibs_stimulus_name")
            if isinstance(dataset, h5py.Dataset):
                return _text(dataset[()]).strip()
        return ""

    def _current_pa(self) -> np.ndarray:
        dataset = self._dataset("stimulus/timeseries/data")
        raw = np.asarray(dataset[()])
        check_current(self.where, raw)
        return self._in_si(dataset, raw, "current")

    def _voltage_mv(self) -> np.ndarray | None:
        if self._get("response/timeseries/data") is None:
            return None
        if self._unit("response") != "V":
            raise ValueError(
                f"{self.where}: found a stimulus and a response in amperes, expected a response "
                "in volts"
            )
        dataset = self._dataset("response/timeseries/data")
        return self._in_si(dataset, np.asarray(dataset[()]), "voltage")

    def _in_si(self, dataset: h5py.Dataset, raw: np.ndarray, quantity: str) -> np.ndarray:
        conversion = float(np.asarray(dataset.attrs.get("conversion", 1.0)).reshape(-1)[0])
        is_old = _pipeline_version(self.file) < _FIRST_RIGHT_PIPELINE
        return _converted(self.where, raw, quantity, conversion, may_be_si=is_old)

    def _spike_times_s(self) -> np.ndarray | None:
        for key in ("spike_times", "aibs_spike_times"):
            dataset = self.file.get(f"analysis/{key}/Sweep_{self.number}")
            if isinstance(dataset, h5py.Dataset):
                # h5py gives an `Empty` for a dataset without a shape
                stored = dataset[()] if dataset.shape is not None else []
                return np.asarray(stored, np.float64).reshape(-1)
        return None

    def _unit(self, side: str) -> str:
        unit = self._dataset(f"{side}/timeseries/data").attrs.get("unit")
        if unit is None:
            raise ValueError(f"{self.where}: the unit of the {side} is missing, expected A or V")
        text = _text(unit).strip()
        for short, pattern in _UNITS.items():
            if pattern.fullmatch(text):
                return short
        raise ValueError(f"{self.where}: found unit {text!r} of the {side}, expected A or V")

    def _dataset(self, key: str) -> h5py.Dataset:
        found = self._get(key)
        if not isinstance(found, h5py.Dataset):
            full = f"epochs/Sweep_{self.number}/{key}"
            raise ValueError(f"{self.where}: {full} is missing, expected a dataset")
        return found

    def _get(self, key: str) -> Any:
        return self.file.get(f"epochs/Sweep_{self.number}/{key}")


def _pipeline_version(file: h5py.File) -> tuple[int, int]:
    """Version of Allen's pipeline, (0, 0) if not given; ``generated_by`` lists keys and values."""
    dataset = file.get("general/generated_by")
    if not isinstance(dataset, h5py.Dataset):
        return 0, 0
    words = [_text(word).strip() for word in np.asarray(dataset[()], object).reshape(-1)]
    for key, value in pairwise(words):
        match = re.match(r"(\d+)\.(\d+)", value)
        if key == "version" and match:
            return int(match[1]), int(match[2])
    return 0, 0


# NWB 2


def _read_nwb2(
    path: Path, stimuli: Sequence[str] | None, sweeps: Sequence[int] | None
) -> Iterator[Sweep]:
    with _open_nwb2(path) as io:
        content = _content_of(path, io)
        for stored in _chosen(path, _nwb2_sweeps(path, content), stimuli, sweeps):
            yield stored.read()


def _open_nwb2(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of older schemas, which pynwb still reads
            pynwb = importlib.import_module("pynwb")
            return pynwb.NWBHDF5IO(str(path), "r", load_namespaces=True)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: NWB 2 needs pynwb, expected `pip install 'blockspike[nwb]'`"
        ) from error


def _content_of(path: Path, io: Any) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return io.read()
    except Exception as error:  # pynwb has no error class of its own
        raise ValueError(
            f"{path}: pynwb cannot read it ({_one_line(error)}), expected a complete NWB 2 file"
        ) from error


def _nwb2_sweeps(path: Path, content: Any) -> list[_Nwb2Sweep]:
    table = content.intracellular_recordings
    has_rows = table is not None and len(table)
    rows = _table_pairs(content, table) if has_rows else _pairs(path, content)
    found = [_Nwb2Sweep(path, *row) for row in rows]
    for number, count in Counter(sweep.number for sweep in found).items():
        if count > 1:
            raise ValueError(
                f"{path}, sweep {number}: found {count} responses or stimuli, expected one; files "
                "with several electrodes are not read"
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
    """Type of the stimulus by row of ``intracellular_recordings``, where the file has it."""
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
    """(number, "", stimulus, response) by ``sweep_number``, which files without a table have."""
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
                f"{path}: {series.name} is in no row of intracellular_recordings and has no "
                "sweep_number, expected one of them to pair stimulus and response"
            )
        found.setdefault(int(series.sweep_number), []).append(_Part(series))
    return found


@dataclass(frozen=True)
class _Part:
    """A pynwb series, or the samples of it that ``intracellular_recordings`` refers to."""

    series: Any
    samples: slice | None = None

    @classmethod
    def of_reference(cls, reference: Any) -> _Part | None:
        # Older versions of pynwb give -1 where there is none, later ones None.
        if reference is None or reference.timeseries is None or reference.idx_start < 0:
            return None
        start, count = int(reference.idx_start), int(reference.count)
        return cls(reference.timeseries, slice(start, start + count))

    def is_voltage_clamp(self) -> bool:
        return type(self.series).__name__.startswith("VoltageClamp")

    def raw(self) -> np.ndarray:
        return np.asarray(self.series.data[self.samples or slice(None)])

    def converted(self, where: str, quantity: str) -> np.ndarray:
        conversion, offset = float(self.series.conversion), float(self.series.offset)
        return _converted(where, self.raw(), quantity, conversion, offset)


class _Nwb2Sweep:
    def __init__(
        self,
        path: Path,
        number: int,
        stimulus_type: str,
        stimulus: _Part | None,
        response: _Part | None,
    ) -> None:
        self.number = number
        self.where = f"{path}, sweep {number}"
        self.stimulus_part = stimulus
        self.response_part = response
        self.shared_name = _description(stimulus) or _description(response) or stimulus_type
        self.stimulus = self.shared_name or (stimulus.series.name if stimulus else "")

    def is_voltage_clamp(self) -> bool:
        return any(p is not None and p.is_voltage_clamp() for p in self._parts())

    def read(self) -> Sweep:
        if self.stimulus_part is None:
            raise ValueError(
                f"{self.where}: the stimulus is missing, expected a CurrentClampStimulusSeries"
            )
        check_current(self.where, self.stimulus_part.raw())
        response = self.response_part
        return Sweep(
            number=self.number,
            stimulus=self.stimulus,
            is_shared_name=bool(self.shared_name),
            dt_ms=_dt_ms(self.where, self.stimulus_part.series.rate),
            current_pa=self.stimulus_part.converted(self.where, "current"),
            voltage_mv=None if response is None else response.converted(self.where, "voltage"),
            spike_times_s=None,
        )

    def _parts(self) -> tuple[_Part | None, _Part | None]:
        return self.stimulus_part, self.response_part


def _description(part: _Part | None) -> str:
    text = _text(getattr(part.series, "stimulus_description", "")).strip() if part else ""
    return "" if text == "N/A" else text
