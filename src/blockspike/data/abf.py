"""Current-clamp sweeps of Axon files (.abf, versions 1 and 2), read by pyABF.

A recorded current is preferred to the command, which an amplifier may scale and a protocol may
change in ways that the file does not say. Where neither is known for certain, the file is refused.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from struct import error as StructError
from struct import unpack_from
from typing import Any, NamedTuple

import numpy as np

from blockspike.data.plausible import warn
from blockspike.data.sweeps import (
    PER_MV,
    PER_PA,
    Sweep,
    check_current,
    check_voltage_peak,
    choose,
    choose_electrode,
    dt_ms_of,
    one_line,
    reader_of,
)

_SIGNATURES = (b"ABF ", b"ABF2")
_MOST_CHANNELS = 16
_LEAST_SAMPLES = 100  # of a sweep: 10 ms at 10 kHz
_HEADER_BYTES, _BLOCK_BYTES = 512, 512
_EPOCHS, _FROM_FILE = 1, 2  # sources of a command in the file
_EPISODIC, _OLDEST_VERSION = 5, 1.6
_HOLDING_AT = 1394  # the outputs' holding levels in a header of version 1
# Least difference of a recorded current from the command that is reported, as a share of the
# command's range and in pA, after averaging over some ms.
_MOST_DIFFERENCE, _MOST_DIFFERENCE_PA, _AVERAGED_MS = 0.1, 5.0, 10.0


class _Channel(NamedTuple):
    """A recorded channel: its number and name, and its unit's size in mV or pA."""

    number: int
    name: str
    scale: float


class _Command(NamedTuple):
    """An output in amperes, and whether the protocol plays a waveform on it."""

    number: int
    name: str
    scale: float
    is_on: bool


@dataclass(frozen=True)
class AbfContent:
    """An Axon file and the channels and output of its electrode.

    ``voltage`` and ``current`` are the recorded channels that are used, the latter None if there is
    none; ``command`` the output that drives the electrode, None if none is in amperes;
    ``unknown_command`` says why its stimulus is not known, "" if it is.
    """

    abf: Any
    voltage: _Channel
    current: _Channel | None
    command: _Command | None
    unknown_command: str

    @cached_property
    def waveforms(self) -> list[Any]:
        """Epochs of the command, sweep by sweep."""
        assert self.command is not None
        table = importlib.import_module("pyabf.waveform").EpochTable(self.abf, self.command.number)
        return table.epochWaveformsBySweep

    @property
    def source(self) -> str:
        """Where the stimulus comes from, in words."""
        if self.current is not None:
            return f"recorded channel {self.current.name}"
        return f"command of output {self.command.name}" if self.command else "unknown"


def open_abf(path: Path) -> AbfContent:
    """Open an Axon file and find the channels of its electrode.

    Raises:
        ValueError: a damaged file, no or several electrodes in current clamp, a missing pyABF;
            names the file.
    """
    abf, outputs = _read(path)
    units = [str(unit).strip().casefold() for unit in abf.adcUnits]
    names = [str(name).strip() for name in abf.adcNames]
    recorded = ", ".join(
        f"{n} in {str(u).strip() or 'no unit'}" for n, u in zip(names, abf.adcUnits, strict=True)
    )
    voltages = [i for i, unit in enumerate(units) if unit in PER_MV]
    currents = [i for i, unit in enumerate(units) if unit in PER_PA]
    if not voltages:
        raise ValueError(f"{path}: expected a recorded voltage in mV or V, got {recorded}")
    driven = [i for i in voltages if i < len(outputs) and outputs[i].unit in PER_PA]
    chosen = voltages if len(voltages) == 1 else driven
    if len(chosen) != 1:
        raise ValueError(
            f"{path}: expected one electrode in current clamp, got {len(chosen)} of {recorded}; "
            "files with several electrodes are not supported"
        )
    if len(currents) > 1:
        raise ValueError(f"{path}: expected one recorded current, got {recorded}")
    voltage = _Channel(chosen[0], names[chosen[0]], PER_MV[units[chosen[0]]])
    current = None
    if currents:
        current = _Channel(currents[0], names[currents[0]], PER_PA[units[currents[0]]])
    command, unknown = _command_of(path, outputs, chosen[0])
    if command is not None and not unknown:
        unknown = _why_unknown(abf, command)
    return AbfContent(abf, voltage, current, command, unknown)


class _Output(NamedTuple):
    """An output: its name, its unit in lower case, whether the protocol plays a waveform on it."""

    name: str
    unit: str
    is_on: bool


