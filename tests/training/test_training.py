"""The Lightning module and callbacks on a tiny problem."""

from functools import partial
from typing import Any

import pandas as pd
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from blockspike.data.loader import NO_LABEL
from blockspike.networks.classifier import SpikingClassifier
from blockspike.neurons.events import EventBatch
from blockspike.training.callbacks import (
    EarlyStopping,
    EpochLines,
    GradientNorm,
    LearningRates,
    ReloadBestAtMilestone,
    Throughput,
)
from blockspike.training.classification import ClassificationModule
from blockspike.training.linear_baseline import linear_baseline
from blockspike.training.metrics_file import MetricsFile
from blockspike.training.metrics_table import read_metrics

N_INPUTS, N_STEPS = 12, 20


def batches(n: int = 3, size: int = 8) -> list:
    """Two classes: the first or the second half of the inputs is active."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(n):
        labels = torch.randint(0, 2, (size,), generator=generator)
        rates = torch.full((size, N_INPUTS), 0.05)
        for row, label in zip(rates, labels, strict=True):
            row[6 * int(label) : 6 * int(label) + 6] = 0.5
        spikes = torch.rand(N_STEPS, size, N_INPUTS, generator=generator) < rates
        made.append((EventBatch.from_dense(spikes.float()), labels))
    return made


class Batches(Dataset):
    """Ready batches as a data set."""

    def __init__(self, made: list):
        self.made = made

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, index: int):
        return self.made[index]


def fit(
    callbacks=(),
    max_epochs: int = 8,
    lr: float = 0.02,
    folder=None,
    train_b: bool = True,
    max_delay: int = 0,
    lr_factors: dict[str, float] | None = None,
    **options: Any,
):
    pl.seed_everything(0, verbose=False)
    neurons: dict[str, Any] = {"b": 1.0, "train_b": train_b, "max_delay": max_delay}
    network = SpikingClassifier(N_INPUTS, 2, 16, 1, dt_ms=1.0, arp_ms=2.0, **neurons)
    module = ClassificationModule(
        network, 2, 1.0, partial(torch.optim.Adam, lr=lr), lr_factors=lr_factors
    )
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=max_epochs, logger=False,
        callbacks=[*callbacks, *([MetricsFile(folder)] if folder else [])],
        enable_checkpointing=folder is not None,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        num_sanity_val_steps=0, **options,
    )  # fmt: skip
    loader = partial(DataLoader[Any], Batches(batches()), batch_size=None, num_workers=0)
    trainer.fit(module, loader(), [loader(), loader()])
    return module, trainer


def test_it_learns_and_reports(tmp_path):
    fit([Throughput()], max_epochs=30, folder=tmp_path)
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["train/loss"].iloc[-1] < 0.5 * metrics["train/loss"].iloc[0]
    assert metrics["val/accuracy"].iloc[-1] == 1.0
    rates = metrics["val/rate_layer1_hz"].to_numpy()
    assert ((rates > 0) & (rates <= 1000 / 3)).all()  # at most one spike in arp + 1 steps
    parts = metrics["time/forward_s"] + metrics["time/backward_s"]
    assert (parts.to_numpy() < metrics["time/epoch_s"].to_numpy()).all()
    pd.testing.assert_series_equal(
        metrics["test_each_epoch/loss"], metrics["val/loss"], check_names=False
    )


def test_parameters_stay_in_bounds_while_they_learn():
    module, _ = fit(max_epochs=5, lr=0.3)
    layer = module.network.layers[0]
    for name, low, high in (("beta", 0.001, 0.999), ("p", 0.0, 0.999), ("b", 0.0, 1.0)):
        value = layer.get_parameter(name)
        assert bool(((value >= low) & (value <= high)).all()), name
        assert value.std() > 0, f"{name} did not learn"


def test_parameters_that_are_not_trainable_do_not_change():
    module, _ = fit(max_epochs=2, lr=0.3, train_b=False)
    assert torch.equal(module.network.layers[0].get_parameter("b"), torch.ones(16))


class Record(pl.Callback):
    """Weights after every epoch, and at the start of each."""

    def __init__(self):
        self.losses, self.after, self.start, self.lr = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.start.append(pl_module.get_parameter("network.readout.weight").detach().clone())
            self.lr.append([group["lr"] for group in trainer.optimizers[0].param_groups])
            self.n_state = len(trainer.optimizers[0].state)
            if trainer.current_epoch == 4:
                self.state_at_milestone = self.n_state

    def on_train_epoch_end(self, trainer, pl_module):
        self.losses.append(float(trainer.callback_metrics["train/loss"]))
        self.after.append(pl_module.get_parameter("network.readout.weight").detach().clone())


def test_milestone_reloads_the_best_model_with_a_fresh_optimiser():
    record = Record()
    fit([ReloadBestAtMilestone(milestone=4, factor=0.1), record], lr=0.2, lr_factors={"beta": 0.5})
    best = min(range(4), key=lambda e: record.losses[e])
    assert torch.equal(record.start[4], record.after[best])
    assert record.state_at_milestone == 0
    assert record.lr[:4] == [[0.2, 0.1]] * 4
    assert record.lr[4:] == [pytest.approx([0.02, 0.01])] * 4


def test_a_training_ends_when_patience_is_exhausted(tmp_path):
    _, trainer = fit([EarlyStopping("val/loss", "min", patience=2)], lr=0.0, folder=tmp_path)
    assert trainer.current_epoch == len(read_metrics(tmp_path / "metrics.csv")) == 3
    _, trainer = fit([EarlyStopping("val/loss", "min", patience=2)], lr=0.02, max_epochs=4)
    assert trainer.current_epoch == 4


def test_learning_rates_are_logged(tmp_path):
    fit([LearningRates()], max_epochs=2, lr=0.02, folder=tmp_path)
    assert read_metrics(tmp_path / "metrics.csv")["lr"].tolist() == pytest.approx([0.02] * 2)
    (tmp_path / "two").mkdir()
    fit([LearningRates()], max_epochs=1, folder=tmp_path / "two", lr_factors={"beta": 0.5})
    rates = read_metrics(tmp_path / "two" / "metrics.csv").filter(like="lr/").iloc[0]
    assert dict(rates) == {"lr/others": pytest.approx(0.02), "lr/beta": pytest.approx(0.01)}


def test_one_line_per_epoch(capsys):
    fit([Throughput(), EpochLines()], max_epochs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert "val/accuracy" in lines[0]


@pytest.mark.parametrize("n_batches", [3, 4])
def test_accumulated_gradients_are_means_also_of_the_last_batches(n_batches):
    """Of three batches, two and one make a step."""
    torch.manual_seed(0)
    given = batches(n_batches)
    network = SpikingClassifier(N_INPUTS, 2, 4, 1, dt_ms=1.0)
    expected = []
    for pair in (given[:2], given[2:]):
        network.zero_grad()
        for x, labels in pair:
            (functional.cross_entropy(network(x).scores, labels) / len(pair)).backward()
        expected.append(network.readout.get_parameter("weight").grad.clone())  # pyright: ignore
    found = []

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            found.append(network.readout.get_parameter("weight").grad.clone())  # pyright: ignore

    module = ClassificationModule(network, 2, 1.0, partial(torch.optim.SGD, lr=0.0))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[Gradients()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=2,
    )  # fmt: skip
    loader = DataLoader[Any](Batches(given), batch_size=None)
    trainer.fit(module, loader, loader)
    assert len(found) == 2
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted)


def resumed(before: MetricsFile) -> MetricsFile:
    """Metrics file of another process, with the rows of the checkpoint."""
    after = MetricsFile(before._path.parent)
    after.load_state_dict(before.state_dict())
    return after


def test_metrics_file_keeps_earlier_rows_and_replaces_repeated_ones(tmp_path):
    first = MetricsFile(tmp_path)
    for epoch in range(3):
        first.write(epoch, {"train/loss": 0.1 + epoch})
    (tmp_path / "metrics.csv").write_text("damaged")  # the rows are the checkpoint's
    resumed(first).write(2, {"train/loss": 7.0, "val/loss": 8.0})
    table = read_metrics(tmp_path / "metrics.csv")
    assert list(table["train/loss"]) == [0.1, 1.1, 7.0]
    assert table["val/loss"].iloc[2] == 8.0


def test_metrics_file_of_a_run_that_resumes_some_epochs_back(tmp_path):
    first = MetricsFile(tmp_path)
    for epoch in range(5):
        first.write(epoch, {"train/loss": 0.1 + epoch})
    again = resumed(first)
    for epoch in range(2, 6):
        again.write(epoch, {"train/loss": 7.0 + epoch})
    table = read_metrics(tmp_path / "metrics.csv")
    assert list(table["epoch"]) == [0, 1, 2, 3, 4, 5]
    assert list(table["train/loss"]) == [0.1, 1.1, 9.0, 10.0, 11.0, 12.0]


def test_metrics_file_keeps_numbers_exact(tmp_path):
    path, file = tmp_path / "metrics.csv", MetricsFile(tmp_path)
    values = [1 / 3, float("nan"), float("inf"), 1e-300]
    file.write(0, {"train/loss": values[0], "val/loss": 1.0})
    for epoch, value in enumerate(values[1:], start=1):
        file.write(epoch, {"val/loss": 1.0, "train/loss": value})  # in another order
    file.write(4, {"val/loss": 2.0})  # without one of the columns
    assert list(read_metrics(path)["train/loss"]) == pytest.approx(
        [*values, float("nan")], abs=0, rel=0, nan_ok=True
    )
    file.write(5, {"train/loss": 3.0, "val/loss": 2.0, "more": 5.0})
    table = read_metrics(path)
    assert list(table["val/loss"]) == [1.0] * 4 + [2.0] * 2 and table["more"].iloc[5] == 5.0


def test_delays_sharpen_over_the_first_half_of_the_epochs():
    class Sigmas(pl.Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_train_epoch_end(self, trainer, pl_module: Any):
            self.seen.append(float(pl_module.network.layers[0].delays.sigma))

    fit([Sigmas()], max_epochs=4, max_delay=4)
    assert Sigmas.seen == pytest.approx([2.0, 1.0, 0.5, 0.5])


def test_linear_baseline_solves_a_linear_problem_and_not_noise():
    rng = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (300,), generator=rng)
    counts = torch.poisson(1 + 8 * torch.nn.functional.one_hot(labels, 3).float(), rng).numpy()
    noise = torch.poisson(torch.full((300, 3), 4.0), rng).numpy()
    parts = [slice(0, 200), slice(200, 250), slice(250, 300)]
    assert linear_baseline(*((counts[s], labels[s].numpy()) for s in parts)) > 0.9
    assert linear_baseline(*((noise[s], labels[s].numpy()) for s in parts)) < 0.6


def test_labels_are_smoothed_in_training_only():
    torch.manual_seed(0)
    network = SpikingClassifier(N_INPUTS, 2, 16, 1, dt_ms=1.0)
    events, labels = batches(1)[0]
    module = ClassificationModule(network, 2, 1.0, torch.optim.Adam, label_smoothing=0.2)
    logged: dict[str, Any] = {}
    module.log_dict = lambda dictionary, **_: logged.update(dict(dictionary))  # pyright: ignore
    log_p = network(events).scores.log_softmax(1)
    plain = -log_p[torch.arange(len(labels)), labels].mean()
    expected = 0.8 * plain - 0.2 * log_p.mean()
    torch.testing.assert_close(module._step("train", (events, labels)), expected)
    torch.testing.assert_close(module._step("val", (events, labels)), plain)
    torch.testing.assert_close(logged["train/loss"], plain)


@pytest.mark.parametrize("membrane_penalty", [0.0, 0.3])
@pytest.mark.parametrize("scores", ["sum", "mean"])
def test_simulating_again_trains_like_the_whole(scores, membrane_penalty):
    ways: list[dict[str, Any]] = [{}, {"recompute_steps": 6}]
    ways += [{"truncate_steps": 6}, {"truncate_steps": N_STEPS}]
    grads = []
    for options in ways:
        torch.manual_seed(0)
        network = SpikingClassifier(N_INPUTS, 2, 16, 2, dt_ms=1.0, scores=scores).double()
        module = ClassificationModule(
            network, 2, 1.0, torch.optim.Adam, membrane_penalty=membrane_penalty, **options
        )
        module.log_dict = lambda *_, **__: None  # pyright: ignore
        module._step("train", batches(1)[0]).backward()
        grads.append([p.grad for p in network.parameters() if p.requires_grad])
    whole, again, truncated, one_piece = grads
    torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one_piece, whole, rtol=1e-9, atol=1e-12)
    assert not torch.allclose(truncated[0], whole[0], rtol=1e-3)


def test_the_penalty_is_the_mean_square_of_the_membrane():
    torch.manual_seed(0)
    network = SpikingClassifier(N_INPUTS, 2, 16, 2, dt_ms=1.0)
    events, labels = batches(1)[0]
    losses = []
    for penalty in (0.0, 0.5):
        module = ClassificationModule(network, 2, 1.0, torch.optim.Adam, membrane_penalty=penalty)
        module.log_dict = lambda *_, **__: None  # pyright: ignore
        losses.append(module._step("train", (events, labels)))
    powers = [trace.membrane.square().mean() for trace in network.run_layers(events, membrane=True)]
    torch.testing.assert_close(losses[1] - losses[0], 0.25 * (powers[0] + powers[1]))
    module = ClassificationModule(network, 2, 1.0, torch.optim.Adam, membrane_penalty=0.5)
    module.log_dict = lambda *_, **__: None  # pyright: ignore
    torch.testing.assert_close(module._step("val", (events, labels)), losses[0])


def test_two_ways_of_pieces_are_refused():
    of_both: dict[str, Any] = {"recompute_steps": 5, "truncate_steps": 6}
    with pytest.raises(ValueError, match="expected one of them, got 5 and 6"):
        ClassificationModule(torch.nn.Linear(2, 2), 2, 1.0, torch.optim.Adam, **of_both)


def test_the_norm_of_the_gradient_is_the_mean_over_an_epochs_steps(tmp_path):
    norms: list[float] = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
            norms.append(float(torch.cat(gradients).norm()))

    fit([GradientNorm(), Watch()], max_epochs=1, folder=tmp_path, gradient_clip_val=1e-3)
    (logged,) = read_metrics(tmp_path / "metrics.csv")["train/grad_norm"]
    assert len(norms) > 1 and logged == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_a_label_that_counts_nowhere_is_no_class():
    torch.manual_seed(0)
    module = ClassificationModule(
        SpikingClassifier(N_INPUTS, 2, 16, 1, dt_ms=1.0), 2, 1.0, torch.optim.Adam
    )
    scores = torch.tensor([[0.0, 3.0], [2.0, 0.0]], requires_grad=True)
    one = module.training_loss(scores[:1], torch.tensor([1]))
    torch.testing.assert_close(module.training_loss(scores, torch.tensor([1, NO_LABEL])), one)
    assert module.training_loss(scores[:1], torch.tensor([NO_LABEL])).isfinite()
    events, labels = batches(1)[0]
    with pytest.warns(UserWarning, match="`self.trainer` reference is not registered"):
        nothing = module._step("train", (events, torch.full_like(labels, NO_LABEL)))
    nothing.backward()
    assert nothing == 0
    assert all(p.grad is None or not p.grad.any() for p in module.parameters())
    with pytest.raises((IndexError, RuntimeError), match="Target -1 is out of bounds"):
        module.training_loss(scores, torch.tensor([1, -1]))


def test_a_batch_with_its_samples_first_is_refused():
    """Its samples would be taken for steps, and its steps for samples."""
    network = SpikingClassifier(N_INPUTS, 2, 16, 1, dt_ms=1.0)
    module = ClassificationModule(network, 2, 1.0, torch.optim.Adam)
    events, labels = batches(1)[0]
    first = events.dense().transpose(0, 1)
    with pytest.raises(ValueError, match=r"^batch: expected spikes \[T, B, n_inputs\], time first"):
        module._step("train", (first, labels))


@pytest.mark.parametrize(
    ("limit", "shares"),
    [({"max_epochs": 4}, [0, 0.25, 0.5, 0.75]), ({"max_steps": 6}, [0, 2 / 6, 4 / 6])],
)
def test_delays_sharpen_with_the_share_of_the_training(limit, shares, monkeypatch):
    network = SpikingClassifier(N_INPUTS, 2, 8, 1, dt_ms=1.0, max_delay=3)
    module = ClassificationModule(network, 2, 1.0, torch.optim.Adam)
    seen: list[float] = []
    monkeypatch.setattr(network.layers[0].delays, "anneal_", seen.append)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    loader = DataLoader(Batches(batches(2)), batch_size=None)
    pl.Trainer(accelerator="cpu", **limit, **quiet).fit(module, loader, loader)
    assert seen == pytest.approx(shares)
    endless = pl.Trainer(accelerator="cpu", max_time={"seconds": 5}, **quiet)
    with pytest.raises(ValueError, match="^max_epochs: expected a number, over which learned del"):
        endless.fit(module, loader, loader)
