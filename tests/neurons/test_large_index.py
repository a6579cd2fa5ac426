"""Arrays of more than 2³¹ elements, as sparse files that cost little memory or disk.

Kernels work on the end of such an array and are compared with kernels on small arrays.
`endurance/sizes.py` runs arrays of this size in full.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from neuron_cases import assert_same_result, distance_of_alif, make_inputs, run

from blockspike.fitting import distance_cpu as fitting_cpu
from blockspike.fitting.distance import Window
from blockspike.neurons import leaky_integrate, readout
from blockspike.neurons.cpu import events as events_cpu
from blockspike.neurons.cpu import fused as fused_cpu
from blockspike.neurons.cpu.events import event_currents, event_weight_gradient, events_of
from blockspike.neurons.cpu.lane_memory import BLOCK
from blockspike.neurons.cpu.lanes import LANES_BYTES
from blockspike.neurons.cpu.tiles import add_feedback, add_recurrent
from blockspike.neurons.surrogates import MultiGaussian

WIDTH, N_STEPS = 1024, 33
N_COLUMNS = 2**27 + WIDTH  # the last 18 of N_STEPS rows are beyond element 2³¹
N_ROWS = 2**21 + 64  # the last rows of WIDTH columns are beyond element 2³¹
Sparse = Callable[..., np.ndarray]


@pytest.fixture
def sparse(tmp_path: Path):
    """Make arrays of zeros that only use memory or disk where they are touched."""
    files = []

    def make(shape: tuple[int, ...] | int, dtype: Any) -> np.ndarray:
        files.append(tmp_path / str(len(files)))
        return np.asarray(np.memmap(files[-1], dtype, "w+", shape=shape))

    yield make
    for file in files:
        file.unlink()


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def in_the_last_columns(monkeypatch, sparse, one_thread) -> list[int]:
    """Give kernels their WIDTH columns as the last of N_COLUMNS; list the largest array sizes."""
    sizes = []

    def enlarged(x: Any) -> tuple[Any, Any]:
        """Sparse array, and the part of it that holds x; x itself if it has no columns."""
        if not isinstance(x, np.ndarray) or x.size == 0 or x.dtype == np.uintp:
            return x, None
        if x.ndim == 1 and x.size % WIDTH == 0:  # columns, or several rows of columns in sequence
            big = sparse((x.size // WIDTH, N_COLUMNS), x.dtype)
            big[:, -WIDTH:] = x.reshape(-1, WIDTH)
            return big.ravel(), big[:, -WIDTH:]
        if x.shape[-1] == WIDTH:
            big = sparse((*x.shape[:-1], N_COLUMNS), x.dtype)
            big[..., -WIDTH:] = x
            return big, big[..., -WIDTH:]
        return x, None

    def run_there(compiled: Callable, n_items: int, *args: Any) -> None:
        placed: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

        def place(x: Any) -> Any:
            if hasattr(x, "_fields"):  # a named tuple of arrays
                return type(x)(*map(place, x))
            big, part = enlarged(x)
            if part is not None:
                placed.append((x, big, part))
            return big

        there = [place(x) for x in args]
        sizes.append(max(big.size for _, big, _ in placed))
        first = (N_COLUMNS // WIDTH - 1) * n_items
        compiled(first, first + n_items, *there)
        for x, _, part in placed:
            if x.flags.writeable:
                x[...] = part.reshape(x.shape)

    for module in (fused_cpu, fitting_cpu, readout):
        monkeypatch.setattr(module, "run", run_there)
    return sizes


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("method", ["fused", "blocks"])
def test_neurons(request, method, recurrent):
    inputs = make_inputs((N_STEPS, 4, WIDTH // 4), recurrent=recurrent, dtype=torch.float32)
    options = {"arp": 2, "detach_spikes": False, "method": method}
    expected = run(inputs, **options)
    sizes = request.getfixturevalue("in_the_last_columns")
    assert_same_result(run(inputs, **options), expected)
    assert len(sizes) == 2 and min(sizes) > 2**31 and expected[0].sum() > 100


def test_readout(request):
    inputs = make_inputs((N_STEPS, 1, WIDTH), dtype=torch.float32)

    def both() -> list[torch.Tensor]:
        x, beta = inputs["current"].detach().requires_grad_(), inputs["beta"]
        membrane = leaky_integrate(x, beta)
        return [membrane, *torch.autograd.grad(membrane.square().sum(), (x, beta))]

    expected = both()
    sizes = request.getfixturevalue("in_the_last_columns")
    for ours, theirs in zip(both(), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert len(sizes) == 2 and min(sizes) > 2**31


def test_fitting(request):
    inputs = make_inputs((N_STEPS, 1, WIDTH), dtype=torch.float32)
    target = (torch.rand(N_STEPS, 1, WIDTH, generator=torch.Generator().manual_seed(0)) < 0.2).to(
        torch.uint8
    )
    parameters = [inputs[name] for name in ("beta", "p", "b")]
    parameters += [torch.ones(WIDTH, requires_grad=True), torch.zeros(WIDTH, requires_grad=True)]
    parameters.append(torch.full((WIDTH,), 0.1, requires_grad=True))

    def both() -> list[torch.Tensor]:
        fitted, held_out = distance_of_alif(
            inputs["current"].detach(), target, *parameters, arp=2, surrogate=MultiGaussian(),
            decay=0.8, window=Window(1, 12, N_STEPS),
        )  # fmt: skip
        return [fitted, held_out, *torch.autograd.grad(fitted.sum(), parameters)]

    expected = both()
    sizes = request.getfixturevalue("in_the_last_columns")
    for ours, theirs in zip(both(), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert len(sizes) == 1 and sizes[0] > 2**31  # both passes are one call


def made_events(n_rows: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spikes as bytes [n_rows, WIDTH] and as events."""
    fired = (np.random.default_rng(0).random((n_rows, WIDTH)) < 0.02).astype(np.uint8)
    return fired, *events_of(fired)


