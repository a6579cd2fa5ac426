"""Data sets of tonic (https://tonic.readthedocs.io): their archives and recordings, prepared once.

tonic knows addresses, checksums and formats, and reads the recordings. Its downloader is not used
(see `blockspike.data.download`); its unpacking is, in a folder that is removed afterwards, because
it takes what a killed process has unpacked for the whole.
"""

from __future__ import annotations

import inspect
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from blockspike.data.datamodule import stratified_subset
from blockspike.data.download import RemoteFile, has_md5, tonic_datasets
from blockspike.data.event_file import SplitContent, unit_dtype, write_event_file
from blockspike.data.progress import progress
from blockspike.files import scratch_folder

# Sets without a class for each recording, and what their recordings come with.
_NOT_CLASSES = {
    "DAVISDATA": "poses of the camera",
    "DSEC": "disparity and optical flow",
    "EBSSA": "boxes around satellites",
    "MVSEC": "depth and poses of the camera",
    "NERDD": "boxes around objects",
    "ThreeET_Eyetracking": "positions of the pupil",
    "TUMVIE": "poses of the camera",
    "VPR": "positions of the car",
}
_OPTIONS = {"NTIDIGITS18": {"single_digits": True}}  # its other recordings are sequences of digits
# tonic gives none, as the recordings differ in size; images of at most these pixels were shown to
# the camera (Orchard et al. 2015).
_SENSORS = {"NCALTECH101": (240, 180, 2)}
_INNER_ARCHIVES = {"NCALTECH101": "Caltech101.zip"}  # which tonic 1.6 and 1.7 leave packed
_LONGEST_US = 2**32 - 1


@dataclass(frozen=True)
class TonicSet:
    """A data set with a class for each recording.

    Attributes:
        name: of its class in `tonic.datasets`.
        cls: that class.
        sensor: width, height and number of polarities; a cochlea has a height of 1.
        splits: arguments of `cls` for each of "train", "validation" and "test"; only "all" if the
            set is not divided.
    """

    name: str
    cls: Any
    sensor: tuple[int, int, int]
    splits: dict[str, dict[str, Any]]

    def archives(self) -> list[RemoteFile]:
        """Return the published archives; `url` is empty where one is downloaded by hand."""
        found = [self._archive(arguments) for arguments in self.splits.values()]
        return list({file.filename: file for file in found if file is not None}.values())

    def _archive(self, arguments: dict[str, Any]) -> RemoteFile | None:
        """Return what tonic would download for a split, or None if it comes with tonic."""

        def ask(dataset: Any) -> None:
            raise _AskedError(RemoteFile(dataset.url, dataset.filename, dataset.file_md5))

        asking = type(self.name, (self.cls,), {"download": ask})
        with TemporaryDirectory() as empty, redirect_stdout(sys.stderr):
            try:
                asking(empty, **arguments)
            except _AskedError as asked:
                return asked.file
            except SystemExit:  # by hand
                return RemoteFile("", self.cls.filename, self.cls.file_md5)
            except Exception as error:
                raise ValueError(f"dataset: {self.name}: tonic refuses it ({error})") from error

    def open(self, raw: Path, scratch: Path) -> dict[str, Any]:
        """Unpack the archives in `raw` into `scratch` and return tonic's object for each split.

        Raises:
            FileNotFoundError: an archive is missing.
            ValueError: the checksum of an archive is not the published one, or tonic cannot
                unpack it.
        """
        for file in self.archives():
            path = raw / file.filename
            if not path.is_file():
                raise FileNotFoundError(f"{path}: expected an archive of {self.name}, got no file")
            if not has_md5(path, file.md5):
                raise ValueError(
                    f"{path}: expected the published archive of {self.name}, with MD5 {file.md5}, "
                    "got another or a damaged one"
                )
        return {split: self._opened(raw, scratch / split, split) for split in self.splits}

    def _opened(self, raw: Path, scratch: Path, split: str) -> Any:
        """Give each split a folder: tonic takes the file of one for that of another."""
        folder = scratch / self.name
        folder.mkdir(parents=True)
        if archive := self._archive(self.splits[split]):
            (folder / archive.filename).symlink_to((raw / archive.filename).resolve())
        try:
            with redirect_stdout(sys.stderr), _tar_within_its_folder():
                dataset = self.cls(str(scratch), **self.splits[split])
                if len(dataset) == 0 and self.name in _INNER_ARCHIVES:
                    from tonic.download_utils import extract_archive

                    extract_archive(str(folder / _INNER_ARCHIVES[self.name]))
                    dataset = self.cls(str(scratch), **self.splits[split])
        except (Exception, SystemExit) as error:
            raise ValueError(f"{self.name}: tonic cannot unpack the archives ({error})") from error
        if len(dataset) == 0:
            raise ValueError(f"{self.name}: expected recordings in the archives, got none")
        return dataset


