"""The prepared file: spikes of a data set in one memory-mapped HDF5 file.

Root attributes: ``format``, ``version``, ``name``, ``source``, ``n_units``, ``n_classes`` and
``sha256`` of all the rest (`EventFile.sha256`); of events on a sensor also ``sensor``, its width,
height and number of polarities, where unit ``(p · height + y) · width + x`` is the pixel (x, y) of
polarity p. Groups ``train``, ``test`` and, where the data set has its own, ``validation`` hold
contiguous, uncompressed arrays: ``time`` (dtype of the source, in units of ``unit_s`` seconds, an
attribute of the group), ``unit`` (uint16, or uint32 if ``n_units`` is above 65 536), ``offset``
(int64 ``[n + 1]``; sample ``i`` has the events ``offset[i]:offset[i + 1]``), ``label`` (int64
``[n]``) and, where known, ``speaker`` (int64 ``[n]``).
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import ArrayLike

from blockspike.data.hdf5 import HDF5_ERRORS, attribute, open_hdf5
from blockspike.files import whole_file

FORMAT = "blockspike events"
VERSION = 1
# The texts are in these first bytes; to search gigabytes of events would take seconds.
_TEXTS_BYTES = 8 << 20
_MOST_EVENTS = 1 << 40  # of a recording


@dataclass(frozen=True)
class EventSplit:
    """One split of a prepared file, memory-mapped.

    ``time`` ``[n_events]`` in ``unit_s`` seconds, ``unit`` uint16 or uint32 ``[n_events]``,
    ``offset`` int64 ``[n + 1]``, ``label`` int64 ``[n]``, ``speaker`` int64 ``[n]`` or None.
    """

    time: np.ndarray
    unit: np.ndarray
    offset: np.ndarray
    label: np.ndarray
    speaker: np.ndarray | None
    unit_s: float

    def __len__(self) -> int:
        return len(self.label)

    def gather(self, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Copy the events of some samples.

        Args:
            samples: int ``[B]``, indices into the split.

        Returns:
            time ``[n]``, unit ``[n]`` and offset int64 ``[B + 1]`` of the copied events.
        """
        slices = [slice(self.offset[i], self.offset[i + 1]) for i in samples]
        offset = np.zeros(len(slices) + 1, np.int64)
        np.cumsum([s.stop - s.start for s in slices], out=offset[1:])
        time, unit = np.empty(offset[-1], self.time.dtype), np.empty(offset[-1], self.unit.dtype)
        for start, stop, events in zip(offset[:-1], offset[1:], slices, strict=True):
            time[start:stop] = self.time[events]
            unit[start:stop] = self.unit[events]
        return time, unit, offset


@dataclass(frozen=True)
class EventFile:
    """A prepared data set: its name, sizes and splits.

    ``validation`` is its own or None; ``sensor`` is (width, height, polarities) or None.
    """

    path: Path
    name: str
    source: str
    n_units: int
    n_classes: int
    train: EventSplit
    test: EventSplit
    stored_sha256: str | None  # None: prepared by an earlier version
    validation: EventSplit | None = None
    sensor: tuple[int, int, int] | None = None

    def sha256(self) -> str:
        """Hash the whole content, at about 1 GB/s."""
        about = (self.name, self.source, self.n_units, self.n_classes)
        digest = hashlib.sha256(repr(about).encode())
        if self.sensor is not None:
            digest.update(repr(self.sensor).encode())
        for split in (self.train, self.test, self.validation):
            if split is None:
                continue
            digest.update(repr(split.unit_s).encode())
            for array in (split.time, split.unit, split.offset, split.label, split.speaker):
                if array is not None:
                    digest.update(f"{array.dtype.str} {array.shape}".encode())
                    digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def verified_sha256(self) -> str:
        """Hash the content and compare the hash with the stored one.

        Raises:
            ValueError: they differ.
        """
        found = self.sha256()
        if self.stored_sha256 not in (None, found):
            raise ValueError(
                f"{self.path}: damaged, expected SHA-256 {self.stored_sha256}, got {found}; "
                "delete the file and prepare it again"
            )
        return found


@dataclass(frozen=True)
class SplitContent:
    """Content to write for a split; ``chunks`` yields (time, unit) arrays in sample order."""

    n_events: np.ndarray  # int [n], events of each sample
    label: np.ndarray  # int [n]
    chunks: Iterable[tuple[np.ndarray, np.ndarray]]
    time_dtype: np.dtype
    unit_s: float
    speaker: np.ndarray | None = None


