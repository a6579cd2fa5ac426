"""Run kernels on the threads that PyTorch already has.

PyTorch's threads wait for their next work in a loop, on their cores, for some milliseconds. Threads
of ours would have to share the cores with them. For the same reason Numba's `parallel=True` is
avoided: its own OpenMP threads beside PyTorch's slowed PyTorch's operations down by up to 25 times.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

_PIECES_PER_THREAD = 4  # more than one, to balance the load


def run(compiled: Callable, n_items: int, *args: Any) -> None:
    """Call `compiled(start, stop, *args)` in parallel on pieces that cover range(n_items).

    Items must be independent, so that the result does not depend on the number of threads.
    """
    n_threads = torch.get_num_threads()
    if min(n_threads, n_items) <= 1:
        compiled(0, n_items, *args)
        return
    n_pieces = min(n_items, _PIECES_PER_THREAD * n_threads)
    bounds = [n_items * i // n_pieces for i in range(n_pieces + 1)]
    job = _Job(compiled, iter(list(pairwise(bounds))), args, [])
    parallel = _openmp_parallel()
    if parallel is None:
        others = [_threads().submit(_work, job) for _ in range(min(n_threads, n_items) - 1)]
        _work(job)
        wait(others)
    else:
        parallel(_work_of_thread, job, n_threads, 0)
    if job.errors:
        raise job.errors.pop(0)  # its traceback holds this frame, and with it the job


class _Job(NamedTuple):
    compiled: Callable
    pieces: Iterator[tuple[int, int]]  # of a list: each piece goes to one thread
    args: tuple
    errors: list[BaseException]


def _work(job: _Job) -> None:
    try:
        for start, stop in job.pieces:
            job.compiled(start, stop, *job.args)
    except BaseException as error:  # raised again by the thread that waits
        job.errors.append(error)


_THREAD_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.py_object)
_work_of_thread = _THREAD_FUNCTION(_work)
_forked = False
_pool: ThreadPoolExecutor | None = None


def _openmp_parallel() -> Callable | None:
    """Function that runs a C function on PyTorch's threads; None where there are no such threads.

    Threads of a parent do not survive a fork, and GNU OpenMP would wait for them.
    """
    return None if _forked else _find_openmp_parallel()


@cache
def _find_openmp_parallel() -> Callable | None:
    # A symbol looked up in PyTorch's library is found in the very runtime that PyTorch runs on.
    library = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    try:
        parallel = ctypes.CDLL(str(library)).GOMP_parallel
    except (OSError, AttributeError):  # not Linux, or another OpenMP runtime
        return None
    parallel.argtypes = [_THREAD_FUNCTION, ctypes.py_object, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="blockspike")
    return _pool


def _after_fork() -> None:
    global _pool, _forked
    _pool, _forked = None, True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
