"""Contenders in processes of their own, so that their waiting threads do not take others' cores."""

from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Self

import torch


class Remote:
    """An object in a new process; its methods are called from this one.

    Args:
        make: module-level function of `args` that makes the object in the new process. Its errors,
            and those of methods, are raised here by the next call.
        n_threads: threads that PyTorch may use there.
    """

    def __init__(self, make: Callable[..., Any], *args: Any, n_threads: int | None = None):
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        n_threads = torch.get_num_threads() if n_threads is None else n_threads
        self._process = context.Process(
            target=_serve, args=(theirs, n_threads, make, args), daemon=True
        )
        self._process.start()
        theirs.close()

    def call(self, method: str, *args: Any) -> Any:
        """Call a method of the object and return its result.

        Raises:
            RuntimeError: the process has ended.
            Exception: whatever the method raises.
        """
        try:
            self._connection.send((method, args))
            result = self._connection.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("the contender's process has ended") from error
        if isinstance(result, Exception):
            raise result
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)
        self._process.kill()
        self._process.join()


def _serve(connection: Connection, n_threads: int, make: Callable[..., Any], args: tuple) -> None:
    torch.set_num_threads(n_threads)
    made: Any = None
    try:
        made = make(*args)
    except Exception as error:
        made = error
    while True:
        try:
            method, given = connection.recv()
        except EOFError:
            return
        try:
            if isinstance(made, Exception):
                raise made
            connection.send(getattr(made, method)(*given))
        except Exception as error:
            connection.send(_plain(error))


def _plain(error: Exception) -> Exception:
    """The error without what cannot be sent to another process."""
    name = type(error).__name__
    if isinstance(error, ImportError):
        return ImportError(str(error))
    return RuntimeError(f"{name}: {error}")
