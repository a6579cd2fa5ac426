"""Recorded voltage in the loss: the membrane, its scale, gradients, and what it adds to a fit."""

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from blockspike.data.parts import Part
from blockspike.fitting.bfgs import BatchedBFGS
from blockspike.fitting.distance import Window
from blockspike.fitting.glif_population import GLIFPopulation
from blockspike.fitting.guard import FittingGuard
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.parameters import NeuronParameters, simulated_trace
from blockspike.fitting.population import PaperPopulation, PhysicalPopulation
from blockspike.fitting.voltage import (
    RecordedVoltage,
    check_fitted,
    driven_membrane,
    driven_membrane_by_steps,
    recorded_voltage,
    unexplained_voltage,
)

DT_MS, N_STEPS, N_SEGMENTS, N_CELLS, N_STARTS = 0.5, 203, 2, 2, 3
WINDOW = Window(10, 150, 200)
OF_EACH = Window(0, torch.tensor([[160, 33], [50, 0]]), torch.tensor([[203, 48], [64, 0]]))
ATOL = 1e-11


def values(**options: Any) -> NeuronParameters:
    population = GLIFPopulation(N_CELLS, N_STARTS, dt_ms=DT_MS, **options)
    return population.physical()


def data(rate: float = 0.04) -> tuple[Tensor, Tensor]:
    """Current, and spikes of which some follow within the refractory period, [T, B, C] each."""
    generator = torch.Generator().manual_seed(0)
    shape = (N_STEPS, N_SEGMENTS, N_CELLS)
    current = torch.randn(shape, generator=generator, dtype=torch.float64)
    spikes = (torch.rand(shape, generator=generator) < rate).double()
    spikes[:, 0, 1] = 0
    spikes[50:52, :, 0] = 1
    return current, spikes


def with_gradient(own: NeuronParameters) -> NeuronParameters:
    leaves = {x.name: getattr(own, x.name).clone().requires_grad_() for x in fields(own)}
    return NeuronParameters(**leaves)


@pytest.mark.parametrize("partial_reset", [False, True])
def test_membrane_and_gradients_equal_those_of_the_steps(partial_reset):
    current, spikes = data()
    assert ((spikes[1:] > 0) & (spikes[:-1] > 0)).any()  # within the refractory period
    found = []
    for function in (driven_membrane_by_steps, driven_membrane):
        own = with_gradient(values(partial_reset=partial_reset))
        membrane = function(own, DT_MS, current, spikes)
        weights = torch.linspace(-1, 1, membrane.numel(), dtype=membrane.dtype)
        inputs = list(vars(own).values())
        grads = torch.autograd.grad(
            (membrane * weights.view_as(membrane)).sum(), inputs, materialize_grads=True
        )
        found.append((membrane.detach(), *grads))
    for steps, at_once in zip(*found, strict=True):
        torch.testing.assert_close(at_once, steps, rtol=1e-9, atol=ATOL)
    names = [x.name for x in fields(NeuronParameters)]
    assert found[0][1 + names.index("current_1")].abs().min() > 0
    assert bool(found[0][1 + names.index("reset_share")].abs().max() > 0)


def test_the_membrane_is_that_of_a_neuron_that_fired_those_spikes():
    own = values(partial_reset=True)[torch.tensor([1])]
    current = 2.5 * torch.ones(400, 1, 1, dtype=torch.float64)
    trace = simulated_trace(own, current, DT_MS)
    assert trace.spikes.sum() > 3
    membrane = driven_membrane(own, DT_MS, current, trace.spikes)
    torch.testing.assert_close(membrane, trace.membrane, rtol=1e-9, atol=1e-9)


def recorded(spikes: Tensor, mv: Tensor | None = None) -> RecordedVoltage:
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(spikes.shape, generator=generator, dtype=torch.float64)
    weight = (torch.rand(spikes.shape, generator=generator) < 0.8).double()
    mv = -60 + 5 * drawn if mv is None else mv
    return RecordedVoltage(mv * weight, weight, spikes)


