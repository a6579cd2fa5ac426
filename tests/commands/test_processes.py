"""Several processes that share a run, against one."""

from pathlib import Path

import pytest
from killed_sweep import start

from blockspike.runs import Run
from blockspike.training.checkpoint_io import load_plain
from blockspike.training.metrics_file import read_metrics

# 801 training samples. Plain gradient descent: Adam would hide a gradient's scale. Two steps, since
# a spike that another order of sums moves would soon be another gradient.
ODD = (
    "data=nmnist_sample", "data.validation_fraction=0.2", "data.n_steps=40", "data.dt_ms=10",
    "network.n_hidden=8", "trainer.max_epochs=1", "label_smoothing=0.1", "threads=1",
    "optimizer._target_=torch.optim.SGD", "~optimizer.eps", "optimizer.lr=1e-3",
)  # fmt: skip


def scores(run: Run) -> dict[str, list[float]]:
    """Loss, accuracy and rates by epoch; accuracy on test."""
    table = read_metrics(run.folder / "metrics.csv")
    found = {str(c): table[c].tolist() for c in table if not str(c).startswith("time/")}
    return found | {"test_accuracy": [(run.result() or {})["test_accuracy"]]}


def test_processes_that_do_not_divide_the_samples_train_as_one_does(tmp_path: Path, data_dir: Path):
    """The last batch is of 267 samples, 134 and 133, or of one, which the second one lacks."""
    runs: dict[tuple[int, int], Run] = {}
    for n_processes, trainer in ((1, "cpu"), (2, "ddp_cpu")):
        folder = tmp_path / trainer
        sweep = ("-m", *ODD, f"trainer={trainer}", "data.batch_size=534,800")
        assert start(folder, data_dir, "train", *sweep).wait() == 0
        for path in folder.rglob("result.json"):
            run = Run(path.parent)
            row = run.result()
            assert row is not None and row["trainer.devices"] == n_processes
            runs[row["data.batch_size"], n_processes] = run
    for batch_size in (534, 800):
        one, two = runs[batch_size, 1], runs[batch_size, 2]
        assert scores(one).keys() == scores(two).keys()
        for name, values in scores(one).items():
            a_tie = 1 / 80 if "accuracy" in name else 0  # of 80 test samples
            assert scores(two)[name] == pytest.approx(values, rel=1e-5, abs=a_tie), name
        for checkpoint in ("last_checkpoint", "best_checkpoint"):
            states = [load_plain(getattr(run, checkpoint)) for run in (one, two)]
            assert states[0]["global_step"] == states[1]["global_step"] == 2
            for name, weights in states[0]["state_dict"].items():
                other = states[1]["state_dict"][name]
                error = (other - weights).norm()
                assert error <= 1e-5 * weights.norm(), f"batch_size {batch_size}, {name}: {error}"
