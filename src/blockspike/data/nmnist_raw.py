"""Original N-MNIST recordings, in a folder or in archives, which are not extracted."""

from __future__ import annotations

import os
import re
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path
from typing import IO

from blockspike.data.limits import ZIP_ERRORS, ReadLimit, check_zip_member, open_unpacked

_DIGITS = tuple("0123456789")
_MEMBER = re.compile(r"(?:^|/)(train|test)/([^/]+)/([^/.][^/]*\.bin)$", re.IGNORECASE)
_ARCHIVE_ERRORS = (*ZIP_ERRORS, tarfile.TarError, LZMAError)
_MOST_MEMBERS = 200_000
_EXPECTED = (
    "expected Train/ and Test/, each with digit folders 0 to 9 of .bin files, or an archive of them"
)


@dataclass(frozen=True)
class RawRecording:
    """One recording: its place (for messages), its digit, its size and how to load it."""

    name: str
    label: int
    n_bytes: int
    load: Callable[[], bytes]

    def read(self) -> bytes:
        """Return its bytes; raises ValueError, naming it, if the archive is damaged there."""
        try:
            return self.load()
        except _ARCHIVE_ERRORS as error:
            raise ValueError(f"{self.name}: cannot be read ({error})") from error


@dataclass(frozen=True)
class _Found:
    member: str  # path inside the folder or archive, with "/"
    n_bytes: int
    load: Callable[[], bytes]


@contextmanager
def open_raw(raw: Path, scratch: Path) -> Iterator[tuple[list[RawRecording], list[RawRecording]]]:
    """List the training and test recordings, by digit and file name; readable inside the context.

    Args:
        raw: see `blockspike.data.nmnist.prepare_nmnist`.
        scratch: a folder (created if missing) with room for the content of a tar archive.

    Raises:
        FileNotFoundError: ``raw``, its training or its test part is missing.
        ValueError: an archive is damaged, or a digit folder is unknown or missing.
    """
    if not raw.exists():
        raise FileNotFoundError(f"{raw}: {_EXPECTED}, got nothing")
    scratch.mkdir(parents=True, exist_ok=True)
    # A file without a name: nothing of it is left if the process dies.
    with ExitStack() as stack, tempfile.TemporaryFile(dir=scratch) as spool:
        sources = [raw]
        if raw.is_dir() and not _has_split_folders(raw):
            sources = [raw / name for name in ("train.zip", "test.zip") if (raw / name).exists()]
        found = [item for source in sources for item in _list(source, spool, stack)]
        splits = {"train": {}, "test": {}}
        for item in found:
            match = _MEMBER.search(item.member)
            if match:
                split, digit, file_name = match.groups()
                splits[split.lower()].setdefault(digit, {})[file_name] = item
        yield _labelled(raw, "Train", splits["train"]), _labelled(raw, "Test", splits["test"])


def _has_split_folders(raw: Path) -> bool:
    return any((raw / name).is_dir() for name in ("Train", "Test", "N-MNIST", "train", "test"))


def _labelled(raw: Path, split: str, digits: dict[str, dict[str, _Found]]) -> list[RawRecording]:
    if not digits:
        raise FileNotFoundError(f"{raw}: {_EXPECTED}, got no recordings under {split}/")
    unknown = sorted(set(digits) - set(_DIGITS))
    if unknown:
        raise ValueError(f"{raw}: expected digit folders 0 to 9 only, got {split}/{unknown[0]}")
    missing = sorted(set(_DIGITS) - set(digits))
    if missing:
        raise ValueError(
            f"{raw}: expected digits 0 to 9 in {split}/, got no recordings of {', '.join(missing)}"
        )
    return [
        RawRecording(f"{raw}: {item.member}", int(digit), item.n_bytes, item.load)
        for digit in _DIGITS
        for _, item in sorted(digits[digit].items())
    ]


def _list(source: Path, spool: IO[bytes], stack: ExitStack) -> Iterable[_Found]:
    if source.is_dir():
        return _list_folder(source)
    try:
        limit = ReadLimit(source)
        if zipfile.is_zipfile(source):
            return _list_zip(stack.enter_context(zipfile.ZipFile(source)), limit)
        # As a stream, in the order of the file, whatever offsets the members declare.
        with (
            open_unpacked(source, limit) as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            return _spool_tar(archive, spool, limit)
    except _ARCHIVE_ERRORS as error:
        raise ValueError(f"{source}: not a complete .zip or .tar archive ({error})") from error


def _list_folder(folder: Path) -> Iterator[_Found]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            member = path.relative_to(folder).as_posix()
            if _MEMBER.search(member):
                yield _Found(member, path.stat().st_size, path.read_bytes)


def _list_zip(archive: zipfile.ZipFile, limit: ReadLimit) -> list[_Found]:
    members = [info for info in archive.infolist() if _MEMBER.search(info.filename)]
    _check_number(limit.path, len(members))
    for info in members:
        check_zip_member(info, limit)
    return [_Found(info.filename, info.file_size, partial(archive.read, info)) for info in members]


def _spool_tar(archive: tarfile.TarFile, spool: IO[bytes], limit: ReadLimit) -> list[_Found]:
    """Copy the members one after another: a tar has no index and xz cannot seek.

    No name from the archive reaches the file system; links are skipped.
    """
    found, start = [], 0
    for member in archive:
        # Counted as declared, before it is skipped or read: a seek may go past the end of the file.
        limit.take(member.size, repr(member.name))
        stream = archive.extractfile(member) if member.isfile() else None
        if stream is None or not _MEMBER.search(member.name):
            continue
        spool.write(stream.read())
        read = partial(os.pread, spool.fileno(), member.size, start)
        found.append(_Found(member.name, member.size, read))
        _check_number(limit.path, len(found))
        start += member.size
    spool.flush()
    return found


def _check_number(path: Path, n_members: int) -> None:
    if n_members > _MOST_MEMBERS:
        raise ValueError(
            f"{path}: expected at most {_MOST_MEMBERS} recordings (N-MNIST has 70 000), got more"
        )
