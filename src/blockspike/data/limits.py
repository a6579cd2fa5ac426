"""Limits on what is read from a file, whatever sizes it declares."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

# Errors of zipfile in damaged files, besides `ValueError`.
ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)

SMALL_BYTES = 64 << 20
LARGEST_RATIO = 50  # of unpacked to packed bytes; the recordings shipped here reach 2 to 3
_XZ_MEMORY_BYTES = 256 << 20  # xz -9 needs 65 MiB
_BLOCK_BYTES = 1 << 16
_NPY_HEADER_BYTES = 10_000  # numpy's own limit, from 1.24 on


class ReadLimit:
    """Counts what is read from a file: at most 64 MiB or, if that is more, 50 times its size."""

    def __init__(self, path: Path):
        self.path = path
        self.n_file_bytes = path.stat().st_size
        self.n_bytes = max(SMALL_BYTES, LARGEST_RATIO * self.n_file_bytes)
        self.left = self.n_bytes

    def take(self, n_bytes: int, what: str) -> None:
        """Count bytes that are about to be read.

        Raises:
            ValueError: they are too many, or fewer than 0; names the file and `what`.
        """
        if not 0 <= n_bytes <= self.left:
            raise ValueError(
                f"{self.path}: {what}: expected at most {self.left} more bytes, {self.n_bytes} in "
                f"all from a file of {self.n_file_bytes}, got {n_bytes}"
            )
        self.left -= n_bytes


def open_unpacked(path: Path, limit: ReadLimit) -> BinaryIO:
    """Open a file for reading, and unpack it if its first bytes are those of gzip, bzip2 or xz.

    Reading raises ValueError when the limit is reached.
    """
    with path.open("rb") as file:
        start = file.read(6)
    for magic, open_packed in _PACKED.items():
        if start.startswith(magic):
            packed = io.BufferedReader(_Counted(open_packed(path), limit), _BLOCK_BYTES)
            return cast(BinaryIO, packed)
    return path.open("rb")


class _Counted(io.RawIOBase):
    def __init__(self, packed: Any, limit: ReadLimit):
        self.packed, self.limit = packed, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            content = self.packed.read(len(buffer))
        except OSError as error:
            if error.errno is not None:  # gzip and bzip2 report damage without one
                raise
            raise ValueError(f"{self.limit.path}: damaged ({error})") from error
        self.limit.take(len(content), "unpacked content")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.packed.close()
        super().close()


class _Xz:
    """Like `lzma.open`, with a limit on the memory that a file's header may ask for."""

    def __init__(self, path: Path):
        self.file = path.open("rb")
        self.decoder = self._new()

    def _new(self) -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)

    def read(self, n_bytes: int) -> bytes:
        while True:
            given = b""
            if self.decoder.eof:  # another stream may follow
                given = self.decoder.unused_data or self.file.read(_BLOCK_BYTES)
                if not given.strip(b"\0"):
                    return b""
                self.decoder = self._new()
            elif self.decoder.needs_input and not (given := self.file.read(_BLOCK_BYTES)):
                raise EOFError("cut off")
            if content := self.decoder.decompress(given, n_bytes):
                return content

    def close(self) -> None:
        self.file.close()


_PACKED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": _Xz}


def read_zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: ReadLimit) -> bytes:
    """Return the bytes of a stored or deflated member.

    Raises:
        ValueError: the member is packed otherwise, encrypted or too large.
    """
    check_zip_member(member, limit)
    return archive.read(member)


def check_zip_member(member: zipfile.ZipInfo, limit: ReadLimit) -> None:
    """Check a zip member and count the size it declares; errors as `read_zip_member`.

    zipfile reads no more than that. Methods other than deflate may ask for gigabytes of memory.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{limit.path}: {member.filename!r} is not stored or deflated")
    if member.header_offset < 0 or member.compress_size > limit.n_file_bytes:
        raise ValueError(f"{limit.path}: {member.filename!r} is not within the file")
    if member.flag_bits & 1:
        raise ValueError(f"{limit.path}: {member.filename!r} is encrypted")
    limit.take(member.file_size, repr(member.filename))


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an `.npz`; nothing is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no `.npz`, is damaged, or has an array of objects or of another
            size than it declares.
    """
    limit = ReadLimit(path)
    try:
        with zipfile.ZipFile(path) as archive:
            stored = {m.filename: read_zip_member(archive, m, limit) for m in archive.infolist()}
        return {name.removesuffix(".npy"): _array(content) for name, content in stored.items()}
    except Exception as error:  # numpy and zipfile raise anything for damaged files
        text = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not a complete .npz of plain arrays ({text})") from error


def _array(content: bytes) -> np.ndarray:
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    n_digits = 2 if version == (1, 0) else 4
    if int.from_bytes(content[stream.tell() :][:n_digits], "little") > _NPY_HEADER_BYTES:
        raise ValueError(f"an array's header has more than {_NPY_HEADER_BYTES} bytes")
    read_header = getattr(np.lib.format, f"read_array_header_{version[0]}_0", None)
    if version not in ((1, 0), (2, 0)) or read_header is None:
        raise ValueError(f"expected an array of version (1, 0) or (2, 0), got {version}")
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError(f"expected plain numbers, got {dtype}, which would have to be unpickled")
    values = np.frombuffer(content, np.uint8, offset=stream.tell())
    n_bytes = math.prod(shape) * dtype.itemsize
    if len(values) != n_bytes or min(shape, default=0) < 0:
        raise ValueError(f"expected an array of {shape} {dtype}, got {len(values)} bytes")
    return values.view(dtype).reshape(shape, order="F" if is_fortran else "C").copy()
