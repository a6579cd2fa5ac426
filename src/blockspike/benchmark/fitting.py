"""Time to fit a population of neurons to recordings, compared with the standard loop.

    python -m blockspike.benchmark.fitting [--cells 146] [--steps 10000] [--epochs 200] [--rounds 5]

The size is that of the paper's recordings (docs/paper.md, Experiments): 146 cells × 3 sweeps of
1 s at 0.1 ms, one start each, with its recipe but without early stopping. The data are synthetic
cells. Whole epochs are timed: forward, loss, backward, optimiser and Lightning's overhead. The
standard loop runs one epoch per round.
"""

import argparse
import os
import time
import warnings
from collections.abc import Sequence
from functools import partial

import pytorch_lightning as pl
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from blockspike.benchmark.timing import Claim, judge, median_ratio, parse, report
from blockspike.fitting.distance import Window
from blockspike.fitting.module import FittingBatch, NeuronFittingModule
from blockspike.fitting.population import PaperPopulation
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.neurons import Method
from blockspike.runs.processes import OneProcess

_DT_MS = 0.1
_SWEEPS = 3
_ALLEN_CELLS, _ALLEN_STEPS, _PAPER_EPOCHS = 146, 10_000, 200


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
        plugins=[OneProcess()],
    )  # fmt: skip
    loader = DataLoader([batch], batch_size=None)  # pyright: ignore[reportArgumentType]
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, about workers and its own use of torch
        trainer.fit(module, loader)
    return (time.perf_counter() - start) / n_epochs


def measure(batch: FittingBatch, n_epochs: int, rounds: int) -> dict[str, list[float]]:
    """Seconds per epoch of both methods, taking turns, one value per round."""
    costs: dict[str, list[float]] = {"fused": [], "standard": []}
    epoch_s("fused", batch, 2)  # compiles
    for _ in range(rounds):
        costs["fused"].append(epoch_s("fused", batch, n_epochs))
        costs["standard"].append(epoch_s("standard", batch, 1))
    return costs


def claims(costs: dict[str, list[float]]) -> list[Claim]:
    """The documented claims about fits at the paper's size."""
    total = sorted(costs["fused"])[len(costs["fused"]) // 2] * _PAPER_EPOCHS
    ratio = median_ratio(costs["standard"], costs["fused"])
    return [
        judge("146 cells, 200 epochs, seconds", total, "≤", 20, [costs["fused"]]),
        judge("an epoch: standard by fused", ratio, "≥", 100, list(costs.values())),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; returns 1 if a claim fails at the paper's size, else 0."""
    parser = argparse.ArgumentParser(prog="python -m blockspike.benchmark.fitting")
    parser.add_argument("--cells", type=int, default=_ALLEN_CELLS)
    parser.add_argument("--steps", type=int, default=_ALLEN_STEPS)
    parser.add_argument("--epochs", type=int, default=_PAPER_EPOCHS)
    options = parse(parser, argv)
    console, load = Console(), os.getloadavg()[0]
    costs = measure(make_batch(options.cells, options.steps), options.epochs, options.rounds)
    for method, seconds in costs.items():
        console.print(
            f"{method}: " + ", ".join(f"{1000 * s:.1f}" for s in seconds) + " ms an epoch"
        )
    full = (options.cells, options.steps) == (_ALLEN_CELLS, _ALLEN_STEPS)
    found = claims(costs) if full else []
    report(console, found, options, load)
    return 1 if any(claim.met is False for claim in found) else 0


if __name__ == "__main__":
    raise SystemExit(main())
