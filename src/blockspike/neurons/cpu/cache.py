"""Compiled kernels on disk, as Numba keeps them, but safe for processes that compile at once.

Two processes of a sweep may compile one function for different arguments at the same time. Numba
can then give both results the same file, so that a later process stops at an obscure error, or runs
the code of one with the arguments of the other. Nor does Numba notice that a function has changed
which a kernel calls in another file.
"""

import fcntl
import hashlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

_PACKAGE = Path(__file__).parents[2]


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
    warnings.warn(
        "kernels are compiled anew by each process, because neither the package's folder nor "
        "~/.cache is writable; NUMBA_CACHE_DIR=FOLDER keeps them in another",
        stacklevel=2,
    )


@cache
def _sources() -> str:
    """Hash of all files with kernels, and of what turns a model's functions into them."""
    files = sorted([*_PACKAGE.glob("*/cpu/*.py"), *_PACKAGE.glob("*/*_cpu.py")])
    files.append(_PACKAGE / "neurons" / "model.py")
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


class _KernelCache(FunctionCache):
    """A function's results in Numba's own layout, good as long as no file with kernels changes."""

    def __init__(self, function: Callable):
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), _sources())
        self._cache_file = _SharedFiles(self.cache_path, self._impl.filename_base, stamp)


class _SharedFiles(IndexDataCacheFile):
    """Index and results of a function, in a folder where one process at a time writes."""

    def save(self, key: Any, data: Any) -> None:
        """Add a result unless another process has; on a file system without locks, do nothing."""
        with suppress(OSError), (Path(self._cache_path) / ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            index = self._load_index()
            names = [self._data_name(i) for i in range(1, len(index) + 2)]
            name = index.get(key) or next(n for n in names if n not in index.values())
            if key not in index or not Path(self._data_path(name)).is_file():
                self._save_data(name, data)  # first: what the index names must be there
                self._save_index(index | {key: name})
