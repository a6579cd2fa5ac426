"""Escape noise: the likelihood and the simulation in one pass against the readable ones."""

import math

import pytest
import torch

from blockspike.fitting import escape, escape_cpu
from blockspike.fitting.distance import Window
from blockspike.fitting.distance_cpu import Drive
from blockspike.fitting.fitted_neuron import FittedNeuron
from blockspike.fitting.glif_population import GLIFPopulation
from blockspike.fitting.parameters import Coefficients, NeuronParameters, simulate
from blockspike.fitting.population import PhysicalPopulation
from blockspike.fitting.synthetic_cells import SyntheticCells

DT_MS, N_STEPS, N_SEGMENTS, N_CELLS, N_TRIALS = 0.5, 203, 2, 2, 3
WINDOW = Window(10, 150, 200)
OF_EACH = Window(0, torch.tensor([[160, 33], [50, 0]]), torch.tensor([[203, 48], [64, 0]]))


def coefficients(is_coupled: bool, dtype: torch.dtype) -> Coefficients:
    population = GLIFPopulation(
        N_CELLS, 3, dt_ms=DT_MS, partial_reset=True, threshold_coupling=is_coupled, n_trials=0
    )
    values = NeuronParameters(*(x.detach().to(dtype) for x in vars(population.values()).values()))
    c = values.coefficients(DT_MS, is_coupled)
    return c._replace(drive=c.drive._replace(noise=torch.linspace(2, 7, 6, dtype=dtype)))


