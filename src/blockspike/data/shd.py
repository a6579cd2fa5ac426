"""Spiking Heidelberg Digits and data in its layout: reading, preparing and serving.

Cramer, Stradmann, Schemmel and Zenke 2022, "The Heidelberg Spiking Data Sets for the Systematic
Evaluation of Spiking Neural Networks", IEEE TNNLS 33(7). Spoken digits in English (labels 0 to 9)
and German (10 to 19) through an inner-ear model with 700 channels.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import h5py
import numpy as np

from blockspike.data.datamodule import EventDataModule, require
from blockspike.data.download import fetch, shd_files
from blockspike.data.event_file import EventSplit, SplitContent, write_event_file
from blockspike.data.hdf5 import HDF5_ERRORS, DatasetReader, attribute, open_hdf5
from blockspike.data.limits import ZIP_ERRORS, ReadLimit, open_unpacked, read_zip_member
from blockspike.data.loader import EventDataset, EventMap, Gathered
from blockspike.data.progress import progress

N_CHANNELS = 700
N_CLASSES = 20
_SUFFIXES = (".h5", ".h5.gz", ".h5.xz", ".h5.zip")
_CHUNK_SAMPLES = 256
_READ_ERRORS = (*ZIP_ERRORS, *HDF5_ERRORS, lzma.LZMAError)


@dataclass(frozen=True)
class SHDRecordings:
    """All recordings of one SHD file.

    Events of sample ``i`` are ``time_s[offset[i]:offset[i + 1]]`` (float, seconds, as stored) and
    the same range of ``unit`` (uint16 channel, 0 to 699). ``label`` int64 ``[n]`` 0 to 19;
    ``speaker`` int64 ``[n]``; ``keys`` are the names of the labels; ``source_file`` those of the
    audio files, empty where the file has none.
    """

    time_s: np.ndarray
    unit: np.ndarray
    offset: np.ndarray
    label: np.ndarray
    speaker: np.ndarray
    keys: tuple[str, ...]
    source_file: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.label)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return times in seconds and channels of one recording."""
        events = slice(self.offset[index], self.offset[index + 1])
        return self.time_s[events], self.unit[events]


