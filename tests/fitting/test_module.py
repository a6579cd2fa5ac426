"""Fitting populations: the loss, stopping, selection, restarts."""

import math
from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from blockspike.data.parts import beside, n_steps_of, padded, stacked
from blockspike.fitting.bfgs import BatchedBFGS
from blockspike.fitting.distance import Window
from blockspike.fitting.glif_population import GLIFPopulation
from blockspike.fitting.metrics import explained_temporal_variance, van_rossum_distance
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.parameters import simulate
from blockspike.fitting.population import DrawnPopulation, PaperPopulation, PhysicalPopulation
from blockspike.fitting.synthetic_cells import SyntheticCells

DT_MS = 0.5
OURS = {
    "tau_ms": 30.0, "first_tau_ms": 100.0, "loss": "squared_distance", "resample_every": 5,
    "gradient_clip": 1.0, "patience": None, "decay_lr": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def cells() -> SyntheticCells:
    data = SyntheticCells(n_cells=3, duration_s=6.0, dt_ms=DT_MS, trial_noise=0.0)
    data.setup()
    return data


def batch_of(cells: SyntheticCells) -> FittingBatch:
    current, target, window = cells.batch()
    return FittingBatch(current, target, Window(*window))


def fit(module: NeuronFittingModule, batch: FittingBatch, max_epochs: int) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch], batch_size=None))  # pyright: ignore[reportArgumentType]
    return trainer


def ours(n_starts: int = 16, n_epochs: int = 40, **options) -> NeuronFittingModule:
    population = PhysicalPopulation(3, n_starts, dt_ms=DT_MS, arp_ms=2.0)
    make = partial(torch.optim.Adam, lr=0.01, eps=1e-5)
    return NeuronFittingModule(population, make, n_epochs, **{**OURS, **options})


def published(n_epochs: int = 30, lr: float = 1e-4, **options) -> NeuronFittingModule:
    population = PaperPopulation(3, dt_ms=DT_MS)
    return NeuronFittingModule(
        population, partial(torch.optim.Adam, lr=lr, eps=1e-5), n_epochs, **options
    )


def state(module: NeuronFittingModule) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_synthetic_cells_match_their_description(cells):
    again = SyntheticCells(n_cells=3, duration_s=6.0, dt_ms=DT_MS, trial_noise=0.0)
    again.setup()
    assert torch.equal(cells.train.current, again.train.current)
    for trains in (segments[0] for segments in cells.train.trains):
        assert trains.shape[0] == 2 and trains.sum() > 0
        assert (trains[0] == trains[1]).all()  # no noise of their own


def test_the_published_loss_is_the_mean_distance_of_the_segments(cells):
    module, batch = published(), batch_of(cells)
    fit(module, batch, 1)
    spikes = PaperPopulation(3, dt_ms=DT_MS)(batch.current)
    stop = batch.window.split
    expected = van_rossum_distance(spikes[:stop], batch.target[:stop], 10.0, DT_MS).mean(0)
    torch.testing.assert_close(module.lowest, expected.detach())


def test_the_loss_of_held_out_steps_is_reported_only_where_there_are_any(cells):
    batch = batch_of(cells)
    assert fit(published(), batch, 1).callback_metrics["val/loss"] > 0
    everything = batch.window._replace(split=batch.window.last)
    trainer = fit(published(), batch._replace(window=everything), 1)
    assert "train/loss" in trainer.callback_metrics
    assert "val/loss" not in trainer.callback_metrics


def test_a_cell_stops_alone_and_the_fit_stops_when_all_have(cells):
    # The loss of a neuron that never fires stays as it is.
    batch = batch_of(cells)
    current = batch.current.clone()
    current[:, :, 0] = -1.0
    module = published(n_epochs=100, patience=4)
    start = state(module)
    trainer = fit(module, batch._replace(current=current), 100)
    assert module.stale[0] >= 4
    assert not module.active.any() and trainer.current_epoch < 100
    moved = (module.state_dict()["population.weight"] - start["population.weight"]).abs()
    assert moved[0] <= 4.1e-4  # at most a step of lr in each of 4 epochs
    assert moved[1] > 0


