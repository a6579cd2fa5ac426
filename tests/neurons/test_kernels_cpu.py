"""Guarantees of the CPU kernels: memory, threads, forks, no reads of uninitialised memory."""

import ctypes
import inspect
import multiprocessing
import threading
from typing import Any

import numpy as np
import pytest
import torch
from neuron_cases import alif, assert_same_result, make_inputs, run
from torch.autograd.graph import saved_tensors_hooks

from blockspike.neurons.cpu import fused as fused_cpu

METHODS = ["fused", "blocks"]


@pytest.fixture
def keep_num_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("method", "recurrent", "n_bytes"),
    [
        ("fused", True, 4 + 1 + 12 / 8),
        ("fused", False, 12 / 8),  # besides the current
        ("blocks", True, 4 + 1 + 28 / 8),
        ("blocks", False, 28 / 8),
    ],
)
def test_saved_bytes_per_neuron_step(method, recurrent, n_bytes):
    inputs = make_inputs((1024, 3, 64), recurrent=recurrent, dtype=torch.float32)
    given = {value.untyped_storage().data_ptr() for value in inputs.values()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trace = alif(**inputs, arp=5, method=method)
    assert trace.spikes.untyped_storage().data_ptr() not in kept  # the caller may free it
    total = sum(n for _, n in kept.values())
    assert total / trace.spikes.numel() == pytest.approx(n_bytes, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("n_neurons", [8, 17, 136, 264])  # whole and partial lines and strips
def test_results_that_bypass_the_caches(monkeypatch, n_neurons, recurrent, dtype):
    inputs = make_inputs((35, 2, n_neurons), recurrent=recurrent, dtype=dtype)
    expected = run(inputs, arp=3)
    streamed = []

    def look(function, n_items, *args):
        if function is fused_cpu._forward:
            given = inspect.signature(function.py_func).bind(0, n_items, *args)
            streamed.append(given.arguments["stream"])
        return run_in_parallel(function, n_items, *args)

    run_in_parallel = fused_cpu.run
    monkeypatch.setattr(fused_cpu, "run", look)
    monkeypatch.setattr(fused_cpu, "_STREAMED_BYTES", 0)
    assert_same_result(run(inputs, arp=3), expected)
    assert streamed == [n_neurons != 17]


@pytest.mark.usefixtures("keep_num_threads")
@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_neurons", [67, 7])  # 7 gives a last tile of 3 columns
@pytest.mark.parametrize("method", METHODS)
def test_bitwise_equal_with_any_number_of_threads(
    method, n_neurons, dtype, recurrent, detach_spikes
):
    inputs = make_inputs((65, 5, n_neurons), recurrent=recurrent, dtype=dtype)
    options = {"arp": 3, "detach_spikes": detach_spikes, "method": method}
    torch.set_num_threads(1)
    expected = run(inputs, **options)
    for n_threads in (2, 3, 7):
        torch.set_num_threads(n_threads)
        for _ in range(3):
            assert_same_result(run(inputs, **options), expected)


def _run_in_child(connection, inputs, method):
    connection.send([run(inputs, arp=3, method=method)[1]["current"].numpy()])
    connection.close()


@pytest.mark.usefixtures("keep_num_threads")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_forked_child_after_use_in_the_parent(method, recurrent):
    torch.set_num_threads(2)
    inputs = make_inputs((65, 4, 17), recurrent=recurrent)
    inputs = {name: value.detach() for name, value in inputs.items()}
    expected = run(inputs, arp=3, method=method)[1]["current"]
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run_in_child, args=(sender, inputs, method), daemon=True)
    child.start()
    try:
        assert receiver.poll(60), "the child hangs"
        np.testing.assert_array_equal(receiver.recv()[0], expected.numpy())
    finally:
        child.kill()
        child.join()


@pytest.mark.usefixtures("keep_num_threads")
@pytest.mark.parametrize("method", METHODS)
def test_two_threads_at_once(method):
    torch.set_num_threads(2)
    inputs = [make_inputs((65, 4, 17), recurrent=True, seed=seed) for seed in (0, 1)]
    expected = [run(x, arp=3, method=method) for x in inputs]
    barrier, failures = threading.Barrier(2), []

    def work(i):
        barrier.wait()
        for _ in range(30):
            try:
                assert_same_result(run(inputs[i], arp=3, method=method), expected[i])
            except BaseException as error:
                failures.append(error)
                return

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    assert not failures


def poison(monkeypatch, owner, name) -> list:
    """Make an allocator fill with NaN (integers: the least value) and append to a list per call."""
    original, calls = getattr(owner, name), []

    def poisoned(*args, **kwargs):
        calls.append(name)
        array = original(*args, **kwargs)
        if isinstance(array, np.ndarray):
            array.fill(np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min)
        else:
            is_float = array.is_floating_point()
            array.fill_(
                float("nan") if is_float else 199 if array.dtype == torch.uint8 else -(2**30)
            )
        return array

    monkeypatch.setattr(owner, name, poisoned)
    return calls


@pytest.mark.parametrize("arp", [0, 3, 100])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_uninitialised_tensors_are_not_read(monkeypatch, method, recurrent, arp):
    inputs = make_inputs((65, 2, 17), recurrent=recurrent)
    options: dict[str, Any] = {"arp": arp, "detach_spikes": False, "method": method}
    with_membrane: dict[str, Any] = options | {"membrane": True}
    expected, again = run(inputs, **options), run(inputs, **with_membrane)
    membrane = alif(**inputs, **with_membrane).membrane
    calls = poison(monkeypatch, torch, "empty_like"), poison(monkeypatch, torch.Tensor, "new_empty")
    poison(monkeypatch, np, "empty")
    assert_same_result(run(inputs, **options), expected)
    with torch.no_grad():
        assert torch.equal(alif(**inputs, **options).spikes, expected[0])
    assert_same_result(run(inputs, **with_membrane), again)
    assert torch.equal(alif(**inputs, **with_membrane).membrane, membrane)
    assert all(calls)


_M_PERTURB = -6  # malloc.h of glibc


@pytest.fixture
def filled_memory():
    """Let malloc fill what it gives with bytes 127: 3.4e38 in float32, 1.4e306 in float64."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        pytest.skip("needs glibc")
    mallopt(_M_PERTURB, 128)
    assert torch.empty(2**12).min() > 1e38
    yield
    mallopt(_M_PERTURB, 0)


@pytest.mark.parametrize("arp", [0, 3, 100])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("method", METHODS)
def test_uninitialised_scratch_of_the_kernels_is_not_read(method, recurrent, arp, request):
    inputs = make_inputs((35, 2, 3), recurrent=recurrent)
    options: dict[str, Any] = {"arp": arp, "detach_spikes": False, "method": method}
    expected = run(inputs, **options)
    request.getfixturevalue("filled_memory")
    assert_same_result(run(inputs, **options), expected)