def write_event_file(
    path: Path | str,
    name: str,
    source: str,
    n_units: int,
    n_classes: int,
    train: SplitContent,
    test: SplitContent,
    validation: SplitContent | None = None,
    sensor: tuple[int, int, int] | None = None,
) -> None:
    """Write a prepared file; it appears under its name only when complete.

    Args:
        path: the file to write; an existing one is replaced.
        name: name of the data set.
        source: one line on where the spikes come from.
        n_units, n_classes: numbers of inputs and of labels.
        train, test, validation: the splits; None = there is no own validation set.
        sensor: width, height and number of polarities, whose product is `n_units`; None = units
            are no pixels.

    Raises:
        ValueError: ``chunks`` yields another number of events than ``n_events`` declares; a number
            of events, a unit or a label is no whole number or out of range; a time is negative, not
            finite or too large for ``time_dtype``.
        OSError: the file cannot be written; an existing one is kept.
    """
    path = Path(path)
    with whole_file(path) as temporary, _QuietFile(temporary, "w+b") as raw:
        with h5py.File(raw, "w") as file:
            file.attrs.update(
                format=FORMAT,
                version=VERSION,
                name=name,
                source=source,
                n_units=n_units,
                n_classes=n_classes,
            )
            if sensor is not None:
                file.attrs["sensor"] = np.array(sensor, np.int64)
            for key, content in (("train", train), ("test", test), ("validation", validation)):
                if content is not None:
                    group = file.create_group(key)
                    try:
                        _write_split(group, content, n_units, n_classes)
                    except ValueError as error:
                        raise ValueError(f"{path}, {key}: {error}") from error
        raw.check()
        digest = read_event_file(temporary).sha256()
        with h5py.File(raw, "r+") as file:
            file.attrs["sha256"] = digest
        raw.check()


def unit_dtype(n_units: int) -> type[np.uint16 | np.uint32]:
    """Return the type of the numbers of so many units in a prepared file."""
    return np.uint16 if n_units <= 1 << 16 else np.uint32


class _QuietFile(io.FileIO):
    """Keeps a write error for `check`, because HDF5 crashes if it gets one while closing.

    After an error, nothing more is written.
    """

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all, or pretend to after an error."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while self.error is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def check(self) -> None:
        """Raise the error that was kept, if any."""
        if self.error is not None:
            raise self.error


def _write_split(group: h5py.Group, content: SplitContent, n_units: int, n_classes: int) -> None:
    offset = np.zeros(len(content.n_events) + 1, np.int64)
    n_events = _in_range("n_events", content.n_events, _MOST_EVENTS)
    np.cumsum(n_events, out=offset[1:])
    total = int(offset[-1])
    time = group.create_dataset("time", (total,), content.time_dtype)
    unit = group.create_dataset("unit", (total,), unit_dtype(n_units))
    kind = np.iinfo if time.dtype.kind in "iu" else np.finfo
    last_time = float(kind(time.dtype).max)
    done = 0
    for chunk_time, chunk_unit in content.chunks:
        end = done + len(chunk_time)
        if len(chunk_unit) != len(chunk_time) or end > total:
            raise ValueError(
                f"chunks: expected as many times as units and {total} events in all, got "
                f"{len(chunk_time)} times and {len(chunk_unit)} units after {done} events"
            )
        time[done:end] = _in_range("time", chunk_time, last_time, False, done, offset)
        unit[done:end] = _in_range("unit", chunk_unit, n_units - 1, True, done, offset)
        done = end
    if done != total:
        raise ValueError(f"chunks: expected {total} events, got {done}")
    group.attrs["unit_s"] = content.unit_s
    group.create_dataset("offset", data=offset)
    label = _in_range("label", content.label, n_classes - 1)
    group.create_dataset("label", data=label.astype(np.int64))
    if content.speaker is not None:
        group.create_dataset("speaker", data=np.asarray(content.speaker, np.int64))


def _in_range(
    name: str,
    values: ArrayLike,
    most: float,
    is_whole: bool = True,
    first: int = 0,
    offset: np.ndarray | None = None,
) -> np.ndarray:
    """Numbers [n] from 0 to `most`.

    The message of the error counts them from `first`, and in each recording if `offset` tells where
    these begin.
    """
    found = np.asarray(values)
    if found.ndim != 1 or (len(found) and found.dtype.kind not in "iuf"):
        raise ValueError(f"{name}: expected numbers [n], got {found.shape} of {found.dtype}")
    bad = ~((found >= 0) & (found <= most))  # NaN is bad, too
    if is_whole and found.dtype.kind == "f":
        bad |= found != np.floor(found)
    for i in np.flatnonzero(bad)[:1]:
        kind = "a whole number" if is_whole else "a number"
        place = f"number {i}"
        if offset is not None:
            recording = int(np.searchsorted(offset, first + i, "right")) - 1
            place = f"event {first + i - offset[recording]} of recording {recording}"
        raise ValueError(f"{name}: expected {kind} from 0 to {most:,.0f}, got {found[i]} ({place})")
    return found


