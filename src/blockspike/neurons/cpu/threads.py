"""Threads for kernels: those that PyTorch already has.

PyTorch's threads wait for their next work in a loop, on their cores, for some milliseconds. Threads
of ours would have to share the cores with them. Numba's `parallel=True` starts its own OpenMP
threads, which slowed PyTorch's operations down by up to 25 times, and it kills forked children.

So `run` calls the OpenMP runtime that PyTorch has loaded. Kernels release the GIL, and the threads
take piece after piece of the work:

    items    0 ────────────────────────────── n        up to 4 pieces for each thread
    pieces   | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |         a thread that is done takes the next

A forked child has none of its parent's threads, and GNU OpenMP would wait for them. So kernels run
on a pool of Python's threads there, as where PyTorch has another runtime.
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
        submit, n_others = _pool(os.getpid()).submit, min(n_threads, n_items) - 1
        others = [submit(_work, job) for _ in range(n_others)]
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
_process = os.getpid()


def _openmp_parallel() -> Callable | None:
    """Function that runs a C function on PyTorch's threads; None where there are none."""
    return _find_openmp_parallel() if os.getpid() == _process else None


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


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Threads of a process: a forked child needs others than its parent."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="blockspike")
