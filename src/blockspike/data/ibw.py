"""Current-clamp sweeps of Igor waves (.ibw), read by igor2: a folder of them is one cell.

A wave holds one trace, so a sweep is two files: a voltage, and the current that was injected.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np

from blockspike.data.clocks import Clock, on_one_clock, without_padding
from blockspike.data.sweeps import (
    PER_MV,
    PER_PA,
    Sweep,
    check_current,
    check_samples,
    check_voltage_peak,
    choose,
    choose_electrode,
    dt_ms_of,
    one_line,
    reader_of,
)

SUFFIX = ".ibw"
_PER_MS = {"s": 1e3, "sec": 1e3, "ms": 1.0, "msec": 1.0, "us": 1e-3, "μs": 1e-3}
# By version of the format: where a file has the size of the wave, and those of the texts behind it
# (version 1 has none).
_SIZES_AT = {1: ("2xi", ""), 2: ("2xi", "6xi"), 3: ("2xi", "6x2i"), 5: ("4xi", "8x12i")}
_MOST_TEXT_BYTES = 1 << 20  # igor2 takes texts apart into bytes
_PADDING_BYTES = 16  # of the size of a wave, in versions 1 to 3


def read_ibw(
    folder: Path,
    stimuli: Sequence[str] | None = None,
    sweeps: Sequence[int] | None = None,
    electrode: str | int | None = None,
) -> Generator[Sweep]:
    """Read the sweeps of a folder of waves one by one, in the order of their numbers.

    The units of a wave's data tell whether it is a voltage or a current, and its x units and x
    scaling when it was sampled. The last number in a file's name is that of the sweep. Without it,
    all voltages have the same name, and so have all currents, as in ``RecordA0.ibw``,
    ``RecordA1.ibw`` and ``RecordB0.ibw``, ``RecordB1.ibw``.

    Args:
        folder: has one voltage and one current of each sweep.
        stimuli, sweeps: as in `nwb.read_sweeps`.
        electrode: None, as a folder has one.

    Raises:
        ValueError: a damaged wave, unknown units, names that do not fit, a wave without the other
            of its sweep, clocks or magnitudes that do not fit, a missing igor2; names the files.
    """
    choose_electrode(folder, [], electrode)
    for stored in choose(folder, _paired(folder), stimuli, sweeps):
        yield stored.read()


def _paired(folder: Path) -> list[_IbwSweep]:
    files: dict[str, dict[int, Path]] = {"voltage": {}, "current": {}}
    for path in sorted(x for x in folder.iterdir() if x.suffix.lower() == SUFFIX):
        kind = _read_wave(path).kind
        of_kind = files[kind]
        number, name = _number_and_name(path)
        first = next(iter(of_kind.values()), path)
        if number in of_kind or _number_and_name(first)[1] != name:
            raise ValueError(
                f"{path}: expected one {kind} of each sweep, under a name that differs in its last "
                f"number only, got {of_kind.get(number, first)} too; a folder is one cell"
            )
        of_kind[number] = path
    voltages, currents = files.values()
    single = [(voltages | currents)[number].name for number in sorted({*voltages} ^ {*currents})]
    if single:
        raise ValueError(
            f"{folder}: expected a voltage and a current whose names end in the same number, for "
            f"each sweep, got only one of them in {', '.join(single)}"
        )
    return [_IbwSweep(folder, n, voltages[n], currents[n]) for n in voltages]


def _number_and_name(path: Path) -> tuple[int, str]:
    """Last number in a file's name, or 0, and the name without it."""
    match = re.fullmatch(r"(.*?)([0-9]{1,9})([^0-9]*)", path.stem, re.DOTALL)
    return (int(match[2]), f"{match[1]}#{match[3]}") if match else (0, path.stem)


