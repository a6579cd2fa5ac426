"""Shared by all Numba kernels: how they are compiled.

A kernel is a serial function of a range of work items that releases the GIL; `threads.run` spreads
the range over threads.
"""

import sys
from collections.abc import Callable
from threading import Timer
from typing import Any

import numba
from llvmlite import ir
from numba import extending
from numba.core.event import Listener, register
from numba.extending import overload

from blockspike.neurons.cpu.cache import keep_on_disk

_SLOW_S = 1.0


class Announcement(Listener):
    """Says on stderr, once and if somebody may be watching, why a first call takes so long."""

    def __init__(self):
        self.is_made, self.depth, self.timer = False, 0, Timer(0, self._say)

    def on_start(self, event: Any) -> None:
        """A function is going to be compiled, perhaps within another."""
        self.depth += 1
        module = str(event.data["dispatcher"].py_func.__module__)
        watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
        if self.depth == 1 and watched and not self.is_made and module.startswith("blockspike."):
            self.timer = Timer(_SLOW_S, self._say)
            self.timer.daemon = True
            self.timer.start()

    def on_end(self, event: Any) -> None:
        """It is compiled."""
        self.depth -= 1
        if self.depth == 0:
            self.timer.cancel()

    def _say(self) -> None:
        self.is_made = True
        print(
            "blockspike: compiling kernels; each kind of simulation takes some seconds, once",
            file=sys.stderr,
        )


register("numba:compile", Announcement())

intrinsic: Any = extending.intrinsic  # pyright cannot know that callers leave out `typingctx`


def kernel(function: Callable) -> Callable:
    """Compile `function` to run without the GIL, cached on disk between processes.

    Operations are rounded as written, so that spikes equal those of PyTorch.
    """
    return keep_on_disk(numba.njit(error_model="numpy", nogil=True)(function))


def kernel_part(function: Callable) -> Callable:
    """Compile as `kernel` does, always inlined: a call would count the references of each array."""
    options = {"error_model": "numpy", "nogil": True, "forceinline": True}
    return keep_on_disk(numba.njit(**options)(function))


def kernel_with_fma(function: Callable) -> Callable:
    """Compile as `kernel` does, but let a·b + c round once (FMA).

    For gradients, and for products with delays, whose sums have an order of their own anyway.
    """
    options = {"error_model": "numpy", "nogil": True, "fastmath": {"contract"}}
    return keep_on_disk(numba.njit(**options)(function))


def without_refcount(array: Any) -> Any:
    """Drop the reference count of an array in a kernel; the caller must keep the array alive.

    Slices count references atomically, so threads that slice one array would wait for each other.
    """
    return array


@overload(without_refcount)
def _without_refcount_overload(array):
    return lambda array: _without_refcount(array)


@intrinsic
def _without_refcount(typingctx, array):  # pyright: ignore[reportUnusedParameter]
    def codegen(context, builder, signature, args):
        view = context.make_array(array)(context, builder, args[0])
        view.meminfo = ir.Constant(view.meminfo.type, None)
        return view._getvalue()

    return array(array), codegen