def _outputs(abf: Any) -> list[_Output]:
    """All outputs; pyABF's own list is as long as that of the recorded channels."""
    section = getattr(abf, "_dacSection", None)
    if section is None:
        names, units = abf.dacNames, abf.dacUnits
        on = [*abf._headerV1.nWaveformEnable, *[0] * len(names)]
    else:
        text = abf._stringsSection._indexedStrings
        names = [text[i] for i in section.lDACChannelNameIndex]
        units = [text[i] for i in section.lDACChannelUnitsIndex]
        on = section.nWaveformEnable
    return [
        _Output(str(name).strip(), str(unit).strip().casefold(), bool(is_on))
        for name, unit, is_on in zip(names, units, on, strict=False)
    ]


def _command_of(path: Path, outputs: list[_Output], channel: int) -> tuple[_Command | None, str]:
    """The output that drives the electrode of a recorded channel, and why it is not known, if so.

    A channel and its output need not have one number: the output is the one that is played.
    """
    in_amperes = [i for i, x in enumerate(outputs) if x.unit in PER_PA]
    played = [i for i in in_amperes if outputs[i].is_on]
    if not in_amperes:
        if any(x.is_on and x.unit in PER_MV for x in outputs):
            raise ValueError(f"{path}: expected current clamp, got a command in volts")
        return None, "no output is in amperes"
    number = channel if channel in in_amperes else in_amperes[0]
    if played:
        number = played[0]
    own = outputs[number]
    command = _Command(number, own.name, PER_PA[own.unit], own.is_on)
    if len(played) > 1:
        return command, "several outputs in amperes play a waveform"
    return command, ""


def _read(path: Path) -> tuple[Any, list[_Output]]:
    _check_sizes(path)
    pyabf = reader_of(path, "pyabf", "pyABF", "abf")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            abf = pyabf.ABF(str(path))
            if abf.abfVersion["major"] == 1:  # pyABF takes the levels of the first epochs
                with path.open("rb") as file:
                    header = file.read(_HOLDING_AT + 16)
                abf.holdingCommand = list(unpack_from("<4f", header, _HOLDING_AT))
            return abf, _outputs(abf)
    except Exception as error:  # pyABF has no error class of its own
        raise ValueError(f"{path}: not a complete Axon file ({one_line(error)})") from error


