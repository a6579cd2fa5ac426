"""Progress of long work: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress on stderr; yields ``advance(n)``, which counts ``n`` more of ``total``."""
    if not sys.stderr.isatty():
        yield _plain_lines(description, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total)
        yield lambda n: bar.advance(task, n)


def _plain_lines(description: str, total: int) -> Callable[[int], None]:
    """Return ``advance(n)`` that prints a line at each tenth of the work."""
    done = tenth = 0

    def advance(n: int) -> None:
        nonlocal done, tenth
        done += n
        reached = 10 * done // max(total, 1)
        if reached > tenth:
            tenth = reached
            print(f"{description}: {10 * tenth} %", file=sys.stderr, flush=True)

    return advance
