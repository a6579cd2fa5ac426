"""Runs shared by several processes compared with one, ranks, and concurrent runs."""

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from omegaconf import OmegaConf
from pytorch_lightning.utilities import rank_zero_only

from blockspike.app.trainer import _EndTogether
from blockspike.files import read_json
from blockspike.runs import run as runs
from blockspike.runs.processes import (
    OneProcess,
    SlurmStep,
    cluster_environment,
)
from blockspike.runs.rank import is_first_process, take_rank
from blockspike.runs.run import Run, RunRefusedError
from blockspike.training.checkpoint_io import load_plain
from blockspike.training.metrics_table import read_metrics
from killed_sweep import start, wait_for

# 801 training samples. Plain gradient descent, since Adam would hide a gradient's scale. Only two
# steps, since another order of sums may move a spike, and the gradients then soon differ.
ODD = (
    "data=nmnist_sample", "data.validation_fraction=0.2", "data.n_steps=40", "data.dt_ms=10",
    "network.n_hidden=8", "trainer.max_epochs=1", "label_smoothing=0.1", "threads=1",
    "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=1e-3",
)  # fmt: skip


def test_a_process_of_another_run_than_the_first_is_refused(tmp_path, monkeypatch):
    """`srun -n2 … trainer=ddp_cpu seed=$SLURM_PROCID`: one step, one run, but two seeds."""
    monkeypatch.setattr(runs, "_FIRST_TRIES", 2)
    first = Run(tmp_path / "seed=0")
    with first.recorded(OmegaConf.create({"seed": 0}), {"seed": 0}, "0"):
        monkeypatch.setattr(runs, "is_first_process", lambda: False)
        with first.recorded(OmegaConf.create({"seed": 0}), {"seed": 0}, "0"):
            assert first.is_held()
        other = Run(tmp_path / "seed=1").recorded(OmegaConf.create({"seed": 1}), {"seed": 1}, "1")
        with pytest.raises(RunRefusedError, match="expected the first process of this run"), other:
            pytest.fail("it trains")


def scores(run: Run) -> dict[str, list[float]]:
    """Loss, accuracy and rates by epoch, and test accuracy."""
    table = read_metrics(run.folder / "metrics.csv")
    found = {str(c): table[c].tolist() for c in table if not str(c).startswith("time/")}
    return found | {"test_accuracy": [(run.result() or {})["test_accuracy"]]}


@pytest.mark.slow
def test_two_processes_with_an_odd_number_of_samples_train_like_one(tmp_path: Path, data_dir: Path):
    """The last batch has 267 samples, split 134 and 133, or one, so that one process has none."""
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
            a_tie = 1 / 80 if "accuracy" in name else 0  # one of 80 test samples
            assert scores(two)[name] == pytest.approx(values, rel=1e-5, abs=a_tie), name
        for checkpoint in ("last_checkpoint", "best_checkpoint"):
            states = [load_plain(getattr(run, checkpoint)) for run in (one, two)]
            assert states[0]["global_step"] == states[1]["global_step"] == 2
            for name, weights in states[0]["state_dict"].items():
                other = states[1]["state_dict"][name]
                error = (other - weights).norm()
                assert error <= 1e-5 * weights.norm(), f"batch_size {batch_size}, {name}: {error}"


TINY = (
    "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "network.n_hidden=8",
    "trainer.max_epochs=1", "threads=1",
)  # fmt: skip
RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "TORCHELASTIC_RUN_ID",
    "SLURM_JOB_ID", "SLURM_JOB_NAME", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID",
    "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS",
    "SLURM_STEP_NUM_NODES", "SLURM_STEP_NODELIST",
)  # fmt: skip


def step(n_tasks: int, task: int, n_nodes: int = 1, name: str = "train") -> dict[str, str]:
    """Variables that `srun` sets for a task."""
    node, local = divmod(task, n_tasks // n_nodes)
    return {
        "SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": name, "SLURM_NTASKS": str(n_tasks),
        "SLURM_PROCID": str(task), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node),
        "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": str(n_tasks),
        "SLURM_STEP_NUM_NODES": str(n_nodes), "SLURM_STEP_NODELIST": "node[03-04]",
    }  # fmt: skip


