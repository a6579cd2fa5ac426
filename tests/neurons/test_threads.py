"""Kernels run on PyTorch's threads, on their own where there are none, and pass errors on."""

import sys
import threading

import pytest
import torch

from blockspike.neurons.cpu import threads


@pytest.fixture(params=["OpenMP", "own"])
def kind(request, monkeypatch):
    """Run on PyTorch's threads, or on threads of our own."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    if request.param == "own":
        monkeypatch.setattr(threads, "_openmp_parallel", lambda: None)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch's OpenMP runtime has another entry")
def test_the_threads_are_those_of_pytorch(kind):
    names = set()

    def note(start, stop):
        barrier.wait(10)  # so that each thread takes a piece
        names.add(threading.current_thread().name)

    barrier = threading.Barrier(3)
    threads.run(note, 3)
    assert len(names) == 3
    assert any(name.startswith("blockspike") for name in names) == (kind == "own")


@pytest.mark.parametrize("n_items", [1, 2, 3, 7, 100])
def test_pieces_cover_the_items_once(kind, n_items):
    taken = []
    threads.run(lambda start, stop, to: to.extend(range(start, stop)), n_items, taken)
    assert sorted(taken) == list(range(n_items))


@pytest.mark.usefixtures("kind")
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_is_raised_where_it_waits(error):
    def fail(start, stop):
        if start == 0:
            raise error("no luck")

    with pytest.raises(error, match="no luck"):
        threads.run(fail, 50)
    done = []
    threads.run(lambda start, stop: done.append(start), 50)  # the threads still work
    assert len(done) == 12