def data(dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(N_STEPS, N_SEGMENTS, N_CELLS, generator=generator, dtype=dtype)
    shape = (N_STEPS, N_TRIALS, N_SEGMENTS, N_CELLS)
    trains = torch.rand(shape, generator=generator) < 0.03  # some within the refractory period
    is_there = torch.ones(shape[1:], dtype=torch.bool)
    is_there[2, 1, 0] = False
    return current, trains, is_there


@pytest.mark.parametrize("window", [WINDOW, OF_EACH])
@pytest.mark.parametrize("is_coupled", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_likelihood_and_gradients_equal_the_loop(window, is_coupled, dtype, rtol):
    c = coefficients(is_coupled, dtype)
    current, trains, is_there = data(dtype)
    own = tuple(x.clone().requires_grad_() for x in c.parameters.values())
    drive = Drive(*(x.clone().requires_grad_() for x in c.drive))
    found = []
    for module in (escape, escape_cpu):
        fitted, held_out = module.escape_likelihood(
            current, trains, is_there, c.model, own, drive,
            at_threshold=escape.log_rate_at_threshold(DT_MS), window=window,
        )  # fmt: skip
        weights = torch.arange(1.0, 1 + fitted.numel(), dtype=dtype).view_as(fitted)
        inputs = [*own, *drive]
        grads = torch.autograd.grad((fitted * weights).sum(), inputs, materialize_grads=True)
        found.append((fitted.detach(), held_out, *grads))
    for loop, fused in zip(*found, strict=True):
        scale = float(loop.abs().max()) + 1e-12
        torch.testing.assert_close(fused / scale, loop / scale, rtol=0, atol=rtol)
    assert sum(bool(x.abs().max() > 0) for x in found[0]) >= len(found[0]) - 1  # R has no gradient


@pytest.mark.parametrize("kind", [PhysicalPopulation, GLIFPopulation])
def test_populations_have_one_likelihood_by_both_methods(kind):
    current, trains, is_there = data(torch.float32)
    found = []
    for method in ("standard", "fused"):
        population = kind(N_CELLS, 4, dt_ms=DT_MS, escape_noise=True, method=method)
        fitted, _ = population.log_likelihoods(current, trains, is_there, WINDOW)
        fitted.sum().backward()
        names = [name for name, x in population.named_parameters() if x.requires_grad]
        grads = [population.get_parameter(name).grad for name in names]
        assert "log_escape_width" in names and "log_noise" not in names
        found.append((fitted.detach(), *grads))
    for loop, fused in zip(*found, strict=True):
        torch.testing.assert_close(fused, loop, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("is_coupled", [False, True])
def test_spikes_equal_the_loop(is_coupled):
    c = coefficients(is_coupled, torch.float64)
    generator = torch.Generator().manual_seed(1)
    driven = 0.3 * torch.randn(N_STEPS, 7, 6, generator=generator, dtype=torch.float64)
    draws = torch.empty_like(driven).exponential_(generator=generator)
    arguments = (driven, draws, c.model, tuple(c.parameters.values()), c.drive, -0.7)
    loop, fused = escape.escape_spikes(*arguments), escape_cpu.escape_spikes(*arguments)
    assert loop[0].sum() > 50
    for x, y in zip(loop, fused, strict=True):
        torch.testing.assert_close(y, x, rtol=1e-12, atol=1e-12)


def test_a_neuron_at_a_constant_margin_fires_at_the_rate_of_the_formula():
    """Without reset or leak to speak of, the rate is 1 kHz · exp((V − θ) / width)."""
    neuron = FittedNeuron(
        "cell", tau_membrane_ms=1e-3, tau_adaptation_ms=0.0, b=0.0, gain_per_pa=0.01, rest=0.0,
        arp_ms=0.0, dt_ms=0.1, escape_width=0.2,
    )  # fmt: skip
    spikes = neuron.simulate([40.0] * 20_000, n_trials=100)  # V = 0.4
    expected = 1 - math.exp(-0.1 * math.exp((0.4 - 1) / 0.2))
    assert spikes.mean() == pytest.approx(expected, rel=0.02)
    assert spikes.std(0).any() and neuron.is_noisy


def test_without_draws_it_fires_at_the_median_of_its_times():
    neuron = FittedNeuron(
        "cell", 10.0, 0.0, 0.0, gain_per_pa=0.01, rest=0.0, arp_ms=2.0, dt_ms=0.1, escape_width=0.2
    )
    current = [60.0] * 3000
    first = int(neuron.simulate(current).argmax())
    trials = neuron.simulate(current, n_trials=1000).argmax(1)
    assert first == pytest.approx(float(torch.from_numpy(trials).double().median()), rel=0.05)


def test_no_spike_falls_into_the_refractory_period():
    neuron = FittedNeuron(
        "cell", 10.0, 0.0, 0.0, gain_per_pa=0.01, rest=0.0, arp_ms=4.0, dt_ms=0.5, escape_width=0.9
    )
    times = neuron.simulate([200.0] * 4000, n_trials=20)
    gaps = [torch.from_numpy(x).nonzero().flatten().diff().min() * 0.5 for x in times]
    assert min(gaps) == pytest.approx(4.5)  # R steps, then the next


def test_neurons_with_and_without_escape_noise_do_not_mix():
    two = torch.ones(2, dtype=torch.float64)
    parameters = NeuronParameters(
        10 * two, 0 * two, 0 * two, two, 0 * two, 0 * two, 2 * two,
        escape_width=torch.tensor([0.0, 0.2], dtype=torch.float64),
    )  # fmt: skip
    with pytest.raises(ValueError, match="escape_width"):
        simulate(parameters, torch.ones(10, 1, 2), 0.5)


@pytest.mark.parametrize("module", [escape, escape_cpu])
def test_a_current_that_is_not_a_number_shows(module):
    c, (current, trains, is_there) = coefficients(False, torch.float64), data(torch.float64)
    current[40, 0, 1] = math.nan
    fitted, _ = module.escape_likelihood(
        current, trains, is_there, c.model, tuple(c.parameters.values()), c.drive,
        at_threshold=-0.7, window=WINDOW,
    )  # fmt: skip
    assert fitted[0, 3:].isnan().all() and fitted[:, :3].isfinite().all()


def test_synthetic_cells_have_the_noise_that_is_asked_for():
    cells = SyntheticCells(n_cells=2, n_trials=2, duration_s=1.0, neuron="gif", noise="escape")
    cells.cells()
    assert (cells.truth.escape_width > 0).all() and not cells.truth.noise.any()
    with pytest.raises(ValueError, match="noise: expected membrane, or escape of GIF cells"):
        SyntheticCells(noise="escape")
