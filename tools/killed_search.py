"""Compare a search that is killed repeatedly with an undisturbed one.

`python tools/killed_search.py DATA_DIR` does so with 12 trials of 6 epochs and 5 kills.
"""

import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from blockspike.runs.studies import studies
from killed_sweep import interrupted, killed, start

SEARCH = (
    "search", "nmnist_sample", "search.n_trials=12", "search.space.network.n_hidden=[8,64,log]",
    "data.n_steps=40", "data.dt_ms=10", "data.batch_size=20", "trainer.max_epochs=6", "threads=1",
)  # fmt: skip


def trials(folder: Path) -> list[tuple[Any, ...]]:
    """State, parameters, value and curve of every trial of the one study that ended by itself."""
    (study,) = studies(folder / "outputs")
    ended = [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
    return [(t.state.name, t.params, t.value, t.intermediate_values) for t in ended]


def main(data_dir: Path) -> None:
    """Run and print the comparison; exit code 1 if trials differ or no run was hit."""
    with tempfile.TemporaryDirectory() as temporary:
        whole, other = Path(temporary, "whole"), Path(temporary, "killed")
        began = time.monotonic()
        assert start(whole, data_dir, *SEARCH).wait() == 0
        seconds = time.monotonic() - began
        rng, hits, in_a_run = random.Random(0), 0, 0
        for _ in range(5):
            process = start(other, data_dir, *SEARCH)
            hits += killed(process, rng.uniform(15, 15 + seconds / 4))
            in_a_run += bool(interrupted(other))
        assert start(other, data_dir, *SEARCH).wait() == 0
        found, repeated = trials(whole), trials(other)
    same = found == repeated
    n_pruned = sum(state == "PRUNED" for state, *_ in found)
    print(
        f"{len(found)} trials, {n_pruned} pruned, {seconds:.0f} s undisturbed; {hits} of 5 kills "
        f"hit the search, {in_a_run} of them amid a run; equal: {same}"
    )
    sys.exit(not (same and in_a_run))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