def _check_sizes(path: Path) -> None:
    """Refuse a file whose header declares more than the file holds, which pyABF would try to read.

    The fields are those of the format's published description.
    """
    n_bytes = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES)
    if head[:4] not in _SIGNATURES:
        raise ValueError(f"{path}: expected an Axon file, got one that does not begin with ABF")
    sections: list[tuple[int, int, int]] = []  # first block, bytes per entry, entries
    try:
        if head[:4] == b"ABF ":
            n_samples, n_sweeps = unpack_from("<i2xi", head, 10)
            tag_block, n_tags = unpack_from("<ii", head, 44)
            sync_block, n_syncs = unpack_from("<ii", head, 92)
            sections += [(tag_block, 64, n_tags), (sync_block, 8, n_syncs)]
            n_channels = unpack_from("<h", head, 120)[0]
            size = 4 if unpack_from("<h", head, 100)[0] else 2
            sections.append((unpack_from("<i", head, 40)[0], size, n_samples))
        else:
            n_sweeps = unpack_from("<I", head, 12)[0]
            sections += [unpack_from("<IIq", head, 76 + 16 * i) for i in range(18)]
            n_channels, n_samples = sections[1][2], sections[10][2]
    except StructError:
        raise ValueError(f"{path}: not a complete Axon file ({n_bytes} bytes)") from None
    for block, size, count in sections:
        if count and not (
            block > 0
            and count > 0
            and _BLOCK_BYTES * block + size * count <= n_bytes + _BLOCK_BYTES
        ):
            raise ValueError(
                f"{path}: not a complete Axon file (it declares {count} entries of {size} bytes "
                f"from block {block} on, and has {n_bytes} bytes)"
            )
    # A recording without gaps has no sweeps, or one.
    are_sweeps = 0 <= n_sweeps <= max(1, n_samples // _LEAST_SAMPLES)
    if n_samples < 1 or not are_sweeps or not 1 <= n_channels <= _MOST_CHANNELS:
        raise ValueError(
            f"{path}: not a complete Axon file (it declares {n_sweeps} sweeps of {n_channels} "
            f"channels and {n_samples} samples)"
        )


def _why_unknown(abf: Any, command: _Command) -> str:
    """Why the stimulus of a command cannot be known from the file; "" if it can."""
    section = getattr(abf, "_dacSection", None) or abf._headerV1
    number, is_on = command.number, command.is_on
    source = section.nWaveformSource[number] if is_on else _EPOCHS
    if is_on and abf.nOperationMode != _EPISODIC:
        return "only episodic recordings have a command in each sweep"
    if is_on and source == _EPOCHS and abf.abfVersion["major"] == 1:
        # pyABF knows only part of the older header.
        if abf._headerV1.fFileVersionNumber < _OLDEST_VERSION:
            return f"its format is older than version {_OLDEST_VERSION}"
        if not set(section.nEpochType[10 * number : 10 * number + 10]) <= {0, 1, 2}:
            return "its waveform has other parts than steps and ramps"
    if any(abf.userListEnable or ()):
        return "a user list changes it from sweep to sweep"
    if source == _FROM_FILE:
        return "it was played from a stimulus file, which is not part of it"
    if source != _EPOCHS:
        return f"its waveform has an unknown source ({source})"
    conditioning = getattr(section, "nConditEnable", None)
    if conditioning and conditioning[number]:
        return "a train of conditioning pulses precedes it"
    protocol = getattr(abf, "_protocolSection", None)
    if getattr(protocol, "nAlternateDACOutputState", 0):
        return "it alternates between outputs"
    return ""


def read_abf(
    path: Path,
    stimuli: Sequence[str] | None,
    sweeps: Sequence[int] | None,
    electrode: str | int | None = None,
) -> Generator[Sweep]:
    """Read current-clamp sweeps one by one; arguments as in `nwb.read_sweeps`.

    Raises:
        ValueError: as `open_abf`, or the stimulus is neither recorded nor known.
    """
    content = open_abf(path)
    choose_electrode(path, [content.voltage.name], electrode)
    if content.current is None and content.unknown_command:
        raise ValueError(
            f"{path}: expected a recorded current or a known command, got none: "
            f"{content.unknown_command}"
        )
    stored = (_AbfSweep(path, content, number) for number in content.abf.sweepList)
    for sweep in choose(path, stored, stimuli, sweeps):
        yield sweep.read()


class _AbfSweep:
    def __init__(self, path: Path, content: AbfContent, number: int) -> None:
        self.where = f"{path}, sweep {number}"
        self.content, self.number = content, number
        protocol = str(content.abf.protocol or "").strip()
        self.stimulus = "" if protocol == "None" else protocol  # as pyABF says for nothing

    def other_mode(self) -> str:
        return ""

    def read(self) -> Sweep:
        content, recorded = self.content, self.content.current
        dt_ms = dt_ms_of(self.where, float(content.abf.dataRate))
        voltage_mv = self._recorded(content.voltage)
        command_pa = None if content.unknown_command else self._command()
        current_pa = command_pa if recorded is None else self._recorded(recorded)
        assert current_pa is not None
        check_current(self.where, current_pa)
        if recorded is not None and command_pa is not None:
            _compare(self.where, current_pa, command_pa, dt_ms)
        check_voltage_peak(f"{self.where}, channel {content.voltage.name}", voltage_mv)
        return Sweep(
            self.number, self.stimulus, True, dt_ms, current_pa, voltage_mv, None, command_pa
        )

    def _recorded(self, channel: _Channel) -> np.ndarray:
        self.content.abf.setSweep(self.number, channel=channel.number)
        return np.asarray(self.content.abf.sweepY, np.float64) * channel.scale

    def _command(self) -> np.ndarray:
        command = self.content.command
        assert command is not None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                values = self._waveform(command)
        except Exception as error:  # pyABF has no error class of its own
            raise ValueError(
                f"{self.where}: expected a command that can be read, got an error of pyABF "
                f"({one_line(error)})"
            ) from error
        return np.asarray(values, np.float64) * command.scale

    def _waveform(self, command: _Command) -> np.ndarray:
        """The command in its unit: made of epochs, or else the holding level."""
        abf = self.content.abf
        if not command.is_on:
            return np.full(abf.sweepPointCount, abf.holdingCommand[command.number])
        sweep = self.content.waveforms[self.number]
        if not sweep.p2s or max(sweep.p2s) > abf.sweepPointCount:
            raise ValueError(
                f"epochs of {max(sweep.p2s, default=0)} of {abf.sweepPointCount} samples"
            )
        return sweep.getWaveform()


def _compare(where: str, current_pa: np.ndarray, command_pa: np.ndarray, dt_ms: float) -> None:
    """Say by how much a recorded current differs from the command, if it does.

    Raises:
        ValueError: it differs by more than twice the command's range, as another cell's would.
    """
    if len(command_pa) != len(current_pa) or not np.isfinite(command_pa).all():
        return
    width = max(1, min(len(current_pa), round(_AVERAGED_MS / dt_ms)))
    kept = len(current_pa) // width * width
    difference = (current_pa - command_pa)[:kept].reshape(-1, width).mean(1)
    most, span = float(np.abs(difference).max()), float(np.ptp(command_pa))
    if span > _MOST_DIFFERENCE_PA and most > 2 * span:
        raise ValueError(
            f"{where}: expected a recorded current like the command, whose range is {span:.3g} pA, "
            f"got one that differs by up to {most:.3g} pA; is it that of another cell?"
        )
    if most > max(_MOST_DIFFERENCE_PA, _MOST_DIFFERENCE * span):
        warn(
            f"{where}: the recorded current, which is used, differs from the command by up to "
            f"{most:.3g} pA"
        )
