"""Contenders in processes of their own: PyTorch's and XLA's idle threads would share their cores."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from typing import Any, Self

import torch

from benchmarks.timing import ContenderError

_MADE: list[Any] = []  # in the new process: the object


class Remote:
    """An object in a new process; this process calls its methods as if it were here.

    Args:
        make: module-level function that makes the object in the new process, at the first call.
        args: its arguments.
    """

    def __init__(self, make: Callable[..., Any], *args: Any):
        self._make = make, args
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    def __getattr__(self, method: str) -> Callable[..., Any]:
        """A method of the object.

        It raises ContenderError if the object's method or making fails, and BrokenProcessPool if
        the process has ended.
        """
        return partial(self._run, method)

    def _run(self, method: str, *args: Any) -> Any:
        task = torch.get_num_threads(), *self._make, method, args
        result, failed = self._pool.submit(_call, *task).result()
        if failed is not None:
            raise ContenderError(failed)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._pool.shutdown(cancel_futures=True)


def _call(
    n_threads: int, make: Callable[..., Any], args: tuple, method: str, given: tuple
) -> tuple[Any, str | None]:
    try:
        if not _MADE:
            torch.set_num_threads(n_threads)
            _MADE.append(make(*args))
        return getattr(_MADE[0], method)(*given), None
    except Exception as error:  # not every library's errors can be sent to another process
        return None, f"{type(error).__name__}: {error}"
