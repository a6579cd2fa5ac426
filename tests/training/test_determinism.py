"""Equal bits of runs that are repeated in another process, and with one thread or two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockspike.app.trainer import read_checkpoint
from blockspike.files import read_json
from blockspike.training.metrics_table import read_metrics

pytestmark = pytest.mark.slow

TIMES = ("time/", "epoch_s", "train_s", "fit_s", "n_threads")
# 200 training samples: the last of their batches of 64 has 8.
TRAIN = (
    "train", "data=nmnist_sample", "data.validation_fraction=0.8", "data.n_steps=40",
    "data.dt_ms=10", "network.n_hidden=64", "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=1", "optimizer.lr=0.01",
)  # fmt: skip
RUNS = {
    "fused, dense": (*TRAIN, "trainer.max_epochs=2", "model.synapses=dense"),
    "fused, events": (*TRAIN, "trainer.max_epochs=2", "model.synapses=events"),
    "blocks": (*TRAIN, "trainer.max_epochs=1", "model=blocks"),
    "standard": (*TRAIN, "trainer.max_epochs=1", "model=standard"),
    "attached, not recurrent": (
        *TRAIN, "trainer.max_epochs=1", "model.detach_spikes=false", "model.recurrent=false",
    ),
    "fit": (
        "fit", "experiment=recovery", "data.n_cells=3", "data.duration_s=4", "data.dt_ms=0.5",
        "population.n_starts=40", "trainer.max_epochs=30",
    ),
}  # fmt: skip
IN_ONE_PROCESS = """
import json, sys
from hydra.core.global_hydra import GlobalHydra
from blockspike.app.cli import main
for number, arguments in enumerate(json.loads(sys.argv[1])):
    GlobalHydra.instance().clear()
    sys.argv = ["blockspike", *arguments, f"output_dir={number}"]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
"""


def left_by(folder: Path) -> dict:
    """All numbers and tensors that a run leaves, except times."""
    (path,) = folder.rglob("result.json")
    row, table = read_json(path), read_metrics(path.parent / "metrics.csv")
    found = {key: value for key, value in row.items() if not key.startswith(TIMES)}
    found |= {str(c): table[c].tolist() for c in table if not str(c).startswith(TIMES)}
    for checkpoint in sorted((path.parent / "checkpoints").iterdir()):
        state = read_checkpoint(checkpoint)
        found[checkpoint.name] = [state["state_dict"], state["optimizer_states"]]
    return found


def differences(a: object, b: object, where: str = "") -> list[str]:
    """Places where two nested results differ in a bit."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, f"{where}[{i}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    return [] if repr(a) == repr(b) else [f"{where}: {a!r} and {b!r}"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, data_dir) -> dict[int, Path]:
    """All runs with one thread, and with two in another process with another hash seed."""
    found, processes = {}, []
    for n_threads in (1, 2):
        folder = found[n_threads] = tmp_path_factory.mktemp(f"threads{n_threads}")
        shared = (f"threads={n_threads}", f"data_dir={data_dir}", "progress=false")
        arguments = json.dumps([[*run, *shared] for run in RUNS.values()])
        environment = dict(os.environ, PYTHONHASHSEED=str(n_threads))
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "MKL_CBWR"):
            environment.pop(name, None)
        command = [sys.executable, "-c", IN_ONE_PROCESS, arguments]
        with (folder / "log").open("w") as log:
            processes.append(subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=log
            ))  # fmt: skip
    for process, folder in zip(processes, found.values(), strict=True):
        assert process.wait() == 0, (folder / "log").read_text()
    return found


@pytest.mark.parametrize("run", RUNS)
def test_equal_bits_with_one_thread_and_with_two(folders: dict[int, Path], run: str):
    number = str(list(RUNS).index(run))
    one, two = (left_by(folder / number) for folder in folders.values())
    assert len(one) > 20 and any(name.endswith(".ckpt") for name in one)
    assert differences(one, two) == []
    for folder, n_threads in zip(folders.values(), (1, 2), strict=True):
        (path,) = (folder / number).rglob("result.json")
        assert json.loads(path.read_text())["n_threads"] == n_threads