def test_neurons_do_not_depend_on_others_in_the_fit(cells):
    batch = batch_of(cells)
    together = published(n_epochs=8)
    fit(together, batch, 8)
    for cell in range(3):
        alone = published(n_epochs=8)
        alone.population.n_cells = 3
        only = batch._replace(
            current=batch.current[:, :, [cell] * 3], target=batch.target[:, :, [cell] * 3]
        )
        fit(alone, only, 8)
        torch.testing.assert_close(alone.best_distance[0], together.best_distance[cell])


@pytest.mark.slow
def test_our_recipe_finds_neurons_that_predict_new_current(cells):
    module = ours(n_starts=48, n_epochs=80)
    fit(module, batch_of(cells), 80)
    parameters, start = module.chosen()
    assert start.shape == (3,)
    current = cells.test.current
    draws = torch.randn(*current.shape[:2], 40, generator=torch.Generator().manual_seed(0))
    predicted = simulate(parameters, current, DT_MS, draws)[cells.test.first[0][0] :].mean(2)
    scores = [
        explained_temporal_variance(
            cells.test.scored(i)[0], predicted[:, 0, i].numpy(), 15.0, DT_MS
        )
        for i in range(3)
    ]
    assert sorted(scores)[1] > 0.85, scores


@pytest.mark.parametrize("loss", ["distance", "squared_distance", "likelihood"])
def test_a_cell_has_the_same_loss_beside_one_of_another_size(cells, loss):
    parts = [[(0, 1.5), (2, 2.4)], [(1, 2), (3, 3.9), (4, 5)]]

    def losses(chosen: list[int]) -> list[torch.Tensor]:
        currents, trains = [], []
        for cell in chosen:
            cuts = [slice(*(round(2000 * s) for s in part)) for part in parts[cell]]
            currents.append(beside([cells.train.current[cut, 0, cell].numpy() for cut in cuts]))
            trains.append([cells.train.trains[cell][0][:, cut] for cut in cuts])
        last = n_steps_of(trains)
        window = Window(0, last - 100 * (torch.as_tensor(last) > 0), last)
        target = stacked([beside([x.mean(0) for x in own]) for own in trains])
        batch = FittingBatch(stacked(currents), target, window, *padded(trains))
        noise: dict[str, Any] = {"n_trials": 0, "escape_noise": loss == "likelihood"}
        population = GLIFPopulation(len(chosen), 2, dt_ms=DT_MS, **noise)
        middle = GLIFPopulation(1, 1, dt_ms=DT_MS, **noise).parameters()
        for parameter, value in zip(population.parameters(), middle, strict=True):
            own = value.detach() + torch.tensor([[0.0, 0.1], [0.05, -0.1]])[chosen]
            parameter.data = own.flatten()
        module = NeuronFittingModule(population, torch.optim.Adam, 10, loss=loss)
        found, fitted, held_out = module.losses(batch)
        return [x.detach() for x in (found, fitted.sum(0), held_out.sum(0))]

    both = losses([0, 1])
    for cell in range(2):
        for ours, theirs in zip(both, losses([cell]), strict=True):
            torch.testing.assert_close(ours[2 * cell : 2 * cell + 2], theirs)
            assert (theirs != 0).all()


def test_the_best_is_kept_once_tau_has_fallen(cells):
    module = ours()
    fit(module, batch_of(cells), 40)
    assert (module.best_epoch >= 20).all()
    assert module._tau_ms() == 30.0
    # the kept parameters have the kept distance, with the noise of their epoch
    parameters, start = module.chosen()
    epochs = module.best_epoch.gather(1, start.unsqueeze(1))[:, 0].tolist()
    current, target, *_ = batch_of(cells)
    trials = [
        simulate(parameters, current, DT_MS, module.population.draw(len(current), 1, e))
        for e in epochs  # with seed 0, the epoch is the seed of the draws
    ]
    predicted = torch.stack([trials[i].mean(2)[:, :, i] for i in range(3)], 2)
    expected = van_rossum_distance(predicted, target.double(), 30.0, DT_MS)[0].square()
    kept = module.best_distance.gather(1, start.unsqueeze(1))[:, 0]
    torch.testing.assert_close(kept.double(), expected, rtol=0.05, atol=0.2)


