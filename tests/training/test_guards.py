"""A NaN or Inf stops a run at once and is named; the batch is kept."""

import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from blockspike.fitting.distance import Window
from blockspike.fitting.guard import FittingGuard
from blockspike.fitting.module import FittingBatch, FittingLoss, NeuronFittingModule
from blockspike.fitting.population import PhysicalPopulation
from blockspike.networks.classifier import SpikingClassifier
from blockspike.neurons import NotFiniteError, SpikeTrace
from blockspike.neurons.events import EventBatch
from blockspike.neurons.state import NeuronState
from blockspike.training import classification
from blockspike.training.classification import ClassificationModule
from blockspike.training.classifier_guard import SATURATED, ClassifierGuard

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

N_INPUTS, N_STEPS, SIZE, N_BATCHES = 12, 20, 6, 3
EPOCH, BATCH = 1, 2  # where it goes wrong, from 0
PLACE = "epoch 2, step 6, batch 3"


def batches(dense: bool = False) -> list:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(N_BATCHES):
        spikes = (torch.rand(N_STEPS, SIZE, N_INPUTS, generator=generator) < 0.3).float()
        labels = torch.randint(0, 2, (SIZE,), generator=generator)
        made.append((spikes if dense else EventBatch.from_dense(spikes), labels))
    return made


def network(**options: Any) -> SpikingClassifier:
    torch.manual_seed(0)
    options = {"arp_ms": 2.0, "b": 0.1, **options} if "layer" not in options else options
    net = SpikingClassifier(N_INPUTS, 2, 8, 2, dt_ms=1.0, **options)
    with torch.no_grad():
        for layer in net.layers:
            layer.get_parameter("weight").abs_()  # they fire
    return net


class Harmed(ClassificationModule):
    """Calls `harm(module)` before one training batch, and counts the optimiser's steps."""

    harm: Callable[[Any], None] | None = None
    n_steps = 0

    def on_train_batch_start(self, batch, batch_idx):
        if self.harm and (self.current_epoch, batch_idx) == (EPOCH, BATCH):
            self.harm(self)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.n_steps += 1


def module_of(net: SpikingClassifier, harm=None, optimizer: Any = torch.optim.Adam) -> Harmed:
    module = Harmed(net, 2, 1.0, partial(optimizer, lr=1e-3))
    module.harm = harm
    return module


def trainer_of(guard=None, max_epochs: int = 3, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False, enable_checkpointing=False,
        callbacks=[guard] if guard else [], enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
        **{"limit_val_batches": 0, **options},
    )  # fmt: skip


def loader(made: list) -> DataLoader:
    return DataLoader(made, batch_size=None)  # pyright: ignore[reportArgumentType]


def stopped(module: Harmed, tmp_path: Path, made=None, **options) -> str:
    """Train until the guard stops the run, and return its message."""
    guard = ClassifierGuard(tmp_path / "bad.ckpt")
    with pytest.raises(NotFiniteError) as caught:
        trainer_of(guard, **options).fit(module, loader(made or batches()))
    text, of, file = str(caught.value).rpartition("; this batch: ")
    assert of and file == str(tmp_path / "bad.ckpt")
    assert "\n" not in text
    return text


def test_a_healthy_run_prints_nothing(tmp_path, capsys):
    module, plain = module_of(network()), module_of(network())
    trainer_of(ClassifierGuard(tmp_path / "bad.ckpt")).fit(module, loader(batches()))
    trainer_of().fit(plain, loader(batches()))
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""
    for name, value in plain.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name


def in_weight(module) -> None:
    with torch.no_grad():
        module.network.layers[1].weight[3, 5] = math.nan


def in_frozen_b(module) -> None:
    with torch.no_grad():
        module.network.layers[0].b[2] = math.inf


def in_readout(module) -> None:
    with torch.no_grad():
        module.network.readout.bias[1] = -math.inf


def in_current(module) -> None:
    """Make the current overflow: the input is finite, but its sum over time is not."""
    with torch.no_grad():
        module.network.layers[1].bias[4] = -3e38
        module.network.layers[1].weight[4] = -3e38


def in_score(module) -> None:
    """Give the wrong class −Inf, which leaves loss and gradients finite."""
    with torch.no_grad():
        module.network.readout.bias[1] = -3e38


