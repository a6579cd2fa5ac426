"""Compare a sweep that is killed repeatedly with an undisturbed one.

`python tools/killed_sweep.py DATA_DIR` does so with 24 runs and 10 kills.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from blockspike.runs.results import collect_runs
from blockspike.runs.status import run_states

# Columns that may differ: when and how fast a result was made.
VOLATILE = ("time/", "epoch_s", "train_s")
RUNS_24 = (
    "model=standard,blocks,fused", "network.n_hidden=8,16", "seed=0,1,2,3", "data=nmnist_sample",
    "trainer.max_epochs=3", "data.n_steps=40", "data.dt_ms=10", "threads=1",
)  # fmt: skip


def start(folder: Path, data_dir: Path, *args: str) -> subprocess.Popen:
    """Start `blockspike …` in its own process and a new folder."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "blockspike", *args, f"data_dir={data_dir}"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)


def runs_table(folder: Path) -> pd.DataFrame:
    """The table of `blockspike collect`, without the columns that depend on time."""
    table = collect_runs(folder / "outputs")
    return table.drop(columns=[c for c in table if str(c).startswith(VOLATILE)])


def killed(process: subprocess.Popen, seconds: float) -> bool:
    """Send SIGKILL after some seconds; returns whether the process was still running."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def wait_for(condition: Callable[[], object], process: subprocess.Popen | None = None) -> None:
    """Wait up to two minutes for a moment, at which the process must still run."""
    end = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, "it ended first"
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.02)


def n_epochs(folder: Path) -> int:
    """Number of epochs finished by all runs together."""
    return sum(len(p.read_text().splitlines()) - 1 for p in folder.rglob("metrics.csv"))


def interrupted(folder: Path) -> list[str]:
    """Runs that `blockspike status` calls interrupted, once their processes have ended."""
    while (states := run_states(folder / "outputs"))["state"].eq("running").any():
        time.sleep(0.05)
    return states["run"][states["state"] == "interrupted"].tolist()


def main(data_dir: Path) -> None:
    """Run and print the comparison; exit code 1 if tables differ or no run was hit."""
    with tempfile.TemporaryDirectory() as temporary:
        whole, other = Path(temporary, "whole"), Path(temporary, "killed")
        began = time.monotonic()
        assert start(whole, data_dir, "train", "-m", *RUNS_24).wait() == 0
        seconds = time.monotonic() - began
        rng, hits, in_a_run = random.Random(0), 0, 0
        for _ in range(10):
            process = start(other, data_dir, "train", "-m", *RUNS_24)
            hits += killed(process, rng.uniform(0, seconds / 3))
            in_a_run += bool(interrupted(other))
        assert start(other, data_dir, "train", "-m", *RUNS_24).wait() == 0
        tables = runs_table(whole), runs_table(other)
    same = tables[0].equals(tables[1])
    print(
        f"{len(tables[0])} runs, {seconds:.0f} s undisturbed; {hits} of 10 kills hit the sweep, "
        f"{in_a_run} of them amid a run; equal: {same}"
    )
    sys.exit(not (same and in_a_run))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