@contextmanager
def _tar_within_its_folder() -> Iterator[None]:
    """Make tarfile refuse members that leave the folder, as Python 3.14 does by itself."""
    if not hasattr(tarfile, "data_filter"):  # Python before 3.11.4
        yield
        return
    before = vars(tarfile.TarFile)["extraction_filter"]
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


class _AskedError(Exception):
    """tonic would download this file."""

    def __init__(self, file: RemoteFile):
        super().__init__(file.filename)
        self.file = file


def find_set(name: str) -> TonicSet:
    """Find a data set of tonic.

    Raises:
        ValueError: tonic is not installed, has no such set, or the set has no classes.
    """
    datasets = tonic_datasets("dataset")
    if name in _NOT_CLASSES:
        raise ValueError(
            f"dataset: expected recordings that each belong to a class, got {name}, whose "
            f"recordings come with {_NOT_CLASSES[name]}"
        )
    if name == "SMNIST":
        raise ValueError(
            "dataset: expected another set than SMNIST, whose spikes leave their channels in "
            "tonic; data=sequential_mnist has MNIST as a sequence"
        )
    # tonic 1.6 leaves one out of its __all__.
    classes: dict[str, Any] = {k: v for k, v in vars(datasets).items() if inspect.isclass(v)}
    if name not in classes:
        known = sorted(classes.keys() - {*_NOT_CLASSES, "SMNIST"})
        raise ValueError(f"dataset: expected one of {', '.join(known)}, got {name!r}")
    cls = classes[name]
    sensor = _SENSORS.get(name, getattr(cls, "sensor_size", None))
    if not isinstance(sensor, tuple) or len(sensor) != 3 or min(sensor) < 1:
        raise ValueError(
            f"dataset: {name}: expected a sensor_size of width, height and polarities, got {sensor}"
        )
    return TonicSet(name, cls, sensor, _splits(name, cls))


def _splits(name: str, cls: Any) -> dict[str, dict[str, Any]]:
    accepted = inspect.signature(cls.__init__).parameters
    options = _OPTIONS.get(name, {})
    if "train" in accepted:
        return {"train": {"train": True} | options, "test": {"train": False} | options}
    if "split" in accepted:
        names = {"train": "train", "validation": "valid", "test": "test"}
        return {split: {"split": given} | options for split, given in names.items()}
    return {"all": options}


def content_name(dataset: str, test_fraction: float, split_seed: int) -> str:
    """Name the data of a set that is divided here, not by its authors."""
    return f"{dataset}, {100 * test_fraction:g} % test of seed {split_seed}"


def prepare_tonic(
    dataset: str, raw: Path, out: Path, test_fraction: float, split_seed: int
) -> None:
    """Convert a data set of tonic to a prepared file (`blockspike.data.event_file`).

    Times are whole microseconds, as tonic gives them. Those of a camera (height above 1) count from
    the first event of each recording, since the clocks of some cameras start elsewhere. Units are
    ``(p · height + y) · width + x``. Labels that are names are numbered in alphabetical order.

    Args:
        dataset: name of the set in tonic.
        raw: folder of the published archives.
        out: the file to write; it appears only when complete.
        test_fraction, split_seed: share of each class that is for the test, and the seed that
            chooses it, if the set is not divided by its authors.

    Raises:
        FileNotFoundError: an archive is missing.
        ValueError: as in `find_set`; an archive is not the published one or cannot be read; or an
            event is off the sensor or at a negative time.
    """
    found = find_set(dataset)
    with scratch_folder(out.with_name(f"{out.name}.unpacked")) as scratch:
        opened = found.open(raw, scratch)
        with progress(f"Preparing {dataset}", sum(map(len, opened.values()))) as advance:
            read = {
                split: _read(found, split, recordings, scratch / split, advance)
                for split, recordings in opened.items()
            }
        labels, n_classes = _numbered(
            {split: part.target for split, part in read.items()}, opened, dataset
        )
        if "all" in read:
            test = stratified_subset(labels["all"], test_fraction, split_seed)
            train = np.setdiff1d(np.arange(len(labels["all"])), test)
            chosen = {"train": train, "test": test}
            parts = {s: read["all"].content(labels["all"], own) for s, own in chosen.items()}
        else:
            parts = {
                split: part.content(labels[split], np.arange(len(labels[split])))
                for split, part in read.items()
            }
        write_event_file(
            out,
            name=content_name(dataset, test_fraction, split_seed) if "all" in read else dataset,
            source=f"{dataset}, read by tonic {version('tonic')}",
            n_units=int(np.prod(found.sensor)),
            n_classes=n_classes,
            train=parts["train"],
            test=parts["test"],
            validation=parts.get("validation"),
            sensor=found.sensor,
        )


@dataclass(frozen=True)
class _Spool:
    """Events of a split in two files, and the number of events and target of each recording."""

    time: np.ndarray
    unit: np.ndarray
    n_events: np.ndarray
    target: list[Any]

    def content(self, label: np.ndarray, chosen: np.ndarray) -> SplitContent:
        """Return the chosen recordings."""
        end = np.cumsum(self.n_events)
        chunks: Iterator[tuple[np.ndarray, np.ndarray]] = (
            (self.time[start:stop], self.unit[start:stop])
            for start, stop in zip((end - self.n_events)[chosen], end[chosen], strict=True)
        )
        return SplitContent(
            self.n_events[chosen], label[chosen], chunks, self.time.dtype, unit_s=1e-6
        )


