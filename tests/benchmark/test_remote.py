"""Objects in processes of their own: results, errors, and the end of the process."""

import os

import pytest
import torch

from blockspike.benchmark.remote import Remote


class Counter:
    def __init__(self, start: int):
        self.value = start

    def add(self, n: int) -> int:
        self.value += n
        return self.value

    def process(self) -> tuple[int, int]:
        return os.getpid(), torch.get_num_threads()

    def fail(self) -> None:
        raise ZeroDivisionError("no luck")

    def die(self) -> None:
        os._exit(3)


def fail_to_make(name: str):
    raise ImportError(f"no module named {name}")


def test_methods_run_in_another_process():
    with Remote(Counter, 5, n_threads=1) as remote:
        assert [remote.call("add", 2), remote.call("add", 3)] == [7, 10]
        pid, n_threads = remote.call("process")
        assert pid != os.getpid() and n_threads == 1
        with pytest.raises(RuntimeError, match="ZeroDivisionError: no luck"):
            remote.call("fail")
        assert remote.call("add", 1) == 11
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_error_of_the_making_is_raised_by_a_call():
    with Remote(fail_to_make, "jax") as remote, pytest.raises(ImportError, match="named jax"):
        remote.call("turn")


def test_a_dead_process_is_named():
    with Remote(Counter, 0) as remote, pytest.raises(RuntimeError, match="process has ended"):
        remote.call("die")
