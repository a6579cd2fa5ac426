"""Time of an epoch of fitting a population to recordings, by the kernel and by the standard loop.

The size is that of the paper's recordings (docs/paper.md, Experiments): 146 cells × 3 sweeps of
1 s at 0.1 ms, one start each, with its recipe but without early stopping. The data are synthetic
cells. Whole epochs are timed: forward, loss, backward, optimiser and Lightning's overhead.
"""

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from blockspike.benchmark.table import Row
from blockspike.benchmark.timing import Turn, summary
from blockspike.fitting.distance import Window
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.population import PaperPopulation
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.neurons import Method

_DT_MS = 0.1
_SWEEPS = 3


@dataclass(frozen=True)
class Size:
    """Cells, steps of each of their three sweeps, epochs of a fit; columns of the table."""

    n_cells: int = 146
    n_steps: int = 10_000
    n_epochs: int = 200


def make_batch(n_cells: int, n_steps: int) -> FittingBatch:
    """Make three segments of synthetic cells, scaled as published."""
    segment_s = n_steps * _DT_MS / 1000
    starts = [i * segment_s for i in range(_SWEEPS + 1)]
    data = SyntheticCells(
        n_cells, n_trials=1, duration_s=(_SWEEPS + 1) * segment_s, dt_ms=_DT_MS,
        train_s=[[s, s + segment_s] for s in starts[:-1]],
        test_s=[[starts[-1], starts[-1] + segment_s]], held_out=0.0, scaling="maximum",
        first_trial_only=True,
    )  # fmt: skip
    data.setup()
    current, target, window = data.batch()
    return FittingBatch(current, target, Window(*window))


def epoch_s(method: Method, batch: FittingBatch, n_epochs: int) -> float:
    """Seconds per epoch of a new fit."""
    population = PaperPopulation(batch.current.shape[2], dt_ms=_DT_MS, method=method)
    optimizer = partial(torch.optim.Adam, lr=1e-4, eps=1e-5)
    module = NeuronFittingModule(population, optimizer, n_epochs, patience=None)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=n_epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
        plugins=[LightningEnvironment()],
    )  # fmt: skip
    loader = DataLoader([batch], batch_size=None)  # pyright: ignore[reportArgumentType]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, about workers and its own use of torch
        trainer.fit(module, loader)
    return (time.perf_counter() - start) / n_epochs


def measure(size: Size, rounds: int, methods: Sequence[Method]) -> list[Row]:
    """Time epochs of the methods in turns; the standard loop runs one epoch per round."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    batch = make_batch(size.n_cells, size.n_steps)
    if "fused" in methods:
        epoch_s("fused", batch, 2)  # compiles
    turns: dict[Method, list[Turn]] = {method: [] for method in methods}
    for _ in range(rounds):
        for method, own in turns.items():
            own.append(Turn(epoch_s(method, batch, size.n_epochs if method == "fused" else 1), 0.0))
    fused = turns.get("fused")
    return [{"contender": name, **summary(own, fused)} for name, own in turns.items()]
