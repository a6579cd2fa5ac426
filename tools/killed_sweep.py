"""A sweep that is killed again and again, against one that is left alone.

`python tools/killed_sweep.py DATA_DIR` does it with 24 runs and 10 kills.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from blockspike.runs.results import collect_runs
from blockspike.runs.sweeps import run_states

# What a result must not depend on: when and how fast it was made.
VOLATILE = ("time/", "epoch_s", "train_s")
RUNS_24 = (
    "model=standard,blocks,fused", "network.n_hidden=8,16", "seed=0,1,2,3", "data=nmnist_sample",
    "trainer.max_epochs=3", "data.n_steps=40", "data.dt_ms=10", "threads=1",
)  # fmt: skip


def start(folder: Path, data_dir: Path, *args: str) -> subprocess.Popen:
    """`blockspike …` in its own process and folder, which is made."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "blockspike.cli", *args, f"data_dir={data_dir}"]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, start_new_session=True)


def runs_table(folder: Path) -> pd.DataFrame:
    """The table that `blockspike collect` makes, less what depends on the moment."""
    table = collect_runs(folder / "outputs")
    return table.drop(columns=[c for c in table if str(c).startswith(VOLATILE)])


def killed(process: subprocess.Popen, seconds: float) -> bool:
    """Send SIGKILL after so many seconds; whether the process still ran then."""
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True


def n_epochs(folder: Path) -> int:
    """Epochs that all runs have finished."""
    return sum(len(p.read_text().splitlines()) - 1 for p in folder.rglob("metrics.csv"))


def interrupted(folder: Path) -> list[str]:
    """Runs that were killed, as `blockspike status` sees them once their processes are gone."""
    while (states := run_states(folder / "outputs"))["state"].eq("running").any():
        time.sleep(0.05)
    return states["run"][states["state"] == "interrupted"].tolist()


def main(data_dir: Path) -> None:
    """Print what the big test found; exit code 1 if anything differs or no run was hit."""
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
