"""Cost of `ClassifierGuard` in a training step at the size of the paper's SHD network.

python tools/guard_cost.py [--data data/hd_lauscher.h5] [--rounds 20]
"""

import argparse
import statistics
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from blockspike.benchmark.training_step import PAPER, Training, make_network, read_batches
from blockspike.training.classification import ClassificationModule
from blockspike.training.classifier_guard import ClassifierGuard


def main(arguments: list[str] | None = None) -> None:
    """Print the median milliseconds of a step, of the guard's part, and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("data/hd_lauscher.h5"))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    network = make_network("fused")
    training = Training(network)
    module = ClassificationModule(network, 20, 2.0, partial(torch.optim.Adam, lr=1e-3))
    guard = ClassifierGuard(Path("never_written.ckpt"))
    root = SimpleNamespace(root_device=torch.device("cpu"))
    trainer: Any = SimpleNamespace(global_step=0, current_epoch=0, strategy=root)
    steps_ms, guards_ms = [], []
    batches = read_batches(options.data, PAPER, options.rounds)
    for i in range(options.rounds + 1):
        batch = batches[i % len(batches)]
        step_ms = 1000 * training.step(batch).total
        loss = module.training_loss(scores := network(batch[0]).scores, batch[1])
        loss.backward()
        module.scores = scores.detach()
        started = time.perf_counter()
        guard.on_train_batch_start(trainer, module, batch, 0)
        guard.on_before_backward(trainer, module, loss)
        guard.on_after_backward(trainer, module)
        guard_ms = 1000 * (time.perf_counter() - started)
        network.zero_grad()
        if i:  # the first is warm-up
            steps_ms.append(step_ms)
            guards_ms.append(guard_ms)
    step, own = statistics.median(steps_ms), statistics.median(guards_ms)
    print(f"step {step:.1f} ms, guard {own:.3f} ms: {own / step:.2%} (median of {options.rounds})")


if __name__ == "__main__":
    main()
