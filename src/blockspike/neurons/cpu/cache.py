"""Compiled kernels on disk, as Numba keeps them, but safe for processes that compile at once.

Two processes of a sweep may compile one function for different arguments at the same time. Numba
can then give both results the same file, so that a later process stops at an obscure error, or runs
the code of one with the arguments of the other. Nor does Numba notice that a function has changed
which a kernel calls in another file.
"""

import fcntl
import hashlib
import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from glob import escape
from pathlib import Path
from typing import IO, Any

from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.dispatcher import Dispatcher

_PACKAGE = Path(__file__).parents[2]
_TRIES, _PAUSE_S = 100, 0.01


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
    """A function's results in Numba's own layout, good as long as no file with kernels changes."""

    def __init__(self, function: Callable):
        super().__init__(function)
        stamp = (self._impl.locator.get_source_stamp(), _sources())
        self._cache_file = _SharedFiles(self.cache_path, self._impl.filename_base, stamp)


class _SharedFiles(IndexDataCacheFile):
    """Index and results of a function, in a folder in which several processes read and write.

    Each result has a file of its own, named by its content, so no index can name another. What
    cannot be read, since it is damaged or of another user, counts as not there and is replaced.
    """

    def __init__(self, *args: Any):
        super().__init__(*args)
        self._unreadable: set[Any] = set()

    def _load_index(self) -> dict[Any, str]:
        with suppress(Exception):  # pickle raises any
            return super()._load_index()
        return {}

    def load(self, key: Any) -> Any:
        """Load a result; None if there is none that can be read."""
        name = self._load_index().get(key)
        if name is None:
            return None
        with suppress(Exception):
            content = Path(self._data_path(name)).read_bytes()
            if name == self._name_of(content):
                return pickle.loads(content)
        self._unreadable.add(key)
        return None

    def _name_of(self, content: bytes) -> str:
        base = self._index_name.removesuffix(".nbi")
        return f"{base}.{hashlib.sha256(content).hexdigest()[:32]}.nbc"

    def save(self, key: Any, data: Any) -> None:
        """Add a result unless another process has."""
        try:
            self._save(key, data)
        except OSError:
            _warn()

    def _save(self, key: Any, data: Any) -> None:
        with self._alone() as is_alone:
            index = self._load_index()
            is_there = key in index and Path(self._data_path(index[key])).is_file()
            if is_there and key not in self._unreadable:
                return
            content = self._dump(data)
            index[key] = self._name_of(content)
            with self._open_for_write(self._data_path(index[key])) as file:
                file.write(content)  # first: what the index names must be there
            self._save_index(index)
            if is_alone:
                base = escape(self._index_name.removesuffix(".nbi"))
                for path in Path(self._cache_path).glob(f"{base}.*.nbc"):
                    if path.name not in index.values():
                        path.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        """Whether no other process writes meanwhile; without locks one may, and lose an entry."""
        with ExitStack() as stack:
            try:
                lock = stack.enter_context((Path(self._cache_path) / ".lock").open("a"))
            except OSError:  # of another user
                yield False
                return
            is_alone = _locked(lock)
            try:
                yield is_alone
            finally:
                if is_alone:
                    fcntl.flock(lock, fcntl.LOCK_UN)  # a process forked meanwhile has it, too


def _locked(lock: IO[str]) -> bool:
    """Lock the file; False where there are no locks, or after a second."""
    for _ in range(_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:
            break
    return False
