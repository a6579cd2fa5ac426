"""Learned delays against a causal convolution summed by taps, and a test that they learn."""

import math

import pytest
import torch

from blockspike.networks import delays as delays_module
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.delays import LAST_SIGMA, Delays, delayed_current
from blockspike.networks.layers import ALIFLayer, EulerAdLIFLayer
from blockspike.networks.published import AdLIFLayer, CSiLIFLayer
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.events import EventBatch

N_STEPS, BATCH, N_INPUTS, N_UNITS, MAX_DELAY = 40, 3, 30, 20, 9


def made(dtype=torch.float64, most=1):
    torch.manual_seed(0)
    counts = torch.randint(0, most + 1, (N_STEPS, BATCH, N_INPUTS))
    spikes = (counts * (torch.rand(counts.shape) < 0.2)).to(dtype)
    weight, bias = torch.randn(N_UNITS, N_INPUTS).to(dtype), torch.randn(N_UNITS).to(dtype)
    return Delays(N_UNITS, N_INPUTS, MAX_DELAY).to(dtype), spikes, weight, bias


def convolution(spikes, kernel, bias):
    """Sum I[t, n] = bias[n] + Σ_d Σ_k kernel[d, n, k] spikes[t − d, k] term by term."""
    current = bias.expand(*spikes.shape[:2], -1).clone()
    for t in range(len(spikes)):
        for d in range(min(len(kernel), t + 1)):
            current[t] += spikes[t - d] @ kernel[d].T
    return current


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("given", ["batch", "events", "dense"])
def test_whole_steps_are_a_causal_convolution(given, dtype):
    delays, spikes, weight, bias = made(dtype, most=3 if given == "batch" else 1)
    delays.eval()
    steps = delays.steps()
    assert steps.min() == 0 and steps.max() == MAX_DELAY
    kernel = weight * torch.stack([(steps == d).to(dtype) for d in range(MAX_DELAY + 1)])
    events = SpikeEvents(spikes.to(torch.uint8)) if given == "events" else None
    x = EventBatch.from_dense(spikes) if given == "batch" else spikes
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    current = delays.current(x, weight, bias, events)
    expected = convolution(spikes, kernel, bias)
    torch.testing.assert_close(current, expected, rtol=tolerance, atol=tolerance)
    if given != "dense":  # with a gradient, by taps
        assert torch.equal(current, delayed_current(x, weight, bias, steps, events))
        weight.requires_grad_()
        by_taps = delays.current(x, weight, bias, events)
        assert by_taps.requires_grad and not current.requires_grad
        torch.testing.assert_close(by_taps.detach(), current, rtol=tolerance, atol=tolerance)


def test_scaled_events():
    """Dropout scales spikes up; their events carry the scale."""
    delays, spikes, weight, bias = made()
    steps = delays.steps()
    half = SpikeEvents(spikes.to(torch.uint8), scale=0.5)
    current = delayed_current(0.5 * spikes, weight, bias, steps, half)
    torch.testing.assert_close(current, delays.eval().current(0.5 * spikes, weight, bias))
    scaled = EventBatch.from_dense(spikes).scaled_to(50.0)
    dense = scaled.dense(torch.float64)
    torch.testing.assert_close(
        delays.current(scaled, weight, bias), delays.current(dense, weight, bias)
    )


def test_delays_beyond_the_end_are_silent():
    spikes = torch.zeros(3, 1, 1)
    spikes[1] = 1
    delay = torch.tensor([[0], [1], [5]])
    current = delayed_current(
        EventBatch.from_dense(spikes), torch.tensor([[2.0], [3.0], [4.0]]), torch.zeros(3), delay
    )
    assert current[:, 0].tolist() == [[0, 0, 0], [2, 0, 0], [0, 3, 0]]


