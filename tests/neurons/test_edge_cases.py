"""Edge cases: p = 0, arp longer than T, one step, one neuron, odd memory layouts."""

from typing import Any

import pytest
import torch
from neuron_cases import DTYPES, METHODS, alif, assert_close, assert_same_result, make_inputs, run

from blockspike.neurons.cpu import fused as fused_cpu


def simulate(current, beta, p, b, arp):
    """Spikes, membrane and threshold of one neuron in plain Python (docs/paper.md, The neuron)."""
    membrane_after = a = 0.0
    last_spike = None
    spikes, membranes, thresholds = [], [], []
    for t, drive in enumerate(current):
        masked = last_spike is not None and t - last_spike <= arp
        membrane = beta * membrane_after + (0.0 if masked else drive)
        threshold = 1 + b * a
        s = 1.0 if membrane > threshold else 0.0
        last_spike = t if s else last_spike
        membrane_after = membrane * (1 - s)
        a = p * a + s
        spikes.append(s)
        membranes.append(membrane)
        thresholds.append(threshold)
    return spikes, membranes, thresholds


@pytest.mark.parametrize("arp", [0, 1, 4, 59, 60, 200])
@pytest.mark.parametrize("method", METHODS)
def test_against_plain_numbers(method, arp):
    inputs = make_inputs((60, 2, 3))
    trace = alif(**inputs, arp=arp, membrane=True, method=method)
    assert trace.membrane is not None and trace.threshold is not None
    for sample in range(2):
        for i in range(3):
            beta, p, b = (inputs[name][i].item() for name in ("beta", "p", "b"))
            expected = simulate(inputs["current"][:, sample, i].tolist(), beta, p, b, arp)
            at = (slice(None), sample, i)
            assert trace.spikes[at].tolist() == expected[0]
            assert trace.membrane[at].tolist() == pytest.approx(expected[1], abs=1e-12)
            assert trace.threshold[at].tolist() == pytest.approx(expected[2], abs=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_threshold_is_strict(method):
    current = torch.tensor([1.0, 0.0, 1.0 + 2**-40], dtype=torch.float64).view(3, 1, 1)
    beta = torch.zeros(1, dtype=torch.float64)
    assert alif(current, beta, method=method).spikes.flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("name", ["beta", "p", "b"])
@pytest.mark.parametrize("arp", [0, 3, 100])
@pytest.mark.parametrize("method", METHODS)
def test_a_parameter_of_zero(method, arp, name):
    inputs = make_inputs((65, 2, 7), recurrent=True)
    with torch.no_grad():
        inputs[name].zero_()
    spikes, grads = run(inputs, arp=arp, method=method)
    expected = run(inputs, arp=arp, method="standard")
    assert spikes.sum() > 0
    if method.endswith("blocks"):
        assert torch.equal(spikes, expected[0])
        assert all(torch.isfinite(grad).all() for grad in grads.values())
    else:
        assert_same_result((spikes, grads), expected, 1e-9)
    assert grads[name].any() or arp == 100


@pytest.mark.parametrize("method", METHODS)
def test_p_of_zero_is_the_limit_of_small_p(method):
    inputs = make_inputs((65, 2, 7))
    results = []
    for p in (0.0, 1e-12):
        with torch.no_grad():
            inputs["p"].fill_(p)
        results.append(run(inputs, arp=2, method=method))
    assert_same_result(results[0], results[1], 1e-9)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (20, 1, 5), (20, 3, 1), (20, 1, 1)])
@pytest.mark.parametrize("method", METHODS)
def test_axes_of_length_one(method, shape, recurrent):
    inputs = make_inputs(shape, recurrent=recurrent, seed=3)
    with torch.no_grad():
        inputs["current"] += 1
    spikes, grads = run(inputs, arp=2, method=method)
    expected = run(inputs, arp=2, method="standard")
    assert spikes.shape == shape and spikes.sum() > 0
    assert torch.equal(spikes, expected[0])
    if method == "fused":
        assert_same_result((spikes, grads), expected, 1e-9)


def layouts(x):
    """Copies of `x` with equal values and other strides."""
    return {
        "time last": x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "batch first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "neurons before batch": x.transpose(1, 2).contiguous().transpose(1, 2),
        "every second": torch.stack([x, x + 9], dim=-1)[..., 0],
        "offset": torch.cat([x + 9, x])[len(x) :],
    }


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("layout", list(layouts(torch.zeros(2, 2, 2))))
@pytest.mark.parametrize("method", METHODS)
def test_any_memory_layout(method, layout, batch_size):
    inputs = make_inputs((40, batch_size, 5), recurrent=True)
    expected = run(inputs, arp=2, method=method)
    other = inputs | {"current": layouts(inputs["current"].detach())[layout]}
    other["recurrent_weight"] = inputs["recurrent_weight"].detach().T.contiguous().T
    other["beta"] = torch.stack([inputs["beta"].detach(), torch.zeros(5).double()], 1)[:, 0]
    assert not other["beta"].is_contiguous()
    assert_same_result(run(other, arp=2, method=method), expected, 1e-12)


@pytest.mark.parametrize("batch_size", [1, 2])
def test_memory_layouts_do_not_recompile_fused(batch_size):
    inputs = make_inputs((40, batch_size, 5), recurrent=True)
    run(inputs, arp=2, method="fused")
    kernels: list[Any] = [fused_cpu._forward, fused_cpu._backward]
    before = [len(kernel.signatures) for kernel in kernels]
    for current in layouts(inputs["current"].detach()).values():
        run(inputs | {"current": current}, arp=2, method="fused")
    assert [len(kernel.signatures) for kernel in kernels] == before


@pytest.mark.parametrize("recurrent", [True, False])
def test_expanded_gradient_and_current(recurrent):
    inputs = {k: v.detach() for k, v in make_inputs((40, 3, 5), recurrent=recurrent).items()}
    inputs["current"] = inputs["current"][:, :1].expand(-1, 3, -1)
    grads = []
    for method in ("standard", "fused"):
        leaf = inputs["beta"].clone().requires_grad_()
        spikes = alif(**(inputs | {"beta": leaf}), arp=1, method=method).spikes
        spikes.sum().backward()  # the incoming gradient is one expanded number
        grads.append(leaf.grad)
    assert_close(grads[1], grads[0], 1e-9, "beta")


@pytest.mark.parametrize("membrane", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_no_argument_is_modified(method, dtype, membrane):
    inputs = make_inputs((40, 2, 5), recurrent=True, dtype=dtype)
    before = {name: value.detach().clone() for name, value in inputs.items()}
    versions = {name: value._version for name, value in inputs.items()}
    trace = alif(**inputs, arp=2, membrane=membrane, method=method)
    gradient = torch.ones_like(trace.spikes)
    trace.spikes.backward(gradient)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]) and value._version == versions[name], name
    assert (gradient == 1).all()
    assert trace.spikes.dtype == trace.state.values.dtype == dtype
    if membrane:
        assert trace.membrane is not None and trace.threshold is not None
        assert trace.membrane.dtype == trace.threshold.dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_the_graph_can_be_used_twice(method):
    inputs = make_inputs(recurrent=True)
    spikes = alif(**inputs, arp=2, method=method).spikes
    first = torch.autograd.grad(spikes.sum(), list(inputs.values()), retain_graph=True)
    second = torch.autograd.grad(spikes.sum(), list(inputs.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
