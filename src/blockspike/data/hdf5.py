"""Untrusted HDF5 files: only plain values, inside the file and within limits, are taken."""

from __future__ import annotations

import io
import math
import mmap
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5o, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

from blockspike.data.limits import ReadLimit

_Item = h5py.Group | h5py.Dataset | h5py.Datatype
# Errors of h5py in damaged files, besides `ValueError`.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, TypeError, OverflowError)
_DEEPEST = 50  # levels of groups, links and references; NWB has about ten
_KINDS = "biufSU"
_FEW_CHUNKS = 1000
_CHUNK_ENTRY_BYTES = 8  # least size of a chunk's address; absent chunks hold zeros
_HEAP, _64_BITS = b"GCOL\1\0\0\0", 1 << 64
# Number of items, address of the heap and index in it of a value of variable length, in files with
# addresses of 8 bytes: all that h5py writes. The same as bytes without a meaning.
_REFERENCE = np.dtype([("length", "<u4"), ("heap", "<u8"), ("index", "<u4")])
_MOST_TEXTS = 4096  # in an attribute of an object's header, which is shorter than 64 KiB
_RAW = np.dtype(f"V{_REFERENCE.itemsize}")
# Texts of variable length as an attribute: their datatype (class 9, 16 bytes, of bytes), and a
# dataspace of no or one dimension, in the layouts of versions 1 to 3 of the message. HDF5 does not
# look at the five bytes with which a dataspace of version 1 ends, which are reserved.
_TEXTS = re.compile(
    rb"\x19.{3}\x10\0{3}\x10.{11}"
    rb"(?:\x02(?P<rank>[\0\x01])(?P<flags>.)[\0\x01]|\0{4}\x01(?P<rank_1>[\0\x01])(?P<flags_1>.).{5})",
    re.DOTALL,
)


def open_hdf5(source: Path | io.BytesIO, n_bytes: int = 0) -> h5py.File:
    """Open a file for reading.

    Args:
        source: the file, or its bytes.
        n_bytes: bytes from the start that are searched for damaged heaps; 0 = all.

    Raises:
        OSError: the file is not HDF5.
        ValueError: the HDF5 library would hang at a heap of texts or variable-length arrays, or
            allocate gigabytes for a text.
    """
    if isinstance(source, io.BytesIO):
        _check_texts(source.getvalue())
        _check_heaps(source.getvalue())
    elif source.stat().st_size:
        n_bytes = min(n_bytes, source.stat().st_size)
        with (
            source.open("rb") as file,
            mmap.mmap(file.fileno(), n_bytes, access=mmap.ACCESS_READ) as content,
        ):
            _check_texts(content)
            _check_heaps(content)
    return h5py.File(source, "r")