def read_event_file(path: Path | str) -> EventFile:
    """Open a prepared file; event arrays are memory-mapped, so any size opens at once.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not a prepared one, of another version or truncated, lacks an array
            or has arrays that contradict each other; names the file, what was expected and what
            was found.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a prepared data set, got no file")
    try:
        with open_hdf5(path, _TEXTS_BYTES) as file:
            return _read(path, file)
    except (*HDF5_ERRORS, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a complete HDF5 file ({error})") from error


def _read(path: Path, file: h5py.File) -> EventFile:
    found = (attribute(file, "format"), attribute(file, "version"))
    if [str(x) for x in found] != [FORMAT, str(VERSION)]:
        raise ValueError(
            f"{path}: expected format and version {(FORMAT, VERSION)}, got {found}; "
            "delete the file and prepare it again"
        )
    return EventFile(
        path=path,
        name=str(_attribute(path, file, "name")),
        source=str(_attribute(path, file, "source")),
        n_units=int(_attribute(path, file, "n_units")),
        n_classes=int(_attribute(path, file, "n_classes")),
        train=_read_split(path, file, "train"),
        test=_read_split(path, file, "test"),
        stored_sha256=attribute(file, "sha256"),
        validation=_read_split(path, file, "validation") if "validation" in file else None,
        sensor=_read_sensor(path, file),
    )


def _read_sensor(path: Path, file: h5py.File) -> tuple[int, int, int] | None:
    stored = attribute(file, "sensor")
    if stored is None:
        return None
    n_units, sizes = int(_attribute(path, file, "n_units")), np.asarray(stored)
    is_whole = sizes.shape == (3,) and sizes.dtype.kind in "iu" and (sizes > 0).all()
    if not is_whole or math.prod(sizes.tolist()) != n_units:
        raise ValueError(
            f"{path}: sensor: expected width, height and polarities of {n_units} units in all, "
            f"got {stored}"
        )
    width, height, n_polarities = sizes.tolist()
    return width, height, n_polarities


def _attribute(path: Path, group: h5py.Group, key: str) -> Any:
    value = attribute(group, key)
    if value is None:
        raise ValueError(f"{path}: expected attribute {key!r} of {group.name}, got none")
    return value


def _read_split(path: Path, file: h5py.File, key: str) -> EventSplit:
    group = file.get(key)
    if group is None or not isinstance(group, h5py.Group):
        raise ValueError(f"{path}: expected groups train and test, got no {key!r}")
    units = unit_dtype(int(_attribute(path, file, "n_units")))
    split = EventSplit(
        time=_map(path, _array(path, group, "time")),
        unit=_map(path, _array(path, group, "unit", units)),
        offset=_map(path, _array(path, group, "offset", np.int64)).copy(),
        label=_map(path, _array(path, group, "label", np.int64)).copy(),
        speaker=_map(path, _array(path, group, "speaker", np.int64)).copy()
        if "speaker" in group
        else None,
        unit_s=float(_attribute(path, group, "unit_s")),
    )
    _check_split(f"{path}, {key}", split, int(_attribute(path, file, "n_classes")))
    return split


def _array(path: Path, group: h5py.Group, key: str, dtype: type | None = None) -> h5py.Dataset:
    dataset = group.get(key)
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
        raise ValueError(f"{path}: expected a vector {key!r} in {group.name}, got none")
    # Mapped as stored: references into the file would be taken for addresses in memory.
    if dataset.dtype != dtype if dtype else dataset.dtype.kind not in "fiu":
        expected = np.dtype(dtype).name if dtype else "numbers"
        where = f"{path}, {str(group.name).strip('/')}"
        raise ValueError(f"{where}: {key}: expected {expected}, got {dataset.dtype}")
    return dataset


def _map(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """Map a contiguous dataset read-only, as a plain array (slicing a memmap is slow)."""
    if dataset.size == 0:
        return np.empty(0, dataset.dtype)
    start = dataset.id.get_offset()
    if start is None or start + dataset.nbytes > path.stat().st_size:
        raise ValueError(f"{path}: {dataset.name} is not contiguous or runs past the end of file")
    return np.asarray(np.memmap(path, dataset.dtype, "r", start, dataset.shape))


def _check_split(where: str, split: EventSplit, n_classes: int) -> None:
    n_samples, n_events = len(split.label), len(split.unit)
    if len(split.time) != n_events:
        raise ValueError(
            f"{where}: expected as many times as units, got {len(split.time)} and {n_events}"
        )
    offset = split.offset
    if len(offset) != n_samples + 1:
        raise ValueError(
            f"{where}: expected one offset more than the {n_samples} labels, got {len(offset)}"
        )
    if offset[0] != 0 or offset[-1] != n_events or (np.diff(offset) < 0).any():
        raise ValueError(f"{where}: expected offsets that rise from 0 to {n_events}, got others")
    if n_samples and (split.label.min() < 0 or split.label.max() >= n_classes):
        raise ValueError(f"{where}: expected labels 0 to {n_classes - 1}, got others")
    if split.speaker is not None and len(split.speaker) != n_samples:
        raise ValueError(
            f"{where}: expected a speaker per label, {n_samples}, got {len(split.speaker)}"
        )
