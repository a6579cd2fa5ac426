"""What is read from a file stays small if the file is small, whatever sizes it declares."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import zipfile
from pathlib import Path
from typing import Any, BinaryIO, cast

import h5py
import numpy as np
from h5py import h5o  # pyright: ignore[reportAttributeAccessIssue]

SMALL_BYTES = 64 << 20
LARGEST_RATIO = 50  # of unpacked to packed bytes; the recordings shipped here reach 2 to 3
_XZ_MEMORY_BYTES = 256 << 20  # xz -9 needs 65 MiB
_BLOCK_BYTES = 1 << 16
_NPY_HEADER_BYTES = 10_000  # of which numpy itself reads no more, from 1.24 on
_KINDS = "biufSU"


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
                f"{self.path}: {what} holds {n_bytes} bytes, expected at most {self.n_bytes} in "
                f"all of a file of {self.n_file_bytes}"
            )
        self.left -= n_bytes


# Packed files


def open_unpacked(path: Path, limit: ReadLimit) -> BinaryIO:
    """Open a file for reading; one packed by gzip, bzip2 or xz, known by its first bytes, unpacked.

    Reading on raises ValueError when the limit is reached.
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
        content = self.packed.read(len(buffer))
        self.limit.take(len(content), "what is packed there")
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.packed.close()
        super().close()


class _Xz:
    """As `lzma.open`, which has no limit on the memory that a file's header asks for."""

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
    """Return the bytes of a member, stored or deflated.

    Raises:
        ValueError: packed otherwise, encrypted or too large.
    """
    check_zip_member(member, limit)
    return archive.read(member)


def check_zip_member(member: zipfile.ZipInfo, limit: ReadLimit) -> None:
    """Count a member, of which zipfile reads no more than it declares; errors as `read_zip_member`.

    Other methods than deflate may ask for gigabytes of memory.
    """
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{limit.path}: {member.filename!r} is not stored or deflated")
    if member.flag_bits & 1:
        raise ValueError(f"{limit.path}: {member.filename!r} is encrypted")
    limit.take(member.file_size, repr(member.filename))


# .npz


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return all arrays of an `.npz`; nothing is unpickled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not an `.npz`, damaged, an array of objects, or one that declares another size
            than it has.
    """
    limit = ReadLimit(path)
    try:
        with zipfile.ZipFile(path) as archive:
            stored = {m.filename: read_zip_member(archive, m, limit) for m in archive.infolist()}
        return {name.removesuffix(".npy"): _array(content) for name, content in stored.items()}
    except Exception as error:  # damaged files raise whatever numpy and zipfile run into
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
        raise ValueError(f"found an array of version {version}, expected (1, 0) or (2, 0)")
    shape, is_fortran, dtype = read_header(stream)
    if dtype.hasobject:
        raise ValueError(f"found an array of {dtype}, which would have to be unpickled")
    values = np.frombuffer(content, np.uint8, offset=stream.tell())
    n_bytes = math.prod(shape) * dtype.itemsize
    if len(values) != n_bytes or min(shape, default=0) < 0:
        raise ValueError(f"found {len(values)} bytes of an array of {shape} {dtype}")
    return values.view(dtype).reshape(shape, order="F" if is_fortran else "C").copy()


# HDF5


class DatasetReader:
    """Reads datasets of an HDF5 file that others made, none of which may lie in another file."""

    def __init__(self, file: h5py.File, limit: ReadLimit):
        self.limit = limit
        self.number = _file_number(file)

    def read(self, dataset: h5py.Dataset) -> np.ndarray:
        """Return the values: numbers or texts, or a variable-length array of numbers each.

        Raises:
            ValueError: a dataset of another kind, in another file or too large.
        """
        self.check(dataset)
        base = h5py.check_vlen_dtype(dataset.dtype)
        is_text = h5py.check_string_dtype(dataset.dtype) is not None
        kind = dataset.dtype.kind if base is None or is_text else np.dtype(base).kind
        if kind not in _KINDS and not is_text:
            where = f"{self.limit.path}: {dataset.name}"
            raise ValueError(f"{where}: found {dataset.dtype}, expected numbers or texts")
        if dataset.shape is None:
            return np.empty(0)
        if dataset.dtype.kind in _KINDS or dataset.ndim == 0:
            return np.asarray(dataset[()])
        values = np.empty(dataset.shape, object)
        at_once = max(1, self.limit.left // max(1, self.limit.n_file_bytes))
        for start in range(0, len(values), at_once):
            rows = slice(start, start + at_once)
            values[rows] = dataset[rows]
            # Each is in the file, but many may be one and the same.
            self.limit.take(sum(map(_n_bytes, values[rows].flat)), str(dataset.name))
        return values

    def check(self, dataset: h5py.Dataset) -> None:
        """Count a dataset that is about to be read; errors as `read`."""
        where = f"{self.limit.path}: {dataset.name}"
        if _file_number(dataset) != self.number or dataset.external:
            raise ValueError(f"{where} lies in another file, expected it in this one")
        if dataset.is_virtual:
            raise ValueError(f"{where} is put together from other datasets, expected plain values")
        n_items = math.prod(dataset.shape or (0,))
        itemsize = dataset.dtype.itemsize
        n_chunk_bytes = math.prod(dataset.chunks or (0,)) * itemsize
        if n_chunk_bytes > self.limit.left:
            raise ValueError(f"{where}: found chunks of {n_chunk_bytes} bytes")
        self.limit.take(n_items * itemsize, str(dataset.name))


def _file_number(item: h5py.File | h5py.Dataset) -> int:
    return h5o.get_info(item.id).fileno


def _n_bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else len(value)


def check_tree(path: Path) -> None:
    """Check what a library will read that knows no limits: every dataset and link of the file.

    Raises:
        ValueError: as `DatasetReader.read`, or a link to another file.
        OSError: not HDF5.
    """
    with h5py.File(path, "r") as file:
        reader = DatasetReader(file, ReadLimit(path))

        def check(name: str, found: h5py.Group | h5py.Dataset) -> None:
            if isinstance(found, h5py.Dataset):
                reader.check(found)
                return
            for key in found:
                if isinstance(found.get(key, getlink=True), h5py.ExternalLink):
                    raise ValueError(f"{path}: {name}/{key} is a link to another file")

        check("", file)
        file.visititems(check)
