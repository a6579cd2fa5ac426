"""Arrays of more than 2³¹ elements and the Triton kernels: `test_large_index.py` says how."""

import numpy as np
import pytest
import torch
from gpu_cases import INTERPRETED, triton_kernels  # noqa: F401
from neuron_cases import alif, make_inputs
from test_large_index import sparse  # noqa: F401
from torch import Tensor

from blockspike.neurons.alif import fused_gpu, kernels_gpu
from blockspike.neurons.events_gpu import _sum_rows

pytestmark = [
    pytest.mark.usefixtures("triton_kernels"),
    pytest.mark.skipif(not INTERPRETED, reason="a GPU cannot read sparse files"),
]
N_STEPS, N_COLUMNS = 2**32 // 64 + 8, 64  # one state in 2 steps is saved: also over 2³¹


@pytest.fixture
def tall(sparse):  # noqa: F811
    """Makes [n_rows, 64] tensors from the sparse middle of a file: an offset that wraps around
    reads or writes zeros, or what the test then misses, not another's memory."""

    def make(last_rows: Tensor, n_rows: int = N_STEPS) -> Tensor:
        dtype = last_rows.numpy().dtype
        whole = torch.from_numpy(sparse((2 * n_rows, last_rows.shape[1]), dtype))[n_rows:]
        whole[-len(last_rows) :] = last_rows
        return whole

    return make


def test_neurons(tall):
    inputs = make_inputs((8, 1, N_COLUMNS), dtype=torch.float32)
    current, beta, p, b = (x.detach() for x in inputs.values())
    current = current[:, 0]
    grad_spikes = torch.randn(current.shape, generator=torch.Generator().manual_seed(0))
    found = []
    for place in (lambda x: x, tall):
        rows, n_rows = place(current), N_STEPS if place is tall else 8
        spikes, margin = place(torch.zeros_like(current)), place(torch.zeros_like(current))
        chunks = torch.zeros(8 // fused_gpu.CHUNK, N_COLUMNS)
        saved_a, saved_silent = chunks, chunks.to(torch.int32)
        if place is tall:
            saved_a, saved_silent = (
                tall(x, n_rows // fused_gpu.CHUNK) for x in (saved_a, saved_silent)
            )
        state, silent = torch.zeros(2, N_COLUMNS), torch.zeros(N_COLUMNS, dtype=torch.int32)
        fused_gpu._launch(
            kernels_gpu.forward, N_COLUMNS, rows, rows, beta, p, b, state, silent, spikes, margin,
            saved_a, saved_silent, 2, n_rows - 8, n_rows, N_COLUMNS, N_COLUMNS,
            has_recurrent=False, keep_margin=True, **fused_gpu.FORWARD_OPTIONS,
        )  # fmt: skip
        grads, grad_current = place(grad_spikes), place(torch.zeros_like(current))
        carried, sums = torch.zeros(2, N_COLUMNS), torch.zeros(3, N_COLUMNS, dtype=torch.float64)
        fused_gpu._launch(
            kernels_gpu.backward, N_COLUMNS, grads, grads, margin, saved_a, saved_silent, beta, p,
            b, carried, grad_current, sums, 2, n_rows - 8, n_rows, N_COLUMNS, N_COLUMNS,
            has_feedback=False, attached=True, surrogate=2, **fused_gpu.BACKWARD_OPTIONS,
        )  # fmt: skip
        found.append([x[-8:].clone() for x in (spikes, margin, grad_current, sums, state)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    assert found[0][0].sum() > 20


def test_sums_of_rows(tall):
    rng = np.random.default_rng(0)
    table = torch.from_numpy(rng.standard_normal((8, N_COLUMNS)))
    index = torch.from_numpy(rng.integers(0, 8, 6))
    row_ptr, zero = torch.tensor([0, 4, 6]), torch.zeros(N_COLUMNS, dtype=torch.float64)
    expected = torch.zeros(2, N_COLUMNS, dtype=torch.float64)
    _sum_rows(row_ptr, index, table, zero, expected)
    found, large = torch.zeros_like(expected), tall(table)
    _sum_rows(row_ptr, (index + N_STEPS - 8).int(), large, zero, found)
    assert torch.equal(found, expected) and expected.abs().min() > 0


def test_more_columns_than_the_kernels_can_number():
    current = torch.zeros(()).expand(1, 2**16, 2**15)
    with pytest.raises(ValueError, match=r"^current: expected B·N ≤ 2147482624 .*65536 · 32768"):
        alif(current, torch.zeros(2**15))
