"""The one-pass distance of a population against a simulation compared afterwards."""

import math
from functools import partial

import pytest
import torch

from blockspike.fitting.distance import Window, squared_distance
from blockspike.fitting.glif_population import GLIFPopulation
from blockspike.fitting.population import PhysicalPopulation
from blockspike.neurons import Boxcar, FastSigmoid, MultiGaussian
from tiers import mostly_slow

DECAY = math.exp(-0.5 / 20)


def case(n_cells: int, n_starts: int, n_steps: int, dtype=torch.float64, n_trials=0, **options):
    generator = torch.Generator().manual_seed(n_steps)
    options["n_trials"] = n_trials
    population = PhysicalPopulation(n_cells, n_starts, dt_ms=0.5, **options).to(dtype)
    current = 1.5 * torch.randn(n_steps, 3, n_cells, generator=generator, dtype=dtype)
    target = (torch.rand(n_steps, 3, n_cells, generator=generator) < 0.02).to(dtype) * 0.5
    return population, current, target


def in_steps(population, current, target, decay, window, draws):
    """Simulate first, compare afterwards."""
    return squared_distance(population(current, draws), target, decay, window)


def results(compute, population, arrays, window):
    current, target = arrays
    draws = population.draw(*current.shape[:2], seed=1)
    fitted, held_out = compute(current, target, DECAY, window, draws)
    weight = torch.linspace(0.5, 2, fitted.numel(), dtype=fitted.dtype).view_as(fitted)
    parameters = [x for x in population.parameters() if x.requires_grad]
    assert len(parameters) >= (6 if population.n_trials else 5)
    return fitted, held_out, *torch.autograd.grad((fitted * weight).sum(), parameters)


@pytest.mark.parametrize(
    "surrogate",
    mostly_slow([MultiGaussian(), FastSigmoid(), Boxcar()], lambda s: isinstance(s, MultiGaussian)),
)
@pytest.mark.parametrize("arp_ms", [0.0, 0.5, 4.0])
@pytest.mark.parametrize(
    ("n_cells", "n_starts", "n_steps"), [(1, 1, 63), (5, 1, 2100), (2, 7, 300), (3, 150, 33)]
)
@pytest.mark.parametrize("n_trials", [0, 1, 5])
def test_equal_in_float64(surrogate, arp_ms, n_cells, n_starts, n_steps, n_trials):
    population, *arrays = case(
        n_cells, n_starts, n_steps, surrogate=surrogate, arp_ms=arp_ms, n_trials=n_trials
    )
    for window in (Window(0, n_steps, n_steps), Window(5, n_steps // 2, n_steps - 3)):
        fused = results(population.distance, population, arrays, window)
        steps = results(partial(in_steps, population), population, arrays, window)
        for ours, theirs in zip(fused, steps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert fused[0].sum() > 0
    if n_steps > 100:  # in fewer steps, the gradient of the boxcar is 0
        assert all(g.abs().max() > 0 for g in fused[2:])


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    mostly_slow([{}, {"partial_reset": True, "threshold_coupling": True}], lambda parts: not parts),
)
@pytest.mark.parametrize(("n_starts", "n_trials"), [(1, 0), (5, 3)])
def test_every_part_of_glif(n_starts, n_trials, parts):
    options = {"dt_ms": 0.5, "n_trials": n_trials, **parts}
    population = GLIFPopulation(3, n_starts, **options).to(torch.float64)
    _, *arrays = case(3, n_starts, 700)
    window = Window(5, 500, 690)
    fused = results(population.distance, population, arrays, window)
    steps = results(partial(in_steps, population), population, arrays, window)
    for ours, theirs in zip(fused, steps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        assert ours.abs().max() > 0


@pytest.mark.parametrize(("n_starts", "n_trials"), [(1, 0), (7, 3)])
def test_segments_of_different_length(n_starts, n_trials):
    population, *arrays = case(4, n_starts, 300, n_trials=n_trials)
    last = torch.tensor([[300, 61, 16, 299], [0, 300, 1, 32], [0, 0, 48, 150]])
    window = Window(0, (0.8 * last).round().long(), last)
    fused = results(population.distance, population, arrays, window)
    steps = results(partial(in_steps, population), population, arrays, window)
    for ours, theirs in zip(fused, steps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert fused[0].max() > 0 and fused[1].max() > 0 and fused[2].abs().max() > 0
    fitted, held_out = (x.view(3, 4, n_starts) for x in fused[:2])
    assert not fitted[last == 0].any() and not held_out[last == 0].any()
    current, target = arrays
    split, end = int(window.of_segments(3, 4)[0][1, 3]), int(last[1, 3])
    alone = results(
        population.distance, population, (current[:end], target[:end]), Window(0, split, end)
    )
    if not n_trials:  # fewer steps have other draws
        torch.testing.assert_close(fitted[1, 3], alone[0].view(3, 4, n_starts)[1, 3])
        torch.testing.assert_close(held_out[1, 3], alone[1].view(3, 4, n_starts)[1, 3])


@pytest.mark.parametrize("n_trials", [0, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_equal_in_float32(dtype, n_trials):
    population, current, target = case(4, 3, 1500, torch.float32, n_trials)
    arrays = current, (2 * target).to(dtype)
    window = Window(0, 1200, 1500)
    fused = results(population.distance, population, arrays, window)
    steps = results(partial(in_steps, population), population, arrays, window)
    for ours, theirs in zip(fused, steps, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.detach().abs().max())
        )


@pytest.mark.parametrize("n_trials", [0, 3])
def test_threads_do_not_change_the_result(n_trials):
    population, *arrays = case(3, 40, 200, torch.float32, n_trials)
    before, found = torch.get_num_threads(), []
    for n in (1, 2):
        torch.set_num_threads(n)
        found.append(results(population.distance, population, arrays, Window(0, 200, 200)))
    torch.set_num_threads(before)
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_a_current_that_is_not_finite_is_named():
    population, current, target = case(2, 2, 50)
    current[7, 1, 1] = math.nan
    with pytest.raises(ValueError, match="step 7, sample 1"):
        population.distance(current, target, DECAY, Window(0, 50, 50))


def test_draws_of_wrong_shape_are_refused():
    population, current, target = case(2, 2, 50, n_trials=4)
    for shape in ((50, 2, 4), (40, 3, 4), (50, 3), (50, 3, 0)):
        for compute in (population.distance, partial(in_steps, population)):
            with pytest.raises(ValueError, match="draws"):
                compute(current, target, DECAY, Window(0, 50, 50), torch.zeros(shape))


def test_a_target_of_wrong_shape_is_refused():
    population, current, target = case(2, 2, 50)
    for bad in (target[:40], target[:, :2], target[:, :, [0, 0, 0]]):
        with pytest.raises(ValueError, match="target"):
            population.distance(current, bad, DECAY, Window(0, 40, 40))
    with pytest.raises(ValueError, match="window"):
        population.distance(current, target, DECAY, Window(0, 60, 60))