@pytest.mark.parametrize("window", [WINDOW, OF_EACH])
def test_scales_are_those_of_least_squares(window):
    current, spikes = data()
    membrane = driven_membrane(values(), DT_MS, current, spikes)
    # Of the first cell the membrane explains something with the right sign, whatever the draw.
    own = recorded(spikes)
    follows = 3 * membrane[:, :, ::N_STARTS] + own.mv
    own = recorded(spikes, follows)
    fitted, held_out = unexplained_voltage(membrane, current, own, window)
    middle = torch.cat([membrane[:1], (membrane[1:] + membrane[:-1]) / 2]).numpy()
    splits, lasts = (x.numpy() for x in window.of_segments(N_SEGMENTS, N_CELLS))
    steps = np.arange(N_STEPS)[:, None]
    for n in range(N_CELLS * N_STARTS):
        cell = n // N_STARTS
        there = own.weight[:, :, cell].numpy() > 0
        is_fitted = there & (steps >= window.first) & (steps < splits[:, cell])
        is_held_out = there & (steps >= splits[:, cell]) & (steps < lasts[:, cell])
        columns = np.stack([np.ones(there.shape), middle[:, :, n], current[:, :, cell].numpy()], -1)
        voltage = own.mv[:, :, cell].numpy()
        scales, *_ = np.linalg.lstsq(columns[is_fitted], voltage[is_fitted], rcond=None)
        if scales[1] < 0:
            columns = columns[:, :, ::2]
            scales, *_ = np.linalg.lstsq(columns[is_fitted], voltage[is_fitted], rcond=None)
        error = (voltage - columns @ scales) ** 2
        unit = voltage[is_fitted].var() * is_fitted.sum()
        for share, chosen in ((fitted, is_fitted), (held_out, is_held_out)):
            expected = np.where(chosen, error, 0).sum(0) / unit
            np.testing.assert_allclose(share[:, n].numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_segment_that_was_drawn_twice_counts_as_two():
    current, spikes = data()
    membrane = driven_membrane(values(), DT_MS, current, spikes)
    own = recorded(spikes)
    drawn = [0, 0, 1]
    twice = RecordedVoltage(*(x[:, drawn] for x in own))
    counted = own._replace(weight=own.weight * torch.tensor([2.0, 1.0]).view(1, 2, 1))
    expected, _ = unexplained_voltage(membrane[:, drawn], current[:, drawn], twice, WINDOW)
    found, _ = unexplained_voltage(membrane, current, counted, WINDOW)
    torch.testing.assert_close(found[0], expected[:2].sum(0))
    torch.testing.assert_close(found[1], expected[2])


@pytest.mark.parametrize("options", [{}, {"partial_reset": True}])
def test_gradients_are_those_of_finite_differences(options):
    current, spikes = data()
    own = recorded(spikes)
    names = [
        "tau_membrane_ms", "gain", "rest", "reset_share", "current_1", "tau_current_1_ms",
        "tau_current_2_ms",
    ]  # fmt: skip
    fixed = vars(values(**options))
    follows = 4 * driven_membrane(values(**options), DT_MS, current, spikes)[:, :, ::N_STARTS]
    own = recorded(spikes, own.mv + follows)

    def shares(*given: Tensor) -> Tensor:
        parameters = NeuronParameters(**{**fixed, **dict(zip(names, given, strict=True))})
        membrane = driven_membrane(parameters, DT_MS, current, spikes)
        return unexplained_voltage(membrane, current, own, WINDOW)[0].sum(0)

    inputs = tuple(fixed[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(shares, inputs, eps=1e-6, atol=1e-6, rtol=1e-4)
    grads = torch.autograd.grad(shares(*inputs).sum(), inputs)
    assert all(bool(x.abs().max() > 1e-6) for x in grads[:3])


def test_a_voltage_of_the_membrane_itself_is_explained_whatever_its_unit():
    current, spikes = data()
    membrane = driven_membrane(values(), DT_MS, current, spikes)
    middle = torch.cat([membrane[:1], (membrane[1:] + membrane[:-1]) / 2])
    own = -70 + 12 * middle[:, :, ::N_STARTS] + 0.02 * 80 * current
    fitted, held_out = unexplained_voltage(membrane, current, recorded(spikes, own), WINDOW)
    assert fitted[:, ::N_STARTS].max() < 1e-12 > held_out[:, ::N_STARTS].max()
    assert fitted[:, 1::N_STARTS].sum(0).min() > 1e-3
    upside_down = recorded(spikes, -70 - 12 * middle[:, :, ::N_STARTS])
    fitted, _ = unexplained_voltage(membrane, torch.zeros_like(current), upside_down, WINDOW)
    assert fitted.sum(0)[::N_STARTS] == pytest.approx([1.0] * N_CELLS)


@pytest.mark.parametrize("kind", [PhysicalPopulation, GLIFPopulation])
def test_parameters_of_populations_get_a_gradient(kind):
    population = kind(N_CELLS, N_STARTS, dt_ms=DT_MS)
    current, spikes = (x.float() for x in data())
    fitted, _ = population.unexplained_voltage(current, recorded(spikes), WINDOW)
    fitted.sum().backward()
    of_voltage = [population.get_parameter(x).grad for x in ("log_tau_membrane", "rest")]
    assert all(x is not None and bool(x.abs().max() > 0) for x in of_voltage)


def part_of(voltage: np.ndarray) -> Part:
    train = np.zeros((1, voltage.shape[1]), np.float32)
    train[0, 300::200] = 1
    return Part(torch.zeros(voltage.shape[1], 1, 1), [[train]], [[0]])


def test_only_steps_between_spikes_are_compared():
    voltage = np.full((1, 1000), -60.0)
    voltage[0, 300::200] = 30
    voltage[0, :50] = np.nan
    found = recorded_voltage(["cell"], part_of(voltage), [voltage], DT_MS)
    assert found.mv.shape == found.weight.shape == found.spikes.shape == (1000, 1, 1)
    between = found.weight[:, 0, 0] > 0
    assert not between[:50].any() and between[50:296].all()
    assert not between[296:321].any() and between[321:496].all()
    assert (found.mv[found.weight > 0] == -60).all() and not found.mv[found.weight == 0].any()
    assert found.spikes.sum() == 4


@pytest.mark.parametrize(
    ("voltage", "message"),
    [
        (None, "my cell: voltage_weight: expected a voltage between spikes, got none"),
        (np.full((1, 1000), np.nan), "expected a voltage between spikes, got none"),
        (np.full((1, 1000), -60.0), "expected the voltage of the first trial"),
    ],
)
def test_a_cell_without_its_voltage_is_named(voltage, message):
    part = part_of(np.zeros((1, 1000)))
    with pytest.raises(ValueError, match=message):
        recorded_voltage(["my cell"], part, [voltage], DT_MS)


@pytest.mark.parametrize("mv", [np.nan, -60.0])
def test_a_cell_without_a_voltage_in_the_fitted_steps_is_named(mv):
    """Held-out steps have one, and none or a constant one is in the fitted steps."""
    voltage = np.random.default_rng(0).normal(-60.0, 1.0, (1, 1000))
    voltage[0, :600] = mv
    voltage[0, 300::200] = 30
    found = recorded_voltage(["cell"], part_of(voltage), [voltage], DT_MS)
    check_fitted(["cell"], found, Window(0, 800, 1000))
    with pytest.raises(ValueError, match="my cell: voltage_weight: expected a voltage that varies"):
        check_fitted(["my cell"], found, Window(0, 600, 1000))


def batch(by_likelihood: bool) -> FittingBatch:
    current, spikes = (x.float() for x in data())
    if not by_likelihood:
        return FittingBatch(current, spikes, WINDOW)
    is_there = torch.ones(1, N_SEGMENTS, N_CELLS, dtype=torch.bool)
    return FittingBatch(current, spikes, WINDOW, spikes.unsqueeze(1), is_there)


def module_of(loss: Any, weight: float) -> NeuronFittingModule:
    by_likelihood = loss == "likelihood"
    population = GLIFPopulation(N_CELLS, N_STARTS, dt_ms=DT_MS, escape_noise=by_likelihood)
    make = partial(BatchedBFGS, lr=1.0) if by_likelihood else partial(torch.optim.Adam, lr=0.01)
    return NeuronFittingModule(
        population,
        make,
        30,
        loss=loss,
        voltage_weight=weight,
        patience=None,
    )


@pytest.mark.parametrize("loss", ["squared_distance", "likelihood"])
def test_the_loss_is_that_of_the_spikes_and_the_voltage_for_each_spike(loss):
    given = batch(loss == "likelihood")
    with_voltage = given._replace(voltage=recorded(given.target))
    plain = module_of(loss, 0).losses(given)
    for x, y in zip(plain, module_of(loss, 0).losses(with_voltage), strict=True):
        assert torch.equal(x, y)
    module = module_of(loss, 0.5)
    found = module.losses(with_voltage)
    n_spikes = given.target[WINDOW.first : 150].sum((0, 1)).repeat_interleave(N_STARTS)
    assert n_spikes.min() >= 2
    shares = module.population.unexplained_voltage(
        given.current, recorded(given.target), WINDOW
    )  # fmt: skip
    expected = [x + 0.5 * n_spikes * share for x, share in zip(plain[1:], shares, strict=True)]
    for x, y in zip(found[1:], expected, strict=True):
        torch.testing.assert_close(x, y)
    torch.testing.assert_close(found[0], plain[0] + 0.5 * n_spikes * shares[0].sum(0))


def test_a_fit_with_the_voltage_finds_what_the_spikes_leave_open():
    """A voltage in mV gives the scale of gain and rest, which a few spikes hardly do."""
    truth = {"log_tau_membrane": np.log(15.0), "log_gain": np.log(1.2), "rest": 0.2}
    cell = PhysicalPopulation(1, 1, dt_ms=DT_MS, escape_noise=True)
    with torch.no_grad():
        for name, value in truth.items():
            cell.get_parameter(name).fill_(value)
    generator = torch.Generator().manual_seed(2)
    current, draws = torch.randn(2, 3000, 1, 1, generator=generator)
    current = torch.nn.functional.avg_pool1d(current.view(1, 1, -1), 9, 1, 4).view(-1, 1, 1)
    current = current / current.std()
    spikes = simulated_trace(cell.physical(), current, DT_MS, draws).spikes
    assert spikes.sum() > 5
    membrane = driven_membrane(cell.physical(), DT_MS, current, spikes)
    middle = torch.cat([membrane[:1], (membrane[1:] + membrane[:-1]) / 2])
    voltage = (-65 + 15 * middle[:, :, 0].T).numpy()
    voltage[spikes[:, :, 0].T.numpy() > 0] = 30
    train = spikes[:, 0, 0].numpy()[None].astype(np.float32)
    own = recorded_voltage(["cell"], Part(current, [[train]], [[0]]), [voltage], DT_MS)
    given = FittingBatch(
        current, spikes.float(), Window(0, 3000, 3000), spikes.float().unsqueeze(1),
        torch.ones(1, 1, 1, dtype=torch.bool), own,
    )  # fmt: skip
    population = PhysicalPopulation(1, 4, dt_ms=DT_MS, escape_noise=True)
    module = NeuronFittingModule(
        population, partial(BatchedBFGS, lr=1.0), 60, loss="likelihood", voltage_weight=1000.0,
        patience=None,
    )  # fmt: skip
    optimizer = module.configure_optimizers()
    assert isinstance(optimizer, BatchedBFGS)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = module.losses(given)[0]
        optimizer.losses = loss.detach()
        loss.sum().backward()
        return loss.sum()

    for _ in range(60):
        optimizer.step(closure)
    best = int(module.losses(given)[0].argmin())
    found = {name: float(population.get_parameter(name).detach()[best]) for name in truth}
    assert found["log_tau_membrane"] == pytest.approx(truth["log_tau_membrane"], abs=0.005)
    # Of gain and rest the voltage knows the ratio, gain / (rest − reset), whatever the threshold.
    ratio = np.exp(found["log_gain"]) / found["rest"]
    assert ratio == pytest.approx(1.2 / 0.2, rel=0.05)


@pytest.mark.parametrize(("loss", "weight"), [("distance", 1.0), ("likelihood", -1.0)])
def test_a_weight_that_does_not_fit_is_refused(loss, weight):
    with pytest.raises(ValueError, match="voltage_weight: expected a number ≥ 0, and 0 for loss="):
        module_of(loss, weight)


def test_the_published_neurons_have_no_voltage():
    current, spikes = data()
    population = PaperPopulation(N_CELLS, dt_ms=DT_MS)
    with pytest.raises(ValueError, match="voltage_weight: expected 0 for ALIF, published recipe"):
        population.unexplained_voltage(current, recorded(spikes), WINDOW)


def test_a_kept_batch_has_its_voltage(tmp_path: Path):
    guard = FittingGuard(tmp_path / "bad.ckpt", ["a", "b"])
    given = batch(True)
    for own in (given, given._replace(voltage=recorded(given.target))):
        again = guard._unpacked(guard._plain(own))
        assert again.window == own.window and (again.voltage is None) == (own.voltage is None)
        if own.voltage is not None and again.voltage is not None:
            assert all(torch.equal(x, y) for x, y in zip(again.voltage, own.voltage, strict=True))
    older = guard._plain(given)
    del older["voltage"]
    assert guard._unpacked(older).voltage is None
