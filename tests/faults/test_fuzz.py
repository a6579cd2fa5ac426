"""The short form of `fuzz.py`: some inputs to each parser; and that it sees what is wrong."""

import os
import random
import signal
import time

import numpy as np
import pytest
from fuzz import failure, fuzz
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import PARSERS, Parser

from tiers import mostly_slow

N_EXAMPLES = {"nwb2": 4, "nwb2_clocks": 10, "nwb2_cells": 4, "overrides": 20, "config": 30}
NEEDS = {"nwb2": "pynwb", "nwb2_clocks": "pynwb", "nwb2_cells": "pynwb", "ibw": "igor2"}


@pytest.mark.filterwarnings("ignore")  # of numpy and pynwb on broken values
@pytest.mark.parametrize(
    "name", mostly_slow(PARSERS, lambda name: name not in ("nwb2", "overrides"))
)
def test_broken_input_is_refused_by_a_typed_error(name):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    parser = PARSERS[name]
    parser.prepare()

    n_examples = N_EXAMPLES.get(name, 100)

    @settings(max_examples=n_examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.sampled_from(parser.seeds), st.integers(0, 2**32))
    def check(content: bytes, seed: int) -> None:
        broken = parser.changed(content, random.Random(seed))
        wrong = failure(parser.read, broken)
        if wrong and "CPU time" in wrong:  # perhaps of an import, in the first call that needs it
            wrong = failure(parser.read, broken)
        assert wrong is None

    check()


def read_one_of_all_faults(content: bytes) -> None:
    """What is wrong is the first byte."""
    match content[0]:
        case 1:
            raise TypeError("not typed")
        case 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 3:
            end = time.process_time() + 1.1
            while time.process_time() < end:
                pass
        case 4:
            try:
                np.ones(3 << 30, np.uint8)
            except MemoryError as error:
                raise ValueError("damaged") from error
        case 5:
            raise ValueError("damaged")


def test_every_kind_of_fault_is_seen_and_the_rest_is_read_on(monkeypatch):
    parser = Parser(6, read_one_of_all_faults, lambda: [b"\0"])
    monkeypatch.setattr(parser, "made", lambda seed, i: bytes([i % 6]))
    monkeypatch.setitem(PARSERS, "faulty", parser)
    wrong = dict(fuzz("faulty", seed=0, n_runs=8))
    assert wrong.keys() == {1, 2, 3, 4, 7}
    assert "TypeError: not typed" in wrong[1] and wrong[7] == wrong[1]
    assert "SIGSEGV" in wrong[2]
    assert "s of CPU time" in wrong[3]
    assert "too much memory" in wrong[4]


def test_inputs_are_a_function_of_the_seed():
    parser = PARSERS["nmnist"]
    first = [parser.made(0, i) for i in range(20)]
    assert first == [parser.made(0, i) for i in range(20)] != [parser.made(1, i) for i in range(20)]
    assert len(set(first)) > 10
