"""Compiled kernels on disk, so that only the first process compiles; several may at once.

Numba's cache has an index that lists the files of a function's results. When two processes of a
sweep compile one function for different arguments at the same time, both can give their results the
same file, so that a later process stops at an obscure error, or runs the code of one with the
arguments of the other. Here a file's name is a hash of what the result was compiled from. There is
no index and no lock: processes that write the same file write the same thing.

Numba also does not notice when a function changes that a kernel calls in another file. Here any
change in a file with kernels outdates all.
"""

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from glob import escape
from pathlib import Path
from typing import Any

import numba
from numba import types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

_PACKAGE = Path(__file__).parents[2]
_HASH_BYTES = 32


def keep_on_disk(kernel: Any) -> Any:
    """Let a kernel load what earlier processes compiled, and save what it compiles; returns it.

    Warns once if no folder is writable: each process then compiles for itself.
    """
    if isinstance(kernel, Dispatcher):  # not with NUMBA_DISABLE_JIT=1
        try:
            kernel._cache = _KernelCache(kernel.py_func)  # pyright: ignore[reportAttributeAccessIssue]
        except RuntimeError:  # Numba finds no folder
            _warn()
    return kernel


@cache
def _warn() -> None:
    if folder := os.environ.get("NUMBA_CACHE_DIR"):
        cause = f"NUMBA_CACHE_DIR={folder} is not writable"
    else:
        cause = (
            "neither the package's folder nor ~/.cache is writable; NUMBA_CACHE_DIR=FOLDER keeps "
            "them in another"
        )
    warnings.warn(f"kernels are compiled anew by each process, because {cause}", stacklevel=2)


@cache
def _sources() -> str:
    """Hash of all files with kernels, and of what turns a model's functions into them."""
    files = sorted([*_PACKAGE.glob("*/cpu/*.py"), *_PACKAGE.glob("*/*_cpu.py")])
    files += [_PACKAGE / "neurons" / name for name in ("model.py", "surrogates.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class _KernelCache(FunctionCache):
    """A function's results, good as long as no file with kernels changes."""

    def __init__(self, function: Callable):
        super().__init__(function)
        stamp = (numba.__version__, self._impl.locator.get_source_stamp(), _sources())
        self._cache_file = _Files(self.cache_path, self._impl.filename_base, stamp)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _names(key: Any) -> Any:
    """Text of a key, the same in each process. Numba names a named tuple without its module."""
    if isinstance(key, tuple | types.BaseTuple):
        parts: Any = key
        return [getattr(key, "instance_class", None), *map(_names, parts)]
    return repr(key)


class _Files(IndexDataCacheFile):
    """Files BASE.STAMP.KEY.nbc: a hash of the content, and the content, key and result.

    What cannot be read, since it is damaged or of another user, counts as not there.
    """

    def _path(self, key: Any) -> Path:
        stamp, key = (_hash(str(_names(x)).encode()).hex() for x in (self._source_stamp, key))
        base = self._index_name.removesuffix(".nbi")
        return Path(self._cache_path) / f"{base}.{stamp[:16]}.{key[:32]}.nbc"

    def load(self, key: Any) -> Any:
        """Load a result; None if there is none that can be read."""
        with suppress(Exception):  # pickle raises any
            content = self._path(key).read_bytes()
            if _hash(content[_HASH_BYTES:]) == content[:_HASH_BYTES]:
                stored, data = pickle.loads(content[_HASH_BYTES:])
                return data if stored == key else None
        return None

    def save(self, key: Any, data: Any) -> None:
        """Write a result, and remove those of other sources."""
        path, content = self._path(key), self._dump((key, data))
        base, stamp, *_ = path.name.rsplit(".", 3)
        try:
            with self._open_for_write(path) as file:  # under another name until it is complete
                file.write(_hash(content) + content)
            for other in path.parent.glob(f"{escape(base)}.*.nbc"):
                if not other.name.startswith(f"{base}.{stamp}."):
                    other.unlink(missing_ok=True)
        except OSError:
            _warn()