@dataclass
class _IbwSweep:
    folder: Path
    number: int
    voltage: Path
    current: Path
    stimulus: str = ""

    def other_mode(self) -> str:
        return ""

    def read(self) -> Sweep:
        where = f"{self.folder}, sweep {self.number}"
        voltage, current = _read_wave(self.voltage), _read_wave(self.current)
        check_current(str(self.current), current.values)
        check_samples(str(self.voltage), "voltage", voltage.values)
        current_pa, voltage_mv = on_one_clock(
            where, current.converted(), current.clock(), voltage.converted(), voltage.clock()
        )
        check_voltage_peak(str(self.voltage), voltage_mv)
        dt_ms = voltage.clock().dt_ms
        return Sweep(self.number, "", False, dt_ms, current_pa, voltage_mv, None)


class _Wave(NamedTuple):
    """A wave as it is stored; its units are in lower case."""

    path: Path
    values: np.ndarray
    unit: str
    start: float
    step: float
    step_unit: str

    @property
    def kind(self) -> str:
        if self.unit in PER_MV:
            return "voltage"
        if self.unit in PER_PA:
            return "current"
        raise ValueError(
            f"{self.path}: expected data units such as V, mV, A or pA, got {self.unit!r}; SetScale "
            "d sets them in Igor"
        )

    def converted(self) -> np.ndarray:
        return self.values.astype(np.float64) * (PER_MV | PER_PA)[self.unit]

    def clock(self) -> Clock:
        if self.step_unit not in _PER_MS:
            raise ValueError(
                f"{self.path}: expected x units of s or ms, got {self.step_unit!r}; SetScale/P x "
                "sets them in Igor"
            )
        step_ms = self.step * _PER_MS[self.step_unit]
        rate_hz = 1e3 / step_ms if step_ms else 0.0
        start_s = self.start * _PER_MS[self.step_unit] * 1e-3
        return Clock(start_s, dt_ms_of(str(self.path), rate_hz))


def _read_wave(path: Path) -> _Wave:
    _check_sizes(path)
    igor = reader_of(path, "igor2.binarywave", "igor2", "ibw")
    logging.getLogger(igor.__name__).disabled = True  # it logs all bytes that it cannot use
    try:
        with path.open("rb") as file:
            wave = igor.load(file)["wave"]
        header = wave["wave_header"]
        is_new = "sfA" in header
        values = without_padding(np.asarray(wave["wData"]))
        return _Wave(
            path,
            values,
            _text(header["dataUnits"]) or _text(wave.get("data_units", b"")),
            float(header["sfB"][0] if is_new else header["hsB"]),
            float(header["sfA"][0] if is_new else header["hsA"]),
            _text(header["dimUnits"][0] if is_new else header["xUnits"])
            or _text(wave.get("dimension_units", b"")),
        )
    except Exception as error:  # igor2 has no error class of its own
        raise ValueError(f"{path}: not a complete Igor wave ({one_line(error)})") from error


def _text(value: Any) -> str:
    """Return the text of units, which have no encoding before Igor Pro 7."""
    content = value if isinstance(value, bytes) else b"".join(np.asarray(value).tolist())
    content = content.split(b"\0")[0]
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    return text.strip().casefold()


def _check_sizes(path: Path) -> None:
    """Refuse a file whose header declares more than the file holds, which igor2 would try to read.

    Format: Technical Note 003 of WaveMetrics, "Igor Binary Format".
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(64)
    order = ">" if head[:1] == b"\0" else "<"
    try:
        (version,) = unpack_from(f"{order}h", head)
        wave_at, texts_at = _SIZES_AT[version]
        (n_wave,), n_texts = unpack_from(order + wave_at, head), unpack_from(order + texts_at, head)
    except (KeyError, StructError):
        raise ValueError(f"{path}: expected an Igor wave of version 1, 2, 3 or 5") from None
    sizes = (n_wave, *n_texts)
    if (
        min(sizes) < 0
        or max(sizes[1:], default=0) > _MOST_TEXT_BYTES
        or sum(sizes) > n_bytes + _PADDING_BYTES
    ):
        raise ValueError(
            f"{path}: not a complete Igor wave (it declares {n_wave} bytes of data and texts of "
            f"{n_texts} bytes, and has {n_bytes} bytes)"
        )
