"""An epoch of fitting a population to recordings, by the kernel and by the standard loop.

The size is that of the paper's recordings: 146 cells × 3 sweeps of 1 s at 0.1 ms, one start each,
with its recipe but without early stopping. The cells are synthetic. Whole epochs are timed:
forward, loss, backward, optimiser and Lightning's overhead.
"""

import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from benchmarks.side_by_side import measure
from benchmarks.table import Options, Piece
from benchmarks.timing import Row, Turn
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


def make_batch(size: Size) -> FittingBatch:
    """Three segments of synthetic cells, scaled as published."""
    segment_s = size.n_steps * _DT_MS / 1000
    starts = [i * segment_s for i in range(_SWEEPS + 1)]
    data = SyntheticCells(
        size.n_cells, n_trials=1, duration_s=(_SWEEPS + 1) * segment_s, dt_ms=_DT_MS,
        train_s=[[s, s + segment_s] for s in starts[:-1]],
        test_s=[[starts[-1], starts[-1] + segment_s]], held_out=0.0, scaling="maximum",
        first_trial_only=True,
    )  # fmt: skip
    data.setup()
    current, target, window = data.batch()
    return FittingBatch(current, target, Window(*window))


class Fit:
    """A new fit in each turn; the standard loop runs one epoch of it."""

    def __init__(self, method: Method, size: Size, device: str = "cpu"):
        self._method: Method = method
        self._batch = make_batch(size)
        self._n_epochs = size.n_epochs if method == "fused" else 1

    def turn(self) -> Turn:
        """Seconds per epoch, all of them as `forward`."""
        population = PaperPopulation(
            self._batch.current.shape[2], dt_ms=_DT_MS, method=self._method
        )
        optimizer = partial(torch.optim.Adam, lr=1e-4, eps=1e-5)
        module = NeuronFittingModule(population, optimizer, self._n_epochs, patience=None)
        trainer = pl.Trainer(
            accelerator="cpu", max_epochs=self._n_epochs, logger=False, log_every_n_steps=1,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            plugins=[LightningEnvironment()],
        )  # fmt: skip
        loader = DataLoader([self._batch], batch_size=None)  # pyright: ignore[reportArgumentType]
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Lightning's, about workers and its own use of torch
            trainer.fit(module, loader)
        return Turn((time.perf_counter() - started) / self._n_epochs)

    def about(self) -> Row:
        """Nothing but its times."""
        return {}


def pieces(options: Options) -> Iterator[Piece]:
    """Both methods on as many cells as the paper's."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    size, methods = Size(), options.choose(("fused", "standard"))
    yield Piece(asdict(size), methods, partial(measure, Fit, methods, size, options))