@pytest.mark.parametrize("method", ["standard", "blocks", "fused"])
@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (in_weight, "layers.1: weight is nan at [3, 5] (1 of 64 values)"),
        (in_frozen_b, "layers.0: b is inf at [2] (1 of 8 values)"),
        (in_readout, "readout: bias is -inf at [1] (1 of 2 values)"),
        (in_current, "layers.1: current: expected finite values, got -inf at step"),
        (in_score, "readout: membrane is -inf at [1, 0, 1]"),
    ],
)
def test_parameters_and_outputs(tmp_path, method, harm, words):
    stated = stopped(module := module_of(network(method=method), harm), tmp_path)
    assert stated.startswith(words) and stated.endswith(f"; {PLACE}")
    assert module.n_steps == EPOCH * N_BATCHES + BATCH  # none for the bad batch


def test_every_score_is_checked(tmp_path):
    """With labels of one class, −Inf for the other spoils neither loss nor gradient."""
    made = [(events, torch.zeros_like(labels)) for events, labels in batches()]
    net = network(scores="mean", train_beta=False)
    module = module_of(net, in_score)
    assert stopped(module, tmp_path, made).startswith("readout: membrane is -inf")
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_dense_data(tmp_path, value):
    made = batches(dense=True)
    made[BATCH][0][4, 3, 2] = value
    stated = stopped(module_of(network(method="fused")), tmp_path, made)
    text = f"data: input is {value} at [4, 3, 2] (1 of {N_STEPS * SIZE * N_INPUTS} values)"
    assert stated == f"{text}; epoch 1, step 3, batch 3"


def bad_gradient(module, once: bool = False) -> None:
    weight, done = module.network.layers[0].recurrent_weight, []

    def hook(gradient: Tensor) -> Tensor:
        if once and done:
            return gradient
        done.append(1)
        gradient = gradient.clone()
        gradient[1, 2] = math.inf
        return gradient

    weight.register_hook(hook)


@pytest.mark.parametrize("once", [False, True])
def test_a_gradient(tmp_path, once):
    module = module_of(network(), partial(bad_gradient, once=once))
    before: dict[str, Tensor] = {}

    def harm(m):
        before.update({n: p.detach().clone() for n, p in m.named_parameters()})
        bad_gradient(m, once)

    module.harm = harm
    stated = stopped(module, tmp_path)
    words = "layers.0: gradient of recurrent_weight is inf at [1, 2] (1 of 64 values)"
    assert stated == f"{words}{', but not when run again' if once else ''}; {PLACE}"
    for name, value in before.items():
        assert torch.equal(module.get_parameter(name), value), name


def test_loss(tmp_path, monkeypatch):
    wrong = lambda *args, **kwargs: cross_entropy(*args, **kwargs) + math.inf  # noqa: E731
    cross_entropy = classification.F.cross_entropy
    harm = lambda module: monkeypatch.setattr(classification.F, "cross_entropy", wrong)  # noqa: E731
    assert stopped(module_of(network(), harm), tmp_path) == f"loss: is inf; {PLACE}"
    monkeypatch.setattr(classification.F, "cross_entropy", cross_entropy)


def test_a_loss_that_is_wrong_only_once(tmp_path, monkeypatch):
    cross_entropy, calls = classification.F.cross_entropy, []

    def once(*args, **kwargs):
        calls.append(1)
        return cross_entropy(*args, **kwargs) + (math.inf if len(calls) == 1 else 0.0)

    harm = lambda module: monkeypatch.setattr(classification.F, "cross_entropy", once)  # noqa: E731
    stated = stopped(module_of(network(), harm), tmp_path)
    assert stated == f"loss: is inf, but not when run again; {PLACE}"


class Own(nn.Module):
    """A layer that knows nothing of guards, and can hide or produce a NaN anywhere."""

    def __init__(self, n_inputs: int, n_units: int, *, dt_ms: float):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(n_units, n_inputs))
        self.threshold = nn.Parameter(torch.ones(n_units), requires_grad=False)
        self.membrane, self.back, self.spike = 0.0, 1.0, 1.0
        self.random = self.hides = False

    def trace(self, x, state=None, *, events=None, membrane=False) -> SpikeTrace:
        x = x.dense() if isinstance(x, EventBatch) else x
        x = x.nan_to_num() if self.hides else x * 1.0
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient * self.back)
        current = x @ self.weight.T
        spikes = self.spike * ((current > self.threshold).float() + current - current.detach())
        if self.random and torch.rand(()) < 0.5:
            spikes = spikes + math.nan
        level = current.detach() + self.membrane
        return SpikeTrace(spikes, NeuronState("own", (), x), level, torch.ones_like(level))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ({"spike": math.nan}, "layers.1: spikes is nan at [0, 0, 0]"),
        ({"spike": math.nan, "membrane": math.nan}, "layers.1: spikes is nan at [0, 0, 0]"),
        ({"back": math.nan}, "layers.1: gradient of its input is nan at [0, 0, 0]"),
        ({"back": math.nan, "membrane": math.inf}, "layers.1: membrane is inf at [0, 0, 0]"),
    ],
)
def test_a_layer_of_another_model(tmp_path, harm, words):
    def do(module):
        vars(module.network.layers[1]).update(harm)

    net = network(layer=Own)
    assert stopped(module_of(net, do), tmp_path).startswith(words)


