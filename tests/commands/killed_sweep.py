"""A sweep that is killed again and again, against one that is left alone.

`python tests/commands/killed_sweep.py DATA_DIR` does it with 24 runs and 10 kills.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

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
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)


def runs_table(folder: Path) -> pd.DataFrame:
    """The table that `blockspike collect` makes, less what depends on the moment."""
    collect = [sys.executable, "-m", "blockspike.cli", "collect"]
    subprocess.run(collect, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    table = pd.read_parquet(folder / "outputs" / "tables" / "runs.parquet")
    return table.drop(columns=[c for c in table if str(c).startswith(VOLATILE)])


def killed_and_restarted(
    folder: Path, data_dir: Path, sweep: tuple[str, ...], n_kills: int, seed: int, longest_s: float
) -> int:
    """Run a sweep to its end with SIGKILLs at random moments; returns how many hit it."""
    rng = random.Random(seed)
    hits = 0
    for _ in range(n_kills):
        process = start(folder, data_dir, "train", "-m", *sweep)
        try:
            process.wait(rng.uniform(0, longest_s))
        except subprocess.TimeoutExpired:
            hits += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(folder, data_dir, "train", "-m", *sweep).wait() == 0
    return hits


def main(data_dir: Path) -> None:
    """Print what the big test found; exit code 1 if anything differs."""
    with tempfile.TemporaryDirectory() as temporary:
        whole, killed = Path(temporary, "whole"), Path(temporary, "killed")
        began = time.monotonic()
        assert start(whole, data_dir, "train", "-m", *RUNS_24).wait() == 0
        seconds = time.monotonic() - began
        hits = killed_and_restarted(killed, data_dir, RUNS_24, 10, seed=0, longest_s=seconds / 5)
        tables = runs_table(whole), runs_table(killed)
    same = tables[0].equals(tables[1])
    print(f"{len(tables[0])} runs, {seconds:.0f} s undisturbed; {hits} kills; equal: {same}")
    sys.exit(not same)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
