"""Files of SHD and SSC, or in their layout: read, checked and converted to a prepared file.

Cramer, Stradmann, Schemmel and Zenke 2022, "The Heidelberg Spiking Data Sets for the Systematic
Evaluation of Spiking Neural Networks", IEEE TNNLS 33(7). Sound through an inner-ear model with 700
channels: SHD has spoken digits in English (labels 0 to 9) and German (10 to 19), SSC 35 commands.
"""

from __future__ import annotations

import io
import lzma
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from blockspike.data.download import RemoteFile, has_md5, shd_files, ssc_files
from blockspike.data.event_file import SplitContent, write_event_file
from blockspike.data.hdf5 import HDF5_ERRORS, DatasetReader, attribute, open_hdf5
from blockspike.data.limits import ZIP_ERRORS, ReadLimit, open_unpacked, read_zip_member
from blockspike.data.progress import progress

N_CHANNELS = 700
_SUFFIXES = (".h5", ".h5.gz", ".h5.xz", ".h5.zip")
_CHUNK_SAMPLES = 256
_READ_ERRORS = (*ZIP_ERRORS, *HDF5_ERRORS, lzma.LZMAError)


@dataclass(frozen=True)
class Layout:
    """Sizes and names of the files of SHD or SSC.

    Attributes:
        name: of the published data set.
        n_classes: number of labels.
        parts: endings of the files' names: training, validation if there is one, and test.
        has_speakers: whether files name the speaker of each recording.
        published: returns the published files, in the order of `parts`.
    """

    name: str
    n_classes: int
    parts: tuple[str, ...]
    has_speakers: bool
    published: Callable[[], list[RemoteFile]]


SHD = Layout("SHD", 20, ("train", "test"), True, shd_files)
SSC = Layout("SSC", 35, ("train", "valid", "test"), False, ssc_files)


