"""Populations of neurons in physical units: the same neuron at every dt."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from blockspike.files import write_json
from blockspike.fitting.fitted_neuron import FittedNeuron, load_neuron
from blockspike.fitting.glif_population import GLIFPopulation
from blockspike.fitting.parameters import NeuronParameters, of_coefficients, simulate
from blockspike.fitting.population import PaperPopulation, PhysicalPopulation
from blockspike.neurons import MultiGaussian, alif, leaky_integrate

NEURON = FittedNeuron("cell", 15.0, 120.0, 0.3, 0.02, 0.4, arp_ms=2.0, dt_ms=0.1)


def parameters(n: int = 3) -> NeuronParameters:
    rows = [(15.0, 120.0, 0.3, 1.2, 0.4, 0.1, 2.0)] * n
    return NeuronParameters(*torch.tensor(rows, dtype=torch.float64).T)


def test_coefficients_convert_back_to_parameters():
    before = parameters()
    for dt_ms in (0.05, 1.0, 2.0):
        after = of_coefficients(before.alif_coefficients(dt_ms, round(2 / dt_ms)), dt_ms)
        for x, y in zip(vars(before).values(), vars(after).values(), strict=True):
            torch.testing.assert_close(x, y)


def test_zero_adaptation_survives_conversion_to_physical_units():
    c = parameters().alif_coefficients(1.0, 2)
    c.parameters["p"] = torch.zeros(3, dtype=torch.float64)
    again = of_coefficients(c, 1.0).alif_coefficients(1.0, 2)
    assert torch.equal(again.parameters["p"], c.parameters["p"])


def test_membrane_settles_at_rest_plus_gain_times_current_at_every_dt():
    for dt_ms in (0.1, 1.0):
        c = parameters(1).alif_coefficients(dt_ms, 0)
        current = torch.full((round(400 / dt_ms), 1, 1), 0.4, dtype=torch.float64)
        driven = c.drive.weight * current + c.drive.bias
        trace = alif(driven, *c.parameters.values(), membrane=True)
        assert float(trace.membrane[-1]) == pytest.approx(0.4 + 1.2 * 0.4)


def test_noise_is_the_deviation_of_a_silent_membrane_at_every_dt():
    for dt_ms in (0.1, 1.0):
        c = parameters(200).alif_coefficients(dt_ms, 0)
        draws = torch.randn(round(300 / dt_ms), 1, 200, generator=torch.Generator().manual_seed(0))
        trace = alif(c.drive.noise * draws, *c.parameters.values(), membrane=True)
        assert float(trace.membrane[-1].std()) == pytest.approx(0.1, rel=0.15)


def test_trials_have_independent_noise_and_a_population_returns_their_mean():
    population = PhysicalPopulation(2, 3, dt_ms=0.5, n_trials=4)
    current = torch.randn(500, 3, 2) * 2
    draws = population.draw(500, 3, seed=7)
    again = population.draw(500, 3, seed=7)
    assert draws is not None and again is not None and torch.equal(draws, again)
    mean = population(current, draws)
    each = current.repeat_interleave(3, 2)
    trials = simulate(population.physical(), each, 0.5, draws)
    assert trials.shape == (500, 3, 4, 6)
    assert (trials[:, :, 0] != trials[:, :, 1]).any()
    assert (mean - trials.mean(2)).abs().mean() < 1e-3  # in float32, a spike moves now and then
    alone = simulate(population.physical(), each[:, 1:2], 0.5, draws[:, 1:2, 2:3])
    assert torch.equal(alone[:, 0, 0], trials[:, 1, 2])


def test_without_trials_there_is_no_noise():
    population = PhysicalPopulation(1, 3, dt_ms=0.5, n_trials=0)
    assert population.draw(10, 1, seed=0) is None
    assert population.physical().noise.abs().sum() == 0
    assert not population.get_parameter("log_noise").requires_grad


def test_a_neuron_fires_similarly_at_every_dt():
    step = torch.full((1, 1, 1), 1.0, dtype=torch.float64)
    counts = [
        float(simulate(parameters(1), step.expand(round(5000 / dt), 1, 1), dt).sum())
        for dt in (0.05, 0.1, 0.5, 1.0)
    ]
    assert counts[0] > 50
    assert max(counts) - min(counts) <= 0.05 * counts[0]


def test_starts_of_a_cell_are_consecutive():
    population = PhysicalPopulation(2, 5, dt_ms=0.5, seed=3)
    current = torch.randn(400, 3, 2) * 2
    spikes = population(current)
    c = population.coefficients()
    for cell in range(2):
        own = slice(5 * cell, 5 * cell + 5)
        drive = current[:, :, cell : cell + 1] * c.drive.weight[own] + c.drive.bias[own]
        neurons = [x[own] for x in c.parameters.values()]
        start = {"membrane": c.drive.start[own]}
        alone = alif(drive, *neurons, arp=population.arp, state=start).spikes
        assert torch.equal(spikes[:, :, own], alone)
    assert spikes.sum() > 0


def test_starts_are_drawn_from_their_ranges_by_the_seed():
    one, same, other = (PhysicalPopulation(1, 500, dt_ms=0.5, seed=s) for s in (0, 0, 1))
    tau = one.physical().tau_membrane_ms
    assert 5 <= tau.min() < 6 and 30 < tau.max() <= 40.001
    assert torch.equal(tau, same.physical().tau_membrane_ms)
    assert not torch.equal(tau, other.physical().tau_membrane_ms)


@pytest.mark.parametrize(("dt_ms", "p_trains"), [(0.05, False), (0.1, False), (0.5, True)])
def test_start_of_the_paper(dt_ms, p_trains):
    population = PaperPopulation(4, dt_ms=dt_ms)
    c = population.coefficients()
    own = {name: x.detach() for name, x in c.parameters.items()}
    assert float(own["beta"][0]) == pytest.approx(np.exp(-dt_ms / 20))
    assert float(own["p"][0]) == pytest.approx(min(0.999, np.exp(-dt_ms / 100)))
    assert population.get_parameter("p").requires_grad == p_trains
    assert float(own["b"][0]) == pytest.approx(0.01 / dt_ms)
    assert c.drive.weight[0].item() == pytest.approx(dt_ms / 0.1)
    assert c.drive.bias[0].item() == 0
    assert population.arp == round(2 / dt_ms)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="n_starts"):
        PhysicalPopulation(1, 0, dt_ms=1.0)
    with pytest.raises(ValueError, match="n_trials"):
        PhysicalPopulation(1, 1, dt_ms=1.0, n_trials=-1)
    with pytest.raises(ValueError, match="arp_ms"):
        PaperPopulation(1, dt_ms=1.0, arp_ms=-1.0)
    with pytest.raises(ValueError, match=r"current.*2 cells"):
        PhysicalPopulation(2, 1, dt_ms=1.0)(torch.zeros(5, 1, 3))
    with pytest.raises(
        ValueError, match=r"noise: expected a range within 0.000912 to 7.39, got 0 to 0.1"
    ):
        PhysicalPopulation(1, 1, dt_ms=1.0, noise=(0.0, 0.1))
    with pytest.raises(ValueError, match="tau_membrane"):
        PhysicalPopulation(1, 1, dt_ms=1.0, tau_membrane_ms=(2000.0, 3000.0))


def test_a_fitted_neuron_is_saved_loaded_and_simulated(tmp_path):
    NEURON.save(tmp_path / "a" / "cell.json")
    again = load_neuron(tmp_path / "a" / "cell.json")
    assert again == NEURON
    current = 60 + 40 * np.random.default_rng(0).standard_normal((2, 20000))
    spikes = again.simulate(current)
    assert spikes.shape == current.shape and spikes.sum() > 10
    assert np.array_equal(again.simulate(current[1]), spikes[1])
    assert np.diff(np.flatnonzero(spikes[0])).min() > 20


def test_a_fitted_neuron_with_noise_gives_trials():
    current = 60 + 40 * np.random.default_rng(0).standard_normal((2, 9000))
    noisy = replace(NEURON, noise=0.05)
    trials = noisy.simulate(current, n_trials=3, seed=1)
    assert trials.shape == (2, 3, 9000) and set(np.unique(trials)) == {0, 1}
    assert (trials[0, 0] != trials[0, 1]).any()
    assert np.array_equal(trials, noisy.simulate(current, n_trials=3, seed=1))
    assert not np.array_equal(trials, noisy.simulate(current, n_trials=3, seed=2))
    assert np.array_equal(noisy.simulate(current), NEURON.simulate(current))
    silent = NEURON.simulate(current[1], n_trials=2)
    assert np.array_equal(silent, np.stack([NEURON.simulate(current[1])] * 2))
    many = noisy.simulate(current[0], n_trials=23)  # more than are simulated at once
    assert len(np.unique(many.argmax(1))) > 1 and (many[10] != many[0]).any()
    assert (many.sum(1) > 0).all()
    with pytest.raises(ValueError, match="n_trials"):
        noisy.simulate(current, n_trials=0)


def test_a_neuron_file_without_noise_is_loaded(tmp_path):
    write_json(tmp_path / "cell.json", {k: v for k, v in vars(NEURON).items() if k != "noise"})
    assert load_neuron(tmp_path / "cell.json") == NEURON


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a fitted neuron"),
        ("[1]", "not a fitted neuron"),
        ('{"name": "x"}', "missing"),
        (json.dumps({**vars(NEURON), "colour": 1}), "colour"),
        (json.dumps({**vars(NEURON), "b": "big"}), "b: expected a number"),
        (json.dumps({**vars(NEURON), "noise": -0.1}), "noise: expected 0 to inf"),
        (json.dumps({**vars(NEURON), "b": float("nan")}), "b: expected a finite number"),
        (json.dumps({**vars(NEURON), "b": 1e308}), r"b: expected a finite number, got 1e\+308"),
    ],
)
def test_a_broken_neuron_file_is_one_clear_error(tmp_path, content, message):
    path = tmp_path / "cell.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_neuron(path)
    with pytest.raises(FileNotFoundError, match="nobody"):
        load_neuron(tmp_path / "nobody.json")


def test_a_current_of_wrong_shape_is_refused():
    for current in (np.zeros((2, 2, 2)), np.zeros(0)):
        with pytest.raises(ValueError, match="current_pa"):
            NEURON.simulate(current)


def test_surrogate_and_method_are_passed_on():
    fused = PhysicalPopulation(1, 6, dt_ms=0.5, surrogate=MultiGaussian())
    standard = PhysicalPopulation(1, 6, dt_ms=0.5, method="standard")
    current = torch.randn(300, 2, 1)
    assert torch.equal(fused(current), standard(current))


GLIF_PARTS = {"partial_reset": True, "threshold_coupling": True, "after_spike_currents": 2}


@pytest.mark.parametrize("parts", [{}, GLIF_PARTS])
def test_a_glif_neuron_is_the_same_in_the_population_and_from_its_file(tmp_path, parts):
    population = GLIFPopulation(2, 4, dt_ms=0.5, n_trials=0, **parts)
    white = torch.randn(1500, 1, 2, generator=torch.Generator().manual_seed(0))
    current = 6 * leaky_integrate(0.3 * white, torch.full((2,), 0.9))
    spikes = population(current).detach()
    physical, scale_pa = population.physical(), 40.0
    for i in range(8):
        neuron = FittedNeuron.of(physical, i, "cell", scale_pa, 0.5)
        neuron.save(tmp_path / "cell.json")
        again = load_neuron(tmp_path / "cell.json")
        assert again == neuron
        alone = again.simulate(scale_pa * current[:, 0, i // 4].double().numpy())
        # In float32, a spike moves now and then.
        assert np.abs(alone - spikes[:, 0, i].numpy()).sum() <= 0.1 * alone.sum() + 2
    assert spikes.sum() > 20


def test_lif_has_no_part_and_ranges_are_held():
    lif = GLIFPopulation(1, 300, dt_ms=0.5, after_spike_currents=0, threshold_kernels=0)
    x = lif.physical()
    for name in ("b", "b_2", "current_1", "current_2", "reset_share", "coupling"):
        assert not getattr(x, name).any()
    assert 1.0 <= x.arp_ms.min() < 1.5 and 5.5 < x.arp_ms.max() <= 6.0
    assert lif.searched == ["log_arp"]
    assert GLIFPopulation(1, 2, dt_ms=0.5, arp_ms=(2.0, 2.0)).searched == []
    names = {name for name, p in lif.named_parameters() if p.requires_grad}
    assert names == {"log_tau_membrane", "log_gain", "rest", "log_noise"}


def test_the_prior_is_that_of_the_ranges_of_the_starts():
    lif = {"after_spike_currents": 0, "threshold_kernels": 0, "escape_noise": True}
    population = GLIFPopulation(1, 20_000, dt_ms=0.5, gain=(1.0, 1.0), **lif)
    # Of a uniform draw, the square of each parameter's score is 1 on average: τ_m, rest and width.
    # The refractory period has no gradient, and the gain's range no width.
    cost = population.minus_log_prior()
    assert abs(cost.detach().mean().item() - 3 / 2) < 0.02
    cost.sum().backward()
    gradients = {name: p.grad for name, p in population.named_parameters() if p.grad is not None}
    assert set(gradients) == {"log_tau_membrane", "rest", "log_escape_width"}
    rest = population.get_parameter("rest").detach()
    torch.testing.assert_close(gradients["rest"], (rest - 0.15) / (1.3**2 / 12))
    none = {"tau_membrane_ms": (10.0, 10.0), "rest": (0.0, 0.0), "escape_width": (0.1, 0.1)}
    fixed = GLIFPopulation(1, 2, dt_ms=0.5, gain=(1.0, 1.0), **none, **lif)
    assert fixed.minus_log_prior().tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"after_spike_currents": 3}, "after_spike_currents: expected 0 to 2, got 3"),
        ({"threshold_kernels": -1}, "threshold_kernels: expected 0 to 2, got -1"),
        ({"method": "blocks"}, "method: expected 'fused' or 'standard' for GLIF"),
        ({"arp_ms": (0.0, 2.0)}, "^arp_ms: expected a range within 0.0183 to 54.6, got 0 to 2$"),
        ({"tau_membrane_ms": (5, 5000)}, "^tau_membrane_ms: expected a range within 0.368 to 1.1e"),
        ({"gain": (float("nan"), 1.0)}, "^gain: expected a range within"),
        ({"b": (1.0, 0.5)}, "^b: expected a range within -5 to 5, got 1 to 0.5$"),
    ],
)
def test_bad_parts_are_named(changed, words):
    with pytest.raises(ValueError, match=words):
        GLIFPopulation(1, 2, dt_ms=0.5, **changed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau_membrane_ms": 0.0}, "^tau_membrane_ms: expected > 0, got 0$"),
        ({"tau_adaptation_ms": -5.0}, "^tau_adaptation_ms: expected 0 to inf, got -5$"),
        ({"tau_coupling_ms": -1.0}, "^tau_coupling_ms: expected 0 to inf, got -1$"),
        ({"coupling_width": -1.0}, "^coupling_width: expected 0 to inf, got -1$"),
        ({"noise": -0.5}, "^noise: expected 0 to inf, got -0.5$"),
        ({"arp_ms": 2000.0}, "^arp_ms: expected 0 to 1000, got 2000$"),
        ({"rest": "0"}, "^rest: expected a number, got '0'$"),
        ({"name": None}, "^name: expected a text, got None$"),
        ({"noise": 0.1, "escape_width": 0.2}, "^noise, escape_width: expected at most one of them"),
    ],
)
def test_a_fitted_neuron_that_cannot_be_is_refused(changes, message):
    neuron = FittedNeuron("cell", 10.0, 100.0, 0.2, 0.01, 0.0, arp_ms=2.0, dt_ms=0.5)
    assert replace(neuron, b=0.0, tau_adaptation_ms=0.0).simulate(np.full(9, 1.0)).shape == (9,)
    with pytest.raises(ValueError, match=message):
        replace(neuron, **changes)


def test_a_fitted_neuron_of_numpy_numbers_is_saved(tmp_path):
    numbers = [np.float32(10), np.int64(100), np.float64(0.2), 0.01, 0]
    neuron = FittedNeuron("cell", *numbers, arp_ms=2.0, dt_ms=0.5)
    neuron.save(tmp_path / "cell.json")
    assert load_neuron(tmp_path / "cell.json") == neuron
    assert {type(x) for key, x in vars(neuron).items() if key != "name"} == {float}


def test_the_bounds_that_an_error_shows_are_accepted():
    starts = GLIFPopulation(1, 20, dt_ms=0.5, arp_ms=(0.0183, 54.6)).get_parameter("log_arp")
    assert starts.min() >= -4 and starts.max() <= 4


@pytest.mark.parametrize("escape_width", [0.0, 0.1])
def test_what_a_fitted_neuron_cannot_simulate_is_named(escape_width):
    neuron = FittedNeuron(
        "cell", 10.0, 100.0, 0.2, 0.01, 0.0, arp_ms=2.0, dt_ms=0.5, escape_width=escape_width
    )
    current = np.full(100, 200.0)
    for wrong in (np.nan, np.inf):
        with pytest.raises(ValueError, match="^current_pa: expected finite values"):
            neuron.simulate(np.append(current, wrong))
    with pytest.raises(ValueError, match="^gain_per_pa: expected a finite number, got nan$"):
        replace(neuron, gain_per_pa=np.nan).simulate(current)
    for n_trials in (0, 2.5):
        with pytest.raises(ValueError, match=f"^n_trials: expected an integer .*got {n_trials}$"):
            neuron.simulate(current, n_trials)  # pyright: ignore[reportArgumentType]
