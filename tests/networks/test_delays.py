"""Learned delays: what is drawn, products against sums written out, and that they learn."""

import itertools
import math

import pytest
import torch

import blockspike as bs
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.delays import LAST_SIGMA, Delays
from blockspike.networks.layers import AdLIFLayer, ALIFLayer, CSiLIFLayer, EulerAdLIFLayer
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons.cpu.delays import SAMPLES, room_for_spikes, sort_spikes
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


def test_scaled_events():
    """Dropout scales spikes up; their events carry the scale, and a batch one of each sample."""
    delays, spikes, weight, bias = made()
    half = SpikeEvents(spikes.to(torch.uint8), scale=0.5)
    current = delays.eval().current(0.5 * spikes, weight, bias, half)
    assert torch.equal(current, delays.current(0.5 * spikes, weight, bias))
    scaled = EventBatch.from_dense(spikes).scaled_to(50.0)
    dense = scaled.dense(torch.float64)
    for own in (delays.eval(), delays.train()):
        torch.manual_seed(1)
        expected = own.current(dense, weight, bias)
        torch.manual_seed(1)
        torch.testing.assert_close(own.current(scaled, weight, bias), expected)


def test_delays_beyond_the_end_are_silent():
    spikes, delays = torch.zeros(3, 1, 1), Delays(3, 1, 5).eval()
    spikes[1] = 1
    delays.delay.data[:] = torch.tensor([[0.0], [0.2], [1.0]])
    current = delays.current(spikes, torch.tensor([[2.0], [3.0], [4.0]]), torch.zeros(3))
    assert current[:, 0].tolist() == [[0, 0, 0], [2, 0, 0], [0, 3, 0]]


@pytest.mark.parametrize(("learned", "sigma"), [(0.4, 3.0), (0.02, 3.0), (0.93, 0.5), (1.0, 6.0)])
def test_delays_are_drawn_from_a_gaussian_cut_off_at_the_ends(learned, sigma):
    torch.manual_seed(0)
    delays = Delays(400, 500, MAX_DELAY).double()
    delays.delay.data.fill_(learned)
    delays.sigma.fill_(sigma)
    drawn = delays.drawn().detach()
    assert drawn.min() >= -0.5 and drawn.max() <= MAX_DELAY + 0.5
    found = drawn.round().long().clamp(0, MAX_DELAY).flatten().bincount(minlength=MAX_DELAY + 1)
    edges = torch.arange(MAX_DELAY + 2).double() - 0.5
    below = torch.special.ndtr((edges - MAX_DELAY * learned) / sigma)
    expected = below.diff() / (below[-1] - below[0])
    torch.testing.assert_close(found.double() / drawn.numel(), expected, rtol=0, atol=0.005)


@pytest.mark.parametrize("sigma", [0.5, 4.0])
def test_the_gradients_of_a_drawn_delay(sigma):
    """First and second derivative against finite differences, for a given chance."""
    torch.manual_seed(1)
    delays = Delays(3, 4, MAX_DELAY).double()
    delays.sigma.fill_(sigma)

    def drawn(_):  # the checks change the parameter in place
        torch.manual_seed(0)
        return delays.drawn()

    assert torch.autograd.gradcheck(drawn, (delays.delay,))
    assert torch.autograd.gradgradcheck(drawn, (delays.delay,))


# One step; samples, neurons and steps in whole blocks and not; more than one tile of steps.
SIZES = [
    (1, 1, 1, 1, 1),
    (37, 5, 9, 6, 7),
    (8, 17, 33, 20, 12),
    (130, 33, 21, 10, 25),
    (9, 3, 4, 5, 2),
]