@dataclass(frozen=True)
class SHDRecordings:
    """All recordings of one file.

    Events of sample ``i`` are ``time_s[offset[i]:offset[i + 1]]`` (float, seconds, as stored) and
    the same range of ``unit`` (uint16 channel, 0 to 699). ``label`` int64 ``[n]``; ``speaker``
    int64 ``[n]``, None if the layout has none.
    """

    time_s: np.ndarray
    unit: np.ndarray
    offset: np.ndarray
    label: np.ndarray
    speaker: np.ndarray | None

    def __len__(self) -> int:
        return len(self.label)

    def sample(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return times in seconds and channels of one recording."""
        events = slice(self.offset[index], self.offset[index + 1])
        return self.time_s[events], self.unit[events]


def open_h5(path: Path | str, layout: Layout = SHD) -> SHDRecordings:
    """Read and check a file in the layout of SHD or SSC.

    It has ``spikes/times`` and ``spikes/units`` (one variable-length array per sample), ``labels``
    and, in SHD's layout, ``extra/speaker``. The rest of a file is not read.

    Args:
        path: ``.h5``, or packed as ``.h5.gz``, ``.h5.xz`` or ``.h5.zip``.
        layout: `SHD` or `SSC`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged file, missing key, lengths that differ, an unknown label, a
            channel outside 0 to 699, or times that are NaN, infinite, negative or out of order;
            names the file, the sample, what was expected and what was found.
    """
    path = Path(path)
    if not path.is_file():
        kinds = ", ".join(_SUFFIXES)
        raise FileNotFoundError(f"{path}: expected {layout.name} data ({kinds}), got no file")
    try:
        limit = ReadLimit(path)
        source = _unpacked(path, limit)
        with open_hdf5(source) as file:
            return _read(path, file, DatasetReader(file, source, limit), layout)
    except (*_READ_ERRORS, ValueError) as error:
        if str(error).startswith(str(path)):
            raise
        layout_of = f"{layout.name}'s layout"
        raise ValueError(f"{path}: not a complete file of {layout_of} ({error})") from error


def _unpacked(path: Path, limit: ReadLimit) -> Path | io.BytesIO:
    if path.name.endswith((".gz", ".xz")):
        with open_unpacked(path, limit) as file:
            return io.BytesIO(file.read())
    if path.name.endswith(".zip"):
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".h5")]
            if len(members) != 1:
                raise ValueError(f"{path}: expected one .h5 file, got {len(members)}")
            return io.BytesIO(read_zip_member(archive, members[0], limit))
    return path


def _read(path: Path, file: h5py.File, reader: DatasetReader, layout: Layout) -> SHDRecordings:
    column = partial(_column, path, file, reader)
    label = column("labels")
    n_samples = len(label)
    times = _ragged(path, column("spikes/times", n_samples), "times")
    units = _ragged(path, column("spikes/units", n_samples), "units")
    n_times, n_units = (np.array([len(x) for x in ragged]) for ragged in (times, units))
    for i in np.flatnonzero(n_times != n_units)[:1]:
        raise ValueError(
            f"{path}, sample {i}: expected as many times as units, got {n_times[i]} and "
            f"{n_units[i]}"
        )
    offset = np.concatenate([[0], np.cumsum(n_times)]).astype(np.int64)
    time_s, unit = _joined(times, np.float16), _joined(units, np.uint16)
    _check_labels(path, label, layout.n_classes)
    _check_units(path, unit, offset)
    _check_times(path, time_s, offset)
    return SHDRecordings(
        time_s=time_s,
        unit=unit.astype(np.uint16),
        offset=offset,
        label=label.astype(np.int64),
        speaker=_speakers(path, column("extra/speaker", n_samples))
        if layout.has_speakers
        else None,
    )


def _column(
    path: Path, file: h5py.File, reader: DatasetReader, key: str, length: int | None = None
) -> np.ndarray:
    dataset = file.get(key)
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != 1:
        raise ValueError(f"{path}: {key}: expected a one-dimensional array, got none")
    if length is not None and len(dataset) != length:
        raise ValueError(f"{path}: {key}: expected one per label, {length}, got {len(dataset)}")
    return reader.read(dataset)


def _ragged(path: Path, column: np.ndarray, key: str) -> np.ndarray:
    if column.dtype != object:
        raise ValueError(
            f"{path}: spikes/{key}: expected a variable-length array per sample, got {column.dtype}"
        )
    return column


def _joined(ragged: np.ndarray, dtype_if_empty: type) -> np.ndarray:
    return np.concatenate(ragged) if len(ragged) else np.empty(0, dtype_if_empty)


def _check_labels(path: Path, label: np.ndarray, n_classes: int) -> None:
    integral = label.dtype.kind in "iu"
    wrong = (label < 0) | (label >= n_classes) if integral else np.ones(len(label), bool)
    for i in np.flatnonzero(wrong)[:1]:
        raise ValueError(
            f"{path}, sample {i}: label: expected an integer 0 to {n_classes - 1}, got {label[i]}"
        )


def _speakers(path: Path, speaker: np.ndarray) -> np.ndarray:
    if speaker.dtype.kind == "f":
        wrong = ~np.isfinite(speaker) | (speaker != np.floor(speaker))
    else:
        wrong = np.full(len(speaker), speaker.dtype.kind not in "iu")
    for i in np.flatnonzero(wrong)[:1]:
        raise ValueError(
            f"{path}, sample {i}: extra/speaker: expected an integer, got {speaker[i]}"
        )
    return speaker.astype(np.int64)


def _check_units(path: Path, unit: np.ndarray, offset: np.ndarray) -> None:
    integral = unit.dtype.kind in "iu"
    wrong = (unit < 0) | (unit >= N_CHANNELS) if integral else np.ones(len(unit), bool)
    for e in np.flatnonzero(wrong)[:1]:
        raise ValueError(
            f"{path}, sample {_sample_of(e, offset)}: unit: expected an integer 0 to "
            f"{N_CHANNELS - 1}, got {unit[e]}"
        )


def _check_times(path: Path, time_s: np.ndarray, offset: np.ndarray) -> None:
    if time_s.dtype.kind != "f":
        raise ValueError(f"{path}: times: expected floats in seconds, got {time_s.dtype}")
    if time_s.dtype == np.float16:
        time_s = time_s.astype(np.float32)  # exact, and float16 compares slowly
    # Comparisons with NaN are false, so this also finds NaN.
    for e in np.flatnonzero(~((time_s >= 0) & (time_s < np.inf)))[:1]:
        raise ValueError(
            f"{path}, sample {_sample_of(e, offset)}: time: expected finite seconds >= 0, "
            f"got {time_s[e]}"
        )
    falls = np.zeros(len(time_s), bool)
    falls[1:] = time_s[1:] < time_s[:-1]
    starts = offset[:-1]
    falls[starts[starts < len(falls)]] = False
    for e in np.flatnonzero(falls)[:1]:
        raise ValueError(
            f"{path}, sample {_sample_of(e, offset)}: time: expected times in order, "
            f"got {time_s[e]} after {time_s[e - 1]}"
        )


def _sample_of(event: int, offset: np.ndarray) -> int:
    return int(np.searchsorted(offset, event, side="right")) - 1


def prepare_shd(
    files: Sequence[Path | str], out: Path | str, name: str, layout: Layout = SHD
) -> None:
    """Convert files in the layout of SHD or SSC to a prepared one (`blockspike.data.event_file`).

    Args:
        files: files that `open_h5` reads, in the order of `layout.parts`.
        out: the file to write; it appears only when complete.
        name: name of the data; "SHD" or "SSC" for the published download and nothing else.
        layout: `SHD` or `SSC`.

    Raises:
        FileNotFoundError, ValueError: as in `open_h5`.
    """
    recordings = [open_h5(path, layout) for path in files]
    train, *own, test = (_content(part, f"Preparing {name}") for part in recordings)
    names = [Path(path).name for path in files]
    write_event_file(
        out,
        name=name,
        source=f"{', '.join(names[:-1])} and {names[-1]}; Cramer et al. 2022, CC BY 4.0",
        n_units=N_CHANNELS,
        n_classes=layout.n_classes,
        train=train,
        test=test,
        validation=own[0] if own else None,
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


def find_h5(raw: Path, layout: Layout = SHD) -> list[Path]:
    """Find the file of each part in a folder: ``*train.h5*``, ``*test.h5*`` and so on.

    Raises:
        FileNotFoundError: no such folder or file.
        ValueError: several files match.
    """
    found = []
    for part in layout.parts:
        files = [p for s in _SUFFIXES for p in sorted(raw.glob(f"*{part}{s}"))]
        if not files:
            raise FileNotFoundError(
                f"{raw}: expected *{part}.h5, or a .gz, .xz or .zip of it, got none"
            )
        if len(files) > 1:
            raise ValueError(
                f"{raw}: expected one *{part}.h5, got {', '.join(p.name for p in files)}"
            )
        found.append(files[0])
    return found


def describe(files: Sequence[Path], layout: Layout = SHD) -> str:
    """Name the data set that the files of all parts hold.

    "SHD" and "SSC" need the checksums of the published archives, which tonic knows. Other files are
    named by their root attribute ``name``, or by the start of ``note`` up to a colon; without
    either they are "SHD-layout data" or "SSC-layout data".
    """
    if all(path.suffix == ".zip" for path in files) and _are_published(files, layout):
        return layout.name
    unnamed = f"{layout.name}-layout data"
    try:
        with open_hdf5(_unpacked(files[0], ReadLimit(files[0]))) as file:
            note, colon, _ = str(attribute(file, "note", "")).partition(":")
            own = str(attribute(file, "name", note if colon else unnamed))
    except (*_READ_ERRORS, ValueError) as error:
        layout_of = f"{layout.name}'s layout"
        raise ValueError(f"{files[0]}: not a complete file of {layout_of} ({error})") from error
    return unnamed if own.strip().upper() in (SHD.name, SSC.name) else own


def _are_published(files: Sequence[Path], layout: Layout) -> bool:
    try:
        published = [file.md5 for file in layout.published()]
    except ValueError:  # tonic is not installed
        return False
    return all(has_md5(path, md5) for path, md5 in zip(files, published, strict=True))