def _check_texts(content: bytes | mmap.mmap) -> None:
    """Raise ValueError for a text in an attribute that claims to be longer than the file.

    The HDF5 library allocates and clears the memory before it looks for the text. Format: "The
    Attribute Message" of the HDF5 file format specification.
    """
    found = _TEXTS.search(content)
    while found:
        at, n_texts = found.end(), 1
        if (found["rank"] or found["rank_1"]) == b"\1":
            n_texts = int.from_bytes(content[at : at + 8], "little")
            has_maximum = (found["flags"] or found["flags_1"])[0] & 1
            at += 16 if has_maximum else 8
        n_texts = min(n_texts, _MOST_TEXTS, (len(content) - at) // _REFERENCE.itemsize)
        texts = np.frombuffer(content[at : at + n_texts * _REFERENCE.itemsize], _REFERENCE)
        longest = int(texts["length"].max(initial=0))
        if longest > len(content):
            raise ValueError(
                f"attribute at byte {found.start()}: expected texts in the file, "
                f"got {longest} bytes"
            )
        found = _TEXTS.search(content, found.start() + 1)  # which may overlap


def _check_heaps(content: bytes | mmap.mmap) -> None:
    """Raise ValueError for a heap in which the HDF5 library would loop for ever.

    HDF5 2.0 advances by the size of object 0, the free space, which must not be 0. It advances in
    numbers of 64 bits, so that a size near 2⁶⁴ becomes a small one. Format: "Level 1E, Global
    Heap" of the HDF5 file format specification.
    """
    start = content.find(_HEAP)
    while start >= 0:
        n_bytes, at = int.from_bytes(content[start + 8 : start + 16], "little"), 16
        while at + 16 <= min(n_bytes, len(content) - start):
            index, n = struct.unpack("<H6xQ", content[start + at : start + at + 16])
            step = n if index == 0 else (16 + (n + 7) % _64_BITS // 8 * 8) % _64_BITS
            if step == 0:
                raise ValueError(f"damaged heap at byte {start + at}")
            at += step
        start = content.find(_HEAP, start + 8)


def attribute(item: h5py.Group | h5py.Dataset, name: str, default: Any = None) -> Any:
    """Return an attribute, or `default` if it is missing.

    Raises:
        ValueError: it holds neither numbers nor texts; h5py crashes at some other types.
    """
    if name not in item.attrs:
        return default
    _check_kind(item.attrs.get_id(name).dtype, f"attribute {name!r} of {item.name}")
    return item.attrs[name]


def _check_kind(dtype: np.dtype, where: str) -> None:
    if dtype.kind not in _KINDS and h5py.check_string_dtype(dtype) is None:
        raise ValueError(f"{where}: expected numbers or texts, got {dtype}")


class DatasetReader:
    """Reads datasets of an untrusted HDF5 file, none of which may be in another file.

    Args:
        file: what `open_hdf5` returned for `source`.
        limit: counts what is read.
    """

    def __init__(self, file: h5py.File, source: Path | io.BytesIO, limit: ReadLimit):
        self.source, self.limit = source, limit
        self.number = _file_number(file)

    def read(self, dataset: h5py.Dataset) -> np.ndarray:
        """Return the values: numbers, texts or variable-length arrays of numbers.

        Raises:
            ValueError: the dataset is of another kind, in another file or too large.
        """
        self.check(dataset)
        base = h5py.check_vlen_dtype(dataset.dtype)
        # h5py crashes at some single arrays of variable length.
        dtype = dataset.dtype if base is None or dataset.ndim == 0 else np.dtype(base)
        _check_kind(dtype, f"{self.limit.path}: {dataset.name}")
        if dataset.shape is None:
            return np.empty(0)
        return np.asarray(dataset[()])

    def check(self, dataset: h5py.Dataset) -> None:
        """Check a dataset and count its size before it is read; errors as in `read`."""
        where = f"{self.limit.path}: {dataset.name}"
        if _file_number(dataset) != self.number or dataset.external:
            raise ValueError(f"{where}: expected data in this file, got data in another")
        if dataset.is_virtual:
            raise ValueError(f"{where}: expected plain values, got parts of other datasets")
        n_items, itemsize = math.prod(dataset.shape or (0,)), dataset.dtype.itemsize
        n_in_chunk = math.prod(dataset.chunks or (n_items,))
        if n_in_chunk * itemsize > self.limit.left:
            raise ValueError(
                f"{where}: expected at most {self.limit.left} bytes, "
                f"got chunks of {n_in_chunk * itemsize}"
            )
        self.limit.take(n_items * itemsize, str(dataset.name))
        if n_items > n_in_chunk * max(_FEW_CHUNKS, self.limit.n_file_bytes // _CHUNK_ENTRY_BYTES):
            raise ValueError(f"{where}: has more chunks than the file has room for")
        base = h5py.check_vlen_dtype(dataset.dtype)
        if base is not None and (kind := _kind_of_length(dataset)) > 1:
            raise ValueError(
                f"{where}: expected arrays or texts of variable length, got kind {kind}"
            )
        if base is not None and dataset.shape is not None and dataset.id.get_storage_size():
            # The HDF5 library allocates a value's length before it looks for the value, and many
            # may share the same bytes.
            lengths = self._references(dataset)["length"]
            itemsize = 1 if base in (str, bytes) else np.dtype(base).itemsize
            self.limit.take(int(lengths.sum(dtype=np.int64)) * itemsize, str(dataset.name))

    def _references(self, dataset: h5py.Dataset) -> np.ndarray:
        """Return where values of variable length are, as the file has it: `_REFERENCE` ``[n]``."""
        where = f"{self.limit.path}: {dataset.name}"
        if dataset.file.id.get_create_plist().get_sizes()[0] != 8:
            raise ValueError(f"{where}: expected a file with addresses of 8 bytes")
        if dataset.chunks:
            return self._decoded_chunks(dataset).ravel()
        start, n_bytes = dataset.id.get_offset(), math.prod(dataset.shape) * _REFERENCE.itemsize
        if start is None:
            raise ValueError(f"{where}: expected chunks or one block, got a compact layout")
        if isinstance(self.source, io.BytesIO):
            content = self.source.getvalue()[start : start + n_bytes]
        else:
            with self.source.open("rb") as file:
                file.seek(start)
                content = file.read(n_bytes)
        if len(content) < n_bytes:
            raise ValueError(f"{where}: goes beyond the file's end")
        return np.frombuffer(content, _REFERENCE)

    def _decoded_chunks(self, dataset: h5py.Dataset) -> np.ndarray:
        """Return the references of a chunked dataset, unpacked by the HDF5 library in memory."""
        with h5py.File("chunks", "w", driver="core", backing_store=False) as file:
            options = dataset.id.get_create_plist()
            options.set_fill_value(np.zeros((), _RAW))
            space = h5s.create_simple(dataset.shape)
            copy = h5d.create(file.id, b"copy", h5t.py_create(_RAW), space, options)
            for chunk in dataset.iter_chunks():
                start = tuple(part.start for part in chunk)
                n_bytes = dataset.id.get_chunk_info_by_coord(start).size
                if n_bytes > self.limit.n_bytes:
                    raise ValueError(
                        f"{self.limit.path}: {dataset.name}: a chunk of {n_bytes} bytes"
                    )
                if n_bytes:
                    mask, content = dataset.id.read_direct_chunk(start)
                    copy.write_direct_chunk(start, content, mask)
            values = np.empty(dataset.shape, _RAW)
            copy.read(h5s.ALL, h5s.ALL, values)
        return values.view(_REFERENCE)


def _file_number(item: h5py.File | h5py.Dataset) -> int:
    return h5o.get_info(item.id).fileno


def _kind_of_length(dataset: h5py.Dataset) -> int:
    """Return 0 for arrays of variable length, 1 for texts; the HDF5 library crashes at others.

    Format: the low four bits of the class bit field of "The Datatype Message", class 9, after two
    bytes that `encode` puts first and one of class and version.
    """
    return dataset.id.get_type().encode()[3] & 15


def check_tree(path: Path) -> None:
    """Check every dataset and link of a file, for a library that has no limits of its own.

    Raises:
        ValueError: as in `DatasetReader.read`, a link to another file, an attribute of variable
            length that is no text, at some of which h5py crashes, or groups that are nested too
            deep or within themselves, also by links or references: a library that descends into
            them would not come back.
        OSError: the file is not HDF5.
    """
    with open_hdf5(path) as file:
        reader = DatasetReader(file, path, ReadLimit(path))
        level: dict[int, _Item] = {_address(file): file}
        checked: set[int] = set()
        for _ in range(_DEEPEST):
            for address in level.keys() - checked:
                if isinstance(found := level[address], h5py.Dataset):
                    reader.check(found)
            checked |= level.keys()
            level = {_address(x): x for item in level.values() for x in _within(path, item)}
            if not level:
                return
        raise ValueError(
            f"{path}: expected groups at most {_DEEPEST} deep, got deeper ones or one within itself"
        )


def _within(path: Path, item: _Item) -> Iterator[_Item]:
    """Items of a group, and those that an attribute or a dataset of one value refers to."""
    if isinstance(item, h5py.Group):
        for key in item:
            if isinstance(item.get(key, getlink=True), h5py.ExternalLink):
                raise ValueError(f"{path}: {item.name}/{key} is a link to another file")
            found: Any = item.get(key)
            if found is not None:  # a link to nowhere
                yield found
    elif isinstance(item, h5py.Dataset) and _is_reference(item):
        yield item.file[item[()]]
    for name in item.attrs:
        stored = item.attrs.get_id(name)
        base = h5py.check_vlen_dtype(stored.dtype)
        if base not in (None, str, bytes):
            raise ValueError(
                f"{path}: attribute {name!r} of {item.name}: expected numbers, texts or "
                f"references, got {base} of variable length"
            )
        if _is_reference(stored):
            yield item.file[item.attrs[name]]


def _is_reference(stored: Any) -> bool:
    return stored.shape == () and h5py.check_ref_dtype(stored.dtype) is h5py.Reference


def _address(item: _Item) -> int:
    return h5o.get_info(item.id).addr
