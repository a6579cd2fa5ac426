"""How functions become kernels: compiled by Numba, kept on disk, run without the GIL.

A kernel is a serial function of a range of work items; `threads.run` spreads the range over
threads. A kernel's source is Python, but it runs compiled only, and Numba has traps:

- A slice of an array counts a reference, atomically. Threads that slice one array wait for each
  other's counter, so kernels drop the count first (`without_refcount`) or use flat arrays and
  offsets.
- A signed index may be negative, and Numba then adds the array's length. So each access checks the
  sign, and LLVM does not vectorise such loops. `np.uintp` indices have no check.
- A call passes arrays whole, with their counts. Small helpers are inlined (`kernel_part`).
- A loop that counts down does not vectorise. Kernels that go back through time count up and
  subtract.
"""

import sys
from collections.abc import Callable
from threading import Timer
from typing import Any

import numba
from llvmlite import ir
from numba import extending
from numba.core.event import Listener, register

from blockspike.neurons.cpu.cache import keep_on_disk

# Division by 0 gives Inf as in NumPy; Numba's default raises an error, which costs a branch.
EXACT: dict[str, Any] = {"error_model": "numpy", "nogil": True}
WITH_FMA: dict[str, Any] = {**EXACT, "fastmath": {"contract"}}
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


def _compiler(options: dict[str, Any]) -> Callable[[Callable], Any]:
    return lambda function: keep_on_disk(numba.njit(**options)(function))


# Operations are rounded as written, so that spikes equal those of PyTorch.
kernel = _compiler(EXACT)
# Always inlined into a kernel: a call would count the references of each array.
kernel_part = _compiler(EXACT | {"forceinline": True})
# a·b + c may round once (FMA). For gradients, and for products with delays, whose sums have an
# order of their own anyway.
kernel_with_fma = _compiler(WITH_FMA)


def in_kernels(implement: Callable, **options: Any) -> Any:
    """Define a function of kernels by what Numba shall compile for arguments of given types.

    `implement` gets Numba types and returns a Python function of the same arguments.
    """

    def function(*_):
        raise NotImplementedError(
            "kernels: expected compiled ones, got NUMBA_DISABLE_JIT=1; unset it, or use "
            "method='standard'"
        )

    overload: Any = extending.overload  # its types name fewer options than it takes
    overload(function, jit_options=options)(implement)
    return function


@intrinsic
def _uncounted(typingctx, array):  # pyright: ignore[reportUnusedParameter]
    def codegen(context, builder, signature, args):
        view = context.make_array(array)(context, builder, args[0])
        view.meminfo = ir.Constant(view.meminfo.type, None)
        return view._getvalue()

    return array(array), codegen


def without_refcount(array: Any) -> Any:
    """Drop the reference count of an array in a kernel; the caller must keep the array alive."""
    return array


@extending.overload(without_refcount)
def _without_refcount(array):
    return lambda array: _uncounted(array)
