"""`torch.compile` of what Lightning trains."""

from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch.utils.data import DataLoader

import blockspike as bs


class Watch(Callback):
    """Keeps the losses; from the third batch on, a compilation is an error."""

    def __init__(self):
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        torch._dynamo.config.error_on_recompile = trainer.global_step > 1

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())  # pyright: ignore


def made_batches(as_events: bool) -> list:
    """Batches of different numbers of events."""
    generator, made = torch.Generator().manual_seed(0), []
    for density in (0.1, 0.13, 0.16, 0.19):
        x = (torch.rand(30, 8, 20, generator=generator) < density).float()
        labels = torch.randint(3, (8,), generator=generator)
        made.append((bs.EventBatch.from_dense(x) if as_events else x, labels))
    return made


def losses_of(compiled: str, batches: list) -> list[float]:
    torch.manual_seed(0)
    network = bs.SpikingClassifier(
        20, 3, n_hidden=8, dt_ms=1.0, max_delay=5, recurrent_max_delay=4, init="xavier_uniform"
    )
    adam = partial(torch.optim.Adam, lr=1e-2)
    module = bs.ClassificationModule(network, n_classes=3, dt_ms=1.0, optimizer=adam)
    given = module
    if compiled == "module":
        given = torch.compile(module, backend="aot_eager")
    elif compiled == "network":
        module.network.compile(backend="aot_eager", fullgraph=True)
    watch = Watch()
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[watch],
    )  # fmt: skip
    trainer.fit(given, DataLoader(batches, batch_size=None))  # pyright: ignore[reportArgumentType]
    return watch.losses


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of PyTorch's compiler
@pytest.mark.parametrize("as_events", [True, False])
@pytest.mark.parametrize("compiled", ["module", "network"])
def test_compiled_training_has_the_same_losses(compiled, as_events):
    """Also with delays, which are drawn anew for each batch and narrow from epoch to epoch."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=False):
        batches = made_batches(as_events)
        expected = losses_of("nothing", batches)
        assert losses_of(compiled, batches) == expected and len(set(expected)) == 8
