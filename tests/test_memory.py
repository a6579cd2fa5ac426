"""Freed memory is kept from the first large simulation on, unless someone decided otherwise."""

import mmap
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc's malloc")

# Prints the pages that a simulation maps afresh once the heap has grown.
PROGRAM = """
import ctypes, resource, sys

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: a huge page counts as one
import torch
import blockspike as bs

current = torch.rand(600, 64, 256).requires_grad_()  # 39 MB
beta = torch.full((256,), 0.9)
exec(sys.argv[1])

def simulate():
    current.grad = None
    bs.alif(current, beta).spikes.sum().backward()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

found = []
for _ in range(10):
    before = faults()
    simulate()
    found.append(faults() - before)
print(min(found))
"""


def pages_per_simulation(first: str = "", **variables: str) -> int:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, first], env=environment | variables, check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    return int(done.stdout)


def test_nothing_needs_to_be_set():
    assert pages_per_simulation() < 500  # of 9600 in each array


@pytest.mark.parametrize(
    ("first", "variables"),
    [
        ("bs.keep_freed_memory(False)", {}),
        ("", {"MALLOC_MMAP_THRESHOLD_": "131072"}),
        ("", {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}),
    ],
)
def test_a_decision_of_the_program_or_user_holds(first, variables):
    assert pages_per_simulation(first, **variables) > 9000 * 4096 // mmap.PAGESIZE


def test_a_small_simulation_changes_nothing():
    small = "bs.alif(torch.rand(50, 2, 8), beta[:8])"
    check = "; from blockspike import memory; assert not memory._is_decided"
    assert pages_per_simulation(small + check) < 500