def test_a_nan_that_a_layer_hides(tmp_path):
    net = network(layer=Own)
    with torch.no_grad():
        net.layers[1].get_parameter("threshold")[3] = math.nan  # no neuron is above it
    stated = stopped(module_of(net), tmp_path)
    words = "layers.1: threshold is nan at [3] (1 of 8 values)"
    assert stated == f"{words}; epoch 1, step 1, batch 1"
    net = network(layer=Own)
    net.layers[0].hides = True  # pyright: ignore[reportArgumentType]
    made = batches(dense=True)
    made[0][0][4, 3, 2] = math.nan
    stated = stopped(module_of(net), tmp_path, made)
    assert stated.startswith("data: input is nan at [4, 3, 2] (1 of ")


def test_a_rerun_draws_the_original_random_numbers(tmp_path):
    """A layer that draws random numbers draws the same when it is run again."""
    net = network(layer=Own)
    net.layers[0].random = True  # pyright: ignore[reportArgumentType]
    for seed in range(4):
        torch.manual_seed(seed)
        stated = stopped(module_of(net), tmp_path)
        assert stated.startswith("layers.0: spikes is nan") and "not when" not in stated


def test_the_last_step_of_an_epoch_spoils_no_checkpoint(tmp_path):
    """A learning rate that overflows the weights is noticed before validation."""
    seen = []

    class Validated(Harmed):
        def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
            seen.append(self.current_epoch)

    module = Validated(network(), 2, 1.0, partial(torch.optim.SGD, lr=1e-3))

    def harm(m):
        m.optimizers().param_groups[0]["lr"] = math.inf

    module.harm = harm
    guard = ClassifierGuard(tmp_path / "bad.ckpt")
    with pytest.raises(NotFiniteError, match=f"^layers.0: .* is .*; {PLACE}"):
        trainer_of(guard, limit_val_batches=1).fit(module, loader(batches()), loader(batches()))
    assert seen == [0]
    module = module_of(network(), harm, torch.optim.SGD)  # without validation
    ended = []
    module.on_train_epoch_end = lambda: ended.append(module.current_epoch)
    assert stopped(module, tmp_path).endswith(PLACE)
    assert ended == [0]


def test_validation_data(tmp_path):
    bad = batches(dense=True)
    bad[1][0][0, 0, 0] = math.nan
    guard = ClassifierGuard(tmp_path / "bad.ckpt")
    place = "epoch 1, validation after step 3, batch 2"
    with pytest.raises(NotFiniteError, match=rf"^data: input is nan at \[0, 0, 0\].*; {place}; "):
        trainer_of(guard, limit_val_batches=2).fit(
            module_of(network()), loader(batches()), loader(bad)
        )


def test_a_validation_loss_that_is_not_finite_chooses_no_model(tmp_path, monkeypatch):
    cross_entropy = classification.F.cross_entropy

    def wrong(scores, *args, **kwargs):
        loss = cross_entropy(scores, *args, **kwargs)
        return loss if torch.is_grad_enabled() else loss + math.nan

    monkeypatch.setattr(classification.F, "cross_entropy", wrong)
    with torch.inference_mode():  # as on a GPU, where batches are copied in it
        validation = batches(dense=True)
    with pytest.raises(NotFiniteError, match="^val/loss: is nan; epoch 1, validation after step 3"):
        trainer_of(ClassifierGuard(tmp_path / "bad.ckpt"), limit_val_batches=1).fit(
            module_of(network()), loader(batches()), loader(validation)
        )


def test_a_large_but_finite_gradient_does_not_stop(tmp_path):
    def harm(module):
        module.network.readout.weight.register_hook(lambda gradient: gradient * 1e25)

    trainer_of(ClassifierGuard(tmp_path / "bad.ckpt")).fit(
        module := module_of(network(), harm), loader(batches())
    )
    assert module.n_steps == 3 * N_BATCHES


def test_other_errors_pass_unchanged(tmp_path):
    def harm(module):
        raise ValueError("something else")

    guard = ClassifierGuard(tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="^something else$"):
        trainer_of(guard).fit(module_of(network(), harm), loader(batches()))
    assert not list(tmp_path.iterdir())


