"""Runs as jobs of a real Slurm, which `eval "$(tools/slurm_here.sh start FOLDER)"` starts.

Without Slurm these tests are skipped, or fail if REQUIRE_SLURM=1.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from blockspike.runs.status import run_states
from killed_sweep import runs_table, start

pytestmark = pytest.mark.slow

SMALL = (
    "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "network.n_hidden=8", "threads=1",
    "progress=false",
)  # fmt: skip
SWEEP = (
    "-m", "sweep=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1", *SMALL
)  # fmt: skip
LONG = "trainer.max_epochs=25"


def has_slurm() -> bool:
    """Return whether a controller answers; without a configuration, that takes a minute."""
    configuration = Path(os.environ.get("SLURM_CONF", "/etc/slurm/slurm.conf"))
    if shutil.which("scontrol") is None or not configuration.is_file():
        return False
    done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=20)
    return " UP" in done.stdout


@pytest.fixture(autouse=True, scope="module")
def slurm():
    if not has_slurm():
        assert os.environ.get("REQUIRE_SLURM") != "1", "no Slurm controller answers"
        pytest.skip("no Slurm controller answers")


@pytest.fixture(autouse=True)
def no_job_outlives_a_test():
    before = jobs()
    yield
    if left := jobs() - before:
        subprocess.run(["scancel", *left], capture_output=True)


def run(folder: Path, *words: str) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def jobs() -> set[str]:
    """Ids of the jobs that wait or run."""
    return set(run(Path(), "squeue", "-h", "-r", "-o", "%A").split())


def command(data_dir: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "blockspike", "train", f"data_dir={data_dir}", *args]


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.2)


def n_epochs(folder: Path) -> int:
    """Number of epochs finished by all runs together."""
    return sum(path.read_text().count("\n") - 1 for path in folder.rglob("metrics.csv"))


def states(folder: Path) -> dict[str, str]:
    """Seed → state."""
    table = run_states(folder / "outputs")
    return {row["run"][-1]: row["state"] for row in table.to_dict("records")}


@pytest.fixture(scope="module")
def serial(tmp_path_factory, data_dir) -> pd.DataFrame:
    """The table of the sweep without Slurm."""
    folder = tmp_path_factory.mktemp("serial")
    assert start(folder, data_dir, "train", "-m", *SMALL, LONG, "seed=0,1").wait() == 0
    return runs_table(folder)


def assert_same(folder: Path, data_dir: Path, serial: pd.DataFrame) -> None:
    """The same command ends in the table of the sweep without Slurm."""
    assert start(folder, data_dir, "train", *SWEEP, LONG, "seed=0,1").wait() == 0
    pd.testing.assert_frame_equal(runs_table(folder), serial, check_exact=True)


def test_a_cancelled_sweep_ends_in_the_table_of_a_serial_one(tmp_path, data_dir, serial):
    sweep = start(tmp_path, data_dir, "train", *SWEEP, LONG, "seed=0,1")
    wait_for(lambda: n_epochs(tmp_path) > 2)
    run(tmp_path, "scancel", *jobs())
    sweep.kill()  # submitit sees lost jobs by `sacct`, which this Slurm does not have
    sweep.wait()
    wait_for(lambda: "interrupted" in states(tmp_path).values())
    assert not list(tmp_path.rglob("error.log"))
    assert_same(tmp_path, data_dir, serial)


def test_jobs_outlive_the_command_that_submitted_them(tmp_path, data_dir, serial):
    sweep = start(tmp_path, data_dir, "train", *SWEEP, LONG, "seed=0,1")
    wait_for(lambda: n_epochs(tmp_path) > 0)
    sweep.kill()
    sweep.wait()
    wait_for(lambda: set(states(tmp_path).values()) == {"done"} and len(states(tmp_path)) == 2)
    assert_same(tmp_path, data_dir, serial)


def test_a_job_near_its_time_limit_is_queued_again(tmp_path, data_dir, serial):
    """With `max_num_timeout`; here submitit's signal is sent at once."""
    limit = ("hydra.launcher.timeout_min=5", "hydra.launcher.max_num_timeout=3")
    sweep = start(tmp_path, data_dir, "train", *SWEEP, LONG, "seed=0", *limit)
    wait_for(lambda: n_epochs(tmp_path) > 1)
    (job,) = jobs()
    run(tmp_path, "scancel", "--signal=USR2", job)
    wait_for(lambda: "PENDING" in run(tmp_path, "squeue", "-h", "-r", "-o", "%T", "-j", job))
    assert states(tmp_path) == {"0": "interrupted"}
    run(tmp_path, "scontrol", "update", f"JobId={job}", "StartTime=now")
    assert sweep.wait() == 0
    assert states(tmp_path) == {"0": "done"}
    assert_same(tmp_path, data_dir, serial)


def test_tasks_of_a_step_share_a_run(tmp_path, data_dir):
    """There is a task per device."""
    words = command(data_dir, *SMALL, "trainer=ddp_cpu", "trainer.max_epochs=1")
    printed = run(tmp_path, "srun", "--nodes=1", "--ntasks-per-node=2", "--job-name=mine", *words)
    assert printed.count("test accuracy") == 1
    assert states(tmp_path) == {"0": "done"}


def test_packed_tasks_are_separate_runs(tmp_path, data_dir):
    words = " ".join(command(data_dir, *SMALL, "seed=$SLURM_PROCID", "trainer.max_epochs=1"))
    run(tmp_path, "srun", "--ntasks=2", "--ntasks-per-node=2", "bash", "-c", words)
    assert states(tmp_path) == {"0": "done", "1": "done"}