def test_the_kernel_in_training_is_a_gaussian_around_each_delay():
    delays, spikes, weight, bias = made()
    kernel = delays.kernel()
    for n, k in ((0, 0), (5, 7)):
        mean = delays.delay[n, k].item() * MAX_DELAY
        sigma = MAX_DELAY / 2
        gaussian = [math.exp(-0.5 * ((d - mean) / sigma) ** 2) for d in range(MAX_DELAY + 1)]
        expected = [g / sum(gaussian) for g in gaussian]
        assert kernel[:, n, k].tolist() == pytest.approx(expected, rel=1e-6)
    current = delays.current(spikes, weight, bias)
    torch.testing.assert_close(current, convolution(spikes, weight * kernel, bias))


@pytest.mark.parametrize("given", ["batch", "sparse batch", "events", "dense"])
@pytest.mark.parametrize("max_delay", [2, MAX_DELAY])
def test_all_modes_agree_in_training(given, max_delay):
    _, spikes, weight, bias = made()
    if given == "sparse batch":
        spikes[torch.rand(spikes.shape) < 0.8] = 0
    delays = Delays(N_UNITS, N_INPUTS, max_delay).double()
    events = SpikeEvents(spikes.to(torch.uint8)) if given == "events" else None
    x = EventBatch.from_dense(spikes) if "batch" in given else spikes
    results = []
    modes: list[SynapseMode] = (
        ["auto", "dense"] if given == "dense" else ["auto", "dense", "events"]
    )
    for mode in modes:
        leaves = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        current = delays.current(x, leaves[0], leaves[1], events, mode)
        grads = torch.autograd.grad(current.square().sum(), (*leaves, delays.delay))
        results.append([current, *grads])
    expected = convolution(spikes, weight * delays.kernel(), bias)
    for result in results:
        torch.testing.assert_close(result[0], expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(result, results[0], rtol=1e-9, atol=1e-12)


def test_the_convolution_is_chosen_where_it_is_faster(monkeypatch):
    """It is not chosen for few taps, for sparse events, or in evaluation."""
    calls = []
    convolve = delays_module.causal_convolution
    monkeypatch.setattr(
        delays_module, "causal_convolution", lambda *args: calls.append(0) or convolve(*args)
    )
    delays, spikes, weight, bias = made()
    sparse = spikes * (torch.rand(spikes.shape) < 0.1)
    few = Delays(N_UNITS, N_INPUTS, 5).double()
    for layer, x, mode, expected in [
        (delays, EventBatch.from_dense(spikes), "auto", 0),  # 0.1 × 10 taps
        (delays, EventBatch.from_dense(torch.ones_like(spikes)), "auto", 1),
        (delays, EventBatch.from_dense(sparse), "dense", 1),
        (delays, sparse, "auto", 1),
        (few, spikes, "auto", 0),
        (made()[0].eval(), spikes, "auto", 0),
    ]:
        calls.clear()
        layer.current(x, weight, bias, mode=mode)
        assert len(calls) == expected


def test_an_empty_batch_is_refused_by_the_neurons():
    layer = ALIFLayer(30, 8, dt_ms=1.0, max_delay=9)
    with pytest.raises(ValueError, match="^current: expected a non-empty tensor"):
        layer(torch.zeros(0, 2, 30))


def test_gradients_match_finite_differences():
    _, spikes, weight, bias = made()
    small = Delays(2, 4, MAX_DELAY).double()
    small.anneal_(0.3)
    weight, bias = weight[:2, :4].clone(), bias[:2].clone()
    kernel_inputs = [x.requires_grad_() for x in (weight, bias)]
    gradients = torch.autograd.grad(
        small.current(spikes[:12, :1, :4], weight, bias).square().sum(),
        [*kernel_inputs, small.delay],
    )
    for x, gradient in zip((weight, bias, small.delay), gradients, strict=True):
        for place in ((0,) * x.ndim, (1,) * x.ndim):
            losses = []
            for change in (1e-6, -1e-6):
                with torch.no_grad():
                    x[place] += change
                    losses.append(small.current(spikes[:12, :1, :4], weight, bias).square().sum())
                    x[place] -= change
            assert (losses[0] - losses[1]).item() / 2e-6 == pytest.approx(
                gradient[place].item(), rel=1e-5, abs=1e-8
            )


def test_the_gaussian_narrows():
    delays = Delays(2, 2, 20)
    sigmas = []
    for progress in (0, 0.25, 0.5, 0.9):
        delays.anneal_(progress)
        sigmas.append(float(delays.sigma))
    assert sigmas == pytest.approx([10, math.sqrt(10 * LAST_SIGMA), LAST_SIGMA, LAST_SIGMA])


def test_a_delay_is_learned():
    """Training moves a delay of 11 steps to the wanted delay of 4."""
    torch.manual_seed(0)
    delays = Delays(1, 1, 12)
    with torch.no_grad():
        delays.delay.fill_(0.9)
    spikes = torch.zeros(20, 1, 1)
    spikes[2] = 1
    wanted = torch.zeros(20, 1, 1)
    wanted[2 + 4] = 1
    weight, bias = torch.ones(1, 1), torch.zeros(1)
    optimizer = torch.optim.Adam(delays.parameters(), lr=0.02)
    for step in range(200):
        delays.anneal_(step / 200)
        optimizer.zero_grad()
        (delays.current(spikes, weight, bias) - wanted).square().sum().backward()
        optimizer.step()
        delays.project_()
    delays.eval()
    assert torch.equal(delays.current(spikes, weight, bias), wanted)


@pytest.mark.parametrize("kind", [ALIFLayer, EulerAdLIFLayer, AdLIFLayer, CSiLIFLayer])
def test_layers_with_delays(kind):
    torch.manual_seed(0)
    layer = kind(30, 8, dt_ms=1.0, max_delay=5).double()
    spikes = (torch.rand(50, 2, 30) < 0.3).double()
    layer(spikes).sum().backward()
    assert layer.delays.delay.grad.any()
    network = SpikingClassifier(30, 4, 8, dt_ms=1.0, max_delay=5)
    network.anneal_(1)
    assert [float(layer.delays.sigma) for layer in network.layers] == [LAST_SIGMA] * 2  # pyright: ignore
    layer.delays.delay.data += 2
    layer.delays.project_()
    assert layer.delays.delay.max() == 1


@pytest.mark.parametrize("options", [{"max_delay": -1}, {"max_delay": 3, "rf_len": 2}])
def test_bad_delays(options):
    with pytest.raises(ValueError, match="^max_delay: expected an integer ≥ 0, and 0 with rf_len"):
        ALIFLayer(3, 2, dt_ms=1.0, **options)


def test_dense_spikes_without_events_are_refused():
    with pytest.raises(ValueError, match="^spikes: expected an EventBatch or `events`"):
        delayed_current(torch.zeros(3, 1, 2), torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 2))


def test_mismatched_arguments_are_refused_before_the_kernel():
    events = EventBatch.from_dense(torch.ones(3, 1, 5))
    weight, bias, delay = torch.zeros(4, 2), torch.zeros(4), torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^spikes: expected \[T, B, 2\]"):
        delayed_current(events, weight, bias, delay)
    wide = torch.zeros(4, 5)
    for bad in (delay, torch.full((4, 5), -1)):
        with pytest.raises(ValueError, match="^delay: expected steps ≥ 0"):
            delayed_current(events, wide, bias, bad)
    spikes = torch.zeros(3, 1, 5)
    with pytest.raises(ValueError, match="^events: expected shape"):
        delayed_current(
            spikes, wide, bias, torch.zeros(4, 5).long(), SpikeEvents(torch.zeros(3, 1, 4))
        )


@pytest.mark.parametrize("value", [-1e6, 1e15, float("nan")])
def test_delays_outside_their_range_are_clamped(value):
    delays = Delays(2, 3, MAX_DELAY)
    delays.delay.data[:] = value
    assert delays.steps().min() >= 0 and delays.steps().max() <= MAX_DELAY