def test_a_batch_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    guard = ClassifierGuard(tmp_path / "file" / "bad.ckpt")
    with pytest.raises(NotFiniteError, match=f"{PLACE}; this batch could not be written"):
        trainer_of(guard).fit(module_of(network(), in_weight), loader(batches()))


def test_content_of_a_kept_batch(tmp_path):
    stopped(module := module_of(network(), in_weight), tmp_path)
    kept = torch.load(tmp_path / "bad.ckpt", weights_only=True)
    events, labels = batches()[BATCH]
    assert torch.equal(kept["batch"]["events"]["unit"], events.unit)
    assert torch.equal(kept["batch"]["labels"], labels)
    for name, value in kept["state_dict"].items():
        torch.testing.assert_close(value, module.state_dict()[name], equal_nan=True, rtol=0, atol=0)
    (optimizer,) = kept["optimizers"]
    assert optimizer["state"][0]["step"] == EPOCH * N_BATCHES + BATCH


def bias(value: float, layer: int = 1) -> Callable[[Any], None]:
    def do(module):
        with torch.no_grad():
            module.network.layers[layer].bias.fill_(value)

    return do


def test_a_dead_layer_is_named_once(tmp_path, capsys):
    module = module_of(network(), bias(-100.0))
    trainer_of(ClassifierGuard(tmp_path / "bad.ckpt"), 5).fit(module, loader(batches()))
    (line,) = capsys.readouterr().err.splitlines()
    # batches 1 and 2 of epoch 2 still had spikes
    assert line.startswith("warning: layers.1: no neuron spiked in epoch 3 (dead layer); ")


def test_a_saturated_layer_is_named_once_and_again_if_it_comes_back(tmp_path, capsys):
    values = {1: 100.0, 4: 0.0, 6: 100.0}

    class Switched(Harmed):
        def on_train_epoch_start(self):
            if self.current_epoch in values:
                bias(values[self.current_epoch], 0)(self)

    module = Switched(network(), 2, 1.0, partial(torch.optim.SGD, lr=0.0))
    trainer_of(ClassifierGuard(tmp_path / "bad.ckpt"), 8).fit(module, loader(batches()))
    lines = [x for x in capsys.readouterr().err.splitlines() if "layers.0" in x]
    assert [re.findall(r"in epoch (\d)", line) for line in lines] == [["2"], ["7"]]
    assert lines[0].startswith(
        "warning: layers.0: 100% of the spikes that the refractory period allows in epoch 2 "
    )


@pytest.mark.parametrize("share", [SATURATED - 0.01, SATURATED + 0.01])
def test_definition_of_saturated(capsys, share, tmp_path, monkeypatch):
    """A share of the 7 spikes that a neuron can have in 20 steps with arp 2."""
    guard = ClassifierGuard(tmp_path / "bad.ckpt")
    guard._batch = batches()[0]
    rate_hz = share * 7 / 0.020

    trainer = trainer_of()
    rates = {f"train/rate_layer{i}_hz": torch.tensor(rate_hz) for i in (1, 2)}
    monkeypatch.setattr(pl.Trainer, "callback_metrics", rates)
    guard._warn(trainer, module_of(network()))
    assert len(capsys.readouterr().err.splitlines()) == (2 if share > SATURATED else 0)


CELLS = ("ann", "bob")
N_STARTS = 4


class HarmedFit(NeuronFittingModule):
    harm: Callable[[Any], None] | None = None

    def on_train_batch_start(self, batch, batch_idx):
        if self.harm and self.current_epoch == EPOCH:
            self.harm(self)


def fit_module(harm=None, method: Any = "fused", **options) -> HarmedFit:
    options = {"patience": None, "loss": "squared_distance", **options}
    population = PhysicalPopulation(
        2, N_STARTS, dt_ms=1.0, arp_ms=2.0, method=method,
        escape_noise=options["loss"] == "likelihood",
    )  # fmt: skip
    module = HarmedFit(population, partial(torch.optim.Adam, lr=1e-2), 4, **options)
    module.harm = harm
    return module


def fit_batch() -> FittingBatch:
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(300, 2, 2, generator=generator) + 1
    target = (torch.rand(300, 2, 2, generator=generator) < 0.05).float()
    is_there = torch.ones(1, 2, 2, dtype=torch.bool)
    return FittingBatch(current, target, Window(10, 200, 300), target.unsqueeze(1), is_there)


