"""The kernel of Blocks against its readable twin, the matrix products of `blocks.py`."""

from typing import Any

import numpy as np
import pytest
import torch
from neuron_cases import (
    DTYPES,
    SURROGATES,
    assert_close,
    assert_same_result,
    cotangent,
    make_inputs,
    run,
)
from poison import poison
from torch.autograd.graph import saved_tensors_hooks

from blockspike.neurons import MultiGaussian, alif
from blockspike.neurons.alif import blocks_cpu
from blockspike.neurons.alif.blocks import blocks


def run_twin(inputs, *, arp, surrogate=MultiGaussian(), detach_spikes=True):  # noqa: B008
    """As `run`, by `blocks.py`; and its trace."""
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    arguments: dict[str, Any] = dict.fromkeys(("p", "b", "recurrent_weight")) | leaves
    trace = blocks(**arguments, arp=arp, surrogate=surrogate, detach_spikes=detach_spikes)
    trace.spikes.backward(cotangent(trace.spikes))
    zeros = {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    grads = {n: zeros[n] if leaf.grad is None else leaf.grad for n, leaf in leaves.items()}
    return (trace.spikes.detach(), grads), trace


def check(inputs, **options):
    expected, _ = run_twin(inputs, **options)
    assert expected[0].sum() > 0
    rtol = 1e-9 if inputs["current"].dtype == torch.float64 else 1e-4
    assert_same_result(run(inputs, method="blocks", **options), expected, rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("surrogate", SURROGATES, ids=lambda s: type(s).__name__)
def test_kernel_is_its_twin_for_every_option(surrogate, recurrent, adaptive, detach_spikes, dtype):
    inputs = make_inputs((65, 3, 17), recurrent=recurrent, adaptive=adaptive, dtype=dtype)
    check(inputs, arp=2, detach_spikes=detach_spikes, surrogate=surrogate)


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("arp", [0, 1, 14, 15, 16, 17, 31, 32, 63, 64, 65, 10**12])
def test_kernel_is_its_twin_at_every_arp(arp, recurrent, detach_spikes):
    check(make_inputs((65, 2, 7), recurrent=recurrent), arp=arp, detach_spikes=detach_spikes)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (33, 1, 257), (70, 9, 300)])
def test_kernel_is_its_twin_at_odd_sizes(shape, recurrent):
    inputs = make_inputs(shape, recurrent=recurrent)
    with torch.no_grad():
        inputs["current"] += 1.0 if shape[0] < 3 else 0.0  # so that something fires
    check(inputs, arp=4, detach_spikes=False)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("arp", [0, 4, 100])
def test_twin_has_membrane_and_threshold_of_standard(arp, adaptive):
    inputs = make_inputs((65, 2, 7), recurrent=True, adaptive=adaptive)
    expected = alif(**inputs, arp=arp, method="standard")
    _, trace = run_twin(inputs, arp=arp)
    assert torch.equal(trace.spikes, expected.spikes)
    assert_close(trace.membrane, expected.membrane, 1e-12, "membrane")
    assert_close(trace.threshold, expected.threshold, 1e-12, "threshold")


@pytest.mark.parametrize("name", ["beta", "p", "b"])
def test_a_parameter_of_zero(name):
    inputs = make_inputs((65, 2, 7), recurrent=True)
    with torch.no_grad():
        inputs[name].zero_()
    check(inputs, arp=3, detach_spikes=False)


@pytest.mark.parametrize("recurrent", [True, False])
def test_at_most_seven_saved_bytes_per_neuron_step(recurrent):
    inputs = make_inputs((1024, 3, 64), recurrent=recurrent, dtype=torch.float32)
    given = {value.untyped_storage().data_ptr() for value in inputs.values()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            kept[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        trace = alif(**inputs, arp=5, method="blocks")
    assert trace.spikes.untyped_storage().data_ptr() not in kept  # yours to drop
    total = sum(n_bytes for _, n_bytes in kept.values())
    assert 4 <= total / trace.spikes.numel() <= 7


@pytest.mark.parametrize("arp", [0, 3, 100])
@pytest.mark.parametrize("recurrent", [True, False])
def test_uninitialised_memory_is_not_read(monkeypatch, recurrent, arp):
    # The kernels run as plain Python, where their allocations can be poisoned too.
    inputs = make_inputs((35, 2, 3), recurrent=recurrent)
    options = {"arp": arp, "detach_spikes": False, "method": "blocks"}
    expected = run(inputs, **options)
    for name in ("_forward", "_backward"):
        monkeypatch.setattr(blocks_cpu, name, getattr(blocks_cpu, name).py_func)
    calls = [poison(monkeypatch, np, name) for name in ("empty", "empty_like")]
    calls += (
        poison(monkeypatch, torch, "empty_like"),
        poison(monkeypatch, torch.Tensor, "new_empty"),
    )
    actual = run(inputs, **options)
    monkeypatch.undo()
    assert_same_result(actual, expected, 1e-12)
    assert all(calls)