def open_h5(path: Path | str) -> SHDRecordings:
    """Read and check a file in SHD's layout.

    Expected: ``spikes/times`` and ``spikes/units`` (one variable-length array a sample),
    ``labels``, ``extra/speaker``, ``extra/keys`` and, optionally, ``extra/source_file``.

    Args:
        path: ``.h5``, or that packed as ``.h5.gz``, ``.h5.xz`` or ``.h5.zip``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged file, missing key, lengths that differ, a label outside 0 to 19, a
            channel outside 0 to 699, or times that are NaN, infinite, negative or out of order;
            names the file, the sample, what was found and what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected SHD data ({', '.join(_SUFFIXES)})")
    try:
        limit = ReadLimit(path)
        with open_hdf5(_unpacked(path, limit)) as file:
            return _read(path, file, DatasetReader(file, limit))
    except (*_READ_ERRORS, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path}: not a complete file of SHD's layout ({error})") from error


def _unpacked(path: Path, limit: ReadLimit) -> Path | io.BytesIO:
    if path.name.endswith((".gz", ".xz")):
        with open_unpacked(path, limit) as file:
            return io.BytesIO(file.read())
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".h5")]
            if len(members) != 1:
                raise ValueError(f"{path}: found {len(members)} .h5 files, expected one")
            return io.BytesIO(read_zip_member(archive, members[0], limit))
    return path


def _read(path: Path, file: h5py.File, reader: DatasetReader) -> SHDRecordings:
    column = partial(_column, path, file, reader)
    label = column("labels")
    n_samples = len(label)
    times = _ragged(path, column("spikes/times", n_samples), "times")
    units = _ragged(path, column("spikes/units", n_samples), "units")
    n_times, n_units = (np.array([len(x) for x in ragged]) for ragged in (times, units))
    for i in np.flatnonzero(n_times != n_units)[:1]:
        raise ValueError(
            f"{path}, sample {i}: found {n_times[i]} times and {n_units[i]} units, expected as "
            "many of each"
        )
    offset = np.concatenate([[0], np.cumsum(n_times)]).astype(np.int64)
    time_s, unit = _joined(times, np.float16), _joined(units, np.uint16)
    _check_labels(path, label)
    _check_units(path, unit, offset)
    _check_times(path, time_s, offset)
    return SHDRecordings(
        time_s=time_s,
        unit=unit.astype(np.uint16),
        offset=offset,
        label=label.astype(np.int64),
        speaker=column("extra/speaker", n_samples).astype(np.int64),
        keys=_strings(column("extra/keys")),
        source_file=_strings(column("extra/source_file")) if "extra/source_file" in file else (),
    )


def _column(
    path: Path, file: h5py.File, reader: DatasetReader, key: str, length: int | None = None
) -> np.ndarray:
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
        raise ValueError(f"{path}: {key} is missing or not one-dimensional, expected SHD's layout")
    if length is not None and len(dataset) != length:
        raise ValueError(f"{path}: found {len(dataset)} {key}, expected one a label, {length}")
    return reader.read(dataset)


def _ragged(path: Path, column: np.ndarray, key: str) -> np.ndarray:
    if column.dtype != object:
        raise ValueError(
            f"{path}: found spikes/{key} of {column.dtype}, expected a variable-length array a "
            "sample"
        )
    return column


def _joined(ragged: np.ndarray, dtype_if_empty: type) -> np.ndarray:
    return np.concatenate(ragged) if len(ragged) else np.empty(0, dtype_if_empty)


def _strings(column: np.ndarray) -> tuple[str, ...]:
    return tuple(x.decode() if isinstance(x, bytes) else str(x) for x in column)


def _check_labels(path: Path, label: np.ndarray) -> None:
    integral = label.dtype.kind in "iu"
    wrong = (label < 0) | (label >= N_CLASSES) if integral else np.ones(len(label), bool)
    for i in np.flatnonzero(wrong)[:1]:
        raise ValueError(
            f"{path}, sample {i}: found label {label[i]}, expected an integer 0 to {N_CLASSES - 1}"
        )


def _check_units(path: Path, unit: np.ndarray, offset: np.ndarray) -> None:
    integral = unit.dtype.kind in "iu"
    wrong = (unit < 0) | (unit >= N_CHANNELS) if integral else np.ones(len(unit), bool)
    for e in np.flatnonzero(wrong)[:1]:
        raise ValueError(
            f"{path}, sample {_sample_of(e, offset)}: found unit {unit[e]}, expected an integer "
            f"0 to {N_CHANNELS - 1}"
        )


def _check_times(path: Path, time_s: np.ndarray, offset: np.ndarray) -> None:
    if time_s.dtype.kind != "f":
        raise ValueError(f"{path}: found times of {time_s.dtype}, expected floats in seconds")
    if time_s.dtype == np.float16:
        time_s = time_s.astype(np.float32)  # exact, and float16 compares slowly
    # Comparisons with NaN are false, so this also finds NaN.
    for e in np.flatnonzero(~((time_s >= 0) & (time_s < np.inf)))[:1]:
        raise ValueError(
            f"{path}, sample {_sample_of(e, offset)}: found time {time_s[e]}, expected finite "
            "seconds >= 0"
        )
    falls = np.zeros(len(time_s), bool)
    falls[1:] = time_s[1:] < time_s[:-1]
    starts = offset[:-1]
    falls[starts[starts < len(falls)]] = False
    for e in np.flatnonzero(falls)[:1]:
        raise ValueError(
            f"{path}, sample {_sample_of(e, offset)}: found time {time_s[e]} after "
            f"{time_s[e - 1]}, expected times in order"
        )


def _sample_of(event: int, offset: np.ndarray) -> int:
    return int(np.searchsorted(offset, event, side="right")) - 1


def prepare_shd(train_h5: Path | str, test_h5: Path | str, out: Path | str, name: str) -> None:
    """Convert two files in SHD's layout to a prepared file (`blockspike.data.event_file`).

    Args:
        train_h5, test_h5: as `open_h5` takes them.
        out: the file to write; it appears only when complete.
        name: what the data are. "SHD" is the published download and nothing else.

    Raises:
        FileNotFoundError, ValueError: as `open_h5`.
    """
    recordings = [open_h5(path) for path in (train_h5, test_h5)]
    train, test = (_content(part, f"Preparing {name}") for part in recordings)
    write_event_file(
        out,
        name=name,
        source=f"{Path(train_h5).name} and {Path(test_h5).name}; Cramer et al. 2022, CC BY 4.0",
        n_units=N_CHANNELS,
        n_classes=N_CLASSES,
        train=train,
        test=test,
    )


def _content(part: SHDRecordings, description: str) -> SplitContent:
    return SplitContent(
        n_events=np.diff(part.offset),
        label=part.label,
        chunks=_chunks(part, description),
        time_dtype=part.time_s.dtype,
        unit_s=1.0,
        speaker=part.speaker,
    )


def _chunks(part: SHDRecordings, description: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with progress(description, len(part)) as advance:
        for start in range(0, len(part), _CHUNK_SAMPLES):
            stop = min(start + _CHUNK_SAMPLES, len(part))
            events = slice(part.offset[start], part.offset[stop])
            yield part.time_s[events], part.unit[events]
            advance(stop - start)


def find_h5(raw: Path) -> tuple[Path, Path]:
    """Find the training and the test file in a folder, ``*train.h5*`` and ``*test.h5*``.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: several files fit.
    """
    found = []
    for part in ("train", "test"):
        files = [p for s in _SUFFIXES for p in sorted(raw.glob(f"*{part}{s}"))]
        if not files:
            raise FileNotFoundError(
                f"{raw}: no *{part}.h5, expected it or a .gz, .xz or .zip of it"
            )
        if len(files) > 1:
            raise ValueError(f"{raw}: found {', '.join(p.name for p in files)}, expected one")
        found.append(files[0])
    return found[0], found[1]


def describe(train_h5: Path, test_h5: Path) -> str:
    """Name the data set that two files hold.

    "SHD" needs the checksums of the published archives, which tonic knows. Other files are called
    what their root attribute ``name`` says, or the start of ``note`` up to a colon; without either
    they are "SHD-layout data".
    """
    if train_h5.suffix == test_h5.suffix == ".zip" and _are_published(train_h5, test_h5):
        return "SHD"
    with open_hdf5(_unpacked(train_h5, ReadLimit(train_h5))) as file:
        note, colon, _ = str(attribute(file, "note", "")).partition(":")
        own = str(attribute(file, "name", note if colon else "SHD-layout data"))
    return "SHD-layout data" if own.strip().upper() == "SHD" else own


def _are_published(train_h5: Path, test_h5: Path) -> bool:
    try:
        published = [file.md5 for file in shd_files()]
    except ValueError:  # tonic is not installed
        return False
    return [_md5(train_h5), _md5(test_h5)] == published


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


class SHDDataModule(EventDataModule):
    """SHD, or data in its layout, for Lightning: batches ``(EventBatch, labels)``; 20 classes.

    Time bins are ``rint(t / dt)`` in float64; several events in one bin add up.

    Args:
        path: the prepared file.
        raw: folder of the files to prepare it from, one ``*train.h5`` and one ``*test.h5``, each
            possibly ``.gz``, ``.xz`` or ``.zip``; None = ``raw/shd`` beside ``path``, where
            downloads go; "sample" = 660 recordings of HD-Lauscher that come with blockspike.
        download: whether `prepare` may download the published SHD.
        dt_ms: length of a time step.
        n_steps: steps T of a sample; later events are dropped.
        channel_pooling: neighbouring channels summed into one input.
        channel_jitter: largest shift of all channels of a training sample, drawn anew each epoch
            from (seed, epoch, sample); events shifted off the ends are dropped.
        time_stretch: a training sample is spoken up to ``exp(time_stretch)`` times slower or
            faster, drawn likewise (the logarithm of the factor is uniform).
        test_shifts: shifts of all channels under which each test recording is heard; the scores of
            these views are averaged. The first is the one that pictures show.
        validation: what is held out: a part of each class, or whole speakers.
        validation_fraction: part of the training set held out (whole speakers until reached).
        seed: of the validation split, the training order, the jitter and the stretch.

    Raises:
        ValueError: an argument is out of range.
    """

    config_name = "shd"
    download_gb = 0.2
    sample = "hd_lauscher"
    n_classes = N_CLASSES

    def __init__(
        self,
        path: str | Path,
        raw: str | Path | None = None,
        download: bool = False,
        dt_ms: float = 2.0,
        n_steps: int = 600,
        channel_pooling: int = 1,
        channel_jitter: int = 0,
        time_stretch: float = 0.0,
        test_shifts: tuple[int, ...] = (0,),
        batch_size: int = 64,
        validation: Literal["stratified", "speaker"] = "stratified",
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(path, raw, download, dt_ms, n_steps, batch_size, validation_fraction, seed)
        require(1 <= channel_pooling <= N_CHANNELS, "channel_pooling", channel_pooling, "1 to 700")
        require(0 <= channel_jitter < N_CHANNELS, "channel_jitter", channel_jitter, "0 to 699")
        require(0 <= time_stretch < 1, "time_stretch", time_stretch, "0 ≤ x < 1")
        require(
            validation in ("stratified", "speaker"),
            "validation",
            validation,
            "stratified or speaker",
        )
        require(
            len(test_shifts) > 0 and all(abs(s) < N_CHANNELS for s in test_shifts),
            "test_shifts",
            test_shifts,
            "at least one shift, each of −699 to 699 channels",
        )
        self.channel_pooling = channel_pooling
        self.channel_jitter = channel_jitter
        self.time_stretch = time_stretch
        self.test_shifts = tuple(test_shifts)
        self.validation = validation
        self.n_inputs = -(-N_CHANNELS // channel_pooling)

    def _fetch(self) -> None:
        for file in shd_files():
            fetch(file, self.raw)

    def _convert(self) -> None:
        train_h5, test_h5 = find_h5(self.raw)
        prepare_shd(train_h5, test_h5, self.path, describe(train_h5, test_h5))

    def _bin(self, time: np.ndarray) -> np.ndarray:
        return np.rint(time.astype(np.float64) / (1e-3 * self.dt_ms))

    def _stored_sizes(self) -> tuple[int, int]:
        return N_CHANNELS, N_CLASSES

    def _validation_indices(self, train: EventSplit) -> np.ndarray:
        if self.validation == "stratified":
            return super()._validation_indices(train)
        if train.speaker is None:
            raise ValueError(f"{self.path}: has no speakers, expected them for validation=speaker")
        return speaker_subset(train.speaker, self.validation_fraction, self.seed)

    def _event_map(self, training: bool) -> EventMap:
        if not training:
            return SpeechMap(self.channel_pooling)
        return SpeechMap(self.channel_pooling, self.channel_jitter, self.time_stretch, self.seed)

    def _test_dataset(self) -> EventDataset:
        dataset = super()._test_dataset()
        dataset.event_map = ShiftedViews(self.channel_pooling, self.test_shifts)
        dataset.n_views = len(self.test_shifts)
        return dataset


@dataclass(frozen=True)
class ShiftedViews:
    """Shifts the channels of each view of a batch, then pools neighbouring channels.

    Args:
        pooling: as `SHDDataModule`'s channel_pooling.
        shifts: of the views, in channels.
    """

    pooling: int
    shifts: tuple[int, ...]

    def __call__(self, events: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times, pooled channels int ``[n]`` and which events stay on the 700 channels."""
        shift = np.repeat(self.shifts, len(events.samples) // len(self.shifts))
        channel = events.unit.astype(np.int32) + np.repeat(shift, np.diff(events.offset))
        return events.time, channel // self.pooling, (channel >= 0) & (channel < N_CHANNELS)


@dataclass(frozen=True)
class SpeechMap:
    """Shifts the channels and stretches the time of each sample, then pools neighbouring channels.

    Args: see `SHDDataModule`.
    """

    pooling: int
    jitter: int = 0
    stretch: float = 0.0
    seed: int = 0

    def __call__(self, events: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times, pooled channels int ``[n]`` and which events stay on the 700 channels."""
        time, channel = events.time, events.unit.astype(np.int32)
        if self.jitter or self.stretch:
            n_events = np.diff(events.offset)
            shift, factor = np.array([self.draw(events.epoch, i) for i in events.samples]).T
            channel += np.repeat(shift.astype(np.int32), n_events)
            time = time.astype(np.float64) * np.repeat(factor, n_events)
        return time, channel // self.pooling, (channel >= 0) & (channel < N_CHANNELS)

    def draw(self, epoch: int, sample: int) -> tuple[int, float]:
        """Return the shift in channels and the factor of the times of a sample."""
        rng = np.random.default_rng([self.seed, epoch, int(sample)])
        shift = int(rng.integers(-self.jitter, self.jitter, endpoint=True))
        return shift, math.exp(rng.uniform(-self.stretch, self.stretch))


def speaker_subset(speaker: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose whole speakers at random until they hold ``fraction`` of the samples.

    Returns:
        Sorted indices into ``speaker``.

    Raises:
        ValueError: that would leave nobody to train on.
    """
    order = np.random.default_rng(seed).permutation(np.unique(speaker))
    share = np.cumsum([(speaker == s).mean() for s in order])
    chosen = order[: int(np.searchsorted(share, fraction)) + 1]
    if len(chosen) >= len(order):
        raise ValueError(
            f"validation_fraction: got {fraction}, expected one that leaves a speaker for training "
            f"of {len(order)}"
        )
    return np.flatnonzero(np.isin(speaker, chosen))