def fit(module, tmp_path, batch=None, max_epochs=4) -> pl.Trainer:
    trainer = trainer_of(FittingGuard(tmp_path / "bad.ckpt", CELLS), max_epochs)
    trainer.fit(module, loader([batch or fit_batch()]))
    return trainer


def fit_stopped(module, tmp_path, batch=None) -> str:
    with pytest.raises(NotFiniteError) as caught:
        fit(module, tmp_path, batch)
    text, of, _ = str(caught.value).rpartition("; this batch: ")
    assert of
    return text


@pytest.mark.slow
@pytest.mark.parametrize("part", ["current", "target"])
def test_data_of_a_fit(tmp_path, part):
    batch = fit_batch()
    getattr(batch, part)[7, 1, 1] = math.inf
    stated = fit_stopped(fit_module(), tmp_path, batch)
    text = f"bob: {part} is inf at step 7, segment 1 (1 such values)"
    assert stated == f"{text}; epoch 1, step 1, batch 1"


@pytest.mark.parametrize("method", ["standard", "blocks", "fused"])
def test_a_parameter_of_a_fit(tmp_path, method):
    def harm(module):
        with torch.no_grad():
            module.population.log_b[N_STARTS + 2] = math.nan

    stated = fit_stopped(fit_module(harm, method), tmp_path)
    assert stated == "bob, start 3: log_b is nan; epoch 2, step 2, batch 1"


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_a_membrane_of_a_fit(tmp_path, method):
    """Finite parameters and data whose product overflows."""

    def harm(module):
        with torch.no_grad():
            module.population.project_ = lambda: None  # out of its bounds
            module.population.log_gain[N_STARTS + 1] = 95.0

    stated = fit_stopped(fit_module(harm, method), tmp_path)
    assert stated.startswith("bob, start 2: ") and stated.endswith("epoch 2, step 2, batch 1")


def test_a_step_that_spoils_a_parameter_is_noticed_before_the_checkpoint(tmp_path):
    ended = []

    def harm(module):
        module.optimizers().param_groups[0]["lr"] = math.inf

    module = fit_module(harm)
    module.on_train_epoch_end = lambda: ended.append(module.current_epoch)
    assert fit_stopped(module, tmp_path).startswith("ann, start ")
    assert ended == [0]


def lost(*starts: int) -> Callable[[Any], None]:
    """Make the distance of these starts NaN, permanently."""

    def do(module):
        name = "log_likelihoods" if module.loss == "likelihood" else "distance"
        measure = getattr(module.population, name)

        def wrong(*args):
            fitted, held_out = measure(*args)
            spoil = torch.zeros(2 * N_STARTS)
            spoil[list(starts)] = math.nan
            return fitted + spoil, held_out

        setattr(module.population, name, wrong)

    return do


@pytest.mark.slow
@pytest.mark.parametrize("loss", get_args(FittingLoss))
def test_a_cell_without_a_start_left_stops_the_fit(tmp_path, capsys, loss):
    stated = fit_stopped(fit_module(lost(4, 5, 6, 7), loss=loss), tmp_path)
    text = "bob: loss of all 4 starts is not finite"
    assert stated == f"{text}; epoch 2, step 2, batch 1"


@pytest.mark.slow
@pytest.mark.parametrize("loss", get_args(FittingLoss))
def test_a_lost_start_is_named_and_its_cell_survives(tmp_path, capsys, loss):
    module = fit_module(lost(5), loss=loss, patience=2, resample_every=2)
    fit(module, tmp_path)
    first, last = capsys.readouterr().err.splitlines()
    for words in ("bob", "1 of 4 starts", "epoch 2", "start 2"):
        assert words in first
    assert "3 times" in last and "1 cells" in last
    assert all(torch.isfinite(p).all() for p in module.population.parameters())
    assert torch.isfinite(module.lowest).all() and (module.lowest > 0).all()
    assert module.best_distance.isfinite().any(1).all()


def test_a_bad_gradient_of_a_start_is_left_out(tmp_path, capsys):
    def harm(module):
        def hook(gradient):
            gradient = gradient.clone()
            gradient[0] = math.inf
            return gradient

        module.population.rest.register_hook(hook)

    module = fit_module(harm)
    fit(module, tmp_path)
    assert "ann: loss or gradient of 1 of 4 starts" in capsys.readouterr().err
    assert all(torch.isfinite(p).all() for p in module.population.parameters())


def test_a_healthy_fit_prints_nothing(tmp_path, capsys):
    fit(fit_module(), tmp_path)
    assert capsys.readouterr().err == "" and not list(tmp_path.iterdir())
