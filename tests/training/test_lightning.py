"""What Lightning's users do with a module and a trainer of their own."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.tuner import Tuner
from test_training import N_INPUTS, Batches, batches
from torch import nn
from torch.utils.data import DataLoader

import blockspike as bs
from blockspike.networks import AdLIFLayer
from blockspike.training.rate_penalty import RatePenalty

QUIET: dict[str, Any] = {
    "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False,
    "log_every_n_steps": 1,
}  # fmt: skip
adam = partial(torch.optim.Adam, lr=0.02)


def module_of(optimizer: Any = adam, **options: Any) -> bs.ClassificationModule:
    torch.manual_seed(0)
    network = bs.SpikingClassifier(N_INPUTS, 2, [8, 4], dt_ms=1.0, **options)
    penalty = RatePenalty(upper_hz=50.0, upper_factor=1e-4)
    return bs.ClassificationModule(
        network, 2, 1.0, optimizer, partial(torch.optim.lr_scheduler.StepLR, step_size=3),
        rate_penalty=penalty, lr_factors={"beta": 0.5},
    )  # fmt: skip


def loader() -> DataLoader:
    return DataLoader(Batches(batches()), batch_size=None)


def saved(module: bs.ClassificationModule, folder: Path, **options: Any) -> Path:
    trainer = pl.Trainer(**QUIET, max_epochs=1, default_root_dir=folder, **options)
    trainer.fit(module, loader(), loader())
    trainer.save_checkpoint(folder / "mine.ckpt")
    return folder / "mine.ckpt"


@pytest.mark.parametrize(
    "options",
    [
        {"surrogate": bs.FastSigmoid(slope=10.0), "recurrent": False},
        {"layer": partial(AdLIFLayer, surrogate=bs.Boxcar(width=0.7))},
    ],
)
def test_a_module_is_loaded_from_its_checkpoint_alone(tmp_path, options):
    path = saved(module := module_of(**options), tmp_path, logger=CSVLogger(tmp_path))
    assert "state_dict" in torch.load(path, weights_only=True)
    loaded = bs.ClassificationModule.load_from_checkpoint(path)
    x, _ = batches()[0]
    for of in (module, loaded):
        of.network.eval()
    assert torch.equal(loaded.network(x).scores, module.network(x).scores)
    assert loaded.rate_penalty == module.rate_penalty and loaded.hparams == module.hparams
    loaded.network.train()
    assert saved(loaded, tmp_path, logger=False).is_file()  # it trains on
    (logged,) = tmp_path.rglob("hparams.yaml")
    assert "n_hidden:\n  - 8\n  - 4" in logged.read_text()
    other = bs.ClassificationModule.load_from_checkpoint(path, optimizer=torch.optim.SGD)
    assert other.make_optimizer is torch.optim.SGD


@dataclass(frozen=True)
class Mine(bs.Surrogate):
    """Code that a checkpoint may not run."""

    @staticmethod
    def formula(margin, constants):
        return 1 / (1 + margin**2)


def test_a_checkpoint_runs_no_code_of_others(tmp_path):
    path = saved(module := module_of(surrogate=Mine()), tmp_path, logger=False)
    with pytest.raises(ValueError, match=r"^network: expected load_from_checkpoint\(PATH, network"):
        bs.ClassificationModule.load_from_checkpoint(path)
    own = bs.SpikingClassifier(**module.network.arguments)
    loaded = bs.ClassificationModule.load_from_checkpoint(path, network=own)
    assert torch.equal(loaded.network.readout.weight, module.network.readout.weight)


def test_a_learning_rate_is_found(tmp_path):
    trainer = pl.Trainer(**QUIET, max_epochs=30, default_root_dir=tmp_path, logger=False)
    module = module_of()
    found = Tuner(trainer).lr_find(module, loader(), loader(), num_training=40)
    assert found is not None and module.lr == found.suggestion() != 0.02
    optimizer = pl.Trainer(**QUIET, max_epochs=1, logger=False, enable_checkpointing=False)
    optimizer.fit(module, loader(), loader())
    (others, beta) = optimizer.optimizers[0].param_groups
    assert (others["lr"], beta["lr"]) == (module.lr, module.lr / 2)


@pytest.mark.parametrize("has_labels", [True, False])
def test_predictions_are_scores(has_labels):
    made = batches()
    given = made if has_labels else [x for x, _ in made]
    trainer = pl.Trainer(**QUIET, logger=False)
    data = DataLoader[Any](Batches(given), batch_size=None)
    predicted = trainer.predict(module := module_of(), data)
    assert predicted is not None
    for scores, (x, _) in zip(predicted, made, strict=True):
        assert isinstance(scores, torch.Tensor)
        assert torch.equal(scores, module.network(x).scores)


class Linear(nn.Module):
    """Anybody's network: scores [B, 2] from images [B, 3, 4]."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N_INPUTS, 2)

    def forward(self, x):
        return self.linear(x.flatten(1))


def test_any_network_that_returns_scores_is_trained(tmp_path):
    made = []
    for x, labels in batches():
        made.append((x.dense().sum(0).view(-1, 3, 4), labels))
    module = bs.ClassificationModule(network := Linear(), 2, 1.0, adam)
    trainer = pl.Trainer(**QUIET, max_epochs=30, default_root_dir=tmp_path, logger=False)
    data = DataLoader[Any](Batches(made), batch_size=None)
    trainer.fit(module, data, data)
    (tested,) = trainer.test(module, data, verbose=False)
    assert tested["test/accuracy"] > 0.9 and "test/rate_layer1_hz" not in tested
    (path,) = tmp_path.rglob("*.ckpt")
    with pytest.raises(ValueError, match="^network: expected load_from_checkpoint"):
        bs.ClassificationModule.load_from_checkpoint(path)
    loaded = bs.ClassificationModule.load_from_checkpoint(path, network=Linear())
    assert torch.equal(loaded.network.linear.weight, network.linear.weight)


def test_an_optimiser_instead_of_what_makes_one_is_named():
    network = Linear()
    module = bs.ClassificationModule(network, 2, 1.0, torch.optim.Adam(network.parameters()))  # pyright: ignore
    with pytest.raises(ValueError, match="^optimizer: expected what makes one, .* got Adam$"):
        module.configure_optimizers()
