"""Current-clamp sweeps of files of any format: how they are chosen and checked."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

CURRENT_RANGE_PA = (1.0, 100_000.0)
VOLTAGE_RANGE_MV = (1.0, 250.0)
DT_RANGE_MS = (1e-4, 1e3)
_PA_PER_A = 1e12
_MV_PER_V = 1e3
# Sizes of units, in lower case by `casefold`, in mV and in pA.
PER_MV = {"v": 1e3, "mv": 1.0, "uv": 1e-3, "μv": 1e-3}
PER_PA = {"a": 1e12, "ma": 1e9, "ua": 1e6, "μa": 1e6, "na": 1e3, "pa": 1.0}
VOLTAGE_CLAMP = "voltage clamp (its stimulus is in volts)"


@dataclass(frozen=True)
class Sweep:
    """One current-clamp sweep.

    ``current_pa`` and ``voltage_mv`` float64 ``[T]``, the latter None if the file has none;
    ``spike_times_s`` float64 ``[n]`` as stored, seconds from the start, None if not stored.
    ``stimulus`` is "" if the file names none; ``is_shared_name`` is True if sweeps with the same
    stimulus share its name, which is not so for the names of NWB 2 series. ``command_pa`` is the
    command, where it is known beside a recorded current; ``electrode`` the name of the electrode in
    a file of several, else "".
    """

    number: int
    stimulus: str
    is_shared_name: bool
    dt_ms: float
    current_pa: np.ndarray
    voltage_mv: np.ndarray | None
    spike_times_s: np.ndarray | None
    command_pa: np.ndarray | None = None
    electrode: str = ""


class Stored(Protocol):
    """A sweep in a file, before it is read."""

    number: int
    stimulus: str

    def other_mode(self) -> str:
        """How it was recorded if not in current clamp, else ""."""
        ...

    def read(self) -> Sweep:
        """Read and check its values."""
        ...


AnyStored = TypeVar("AnyStored", bound=Stored)


def choose(
    path: Path,
    stored: Iterable[AnyStored],
    stimuli: Sequence[str] | None,
    sweeps: Sequence[int] | None,
) -> list[AnyStored]:
    """Choose sweeps by name or number (None = all), and sort them by number.

    Raises:
        ValueError: a sweep is missing or not in current clamp, or none is left.
    """
    found = sorted(stored, key=lambda sweep: sweep.number)
    if sweeps is not None:
        found = _with_numbers(path, found, sweeps)
    if stimuli is not None:
        found = _with_names(path, found, stimuli)
    if not found:
        raise ValueError(f"{path}: expected a current-clamp sweep, got none")
    others = [sweep for sweep in found if sweep.other_mode()]
    if others and (sweeps is not None or len(others) == len(found)):
        raise ValueError(
            f"{path}, sweep {others[0].number}: expected current clamp, got "
            f"{others[0].other_mode()}"
        )
    return [sweep for sweep in found if sweep not in others]


class SeveralElectrodesError(ValueError):
    """No electrode was chosen of a file that has several; ``electrodes`` are their names."""

    def __init__(self, path: Path, electrodes: Sequence[str]):
        super().__init__(
            f"{path}: electrode: expected {_listed(electrodes)}, as the file has several, got none"
        )
        self.electrodes = list(electrodes)


def choose_electrode(path: Path, electrodes: Sequence[str], chosen: str | int | None) -> str:
    """Find an electrode by its name or, from 0, its number; return its name, "" if there is none.

    Raises:
        SeveralElectrodesError: None was chosen, and there are several.
        ValueError: there is no such electrode.
    """
    if chosen is None:
        if len(electrodes) > 1:
            raise SeveralElectrodesError(path, electrodes)
        return electrodes[0] if electrodes else ""
    text = str(chosen).strip()
    for name in electrodes:
        if text.casefold() == name.casefold():
            return name
    numbers = {str(i): name for i, name in enumerate(electrodes)}
    if text not in numbers:
        expected = _listed(electrodes) if electrodes else "none, as the file has one cell"
        raise ValueError(f"{path}: electrode: expected {expected}, got {chosen!r}")
    return numbers[text]


def _listed(electrodes: Sequence[str]) -> str:
    return " or ".join(f"{name!r} ({i})" for i, name in enumerate(electrodes))


def _with_numbers(path: Path, stored: list[AnyStored], sweeps: Sequence[int]) -> list[AnyStored]:
    there = [sweep.number for sweep in stored]
    for number in sweeps:
        if number not in there:
            raise ValueError(f"{path}: expected a sweep of {there}, got {number}")
    return [sweep for sweep in stored if sweep.number in set(sweeps)]


def _with_names(path: Path, stored: list[AnyStored], names: Sequence[str]) -> list[AnyStored]:
    there = [sweep.stimulus for sweep in stored]
    return [stored[i] for i in indices_of(path, there, names)]


def indices_of(path: Path, there: Sequence[str], names: Sequence[str] | str) -> list[int]:
    """Find stimulus names or patterns, upper or lower case, in ``there``; return their indices.

    Raises:
        ValueError: a name is not there; lists those that are.
    """
    names = [names] if isinstance(names, str) else list(names)
    wanted = [name.strip().casefold() for name in names]
    folded = [name.strip().casefold() for name in there]
    for name, key in zip(names, wanted, strict=True):
        if not any(_fits(x, key) for x in folded):
            listed = ", ".join(dict.fromkeys(repr(x) for x in there if x)) or "unnamed ones only"
            raise ValueError(f"{path}: expected a stimulus of {listed}, got {name!r}")
    return [i for i, x in enumerate(folded) if any(_fits(x, key) for key in wanted)]


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatchcase(name, pattern)


def check_samples(where: str, quantity: str, values: np.ndarray) -> None:
    """Check that values are numbers ``[T]``, T >= 1.

    Raises:
        ValueError: they are not; the message starts with ``where`` and ``quantity``.
    """
    if values.ndim != 1 or values.dtype.kind not in "fiu":
        raise ValueError(
            f"{where}: {quantity}: expected one number per sample, got shape {values.shape} and "
            f"{values.dtype}"
        )
    if not len(values):
        raise ValueError(f"{where}: {quantity}: expected samples, got length 0")


def check_current(where: str, current: np.ndarray) -> None:
    """Check that a current is ``[T]``, T >= 1, of finite numbers.

    Raises:
        ValueError: it is not; the message starts with ``where``.
    """
    check_samples(where, "current", current)
    for i in np.flatnonzero(~np.isfinite(current))[:1]:
        raise ValueError(
            f"{where}: current: expected finite values, got {current[i]} at sample {i}"
        )


def n_samples_of(row: np.ndarray) -> int:
    """Samples before the NaNs at the end of a row, by which it is padded."""
    if not len(row) or not np.isnan(row[-1]):
        return len(row)
    there = np.flatnonzero(~np.isnan(row))
    return int(there[-1]) + 1 if len(there) else 0


def peak_of(values: np.ndarray) -> float:
    """Return the largest finite magnitude, or 0."""
    magnitude = np.abs(values[np.isfinite(values)])
    return float(magnitude.max()) if magnitude.size else 0.0


def check_voltage_peak(where: str, voltage_mv: np.ndarray) -> None:
    """Check that the peak of a voltage is plausible.

    Raises:
        ValueError: it is not; the message starts with ``where``.
    """
    _check_has_numbers(where, "voltage", voltage_mv)
    low, high = VOLTAGE_RANGE_MV
    peak = peak_of(voltage_mv)
    if not low <= peak <= high:
        raise ValueError(
            f"{where}: expected a peak voltage of {low:g} to {high:g} mV, got {peak:.3g} mV"
        )


def _check_has_numbers(where: str, quantity: str, values: np.ndarray) -> None:
    if values.size and not np.isfinite(values).any():
        raise ValueError(
            f"{where}: {quantity}: expected numbers, got none; `data.train_sweeps` and "
            "`data.test_sweeps` can leave the sweep out"
        )


def converted_to(
    where: str,
    raw: np.ndarray,
    quantity: str,
    conversion: float,
    offset: float = 0.0,
    may_be_si: bool = False,
    may_be_small: bool = False,
) -> np.ndarray:
    """Convert stored values, × conversion + offset, to a current in pA or voltage in mV, float64.

    With `may_be_si`, values that are plausible in SI units without the conversion are taken as
    such. A peak of 0 is that of a step of 0 pA; with `may_be_small`, any small one may be.

    Raises:
        ValueError: the peak is implausible; the message starts with `where`.
    """
    _check_has_numbers(where, quantity, raw)
    per_si, unit, (low, high) = {
        "current": (_PA_PER_A, "pA", CURRENT_RANGE_PA),
        "voltage": (_MV_PER_V, "mV", VOLTAGE_RANGE_MV),
    }[quantity]
    converted = (raw.astype(np.float64) * conversion + offset) * per_si
    peak = peak_of(converted)
    is_small = quantity == "current" and (may_be_small or not peak)
    if (is_small or low * (1 - 1e-6) <= peak) and peak <= high:
        return converted
    if may_be_si and low * (1 - 1e-6) <= peak_of(raw * per_si) <= high:
        return raw.astype(np.float64) * per_si
    raise ValueError(
        f"{where}: expected a peak {quantity} of {low:g} to {high:,.0f} {unit}, got {peak:.3g} "
        f"{unit}; the conversion factor {conversion:g} looks wrong"
    )


def dt_ms_of(where: str, rate: Any) -> float:
    """Return the length of a step in ms for a sampling rate in Hz.

    Raises:
        ValueError: the rate is missing or implausible; the message starts with `where`.
    """
    if rate is None:
        raise ValueError(f"{where}: expected a sampling rate in Hz, got none")
    rate = np.asarray(rate).reshape(-1)
    low, high = 1e3 / DT_RANGE_MS[1], 1e3 / DT_RANGE_MS[0]
    if rate.size != 1 or rate.dtype.kind not in "fiu" or not low <= rate[0] <= high:
        found = rate[0] if rate.size == 1 else f"{rate.size} values"
        raise ValueError(
            f"{where}: expected a sampling rate of {low:g} to {high:g} Hz, got {found} Hz"
        )
    return 1e3 / float(rate[0])


def reader_of(path: Path, module: str, name: str, extra: str) -> Any:
    """Import the library that reads a file.

    Args:
        path: the file, for the error.
        module: to import.
        name: of the library, as it is written.
        extra: installs it.

    Raises:
        ValueError: it is not installed; names the extra.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{path}: expected {name}, which reads this file, got none; "
            f"pip install 'blockspike[{extra}]'"
        ) from error


def text_of(value: Any) -> str:
    """Return the text of an attribute or dataset, whatever its h5py type; "" if it is no text."""
    if isinstance(value, np.ndarray) and value.size:
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value) if isinstance(value, str) else ""


def one_line(error: BaseException) -> str:
    """Return the first line of an error, or its name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
