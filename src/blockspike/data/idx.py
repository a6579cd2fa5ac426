"""IDX files, the format of MNIST (LeCun, Cortes and Burges, http://yann.lecun.com/exdb/mnist)."""

from __future__ import annotations

import math
from lzma import LZMAError
from pathlib import Path

import numpy as np

from blockspike.data.limits import ZIP_ERRORS, ReadLimit, open_unpacked

_UINT8 = 8  # code of the type
_MOST_DIMENSIONS = 8


def read_idx(path: Path) -> np.ndarray:
    """Read an array of bytes from an IDX file, packed by gzip or not.

    Two zero bytes, the type, the number of dimensions, then each size in four bytes, big-endian,
    and the numbers.

    Returns:
        uint8, of the shape that the file declares.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or holds other numbers than bytes; names the file, what
            was expected and what was found.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an IDX file, got no file")
    try:
        with open_unpacked(path, ReadLimit(path)) as file:
            content = file.read()
    except (*ZIP_ERRORS, LZMAError) as error:
        raise ValueError(f"{path}: not a complete file ({error})") from error
    if content[:3] != bytes([0, 0, _UINT8]) or len(content) < 4:
        raise ValueError(
            f"{path}: expected an IDX file of bytes, starting with 00 00 08, got "
            f"{content[:3].hex(' ') or 'nothing'}"
        )
    n_dimensions = content[3]
    start = 4 + 4 * n_dimensions
    if not 1 <= n_dimensions <= _MOST_DIMENSIONS or len(content) < start:
        raise ValueError(
            f"{path}: expected 1 to {_MOST_DIMENSIONS} dimensions and their sizes, got "
            f"{n_dimensions} in {len(content)} bytes"
        )
    shape = np.frombuffer(content, ">u4", n_dimensions, offset=4).tolist()
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"{path}: expected {math.prod(shape)} numbers, for {' x '.join(map(str, shape))}, got "
            f"{len(content) - start}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