def test_patience_counts_losses_of_the_last_tau(monkeypatch):
    module = ours(n_starts=2, patience=2)
    low, high = (torch.full((6,), x) for x in (1.0, 5.0))
    monkeypatch.setattr(module, "_tau_ms", lambda: 100.0)
    for _ in range(4):
        module._keep_best(low, low)
    assert module.active.all() and (module.best_epoch == -1).all()
    monkeypatch.setattr(module, "_tau_ms", lambda: 30.0)
    module._keep_best(high, high)  # not compared with the losses before
    assert module.active.all() and (module.best_epoch == 0).all() and (module.lowest == 5).all()
    for _ in range(2):
        module._keep_best(high, high)
    assert not module.active.any()


def test_nothing_is_chosen_before_the_last_tau(cells):
    module = ours(n_starts=4, n_epochs=40)
    fit(module, batch_of(cells), 2)
    for choose in (module.chosen, module.chosen_values):
        with pytest.raises(ValueError, match="^n_epochs: expected an epoch with τ at 30 ms"):
            choose()


def test_a_stopped_cell_stays_while_others_are_selected(cells):
    module = ours(n_starts=4, n_epochs=9, first_tau_ms=None, patience=1, resample_every=1)
    fit(module, batch_of(cells), 1)
    module.stale[0], module.lowest[0] = 1, -1.0
    before = state(module)
    fit(module, batch_of(cells), 1)
    for name in ("rest", "log_b"):
        moved = module.population.get_parameter(name) != before[f"population.{name}"]
        assert not moved[:4].any() and moved[4:].any()


def test_selection_copies_only_within_a_cell(cells):
    module = ours(n_starts=8, resample_every=None, n_epochs=2)
    fit(module, batch_of(cells), 1)
    module.loss_of_starts = (
        torch.arange(24.0).view(3, 8).flip(1)
    )  # the last two starts are the best
    module.perturbation = (1e-6, 1e-6)
    before = module.population.get_parameter("log_b").detach().clone().view(3, 8)
    with torch.no_grad():
        module._select()
    after = module.population.get_parameter("log_b").detach().view(3, 8)
    for cell in range(3):
        assert torch.equal(after[cell, 6:], before[cell, 6:])
        gaps = (after[cell, :6].unsqueeze(1) - before[cell, 6:]).abs().min(1).values
        assert (gaps < 1e-4).all()