BATCH = {"SLURM_JOB_ID": "12345", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
ELASTIC = {"TORCHELASTIC_RUN_ID": "a", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}
LAUNCHED = {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}


def rank() -> int:
    """The rank that Lightning's own decorator reads."""
    return rank_zero_only.rank  # pyright: ignore[reportFunctionMemberAccess]


def outcome(folder: Path, data_dir: Path, *args: str) -> subprocess.CompletedProcess:
    """Do a small run in a new process; returns its outcome and output."""
    command = [sys.executable, "-m", "blockspike", "train", f"data_dir={data_dir}", *TINY]
    return subprocess.run([*command, *args], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def environment(monkeypatch):
    """Set these variables and unset all others that give a process a rank."""
    before = rank()

    def set_to(variables: dict[str, str]) -> None:
        for name in RANKS:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    yield set_to
    rank_zero_only.rank = before  # pyright: ignore[reportFunctionMemberAccess]


@pytest.mark.parametrize(
    ("variables", "trainer", "kind", "expected"),
    [
        ({}, {"devices": 1}, OneProcess, 0),
        (step(2, 1), {"devices": 1}, OneProcess, 0),
        (step(2, 1), {"devices": "auto", "accelerator": "cpu"}, OneProcess, 0),
        (ELASTIC, {"devices": [0]}, OneProcess, 0),
        (LAUNCHED, {"devices": 1}, OneProcess, 0),
        (step(2, 1), {"devices": 2}, SlurmStep, 1),
        (step(2, 1, name="bash"), {"devices": "0,1"}, SlurmStep, 1),
        (step(2, 1, n_nodes=2), {"devices": 1, "num_nodes": 2}, SlurmStep, 1),
        (step(2, 1, n_nodes=2), {"devices": 2}, LightningEnvironment, 0),
        (step(4, 3), {"devices": 2}, LightningEnvironment, 0),
        (BATCH, {"devices": 2}, LightningEnvironment, 0),
        (ELASTIC | step(1, 0), {"devices": 2}, TorchElasticEnvironment, 1),
        (LAUNCHED, {"devices": 2}, LightningEnvironment, 1),
        ({"NODE_RANK": "1"}, {"devices": 4, "num_nodes": 2}, LightningEnvironment, 4),
    ],
)
def test_the_rank_comes_from_the_environment(environment, variables, trainer, kind, expected):
    environment(variables)
    assert type(cluster_environment(trainer)) is kind
    take_rank(trainer)
    assert rank() == expected
    assert is_first_process() == (expected == 0)


def test_a_command_without_training_is_the_first_process(environment):
    environment(step(2, 1))
    take_rank(None)
    assert is_first_process()


def test_tasks_of_a_step_meet_on_its_first_node(environment):
    environment(step(4, 3, n_nodes=2))
    last = cluster_environment({"devices": 2, "num_nodes": 2})
    assert (last.world_size(), last.global_rank(), last.local_rank(), last.node_rank()) == (
        4,
        3,
        1,
        1,
    )
    assert last.main_address == "node03"
    ports = [last.main_port]
    environment(step(4, 0, n_nodes=2) | {"SLURM_STEP_ID": "1"})
    ports.append(cluster_environment({"devices": 2, "num_nodes": 2}).main_port)
    assert ports[0] != ports[1] and all(1024 < port < 32768 for port in ports)


@pytest.mark.slow
@pytest.mark.parametrize(
    "variables", [step(2, 1), ELASTIC, LAUNCHED], ids=["step", "elastic", "rank"]
)
def test_a_single_process_run_is_separate(tmp_path, data_dir, environment, variables):
    """It has a lock, a status and a result, whatever its rank in the environment."""
    environment(variables)
    assert start(tmp_path, data_dir, "train", *TINY).wait() == 0
    (result,) = tmp_path.rglob("result.json")
    run = Run(result.parent)
    assert (run.folder / ".lock").is_file() and (run.folder / "metrics.csv").is_file()
    assert run.arguments() and '"done"' in (run.folder / "status.json").read_text()


@pytest.mark.slow
def test_a_task_whose_folder_is_in_use_is_refused(tmp_path, data_dir, environment):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        environment(step(2, 1))
        done = outcome(tmp_path, data_dir, "run_dir=run")
    assert done.returncode == 2 and "already running" in done.stderr


@pytest.mark.slow
def test_processes_that_all_receive_sigterm_end(tmp_path, data_dir):
    """Slurm does so when a job is cancelled or its time is up."""
    args = (*TINY, "trainer=ddp_cpu", "trainer.max_epochs=100000", "run_dir=run")
    process = start(tmp_path, data_dir, "train", *args)
    run = Run(tmp_path / "run")
    wait_for((run.folder / "metrics.csv").is_file, process)
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert read_json(run.folder / "status.json")["state"] == "interrupted"
    assert not run.is_held() and not run.error_log.exists()


def test_an_interrupt_that_python_ignored_is_raised_at_the_next_batch():
    end_together: Any = _EndTogether()
    end_together.on_train_batch_start()
    with pytest.raises(KeyboardInterrupt):
        end_together._interrupt(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        end_together.on_validation_batch_start()


@pytest.fixture
def with_srun(tmp_path, monkeypatch) -> None:
    """Provide a command `srun`, as on a cluster's login node."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "srun").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bin" / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=0,1")])
def test_lightning_prints_no_hint_about_launchers(
    tmp_path, data_dir, environment, with_srun, sweep
):
    environment({})
    done = outcome(tmp_path, data_dir, *sweep)
    assert done.returncode == 0
    assert "srun" not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_task_ignores_checkpoints_in_the_current_folder(tmp_path, data_dir, environment):
    """In a Slurm step Lightning looks for `hpc_ckpt_*.ckpt` in its default folder."""
    environment(step(1, 0))
    (tmp_path / "hpc_ckpt_1.ckpt").write_text("another project's")
    assert start(tmp_path, data_dir, "train", *TINY).wait() == 0
