"""Optimisers with groups of parameters."""

from functools import partial
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from blockspike.networks.classifier import SpikingClassifier
from blockspike.training.classification import ClassificationModule


def network(**options: Any) -> SpikingClassifier:
    torch.manual_seed(0)
    return SpikingClassifier(6, 2, n_hidden=4, n_layers=2, dt_ms=1.0, max_delay=3, **options)


def optimizer_of(net: SpikingClassifier, make: Any, **options: Any) -> torch.optim.Optimizer:
    return ClassificationModule(net, 2, 1.0, make, **options).configure_optimizers()


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RAdam])
def test_weight_decay_acts_on_synaptic_weights_alone(make):
    net = network()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = optimizer_of(net, partial(make, lr=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if name.endswith("weight")}
    assert len(changed) == 5


def test_without_weight_decay_all_parameters_are_one_group():
    (group,) = optimizer_of(network(), partial(torch.optim.Adam, lr=0.1)).param_groups
    assert len(group["params"]) == len(list(network().parameters())) - 2  # b is not trained


RATES = {"beta": 0.5, "delays.*": 10, "layers.?.recurrent_weight": 0}


def lr_of(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in optimizer.param_groups}


def test_patterns_choose_learning_rates():
    net = network()
    optimizer = optimizer_of(net, partial(torch.optim.SGD, lr=0.01), lr_factors=RATES)
    expected = {"others": 0.01, "beta": 0.005, "delays.*": 0.1, "layers.?.recurrent_weight": 0}
    assert lr_of(optimizer) == pytest.approx(expected)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for name, parameter in net.named_parameters():
        parameter.grad = torch.full_like(parameter, -1e-3 if name.endswith("beta") else 1e-3)
        if name.endswith("delay"):
            parameter.data.fill_(0.5)
            before[name].fill_(0.5)
    optimizer.step()
    for name, parameter in net.named_parameters():
        factor = RATES["delays.*"] if "delays" in name else 1
        factor = 0 if "recurrent" in name or name.endswith(".b") else factor
        factor = -RATES["beta"] if name.endswith("beta") else factor
        step = (before[name] - parameter.detach()) / 1e-5
        torch.testing.assert_close(step, torch.full_like(step, factor), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(OneCycleLR, max_lr=0.01, total_steps=10, cycle_momentum=False),
        partial(CosineAnnealingLR, T_max=10),
        partial(StepLR, step_size=2),
    ],
    ids=lambda x: x.func.__name__,
)
def test_schedulers_keep_the_ratios(scheduler):
    options = {"scheduler": scheduler, "lr_factors": {"beta": 0.5, "*weight": 3}}
    made: Any = optimizer_of(network(), partial(torch.optim.Adam, lr=0.01), **options)
    alone: Any = optimizer_of(network(), partial(torch.optim.Adam, lr=0.01), scheduler=scheduler)
    for _ in range(8):
        rates = lr_of(made["optimizer"])
        (group,) = alone["optimizer"].param_groups
        assert rates["others"] == pytest.approx(group["lr"])
        assert rates["beta"] == pytest.approx(0.5 * group["lr"])
        assert rates["*weight"] == pytest.approx(3 * group["lr"])
        for one in (made, alone):
            one["optimizer"].step()
            one["lr_scheduler"]["scheduler"].step()
        assert made["lr_scheduler"]["interval"] == "epoch"


class OfEpochs(StepLR):
    def __init__(self, optimizer, epochs):
        super().__init__(optimizer, step_size=epochs)


@pytest.mark.parametrize(
    ("scheduler", "interval", "n_steps"),
    [
        (partial(OneCycleLR, max_lr=0.01, epochs=3, steps_per_epoch=7), "step", 21),
        (partial(OneCycleLR, max_lr=0.01, total_steps=9), "epoch", 9),
        (partial(OneCycleLR, max_lr=0.01, epochs=3, total_steps=9), "epoch", 9),
        (partial(OfEpochs, epochs=3), "epoch", None),
        (StepLR, "epoch", None),
    ],
)
def test_only_one_cycle_over_epochs_goes_from_batch_to_batch(scheduler, interval, n_steps):
    scheduler = partial(scheduler, step_size=1) if scheduler is StepLR else scheduler
    made: Any = optimizer_of(network(), partial(torch.optim.Adam, lr=0.01), scheduler=scheduler)
    assert made["lr_scheduler"]["interval"] == interval
    assert getattr(made["lr_scheduler"]["scheduler"], "total_steps", None) == n_steps


@pytest.mark.parametrize("lr_factors", [None, {"beta": 0.5}])
def test_one_cycle_goes_from_batch_to_batch(lr_factors):
    rates = []

    class Rates(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append({g.get("pattern"): g["lr"] for g in trainer.optimizers[0].param_groups})

    module = ClassificationModule(
        network(), 2, 1.0, partial(torch.optim.Adam, lr=0.01), lr_factors=lr_factors,
        scheduler=partial(OneCycleLR, max_lr=0.01, epochs=3, cycle_momentum=False),
    )  # fmt: skip
    batches = [(torch.ones(10, 4, 6), torch.tensor([0, 1, 0, 1]))] * 7
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, accumulate_grad_batches=2, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[Rates()],
    )  # fmt: skip
    loader = DataLoader(batches, batch_size=None)  # pyright: ignore
    trainer.fit(module, loader, loader)
    of_one = [x["others"] if lr_factors else x[None] for x in rates]
    # Twelve steps, four an epoch: the first has 1/25 of the largest rate, the last next to none.
    steps = of_one[:1] + [of_one[i] for i in range(20) if i % 7 in (1, 3, 5, 6)]
    assert len(set(steps)) == len(steps) == 12
    assert steps[:4] == sorted(steps[:4]) and steps[3:] == sorted(steps[3:], reverse=True)
    assert (steps[0], steps[3]) == pytest.approx((0.0004, 0.01), rel=0.02) and steps[-1] < 1e-6
    if lr_factors:
        assert all(x["beta"] == pytest.approx(0.5 * x["others"]) for x in rates)


def test_weight_decay_splits_a_group():
    options = {"lr_factors": {"layers.0.*": 0.1}}
    make = partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5)
    groups = optimizer_of(network(), make, **options).param_groups
    found = {g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in groups}
    assert found == {
        "layers.0.*": (pytest.approx(0.01), 0.5, 2),
        "layers.0.* (no decay)": (pytest.approx(0.01), 0.0, 4),
        "others": (0.1, 0.5, 3),
        "others (no decay)": (0.1, 0.0, 6),
    }


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"alpha": 1}, r"lr_factors.alpha: expected a trained parameter \(layers.0.weight, .*none"),
        (
            {"beta": 1, "readout.*": 1},
            "expected one pattern for readout.beta, got beta and readout.*",
        ),
    ],
)
def test_bad_factors_are_refused(factors, words):
    with pytest.raises(ValueError, match=words):
        optimizer_of(network(), torch.optim.Adam, lr_factors=factors)


@pytest.mark.parametrize(
    ("scheduler", "floor"),
    [
        (partial(CosineAnnealingLR, T_max=3, eta_min=1e-4), "eta_min"),
        (partial(ReduceLROnPlateau, min_lr=1e-4), "min_lr"),
    ],
)
def test_a_common_floor_of_different_rates_is_refused(scheduler, floor):
    options = {"scheduler": scheduler, "lr_factors": {"beta": 0.1}}
    with pytest.raises(ValueError, match=f"scheduler.{floor}: expected 0 .* got 0.0001"):
        optimizer_of(network(), partial(torch.optim.Adam, lr=0.01), **options)
