"""Chains of launches as graphs: when they are captured, which are kept, and what calls return."""

import sys
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import test_recurrent_delays
import torch
from gpu_cases import DEVICE, capture_by_copying, make_gpu_inputs, triton_kernels  # noqa: F401
from neuron_cases import alif, assert_same_result, cotangent, run

from blockspike.neurons.gpu import fused as fused_gpu
from blockspike.neurons.gpu import graphs as gpu
from blockspike.neurons.gpu.graphs import Graphs, has_triton, require_triton


def chain(x, y, *, factor=1):
    """Chain with two results."""
    return factor * x + y, x.sum()


@pytest.fixture
def captured() -> list:
    """Captures so far, in order."""
    return []


@pytest.fixture
def graphs(monkeypatch, captured) -> Graphs:
    """`Graphs` that works on any device and keeps at most three."""

    def capture(bound, tensors):
        captured.append((bound.keywords, tensors[0].shape))
        return capture_by_copying(bound, tensors)

    for name, value in {
        "capture": capture, "may_capture": lambda tensor: True, "KEPT": 3,
    }.items():  # fmt: skip
        monkeypatch.setattr(gpu, name, value)
    return Graphs()


def test_a_repeated_chain_is_captured(graphs, captured):
    numbers_captured = []
    for i in range(4):
        x, y = torch.full((3,), float(i)), torch.arange(3.0)
        total, sum_x = graphs.run(chain, x, y, factor=2)
        assert torch.equal(total, 2 * x + y) and sum_x == 3 * i
        numbers_captured.append(len(captured))
    assert numbers_captured == [0, 1, 1, 1]


def test_results_of_earlier_calls_stay(graphs):
    results = [graphs.run(chain, torch.full((3,), float(i)), torch.zeros(3)) for i in range(5)]
    assert [result[0].tolist() for result in results] == [[float(i)] * 3 for i in range(5)]


def test_each_shape_dtype_and_option_has_its_own_graph(graphs, captured):
    x = torch.ones(3)
    graphs.run(chain, x, x, factor=2)
    for tensors, factor in [
        ((x[:2], x[:2]), 2),
        ((x.double(), x), 2),
        ((x, x.double()), 2),
        ((x, x), 3),
    ]:
        Graphs.run(graphs, chain, *tensors, factor=factor)
    assert not captured
    graphs.run(chain, x, x, factor=3)
    assert captured == [({"factor": 3}, (3,))]


def test_another_matmul_precision_is_captured_anew(graphs, captured):
    x = torch.ones(3)
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "highest", "high"):
            torch.set_float32_matmul_precision(precision)
            graphs.run(chain, x, x)
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(captured) == 2


def test_the_least_recently_used_is_forgotten(graphs, captured):
    def call(n):
        graphs.run(chain, torch.ones(n), torch.ones(n))

    for n in (1, 2, 3, 1, 4):  # 4 evicts 2
        call(n)
    assert captured == [({}, (1,))]
    for n in (2, 1, 3):  # 2 evicts 3
        call(n)
    assert len(captured) == 1


def test_chains_run_directly_where_graphs_are_not_supported(monkeypatch, graphs, captured):
    monkeypatch.setattr(gpu, "may_capture", lambda tensor: False)
    x = torch.ones(3)
    for _ in range(3):
        assert graphs.run(chain, x, x)[1] == 3
    assert not captured


@pytest.fixture
def chains(monkeypatch) -> list:
    """Chains of the kernels that were captured."""
    found = []

    capture_here = capture_by_copying if DEVICE.type == "cpu" else gpu.capture

    def capture(bound, tensors):
        found.append(bound)
        return capture_here(bound, tensors)

    monkeypatch.setattr(gpu, "capture", capture)
    if DEVICE.type == "cpu":
        monkeypatch.setattr(gpu, "may_capture", lambda tensor: True)
    monkeypatch.setattr(fused_gpu, "_graphs", Graphs())
    return found


@pytest.mark.usefixtures("triton_kernels")
def test_a_graph_takes_other_delays(monkeypatch, chains):
    for name, value in (("N", 3), ("B", 2)):
        monkeypatch.setattr(test_recurrent_delays, name, value)
    given = test_recurrent_delays.made_inputs(5, 9)
    inputs = {name: x.detach().to(DEVICE).requires_grad_() for name, x in given.items()}
    for steps in ([2.0, 3.0, 5.0], [4.0, 2.0, 2.0], [3.0, 2.0, 4.0]):
        with torch.no_grad():
            inputs["steps"].copy_(torch.tensor(steps))
        results = [
            test_recurrent_delays.run(inputs, 5, method=method, detach_spikes=False)
            for method in ("standard", "fused")
        ]
        (expected, grads), (trace, own) = results
        assert_same_result((trace.spikes.detach(), own), (expected.spikes.detach(), grads), 1e-9)
    assert len(chains) == 2


@pytest.mark.usefixtures("triton_kernels")
@pytest.mark.parametrize("detach_spikes", [True, False])
def test_forward_several_times_before_backward(chains, detach_spikes):
    options = {"arp": 3, "detach_spikes": detach_spikes}
    batches = [make_gpu_inputs((9, 2, 3), recurrent=True, seed=seed) for seed in range(3)]
    traces = [alif(**inputs, **options) for inputs in batches]
    for inputs, trace in zip(batches, traces, strict=True):
        expected = run(inputs, method="standard", **options)
        trace.spikes.backward(cotangent(trace.spikes))
        grads = {name: value.grad for name, value in inputs.items()}
        assert_same_result((trace.spikes.detach(), grads), expected, 1e-9)
    assert len(chains) == (1 if detach_spikes else 2)  # forward; backward through the recurrence


def test_devices(monkeypatch):
    cpu, cuda, meta = (torch.device(name) for name in ("cpu", "cuda", "meta"))
    check = partial(require_triton, "method='fused'", "current")
    assert has_triton(cuda) and not has_triton(meta) and not has_triton(cpu)
    check(cuda)
    with pytest.raises(ValueError, match="^method='fused': expected current on .*cpu.*got meta"):
        check(meta)
    monkeypatch.setattr(gpu, "_triton_is_new_enough", lambda: False)
    assert not has_triton(cuda)
    with pytest.raises(
        ValueError, match=r"^method='fused': .*Triton ≥ 3.3.*blockspike\[gpu\].*got cuda"
    ):
        check(cuda)


@pytest.mark.parametrize(
    ("installed", "enough"),
    [("3.3.0", True), ("3.10.1+git", True), ("3.2.0", False), (None, False)],
)
def test_minimum_version_of_triton(monkeypatch, installed, enough):
    module = None if installed is None else SimpleNamespace(__version__=installed)
    monkeypatch.setitem(sys.modules, "triton", module)  # None cannot be imported
    assert gpu._triton_is_new_enough.__wrapped__() == enough


def test_a_graph_captured_in_inference_mode_is_replayed_without(monkeypatch):
    """Lightning validates in inference mode; a test may not."""

    class FakeGraph:
        def replay(self) -> None:
            pass

    for name, value in {
        "CUDAGraph": FakeGraph,
        "Stream": lambda device: None,
        "graph": lambda *args, **options: nullcontext(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    with torch.inference_mode():
        graph = gpu.capture(partial(chain, factor=2), (torch.ones(3), torch.ones(3)))
    with torch.no_grad():
        total, _ = graph((torch.zeros(3), torch.zeros(3)))
    assert total.tolist() == [3.0] * 3  # the fake replays nothing
