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
from blockspike.fitting.module import FittingBatch, FittingLoss, NeuronFittingModule
from blockspike.fitting.population import PhysicalPopulation
from blockspike.networks.classifier import SpikingClassifier
from blockspike.neurons import NotFiniteError, SpikeTrace
from blockspike.neurons.events import EventBatch
from blockspike.neurons.state import NeuronState
from blockspike.training import classification
from blockspike.training.callbacks import SATURATED, LayerStates
from blockspike.training.classification import ClassificationModule
from blockspike.training.guard import Guard

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step`")

N_INPUTS, N_STEPS, SIZE, N_BATCHES = 12, 20, 6, 3
EPOCH, BATCH = 1, 2  # where it goes wrong, from 0
PLACE = "epoch 2, train batch 3 after 5 steps"


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


def module_of(net: nn.Module, harm=None, optimizer: Any = torch.optim.Adam, lr=1e-3) -> Harmed:
    module = Harmed(net, 2, 1.0, partial(optimizer, lr=lr))
    module.harm = harm
    return module


def trainer_of(*callbacks: pl.Callback, max_epochs: int = 3, **options) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False, enable_checkpointing=False,
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, **{"limit_val_batches": 0, **options},
    )  # fmt: skip


def loader(made: list) -> DataLoader:
    return DataLoader(made, batch_size=None)  # pyright: ignore[reportArgumentType]


def stopped(module: pl.LightningModule, folder: Path, made=None, each_step=True, **options) -> str:
    """Train until the guard stops the run, and return its message."""
    guard = Guard(folder / "bad.ckpt", each_step)
    validation = options.pop("validation", None)
    with pytest.raises(NotFiniteError) as caught:
        trainer_of(guard, **options).fit(module, loader(made or batches()), validation)
    text, _, file = str(caught.value).rpartition("; this batch: ")
    assert file == str(folder / "bad.ckpt") and (folder / "bad.ckpt").is_file()
    assert "\n" not in text
    return text


def test_a_healthy_run_is_not_changed(tmp_path, capsys):
    guarded, plain = module_of(network()), module_of(network())
    guard = Guard(tmp_path / "bad.ckpt")
    trainer_of(guard, LayerStates()).fit(guarded, loader(batches()))
    trainer_of().fit(plain, loader(batches()))
    assert not list(tmp_path.iterdir()) and capsys.readouterr().err == ""
    for name, value in plain.state_dict().items():
        assert torch.equal(guarded.state_dict()[name], value), name


def in_weight(module) -> None:
    with torch.no_grad():
        module.network.layers[1].weight[3, 5] = math.nan


def in_current(module) -> None:
    """Make the current overflow: the input is finite, but its sum over time is not."""
    with torch.no_grad():
        module.network.layers[1].bias[4] = -3e38
        module.network.layers[1].weight[4] = -3e38


def in_score(module) -> None:
    """Give a class −Inf, which leaves the loss of the other finite."""
    with torch.no_grad():
        module.network.readout.bias[1] = -3e38


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (in_weight, "layers.1: weight is nan at [3, 5] (1 of 64 values)"),
        (in_current, "layers.1: current: expected finite values, got -inf at step"),
        (in_score, "readout: score is -inf at [0, 1]"),
    ],
)
def test_parameters_and_layers(tmp_path, harm, words):
    stated = stopped(module := module_of(network(), harm), tmp_path)
    assert stated.startswith(words) and stated.endswith(f"; {PLACE}")
    assert module.n_steps == EPOCH * N_BATCHES + BATCH  # none for the bad batch
    kept = torch.load(tmp_path / "bad.ckpt", weights_only=True)
    events, labels = batches()[BATCH]
    assert torch.equal(kept["batch"]["batch.0.unit"], events.unit)
    assert torch.equal(kept["batch"]["batch.1"], labels)
    assert kept["state_dict"].keys() == module.state_dict().keys()
    assert kept["optimizers"][0]["state"][0]["step"] == EPOCH * N_BATCHES + BATCH


def test_dense_data(tmp_path):
    made = batches(dense=True)
    made[1][0][4, 3, 2] = math.nan
    stated = stopped(module_of(network()), tmp_path, made)
    n = N_STEPS * SIZE * N_INPUTS
    assert stated.startswith(f"batch: 0 is nan at [4, 3, 2] (1 of {n} values); epoch 1, train batc")


def test_a_gradient(tmp_path):
    before: dict[str, Tensor] = {}

    def wrong(gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        gradient[1, 2] = math.inf
        return gradient

    def harm(module):
        before.update({n: p.detach().clone() for n, p in module.named_parameters()})
        module.network.layers[0].recurrent_weight.register_hook(wrong)

    stated = stopped(module := module_of(network(), harm), tmp_path)
    words = "layers.0: recurrent_weight (gradient) is inf at [1, 2] (1 of 64 values)"
    assert stated == f"{words}; {PLACE}"
    for name, value in before.items():
        assert torch.equal(module.get_parameter(name), value), name


class Own(nn.Module):
    """A layer that knows nothing of guards, and can produce a NaN."""

    def __init__(self, n_inputs: int, n_units: int, *, dt_ms: float):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(n_units, n_inputs))
        self.is_wrong = False

    def trace(self, x, state=None, *, events=None, membrane=False) -> SpikeTrace:
        x = x.dense() if isinstance(x, EventBatch) else x
        current = x @ self.weight.T
        spikes = (current > 1).float() + current - current.detach()
        if self.is_wrong and torch.rand(()) < 0.5:  # the same when it is run again
            spikes = spikes + math.nan
        return SpikeTrace(spikes, NeuronState("own", (), x), current, torch.ones_like(current))


def test_a_layer_of_another_model(tmp_path):
    net = network(layer=Own)
    net.layers[1].is_wrong = True  # pyright: ignore[reportArgumentType]
    for seed in range(3):
        torch.manual_seed(seed)
        assert stopped(module_of(net), tmp_path).startswith("layers.1: spikes is nan at [0, 0, 0]")


class Scores(nn.Module):
    """A network that is no spiking one."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N_INPUTS, 2)

    def forward(self, x):
        return self.linear(x.log()).sum(0)


def test_a_network_of_another_kind(tmp_path):
    stated = stopped(module_of(Scores()), tmp_path, batches(dense=True))
    assert stated.startswith("readout: score is ")


def test_the_last_step_of_an_epoch_spoils_no_checkpoint(tmp_path):
    """A learning rate that overflows the weights is noticed before an epoch's end."""

    def harm(m):
        m.optimizers().param_groups[0]["lr"] = math.inf

    module, ended = module_of(network(), harm, torch.optim.SGD), []
    module.on_train_epoch_end = lambda: ended.append(module.current_epoch)
    assert stopped(module, tmp_path).endswith(PLACE)
    assert ended == [0]
    validation = loader(batches())
    module = module_of(network(), harm, torch.optim.SGD)
    stated = stopped(module, tmp_path, limit_val_batches=1, validation=validation)
    assert stated.startswith("layers.0: ") and "validate batch 1 after 6 steps" in stated


def test_a_validation_loss_that_is_not_finite_chooses_no_model(tmp_path, monkeypatch):
    cross_entropy = classification.F.cross_entropy

    def wrong(scores, *args, **kwargs):
        loss = cross_entropy(scores, *args, **kwargs)
        return loss if torch.is_grad_enabled() else loss + math.nan

    monkeypatch.setattr(classification.F, "cross_entropy", wrong)
    with torch.inference_mode():  # as on a GPU, where batches are copied in it
        validation = loader(batches(dense=True))
    stated = stopped(module_of(network()), tmp_path, limit_val_batches=1, validation=validation)
    assert stated.startswith("val/loss: is nan; epoch 1, validate batch 1 after 3 steps")


def test_other_numbers_and_errors_pass(tmp_path):
    def harm(module):
        module.network.readout.weight.register_hook(lambda gradient: gradient * 1e25)

    guard = Guard(tmp_path / "bad.ckpt")
    trainer_of(guard).fit(module := module_of(network(), harm), loader(batches()))
    assert module.n_steps == 3 * N_BATCHES  # large, but finite

    def fail(module):
        raise ValueError("something else")

    with pytest.raises(ValueError, match="^something else$"):
        trainer_of(guard).fit(module_of(network(), fail), loader(batches()))
    assert not list(tmp_path.iterdir())


def test_dead_and_saturated_layers_are_named_when_they_become_so(capsys):
    values = {1: 100.0, 3: 0.0, 5: 100.0, 6: -100.0}

    class Switched(Harmed):
        def on_train_epoch_start(self):
            if self.current_epoch in values:
                with torch.no_grad():
                    self.network.layers[0].bias.fill_(values[self.current_epoch])

    module = Switched(network(), 2, 1.0, partial(torch.optim.SGD, lr=0.0))
    trainer_of(LayerStates(), max_epochs=8).fit(module, loader(batches()))
    lines = [x for x in capsys.readouterr().err.splitlines() if "layers.0" in x]
    found = [re.search(r"in epoch (\d) \((\w+) layer\)", line) for line in lines]
    assert [x and x.groups() for x in found] == [
        ("2", "saturated"), ("6", "saturated"), ("7", "dead"),
    ]  # fmt: skip


@pytest.mark.parametrize("share", [SATURATED - 0.01, SATURATED + 0.01])
def test_definition_of_saturated(capsys, share, monkeypatch):
    """A share of one spike in three steps, with arp 2."""
    rates = {f"train/rate_layer{i}_hz": torch.tensor(share * 1000 / 3) for i in (1, 2)}
    monkeypatch.setattr(pl.Trainer, "callback_metrics", rates)
    LayerStates().on_train_epoch_end(trainer_of(), module_of(network()))
    assert len(capsys.readouterr().err.splitlines()) == (2 if share > SATURATED else 0)


N_STARTS = 4


class HarmedFit(NeuronFittingModule):
    harm: Callable[[Any], None] | None = None

    def on_train_batch_start(self, batch, batch_idx):
        if self.harm and self.current_epoch == EPOCH:
            self.harm(self)


def fit_module(harm=None, **options) -> HarmedFit:
    options = {"patience": None, "loss": "squared_distance", **options}
    population = PhysicalPopulation(
        2, N_STARTS, dt_ms=1.0, arp_ms=2.0, escape_noise=options["loss"] == "likelihood"
    )
    adam = partial(torch.optim.Adam, lr=1e-2)
    module = HarmedFit(population, adam, 4, names=("ann", "bob"), **options)
    module.harm = harm
    return module


def fit_batch() -> FittingBatch:
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(300, 2, 2, generator=generator) + 1
    target = (torch.rand(300, 2, 2, generator=generator) < 0.05).float()
    is_there = torch.ones(1, 2, 2, dtype=torch.bool)
    return FittingBatch(current, target, Window(10, 200, 300), target.unsqueeze(1), is_there)


def fit(module, folder: Path) -> None:
    trainer = trainer_of(Guard(folder / "bad.ckpt", each_step=False), max_epochs=4)
    trainer.fit(module, loader([fit_batch()]))


def fit_stopped(module, folder: Path, batch=None) -> str:
    return stopped(module, folder, [batch or fit_batch()], each_step=False)


FIT_PLACE = "epoch 2, train batch 1 after 1 steps"


def test_data_of_a_fit(tmp_path):
    batch = fit_batch()
    batch.current[7, 1, 1] = math.inf
    assert fit_stopped(fit_module(), tmp_path, batch).startswith(
        "batch: current is inf at [7, 1, 1] (1 of 1200 values); epoch 1"
    )
    assert "batch.trains" in torch.load(tmp_path / "bad.ckpt", weights_only=True)["batch"]


def test_a_membrane_of_a_fit(tmp_path):
    """Finite parameters and data whose product overflows."""

    def harm(module):
        with torch.no_grad():
            module.population.project_ = lambda: None  # out of its bounds
            module.population.log_gain[N_STARTS + 1] = 95.0

    stated = fit_stopped(fit_module(harm), tmp_path)
    assert stated.startswith("bob, start 2: ") and stated.endswith(FIT_PLACE)


def test_a_step_that_spoils_a_parameter_is_noticed_before_the_checkpoint(tmp_path):
    ended = []

    def harm(module):
        module.optimizers().param_groups[0]["lr"] = math.inf

    module = fit_module(harm)
    module.on_train_epoch_end = lambda: ended.append(module.current_epoch)
    assert fit_stopped(module, tmp_path).startswith("population: ")
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


def test_a_cell_without_a_start_left_stops_the_fit(tmp_path, capsys):
    stated = fit_stopped(fit_module(lost(4, 5, 6, 7)), tmp_path)
    assert stated == f"bob: loss of all 4 starts is not finite; {FIT_PLACE}"


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

    fit(module := fit_module(harm), tmp_path)
    assert "ann: loss or gradient of 1 of 4 starts" in capsys.readouterr().err
    assert all(torch.isfinite(p).all() for p in module.population.parameters())
    assert not list(tmp_path.iterdir())
