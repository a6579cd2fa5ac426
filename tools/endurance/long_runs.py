"""Runs of many epochs, watched from outside: memory, file handles, threads, seconds an epoch.

`python tools/endurance/long_runs.py DATA_DIR` watches 2,000 epochs of each; exit code 1 if
something grows.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd

_PAUSE_S = 0.05
_TICKS_PER_S, _PAGE_BYTES = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
MOST_GROWTH = 0.02  # of memory after warm-up
MOST_SLOWER = 1.25  # the last epochs, to those after warm-up
TINY = (
    "train", "data=nmnist_sample", "data.dt_ms=20", "data.n_steps=15", "network.n_hidden=8",
    "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "threads=1",
)  # fmt: skip
TINY_FIT = (
    "fit", "experiment=recovery", "data.n_cells=2", "data.duration_s=4", "data.dt_ms=1",
    "population.n_starts=16", "threads=1",
)  # fmt: skip
RUNS = {
    "train": (*TINY, "model=fused"),
    "train, events": (*TINY, "model=blocks", "model.synapses=events"),
    "train, tensorboard": (*TINY, "logger=tensorboard"),
    "train, wandb offline": (*TINY, "logger=wandb"),
    "fit": TINY_FIT,
}


class Grown(NamedTuple):
    """Last tenth of a run against the tenth after warm-up, which is the first.

    Attributes:
        epochs: finished.
        memory: resident memory, ratio − 1 of the medians.
        memory_mb: at the end.
        handles, threads: medians, the last less that after warm-up.
        slower: ratio of CPU seconds an epoch, of the fastest part of each: others use the machine.
    """

    epochs: int
    memory: float
    memory_mb: float
    handles: int
    threads: int
    slower: float

    def flat(self) -> bool:
        """Whether nothing grew."""
        return (
            self.memory <= MOST_GROWTH
            and self.handles <= 0
            and self.threads <= 0
            and self.slower <= MOST_SLOWER
        )


def watch(folder: Path, data_dir: Path, *args: str) -> pd.DataFrame:
    """Run `blockspike ARGS` in `folder`; a row every so often, from the first epoch on.

    Raises:
        RuntimeError: the run failed.
    """
    folder.mkdir(parents=True)
    command = [
        sys.executable, "-m", "blockspike", *args, "progress=false",
        f"data_dir={data_dir}",
    ]  # fmt: skip
    rows = []
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        while process.poll() is None:
            time.sleep(_PAUSE_S)
            epoch = _epochs(folder)
            if epoch:
                try:
                    rows.append({"epoch": epoch, **_usage(process.pid)})
                except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    continue
    if process.returncode:
        raise RuntimeError(f"{' '.join(args)}: {(folder / 'log').read_text()[-2000:]}")
    return pd.DataFrame(rows)


def _epochs(folder: Path) -> int:
    """Rows in the run's metrics.csv."""
    for path in folder.glob("outputs/*/*/*/metrics.csv"):
        return path.read_bytes().count(b"\n") - 1
    return 0


def _usage(pid: int) -> dict[str, float]:
    proc = Path("/proc", str(pid))
    fields = (proc / "stat").read_text().rpartition(")")[2].split()
    return {
        "memory_mb": int((proc / "statm").read_text().split()[1]) * _PAGE_BYTES / 2**20,
        "handles": len(os.listdir(proc / "fd")),
        "threads": len(os.listdir(proc / "task")),
        "cpu_s": (int(fields[11]) + int(fields[12])) / _TICKS_PER_S,
    }


def growth(samples: pd.DataFrame, n_epochs: int) -> Grown:
    """What grew from the second tenth of the samples to the last, less those after all epochs."""
    during = samples[samples["epoch"] < n_epochs]
    tenth = len(during) // 10
    early, late = during.iloc[tenth : 2 * tenth], during.iloc[-tenth:]

    def cpu_s(part: pd.DataFrame) -> float:
        spent = part.iloc[:: max(len(part) // 10, 1)][["epoch", "cpu_s"]].diff().dropna()
        return float((spent["cpu_s"] / spent["epoch"]).min())

    return Grown(
        int(samples["epoch"].to_numpy().max()),
        float(late["memory_mb"].median() / early["memory_mb"].median() - 1),
        float(late["memory_mb"].median()),
        int(late["handles"].median() - early["handles"].median()),
        int(late["threads"].median() - early["threads"].median()),
        cpu_s(late) / cpu_s(early),
    )


def main(data_dir: Path, n_epochs: int = 2000) -> None:
    """Print a table; exit code 1 if something grows."""
    print("run                     epochs  memory  (MB)  handles  threads  CPU s an epoch")
    flat = True
    for name, args in RUNS.items():
        with tempfile.TemporaryDirectory() as temporary:
            options = (*args, f"trainer.max_epochs={n_epochs}")
            grown = growth(watch(Path(temporary, "run"), data_dir, *options), n_epochs)
        flat &= grown.flat() and grown.epochs == n_epochs
        print(
            f"{name:22}  {grown.epochs:6d}  {grown.memory:+6.2%}  {grown.memory_mb:4.0f}  "
            f"{grown.handles:+7d}  {grown.threads:+7d}  × {grown.slower:.2f}"
            f"{'' if grown.flat() else '   GREW'}",
            flush=True,
        )
    sys.exit(not flat)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *map(int, sys.argv[2:]))
