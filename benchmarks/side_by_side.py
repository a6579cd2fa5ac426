"""Contenders side by side: ours in this process, other libraries in processes of their own.

The idle threads of PyTorch and of XLA would take each other's cores in one process.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from multiprocessing import get_context
from typing import Any, Self

import torch

from benchmarks.contenders import PACKAGES, version_of
from benchmarks.table import Options
from benchmarks.timing import ContenderError, Row, Turns, cost, take_turns

_MADE: list[Any] = []  # in the new process: the object


class Remote:
    """An object in a new process, whose methods can be called as if it were here.

    A method raises ContenderError if the object's method or its making fails, and
    BrokenProcessPool if the process has ended.

    Args:
        make: module-level function that makes the object in the new process, at the first call.
        args: its arguments.
    """

    def __init__(self, make: Callable[..., Any], *args: Any):
        self._make = make, args
        self._pool = ProcessPoolExecutor(1, get_context("spawn"))

    def __getattr__(self, method: str) -> Callable[..., Any]:
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


def measure(
    make: Callable[[str, Any, str], Any],
    names: Sequence[str],
    size: Any,
    options: Options,
    check: Callable[[dict[str, Any]], Turns] = lambda made: {},
    left_out: Mapping[str, str] | None = None,
    device: str = "cpu",
    memory: bool = False,
) -> list[Row]:
    """Time contenders in turns.

    Args:
        make: module-level function (name, size, device) → an object with `turn()`, `about()`, which
            returns columns of its row, and `peak_bytes()`.
        names, size, device: its arguments.
        options: rounds and the longest turn.
        check: compares the objects, by name, before they are timed. It raises RuntimeError if ours
            differ; for others it returns the reason not to time them.
        left_out: contenders that are not run, and why.
        memory: whether to measure peak memory, in yet another process.

    Returns:
        A row per name.
    """
    found: Turns = dict(left_out or {})
    with ExitStack() as processes:
        made = {
            name: processes.enter_context(Remote(make, name, size, device))
            if name in PACKAGES
            else make(name, size, device)
            for name in names
            if name not in found
        }
        found |= check(made)
        contenders = {name: x.turn for name, x in made.items() if name not in found}
        warm_ups = 3 if device == "cuda" else 1  # the second call captures a graph
        found |= take_turns(contenders, options.rounds, options.longest_turn_s, warm_ups)
        rows = []
        for name in names:
            row: Row = {"contender": name, "version": version_of(name)}
            row |= cost(found[name], found.get("fused"))
            rows.append(row if "left_out" in row else row | made[name].about())
    for row in rows:
        if memory and "left_out" not in row:
            row["peak_mib"] = _peak_mib(make, row["contender"], size, device)
    return rows


def _peak_mib(*arguments: Any) -> float | None:
    with Remote(*arguments) as contender:
        try:
            return round(contender.peak_bytes() / 2**20, 1)
        except Exception:  # killed when out of memory, or not on Linux
            return None
