"""Compiled kernels on disk: written by several processes at once, and outdated by any change."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from numba.core import caching

from blockspike.neurons.cpu import cache
from blockspike.neurons.cpu.cache import _Files
from blockspike.neurons.cpu.kernels import kernel

N_PROCESSES, N_KEYS = 4, 25


def test_processes_that_compile_at_once_keep_their_own_code(tmp_path):
    """Threads stand for processes. Numba's own class loses entries and mixes up the code of two."""
    start = threading.Barrier(N_PROCESSES)

    def save(number: int) -> None:
        files = _Files(str(tmp_path), "f", "stamp")
        start.wait()
        for i in range(N_KEYS):
            files.save((number, i), f"code {number} {i}")

    with ThreadPoolExecutor(N_PROCESSES) as pool:
        list(pool.map(save, range(N_PROCESSES)))
    files = _Files(str(tmp_path), "f", "stamp")
    for number in range(N_PROCESSES):
        for i in range(N_KEYS):
            assert files.load((number, i)) == f"code {number} {i}"
    assert len(list(tmp_path.glob("*.nbc"))) == N_PROCESSES * N_KEYS


def test_a_missing_file_is_written_again(tmp_path):
    files = _Files(str(tmp_path), "f", "stamp")
    files.save("a", "code")
    next(tmp_path.glob("*.nbc")).unlink()
    assert files.load("a") is None
    files.save("a", "code")
    assert files.load("a") == "code"


@pytest.mark.parametrize("damage", [lambda _: b"", lambda x: x[:-3], lambda x: x[:-9] + b"9" * 9])
def test_a_damaged_file_is_written_again(tmp_path, damage):
    """As a power cut or a network drive leaves it; the changed bytes may be those of code."""
    _Files(str(tmp_path), "f", "stamp").save("a", "the code of a kernel")
    (path,) = tmp_path.glob("*.nbc")
    path.write_bytes(damage(path.read_bytes()))
    files = _Files(str(tmp_path), "f", "stamp")
    assert files.load("a") is None
    files.save("a", "the code of a kernel")
    assert files.load("a") == "the code of a kernel"


def test_a_file_of_another_user_counts_as_not_there(tmp_path, monkeypatch):
    _Files(str(tmp_path), "f", "stamp").save("a", "code")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    assert _Files(str(tmp_path), "f", "stamp").load("a") is None


def test_a_process_that_is_killed_leaves_no_part_of_a_result(tmp_path, monkeypatch):
    files = _Files(str(tmp_path), "f", "stamp")
    with monkeypatch.context() as patched:
        patched.setattr("os.replace", lambda *_: sys.exit())
        with pytest.raises(SystemExit):
            files.save("a", "code")
    assert files.load("a") is None
    files.save("a", "code")
    assert files.load("a") == "code"


def test_results_of_other_sources_are_removed(tmp_path):
    old, new = (_Files(str(tmp_path), "f", stamp) for stamp in ("old", "new"))
    old.save("a", "code of old")
    assert new.load("a") is None
    new.save("b", "code of new")
    new.save("c", "code of new")
    assert old.load("a") is None and new.load("b") == "code of new"
    assert len(list(tmp_path.glob("*.nbc"))) == 2


class Pair(NamedTuple):
    x: int
    y: float


class Other:
    """Holds another named tuple of the same name, as two modules may."""

    class Pair(NamedTuple):
        y: int
        x: float


def test_named_tuples_of_one_name_have_code_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(caching.config, "CACHE_DIR", str(tmp_path))
    first: Any = None
    for _ in range(2):  # compiled, then loaded
        first = kernel(lambda pair: pair.x)
        assert first(Pair(1, 2.5)) == 1 and first(Other.Pair(1, 2.5)) == 2.5
    assert sum(first.stats.cache_hits.values()) == 2


def test_a_change_in_any_file_of_kernels_outdates_all(tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(caching.config, "CACHE_DIR", str(tmp_path))

    def double(x):
        return 2 * x

    assert kernel(double)(3) == 6
    again: Any = kernel(double)
    assert again(3) == 6 and sum(again.stats.cache_hits.values()) == 1
    monkeypatch.setattr(cache, "_sources", lambda: "other")
    changed: Any = kernel(double)
    assert changed(3) == 6 and sum(changed.stats.cache_misses.values()) == 1


@pytest.mark.parametrize("folder", [None, "/full"])
def test_kernels_run_where_no_folder_is_writable(monkeypatch, folder):
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    if folder is None:
        monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    else:
        monkeypatch.setenv("NUMBA_CACHE_DIR", folder)
    cache._warn.cache_clear()
    words = "NUMBA_CACHE_DIR=/full is not writable" if folder else "NUMBA_CACHE_DIR=FOLDER keeps"
    with pytest.warns(UserWarning, match=words):
        double = kernel(lambda x: 2 * x)
    assert double(3) == 6
    cache._warn.cache_clear()


def test_kernels_can_be_plain_python():
    code = "from blockspike.neurons.cpu.kernels import kernel; print(kernel(lambda x: 2 * x)(3))"
    variables = {"NUMBA_DISABLE_JIT": "1", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=variables
    )
    assert done.stdout == "6\n", done.stderr


SCRIPT = """
import torch
import blockspike as bs
from blockspike.neurons.cpu import fused

def step(drive, parameters, constants, state, fire):
    membrane = parameters[0] * state[0] + FACTOR * drive
    spike, kept = fire(membrane, 1)
    return spike, membrane, 1, (membrane * kept,)

class Flat(bs.Surrogate):
    @staticmethod
    def formula(margin, constants):
        return abs(margin) * SLOPE

model = bs.NeuronModel("mine", ("beta",), ("membrane",), step)
current = torch.ones(9, 1, 3, requires_grad=True)
trace = bs.simulate(model, current, {"beta": torch.full((3,), 0.5)}, surrogate=Flat())
(grad,) = torch.autograd.grad(trace.spikes.sum(), current)
compiled = (sum(x.stats.cache_misses.values()) for x in (fused._forward, fused._backward))
print(*compiled, int(trace.spikes.sum()), float(grad[-1, 0, 0]))
"""


@pytest.mark.slow
def test_another_process_loads_the_kernels_of_the_same_model_and_surrogate(tmp_path):
    def run(factor: str, slope: str) -> list[float]:
        code = SCRIPT.replace("FACTOR", factor).replace("SLOPE", slope)
        variables = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=variables, check=True)
        return [float(x) for x in done.stdout.split()]

    assert run("0.75", "2") == [1, 1, 12, 0.375]
    assert run("0.75", "2") == [0, 0, 12, 0.375]
    assert run("0.75", "4") == [0, 1, 12, 0.75]
    assert run("2", "4") == [1, 1, 27, 8.0]