@pytest.mark.parametrize("active", [0.06, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("n_steps", "batch_size", "n_inputs", "n_units", "most"), SIZES)
def test_products_with_delays_equal_products_by_taps(
    n_steps, batch_size, n_inputs, n_units, most, dtype, active
):
    torch.manual_seed(0)
    spikes = torch.randn(n_steps, batch_size, n_inputs, dtype=dtype)
    spikes = (spikes * (torch.rand(spikes.shape) < active)).requires_grad_()
    weight = torch.randn(n_units, n_inputs, dtype=dtype, requires_grad=True)
    bias = torch.randn(n_units, dtype=dtype, requires_grad=True)
    delays = Delays(n_units, n_inputs, most).to(dtype)
    to_current = torch.randn(n_steps, batch_size, n_units, dtype=dtype)
    results = []
    for mode in ("auto", "dense"):
        torch.manual_seed(1)
        current = delays.current(spikes, weight, bias, mode=mode)
        leaves = (spikes, weight, bias, delays.delay)
        results.append([current, *torch.autograd.grad((current * to_current).sum(), leaves)])
    rtol, atol = (1e-10, 1e-10) if dtype == torch.float64 else (1e-4, 1e-3)
    torch.testing.assert_close(*results, rtol=rtol, atol=atol)


def test_the_number_of_threads_changes_nothing():
    torch.manual_seed(0)
    spikes = (torch.rand(50, 21, 30) < 0.1).float().requires_grad_()
    weight, bias = torch.randn(20, 30, requires_grad=True), torch.randn(20, requires_grad=True)
    delays, to_current = Delays(20, 30, MAX_DELAY), torch.randn(50, 21, 20)
    leaves, before, results = (spikes, weight, bias, delays.delay), torch.get_num_threads(), []
    try:
        for n_threads in (1, 3):
            torch.set_num_threads(n_threads)
            torch.manual_seed(1)
            current = delays.current(spikes, weight, bias)
            results.append([current, *torch.autograd.grad((current * to_current).sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("n_units", [8, 9])
def test_a_current_can_be_changed_in_place(n_units):
    spikes = (torch.rand(10, 4, 30) < 0.05).float()
    weight, bias = torch.ones(n_units, 30, requires_grad=True), torch.zeros(n_units)
    current = Delays(n_units, 30, MAX_DELAY).current(spikes, weight, bias)
    assert current.is_contiguous() and current.dtype == torch.float32
    current += 1
    current.sum().backward()
    assert weight.grad is not None and weight.grad.any()


def test_sorted_spikes():
    """Each at its place, and as large as its events together."""
    torch.manual_seed(0)
    counts = torch.randint(1, 3, (11, 6, 70)) * (torch.rand(11, 6, 70) < 0.2)
    events, sizes = EventBatch.from_dense(counts), torch.randn(11, 6, 70)  # [T, B, K]
    found = room_for_spikes(sizes, len(events.unit))
    sort_spikes(sizes, events.row_ptr, events.unit, found)
    assert (found.last - found.first[:, :-1]).sum() == counts.count_nonzero()
    again = torch.zeros(2, 11 * SAMPLES, 70)  # [block, step and sample, unit]
    for block, unit in itertools.product(range(2), range(70)):
        own = slice(int(found.first[block, unit]), int(found.last[block, unit]))
        again[block, found.place[own], unit] = found.size[own]
    by_step = again.view(2, 11, SAMPLES, 70).movedim(1, 0).flatten(1, 2)
    assert torch.equal(by_step[:, :6], counts * sizes) and not by_step[:, 6:].any()


def later(x, steps):
    """The values of x [T, …] that many steps later (−1: one earlier); 0 from outside."""
    moved = torch.zeros_like(x)
    if steps < 0:
        moved[:steps] = x[-steps:]
    else:
        moved[steps:] = x[: len(x) - steps]
    return moved


@pytest.mark.parametrize("given", ["batch", "events", "dense"])
@pytest.mark.parametrize("max_delay", [2, MAX_DELAY])
def test_current_and_gradients_in_training(given, max_delay):
    """Against sums written out; a delay's gradient is the central difference of its synapse."""
    _, spikes, weight, bias = made()
    delays = Delays(N_UNITS, N_INPUTS, max_delay).double()
    torch.manual_seed(1)
    drawn = delays.drawn()
    steps = drawn.detach().round().long().tolist()
    expected = bias.expand(N_STEPS, BATCH, -1).clone()
    for n, k in itertools.product(range(N_UNITS), range(N_INPUTS)):
        expected[:, :, n] += weight[n, k] * later(spikes[:, :, k], steps[n][k])
    to_weight, to_drawn = torch.zeros_like(weight), torch.zeros_like(weight)
    for n, k in itertools.product(range(N_UNITS), range(N_INPUTS)):
        at = [later(spikes[:, :, k], steps[n][k] + x) for x in (-delays.span, 0, delays.span)]
        before, here, after = ((2 * expected[:, :, n] * x).sum() for x in at)
        to_weight[n, k], to_drawn[n, k] = here, weight[n, k] * (after - before) / 2 / delays.span
    (to_delay,) = torch.autograd.grad(drawn, delays.delay, to_drawn)
    events = SpikeEvents(spikes.to(torch.uint8)) if given == "events" else None
    x = EventBatch.from_dense(spikes) if given == "batch" else spikes
    modes: list[SynapseMode] = (
        ["auto", "dense"] if given == "dense" else ["auto", "dense", "events"]
    )
    for mode in modes:
        torch.manual_seed(1)
        leaves = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        current = delays.current(x, leaves[0], leaves[1], events, mode)
        torch.testing.assert_close(current, expected, rtol=1e-12, atol=1e-12)
        found = torch.autograd.grad(current.square().sum(), (*leaves, delays.delay))
        wanted = to_weight, 2 * expected.sum((0, 1)), to_delay
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_the_mean_gradient_is_that_of_the_mean_loss():
    """For a loss linear in the current, over many draws; the mean loss is a sum over the delays."""
    torch.manual_seed(0)
    spikes, to_current = torch.zeros(60, 1, 1).double(), (torch.arange(60.0).double() / 9).sin()
    spikes[10:18:4], to_current = 1, to_current[:, None, None]
    loss_at = [(to_current * later(spikes, d)).sum().item() for d in range(21)]
    for learned in (0.1, 0.55):
        delays = Delays(1, 5000, 20).double()
        delays.delay.data.fill_(learned)
        delays.sigma.fill_(3.0)
        weight = torch.ones(1, 5000).double()
        current = delays.current(spikes.expand(-1, -1, 5000), weight, torch.zeros(1).double())
        (gradient,) = torch.autograd.grad((current * to_current).sum(), delays.delay)
        mean = torch.tensor(learned).double().requires_grad_()
        edges = (torch.arange(22).double() - 0.5 - 20 * mean) / 3
        below = torch.special.ndtr(edges)
        share = below.diff() / (below[-1] - below[0])
        (expected,) = torch.autograd.grad((share * torch.tensor(loss_at)).sum(), mean)
        error = (gradient.std() / 5000**0.5).item()
        assert abs(gradient.mean() - expected).item() < 4 * error + 0.08 * abs(
            expected
        )  # the difference over σ
        assert abs(expected) > 8 * error


def test_dense_products_have_a_second_derivative():
    delays, spikes, weight, bias = made()
    weight.requires_grad_()
    for mode in ("dense", "auto"):
        current = delays.current(spikes, weight, bias, mode=mode)
        if mode == "auto":
            (first,) = torch.autograd.grad(current.square().sum(), weight, create_graph=True)
            with pytest.raises(RuntimeError):  # PyTorch's own message
                torch.autograd.grad(first.sum(), weight)
        else:
            (first,) = torch.autograd.grad(current.square().sum(), weight, create_graph=True)
            assert torch.autograd.grad(first.sum(), weight)[0].any()


@pytest.mark.parametrize("sigma", [6.0, 1e30, math.inf, math.nan])
def test_a_sigma_beyond_the_longest_delay(sigma):
    """It may come from a file; the difference then has the length of the longest delay."""
    delays = Delays(4, 5, 1).double()
    delays.sigma.fill_(sigma)
    assert delays.span == 1
    spikes, bias = torch.ones(8, 2, 5).double(), torch.zeros(4).double()
    if sigma == 6:
        results = []
        for mode in ("auto", "dense"):
            torch.manual_seed(0)
            current = delays.current(spikes, torch.ones(4, 5).double(), bias, mode=mode)
            results.append(torch.autograd.grad(current[5].sum(), delays.delay)[0])
        torch.testing.assert_close(*results)
    elif not math.isfinite(sigma):
        with pytest.raises(bs.NotFiniteError, match="^delay: expected finite numbers"):
            delays.current(spikes, torch.ones(4, 5).double(), bias)


def test_an_empty_batch_is_refused_by_the_neurons():
    layer = ALIFLayer(30, 8, dt_ms=1.0, max_delay=9)
    with pytest.raises(ValueError, match="^current: expected a non-empty tensor"):
        layer(torch.zeros(0, 2, 30))


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
    for step in range(400):
        delays.anneal_(step / 400)
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


@pytest.mark.parametrize("value", [-1e6, 1e15])
def test_delays_outside_their_range_are_clamped(value):
    delays = Delays(2, 3, MAX_DELAY)
    delays.delay.data[:] = value
    assert delays.steps().min() >= 0 and delays.steps().max() <= MAX_DELAY


@pytest.mark.parametrize("options", [{"max_delay": 5}, {"recurrent_max_delay": 5}])
def test_a_delay_that_is_nan_is_no_delay_of_0(options):
    layer = ALIFLayer(3, 4, dt_ms=1.0, **options).eval()
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith("delay"):
                parameter.fill_(float("nan"))
    with pytest.raises(bs.NotFiniteError, match="^delay: expected finite numbers"):
        layer(torch.ones(5, 1, 3))


@pytest.mark.parametrize("is_training", [True, False])
def test_delays_in_half_precision(is_training):
    """On a CPU, all is computed in float32; gradients return in the precision of the parameters."""
    delays, spikes, weight, bias = made(torch.bfloat16)
    weight.requires_grad_()
    single = Delays(N_UNITS, N_INPUTS, MAX_DELAY).train(is_training)
    single.load_state_dict(delays.train(is_training).state_dict())
    results = []
    for own, x in ((delays, spikes), (single, spikes.float())):
        torch.manual_seed(0)
        current = own.current(x, weight, bias)
        results.append([current, *torch.autograd.grad(current.square().sum(), weight)])
        assert current.dtype == torch.float32
        if is_training:
            current = own.current(x, weight, bias)
            (to_delay,) = torch.autograd.grad(current.square().sum(), own.delay)
            assert to_delay.dtype == own.delay.dtype and to_delay.any()
    assert all(map(torch.equal, *results))