def test_a_start_that_is_not_finite_does_not_stop_the_others(cells):
    module = ours(n_starts=4, n_epochs=6)
    rest = module.population.get_parameter("rest")

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        gradient[0] = math.nan
        return gradient

    rest.register_hook(poison)
    fit(module, batch_of(cells), 6)
    assert all(torch.isfinite(p).all() for p in module.population.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau_ms": 0.0}, "tau_ms"),
        ({"elite_fraction": 0.0}, "elite_fraction"),
        ({"perturbation": (0.3, 0.0)}, "perturbation"),
        ({"resample_every": 0}, "resample_every"),
        ({"patience": 0}, "patience"),
        (
            {"prior_weight": 1.0},
            "prior_weight: expected a number ≥ 0, and 0 unless loss=likelihood",
        ),
        ({"prior_weight": -1.0, "loss": "likelihood"}, "prior_weight"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        published(**options)


@pytest.mark.parametrize(("first", "last"), [(110.0, 30.0), (85.0, 30.0), (195.0, 50.0)])
def test_tau_reaches_its_final_value(cells, first, last):
    module = ours(n_starts=4, n_epochs=3, first_tau_ms=first, tau_ms=last)
    fit(module, batch_of(cells), 3)
    assert (module.best_epoch > 0).all()


@pytest.mark.slow
def test_noise_is_found_in_cells_that_have_it():
    found = []
    for trial_noise in (0.0, 0.5):
        data = SyntheticCells(
            n_cells=3, n_trials=6, duration_s=6.0, dt_ms=DT_MS, trial_noise=trial_noise
        )
        data.setup()
        module = ours(n_starts=24, n_epochs=60)
        fit(module, batch_of(data), 60)
        found.append(module.chosen()[0].noise)
    assert found[1].mean() > 1.4 * found[0].mean(), found


def by_likelihood(
    cells: SyntheticCells, population: DrawnPopulation, **options
) -> NeuronFittingModule:
    make = partial(BatchedBFGS, lr=1.0)
    options |= {"loss": "likelihood", "resample_every": None, "patience": None}
    return NeuronFittingModule(population, make, 60, **options)


@pytest.mark.parametrize("kind", [PhysicalPopulation, GLIFPopulation])
def test_a_fit_by_the_likelihood_approaches_the_recording(cells, kind):
    population = kind(3, 8, dt_ms=DT_MS, escape_noise=True)
    module = by_likelihood(cells, population)
    batch = FittingBatch(*batch_of(cells)[:3], *cells.trials())
    first = module.losses(batch)[0].detach().view(3, -1).min(1).values
    fit(module, batch, 60)
    loss = module.best_distance.min(1).values
    assert (loss < 0.6 * first).all()
    parameters, _ = module.chosen()
    assert (parameters.escape_width > 0).all() and not parameters.noise.any()
    trials = simulate(
        parameters, cells.test.current, DT_MS, torch.randn(len(cells.test.current), 1, 50)
    )
    for cell in range(3):
        trains = cells.test.trains[cell][0]
        etv = explained_temporal_variance(trains, trials[:, 0, :, cell].mean(1), 15.0, DT_MS, True)
        assert etv > 0.7


def test_the_prior_is_part_of_the_loss_and_of_the_choice(cells):
    batch = FittingBatch(*batch_of(cells)[:3], *cells.trials())
    found = {}
    for weight in (0.0, 1.0, 1e6):
        population = GLIFPopulation(3, 4, dt_ms=DT_MS, escape_noise=True)
        module = by_likelihood(cells, population, prior_weight=weight)
        prior = population.minus_log_prior().detach()
        found[weight] = loss, fitted, held_out = [x.detach() for x in module.losses(batch)]
        torch.testing.assert_close(loss, found[0.0][0] + weight * prior)
        torch.testing.assert_close(fitted.sum(0), found[0.0][1].sum(0) + weight * prior)
        torch.testing.assert_close(held_out, found[0.0][2])
    fit(module, batch, 60)  # the heaviest
    for name, chosen in module.chosen_values().items():
        if name in ("log_tau_membrane", "log_gain"):
            low, high = (5.0, 40.0) if name == "log_tau_membrane" else (0.25, 2.5)
            middle = math.log(low * high) / 2
            torch.testing.assert_close(chosen, torch.full_like(chosen, middle), atol=0.05, rtol=0)


def test_neurons_without_escape_noise_have_no_likelihood(cells):
    batch = FittingBatch(*batch_of(cells)[:3], *cells.trials())
    module = by_likelihood(cells, PhysicalPopulation(3, 2, dt_ms=DT_MS))
    with pytest.raises(ValueError, match="loss"):
        module.losses(batch)


def test_lightnings_own_loading_names_the_function_to_use(tmp_path):
    with pytest.raises(NotImplementedError, match=r"expected blockspike\.load_neuron\(FILE\)"):
        NeuronFittingModule.load_from_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"n_folds": 2},
            "^n_folds: expected None, since a synthetic cell has a single sweep, got 2",
        ),
        ({"train_sweeps": [0], "test_sweeps": [1]}, "^train_sweeps: expected None"),
        ({"train_stimulus": "noise"}, "^train_stimulus: expected None"),
        ({"trial_noise": -0.1}, "^trial_noise: expected a number ≥ 0, got -0.1"),
        ({"cell_arp_ms": 400.0}, "^cell_arp_ms: expected 0 to 333 ms, got 400.0"),
    ],
)
def test_bad_options_of_synthetic_cells(options, message):
    with pytest.raises(ValueError, match=message):
        SyntheticCells(n_cells=1, n_trials=1, duration_s=1.0, **options)


def test_cells_that_cannot_fire_at_a_plausible_rate_are_refused():
    with pytest.raises(ValueError, match="^duration_s, cell_arp_ms: expected cells that fire at 3"):
        SyntheticCells(n_cells=1, n_trials=1, duration_s=0.02).cells()
