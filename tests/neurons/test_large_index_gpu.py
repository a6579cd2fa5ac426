"""The Triton kernels on arrays of more than 2³¹ elements, as in `test_large_index.py`."""

import numpy as np
import pytest
import torch
from gpu_cases import INTERPRETED, triton_kernels  # noqa: F401
from neuron_cases import alif, make_inputs
from test_large_index import sparse  # noqa: F401
from torch import Tensor

from blockspike.neurons.alif import ALIF
from blockspike.neurons.derivative import derived, slope_text
from blockspike.neurons.gpu import fused as fused_gpu
from blockspike.neurons.gpu import kernels as kernels_gpu
from blockspike.neurons.gpu.events import _sum_rows
from blockspike.neurons.gpu.kernels import in_triton
from blockspike.neurons.surrogates import FastSigmoid

pytestmark = [
    pytest.mark.usefixtures("triton_kernels"),
    pytest.mark.skipif(not INTERPRETED, reason="a GPU cannot read sparse files"),
]
N_STEPS, N_COLUMNS = 2**32 // 64 + 8, 64  # saved states, one in 2 steps, exceed 2³¹ too


@pytest.fixture
def tall(sparse):  # noqa: F811
    """Make [n_rows, 64] tensors from the middle of a sparse file.

    An offset that wraps around then stays in the file, reads zeros, and makes the test fail.
    """

    def make(last_rows: Tensor, n_rows: int = N_STEPS) -> Tensor:
        dtype = last_rows.numpy().dtype
        whole = torch.from_numpy(sparse((2 * n_rows, last_rows.shape[1]), dtype))[n_rows:]
        whole[-len(last_rows) :] = last_rows
        return whole

    return make


def test_neurons(tall):
    inputs = make_inputs((8, 1, N_COLUMNS), dtype=torch.float32)
    current, *parameters = (x.detach() for x in inputs.values())
    current, parameters = current[:, 0], torch.stack(parameters)
    constants = torch.tensor([0.0, 1.0, 2.0])
    of_model = derived(ALIF, 3)
    step, reverse_step = in_triton(of_model.step), in_triton(of_model.reverse_all)
    grad_spikes = torch.randn(current.shape, generator=torch.Generator().manual_seed(0))
    counts, found = fused_gpu.sizes(of_model, 3), []
    for place in (lambda x: x, tall):
        rows, n_rows = place(current), N_STEPS if place is tall else 8
        spikes, membrane, threshold, drives = (place(torch.zeros_like(current)) for _ in range(4))
        spike_bytes = place(torch.zeros_like(current, dtype=torch.uint8))
        saved = torch.zeros(8 // fused_gpu.CHUNK * 3, N_COLUMNS)
        if place is tall:
            saved = tall(saved, n_rows // fused_gpu.CHUNK * 3)
        state = torch.zeros(3, N_COLUMNS)
        fused_gpu._launch(
            kernels_gpu.forward, N_COLUMNS, rows, rows, parameters, constants, state, spikes,
            spike_bytes, membrane, threshold, drives, saved, n_rows - 8, n_rows, N_COLUMNS,
            N_COLUMNS, step=step, **counts, has_recurrent=False, keep_membrane=True,
            keep_drives=True, keep_states=True,
        )  # fmt: skip
        grads, grad_current = place(grad_spikes), place(torch.zeros_like(current))
        carried, sums = torch.zeros(2, N_COLUMNS), torch.zeros(3, N_COLUMNS, dtype=torch.float64)
        fused_gpu._launch(
            kernels_gpu.backward, N_COLUMNS, grads, grads, grads, grads, drives, saved, parameters,
            constants, constants, carried, grad_current, sums, n_rows - 8, n_rows, N_COLUMNS,
            N_COLUMNS, step=step, reverse_step=reverse_step, **counts, n_carried=2,
            slope=in_triton(slope_text(FastSigmoid.formula, 3)), n_slope_constants=3,
            has_feedback=False, has_level=True, reset_has_grad=1.0,
        )  # fmt: skip
        results = (
            spikes, spike_bytes, membrane, threshold, drives, grad_current, sums, state,
        )  # fmt: skip
        found.append([x[-8:].clone() for x in results])
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