def _read(
    found: TonicSet, split: str, recordings: Any, path: Path, advance: Callable[[int], None]
) -> _Spool:
    n_events, target = [], []
    units = unit_dtype(int(np.prod(found.sensor)))
    places = [path.with_suffix(suffix) for suffix in (".time", ".unit")]
    with places[0].open("wb") as times_file, places[1].open("wb") as units_file:
        for i in _in_order(recordings):
            where = f"{found.name}, {split} recording {i}"
            try:
                events, label = recordings[i]
            except ModuleNotFoundError as error:
                raise ValueError(
                    f"{where}: expected the package {error.name}, got none; pip install "
                    f"{error.name}"
                ) from error
            except Exception as error:  # tonic's readers raise anything for damaged files
                raise ValueError(f"{where}: tonic cannot read it ({error})") from error
            time, unit = checked_events(where, events, found.sensor)
            times_file.write(time.astype(np.uint32).tobytes())
            units_file.write(unit.astype(units).tobytes())
            n_events.append(len(time))
            target.append(label)
            advance(1)
    kinds = (np.uint32, units)
    time, unit = (
        np.memmap(p, k, "r") if sum(n_events) else np.empty(0, k)
        for p, k in zip(places, kinds, strict=True)
    )
    return _Spool(time, unit, np.array(n_events, np.int64), target)


def _in_order(recordings: Any) -> list[int]:
    """Numbers of the recordings, sorted by path where tonic takes the order of the file system."""
    paths = recordings.data if isinstance(getattr(recordings, "data", None), list) else []
    if len(paths) != len(recordings) or not all(isinstance(path, str | Path) for path in paths):
        return list(range(len(recordings)))
    return sorted(range(len(paths)), key=lambda i: Path(paths[i]).parts)


def checked_events(
    where: str, events: np.ndarray, sensor: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Check a recording as tonic gives it, and number its pixels.

    Args:
        where: start of an error's text.
        events: structured ``[n]`` with fields t in µs and x, and y and p where the sensor has
            several rows and polarities.
        sensor: width, height and number of polarities.

    Returns:
        Times in µs, sorted, int64 ``[n]``, and units int64 ``[n]``.

    Raises:
        ValueError: a field is missing, an event is off the sensor, or a time is negative or later
            than 71 minutes.
    """
    width, height, n_polarities = sensor
    sizes = {"x": width, "y": height, "p": n_polarities}
    needed = [name for name, size in sizes.items() if name == "x" or size > 1]
    fields = getattr(getattr(events, "dtype", None), "names", None) or ()
    if not {"t", *needed} <= set(fields):
        raise ValueError(
            f"{where}: expected events with {', '.join(('t', *needed))}, got "
            f"{', '.join(fields) or type(events).__name__}"
        )
    events = events.ravel()
    unit = np.zeros(len(events), np.int64)
    for name in ("p", "y", "x"):
        value = events[name].astype(np.int64) if name in needed else unit * 0
        for wrong in value[(value < 0) | (value >= sizes[name])][:1]:
            raise ValueError(
                f"{where}: {name}: expected 0 to {sizes[name] - 1} on the sensor of "
                f"{width} x {height}, got {wrong}"
            )
        unit = unit * sizes[name] + value
    time = events["t"].astype(np.int64)
    for wrong in time[time < 0][:1]:
        raise ValueError(f"{where}: t: expected microseconds ≥ 0, got {wrong}")
    order = np.argsort(time, kind="stable")
    time, unit = time[order], unit[order]
    if height > 1 and len(time):
        time = time - time[0]
    if len(time) and time[-1] > _LONGEST_US:
        raise ValueError(f"{where}: t: expected at most {_LONGEST_US} µs, got {time[-1]}")
    return time, unit


def _numbered(
    targets: dict[str, list[Any]], opened: dict[str, Any], dataset: str
) -> tuple[dict[str, np.ndarray], int]:
    """Labels int64 ``[n]`` of each split, and the number of classes."""
    every = [target for part in targets.values() for target in part]
    if all(isinstance(target, str) for target in every):
        names = sorted(set(every))
        return {s: np.array([names.index(t) for t in part]) for s, part in targets.items()}, len(
            names
        )
    for target in every:
        if not isinstance(target, int | np.integer) or target < 0:
            raise ValueError(
                f"dataset: {dataset}: expected a class for each recording, a number or a name, got "
                f"{type(target).__name__} {target!r:.60}"
            )
    known = getattr(next(iter(opened.values())), "classes", ())
    n_classes = max(len(known), max(every) + 1)
    return {s: np.array(part, np.int64) for s, part in targets.items()}, int(n_classes)