def test_events_of_spikes(sparse):
    small, row_ptr, unit = made_events()
    fired, count = sparse((N_ROWS, WIDTH), np.uint8), np.zeros(N_ROWS, np.int64)
    fired[-64:] = small
    events_cpu._count(N_ROWS - 64, N_ROWS, fired, count)
    large_ptr = np.concatenate([[0], np.cumsum(count)])
    assert np.array_equal(large_ptr[-65:], row_ptr)
    found = np.zeros(len(unit), np.int32)
    events_cpu._fill(N_ROWS - 64, N_ROWS, fired, large_ptr, found)
    assert np.array_equal(found, unit) and len(unit) > 500


def test_event_driven_products(sparse, one_thread):
    _, row_ptr, unit = made_events()
    rng = np.random.default_rng(1)
    weight_t, bias, grad = (
        rng.standard_normal(shape, np.float32)
        for shape in ((2, WIDTH, WIDTH), (WIDTH,), (64, WIDTH))
    )
    expected = np.empty_like(grad)
    event_currents(row_ptr, unit, weight_t, bias, 3, expected)
    large_ptr = np.zeros(N_ROWS + 1, np.int64)
    large_ptr[-65:] = row_ptr
    out, large_grad = sparse((N_ROWS, WIDTH), np.float32), sparse((N_ROWS, WIDTH), np.float32)
    events_cpu._event_currents(N_ROWS - 64, N_ROWS, large_ptr, unit, weight_t, bias, 3, out)
    assert np.array_equal(out[-64:], expected)

    large_grad[-64:] = grad
    sizes = (2, 3, WIDTH)
    gradient = event_weight_gradient(large_ptr, unit, large_grad, *sizes)
    assert np.array_equal(gradient, event_weight_gradient(row_ptr, unit, grad, *sizes))

    # also a weight with that many inputs
    large_weight = sparse((1, N_ROWS, WIDTH), np.float32)
    large_weight[0, -WIDTH:] = weight_t[0]
    event_currents(row_ptr, unit, weight_t[:1], bias, 3, expected)
    shifted, found = unit + np.int32(N_ROWS - WIDTH), np.empty_like(grad)
    event_currents(row_ptr, shifted, large_weight, bias, 3, found)
    assert np.array_equal(found, expected)


@pytest.mark.slow
def test_recurrent_weights(sparse):
    n = 50_000  # n² > 2³¹
    weight = sparse((n, n), np.float32)
    weight[-1] = np.arange(n)
    drive, row = np.empty(n, np.float32), np.ones(n, np.float32)
    units = np.full(n, n - 1, np.int32)
    add_recurrent(row, units, np.array([5]), weight, drive)  # four at a time, then one
    assert np.array_equal(drive, 1 + 5 * np.arange(n, dtype=np.float32))
    later = np.zeros(n, np.float32)
    later[-1] = 2
    width = BLOCK * LANES_BYTES // 4
    panels = sparse((-(-n // width), n, width), np.float32)  # as weight_panels cuts them
    panels[:, -1] = np.arange(len(panels) * width).reshape(-1, width)
    add_feedback(later, panels, n, row)
    assert np.array_equal(row, 1 + 2 * np.arange(n, dtype=np.float32))
