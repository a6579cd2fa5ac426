"""The dynamics study is complete and its baselines are correct; no time is asserted."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from blockspike.benchmark import dynamics
from blockspike.benchmark.dynamics import METHODS, MODELS, SIZES, Size, differentiate, methods_for
from blockspike.benchmark.studies import Options, pieces
from blockspike.neurons import alif

SIZE = Size(64, 2, 8, arp_steps=5)
ARPS = [0, 5, 63, 200]


def results(name: str, arp: int, recurrent: bool = False):
    size = replace(SIZE, recurrent=recurrent)
    inputs, gradient = dynamics.make_inputs(size, torch.float64)
    return differentiate(METHODS[name], inputs, gradient, arp)


@pytest.mark.parametrize("arp", ARPS)
@pytest.mark.parametrize(
    ("baseline", "twin"),
    [
        ("plain loop", "standard"),
        ("grouped convolution", "blocks"),
        ("parallel blocks", "blocks"),
    ],
)
def test_each_baseline_equals_its_twin(baseline, twin, arp):
    spikes, grads = results(baseline, arp)
    expected_spikes, expected_grads = results(twin, arp)
    assert torch.equal(spikes, expected_spikes) and spikes.sum() > 0
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(
            grad, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item()
        )


@pytest.mark.parametrize("arp", [0, 5, 30])
def test_the_recurrent_plain_loop_equals_standard(arp):
    spikes, grads = results("plain loop", arp, recurrent=True)
    expected, expected_grads = results("standard", arp, recurrent=True)
    assert torch.equal(spikes, expected)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-9, atol=1e-9 * wanted.abs().max().item())


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_has_the_spikes_of_standard(name):
    assert torch.equal(results(name, 5)[0], results("standard", 5)[0])


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_inputs_give_spikes_in_a_few_percent_of_the_steps(size):
    inputs, gradient = dynamics.make_inputs(size)
    with torch.no_grad():
        spikes = methods_for(size)["fused"](*inputs, arp=size.arp_steps)
    assert 0.005 < spikes.mean() < 0.25
    assert spikes.dtype == gradient.dtype == torch.float32


def test_sums_of_the_recurrence_are_exact():
    inputs, _ = dynamics.make_inputs(replace(SIZE, recurrent=True))
    for x in (inputs[0], inputs[-1]):
        assert torch.equal((x * 2**12).round(), x * 2**12)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("recurrent", [True, False])
def test_methods_agree(model, recurrent):
    size = replace(SIZE, recurrent=recurrent, model=model)
    dynamics.check(size, methods_for(size))


@pytest.mark.slow
def test_rows_are_complete(monkeypatch):
    monkeypatch.setattr(dynamics, "SIZES", (SIZE, replace(SIZE, arp_steps=0, model="adLIF")))
    first, second = pieces("dynamics", Options(rounds=2))
    assert first.contenders == (*METHODS, dynamics.SCAN)
    rows = first.measure()
    by_name = {row["contender"]: row for row in rows}
    assert list(by_name) == [*METHODS, dynamics.SCAN]
    scan = by_name.pop(dynamics.SCAN)
    assert ("left_out" in scan) == (scan["version"] is None), scan
    assert all(row["rounds"] == 2 and row["total_ms_median"] > 0 for row in by_name.values())
    assert [row["contender"] for row in second.measure()] == ["fused", "standard"]


@pytest.mark.parametrize("fault", ["spikes", "gradients"])
def test_a_wrong_method_is_not_timed(monkeypatch, fault):
    def wrong(current, beta, p, b, arp):
        if fault == "spikes":
            return dynamics.plain_loop(current, beta, p, b, arp=arp + 1)
        return dynamics.plain_loop(current, beta, p.detach() + 0 * p, b, arp=arp)

    with pytest.raises(RuntimeError, match=f"{fault}.* differ.*no time is reported"):
        dynamics.check(SIZE, {"fused": wrong})


def test_a_wrong_model_is_not_timed(monkeypatch):
    simulate, *rest = MODELS["SE-adLIF"]

    def wrong(current, method, **arguments):
        return simulate((1.5 if method == "fused" else 1.0) * current, method=method, **arguments)

    monkeypatch.setitem(MODELS, "SE-adLIF", (partial(wrong), *rest))
    size = replace(SIZE, model="SE-adLIF")
    with pytest.raises(RuntimeError, match="fused: spikes differ"):
        dynamics.check(size, methods_for(size))


def test_a_wrong_scan_is_not_timed():
    inputs, _ = dynamics.make_inputs(SIZE)
    with torch.no_grad():
        spikes = METHODS["standard"](*inputs, arp=5).numpy()
    dynamics.check_scan(SIZE, spikes)
    with pytest.raises(RuntimeError, match=r"JAX \(lax.scan\): \d+% of the spikes differ"):
        dynamics.check_scan(SIZE, np.roll(spikes, 3, axis=0))


def test_the_scan_is_alif():
    pytest.importorskip("jax")
    for size in (SIZE, replace(SIZE, recurrent=True), replace(SIZE, arp_steps=0, recurrent=True)):
        scan = dynamics.make_scan(size)
        inputs, gradient = dynamics.make_inputs(size)
        spikes, grads = differentiate(METHODS["standard"], inputs, gradient, size.arp_steps)
        assert np.array_equal(scan.spikes(), spikes.numpy())
        for ours, theirs in zip(grads, scan.gradients(), strict=True):
            scale = max(ours.abs().max().item(), grads[0].abs().max().item())
            np.testing.assert_allclose(theirs, ours.numpy(), atol=1e-4 * scale)
        assert scan.turn().forward > 0


def test_rounding_is_distinguished_from_an_error():
    current = torch.tensor([0.5, 0.0, 1.0 + 1e-6, 0.0]).view(4, 1, 1)
    trace = alif(current, torch.zeros(1), membrane=True)
    assert trace.spikes.flatten().tolist() == [0, 0, 1, 0]

    def count(*spikes):
        return dynamics.count_rounded(trace, torch.tensor(spikes).view(4, 1, 1))

    assert count(0.0, 0.0, 1.0, 0.0) == 0
    assert count(0.0, 0.0, 0.0, 0.0) == 1
    assert count(0.0, 0.0, 0.0, 1.0) == 1  # differences after the first one are allowed
    for wrong in ((1.0, 0.0, 1.0, 0.0), (0.0, 0.0, 1.0, 1.0), (0.0, 1.0, 0.0, 0.0)):
        with pytest.raises(RuntimeError, match="differ"):
            count(*wrong)
