"""Shared by all Numba kernels: how they are compiled and run in parallel.

A kernel is a serial function of a range of work items that releases the GIL. `run` spreads the
range over as many plain threads as PyTorch uses. Numba's `parallel=True` is avoided on purpose: its
OpenMP pool beside PyTorch's slowed PyTorch's operations down by up to 25 times, it kills forked
children, and its fallback pool aborts on concurrent calls.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

_PIECES_PER_THREAD = 4  # more than one, to balance the load
_pool: ThreadPoolExecutor | None = None


def kernel(function: Callable) -> Callable:
    """Compile `function` to run without the GIL, cached on disk between processes.

    Operations are rounded as written, so that spikes equal those of PyTorch.
    """
    return numba.njit(cache=True, error_model="numpy", nogil=True)(function)


def kernel_with_fma(function: Callable) -> Callable:
    """Compile as `kernel` does, but let a·b + c round once (FMA); for gradients only."""
    return numba.njit(cache=True, error_model="numpy", nogil=True, fastmath={"contract"})(function)


def without_refcount(array: Any) -> Any:
    """Drop the reference count of an array in a kernel; the caller must keep the array alive.

    Slices count references atomically, so threads that slice one array would wait for each other.
    """
    return array


@overload(without_refcount)
def _without_refcount_overload(array):
    return lambda array: _without_refcount(array)  # pyright: ignore[reportCallIssue]


@intrinsic
def _without_refcount(typingctx, array):  # pyright: ignore[reportUnusedParameter]
    def codegen(context, builder, signature, args):
        view = context.make_array(array)(context, builder, args[0])
        view.meminfo = ir.Constant(view.meminfo.type, None)
        return view._getvalue()

    return array(array), codegen


LINE_BYTES = 32  # written by `stream_line`; its target must be aligned to as many bytes


@intrinsic
def stream_line(typingctx, target, at, source, first):  # pyright: ignore[reportUnusedParameter]
    """Copy LINE_BYTES from source[first …] to target[at …], bypassing the caches.

    This non-temporal store is for large results that are not read soon. An ordinary store would
    first read the memory it overwrites.
    """

    def codegen(context, builder, signature, args):
        def address(array, index):
            data = context.make_array(signature.args[array])(context, builder, args[array]).data
            return builder.bitcast(builder.gep(data, [args[index]]), line.as_pointer())

        element = context.get_data_type(target.dtype)
        line = ir.VectorType(element, LINE_BYTES // (target.dtype.bitwidth // 8))
        values = builder.load(address(2, 3), align=target.dtype.bitwidth // 8)
        store = builder.store(values, address(0, 1), align=LINE_BYTES)
        flag = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        store.set_metadata("nontemporal", flag)
        return context.get_dummy_value()

    return types.void(target, types.uintp, source, types.uintp), codegen


def run(compiled: Callable, n_items: int, *args: Any) -> None:
    """Call `compiled(start, stop, *args)` in parallel on pieces that cover range(n_items).

    Items must be independent, so that the result does not depend on the number of threads.
    """
    n_threads = min(torch.get_num_threads(), n_items)
    if n_threads <= 1:
        compiled(0, n_items, *args)
        return
    n_pieces = min(n_items, _PIECES_PER_THREAD * n_threads)
    bounds = [n_items * i // n_pieces for i in range(n_pieces + 1)]
    pieces = iter(list(pairwise(bounds)))
    others = [_threads().submit(_work, compiled, pieces, args) for _ in range(n_threads - 1)]
    _work(compiled, pieces, args)
    for other in others:
        other.result()


def _work(compiled: Callable, pieces: Iterator[tuple[int, int]], args: tuple) -> None:
    for start, stop in pieces:  # a list iterator: each piece goes to one thread
        compiled(start, stop, *args)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="blockspike")
    return _pool


def _forget_threads() -> None:
    global _pool
    _pool = None  # threads do not survive a fork


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)
