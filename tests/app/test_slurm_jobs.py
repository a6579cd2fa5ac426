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

from blockspike.files import read_json
from blockspike.runs.slurm import own_job_id, submitted_jobs
from blockspike.runs.sweeps import run_states
from killed_search import trials
from killed_sweep import runs_table, start

pytestmark = pytest.mark.slow

SMALL = (
    "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "network.n_hidden=8", "threads=1",
    "progress=false",
)  # fmt: skip
SWEEP = (
    "-m", "sweep=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1", *SMALL
)  # fmt: skip
ENDLESS = "trainer.max_epochs=100000"


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
def no_job_outlives_a_test(tmp_path):
    yield
    for path in tmp_path.rglob("status.json"):
        job = read_json(path).get("slurm_job")
        if job not in (None, own_job_id()):  # the tests may themselves run in a job
            subprocess.run(["scancel", job], capture_output=True)
    jobs = submitted_jobs(tmp_path / "outputs").values()
    subprocess.run(["scancel", *(job.id for job in jobs)], capture_output=True)


def command(data_dir: Path, *args: str) -> list[str]:
    return [sys.executable, "-m", "blockspike", "train", f"data_dir={data_dir}", *args]


def run(folder: Path, *words: str, check: bool = True) -> str:
    """Run a command; returns its output."""
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def wait_for(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the moment did not come"
        time.sleep(0.2)


def n_rows(folder: Path) -> int:
    """Number of epochs finished by all runs together."""
    return sum(path.read_text().count("\n") - 1 for path in folder.rglob("metrics.csv"))


def jobs_of(folder: Path) -> list[str]:
    return sorted(job.id for job in submitted_jobs(folder / "outputs").values())


def squeue(column: str, job: str) -> str:
    return run(Path(), "squeue", "-h", "-t", "all", "-r", "-o", column, "-j", job).strip()


def states(folder: Path) -> dict[str, tuple[str, str]]:
    """Seed → state and error."""
    table = run_states(folder / "outputs")
    return {r["run"][-1]: (r["state"], r["error"]) for r in table.to_dict("records")}


def test_jobs_give_the_table_of_a_serial_sweep(tmp_path, data_dir):
    """They are printed and named, and repeating the command submits nothing."""
    runs = (*SMALL, "model=standard,fused", "trainer.max_epochs=2", "experiment_name=mine")
    assert start(tmp_path / "serial", data_dir, "train", "-m", *runs).wait() == 0
    (tmp_path / "slurm").mkdir()
    line = command(data_dir, *SWEEP, *runs)
    printed = run(tmp_path / "slurm", *line)
    jobs = submitted_jobs(tmp_path / "slurm" / "outputs")
    assert len(jobs) == 2 and all(job.ended == "COMPLETED" for job in jobs.values())
    for name, job in jobs.items():
        assert f"Slurm job {job.id}: outputs/{name}\n" in printed
        assert squeue("%j", job.id) == name and name.startswith("mine/")
    serial, slurm = (runs_table(tmp_path / name) for name in ("serial", "slurm"))
    pd.testing.assert_frame_equal(serial, slurm, check_exact=True)

    printed = run(tmp_path / "slurm", *line)
    assert "2 of 2 runs are finished and not submitted" in printed
    assert "runs: 2 done" in printed
    assert submitted_jobs(tmp_path / "slurm" / "outputs") == jobs


def test_runs_of_cancelled_jobs_are_interrupted(tmp_path, data_dir):
    """One job is running and one is still queued."""
    one_by_one = "hydra.launcher.array_parallelism=1"
    sweep = start(tmp_path, data_dir, "train", *SWEEP, ENDLESS, one_by_one, "seed=0,1")
    wait_for(lambda: n_rows(tmp_path) > 1)
    assert states(tmp_path)["0"] == ("running", "")
    first, second = jobs_of(tmp_path)
    assert states(tmp_path)["1"] == ("missing", f"Slurm job {second}: PENDING (JobArrayTaskLimit)")
    run(tmp_path, "scancel", first, second)
    assert sweep.wait() == 2
    assert states(tmp_path) == {
        "0": ("interrupted", f"Slurm job {first}: CANCELLED"),
        "1": ("missing", f"Slurm job {second}: CANCELLED"),
    }
    assert not list(tmp_path.rglob("error.log"))


def test_a_run_at_its_time_limit_is_interrupted(tmp_path, data_dir):
    """It trains until Slurm ends it, half a minute after submitit's signal."""
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=20")
    assert start(tmp_path, data_dir, "train", *SWEEP, ENDLESS, *limit).wait() == 2
    (job,) = jobs_of(tmp_path)
    assert states(tmp_path)["0"] == ("interrupted", f"Slurm job {job}: TIMEOUT")
    assert not list(tmp_path.rglob("error.log"))


def test_a_job_near_its_time_limit_is_queued_again(tmp_path, data_dir):
    """With `max_num_timeout`; here submitit's signal is sent at once."""
    limit = ("hydra.launcher.timeout_min=2", "hydra.launcher.max_num_timeout=1")
    sweep = start(
        tmp_path, data_dir, "train", *SWEEP, ENDLESS, *limit, "hydra.launcher.signal_delay_s=20"
    )
    wait_for(lambda: n_rows(tmp_path) > 1)
    (job,) = jobs_of(tmp_path)
    run(tmp_path, "scancel", "--signal=USR2", job)
    wait_for(lambda: squeue("%T", job) == "PENDING")
    epochs = n_rows(tmp_path)
    assert states(tmp_path)["0"][0] == "interrupted"
    run(tmp_path, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: n_rows(tmp_path) > epochs + 1)
    assert states(tmp_path)["0"] == ("running", "")
    assert sweep.poll() is None and jobs_of(tmp_path) == [job]
    run(tmp_path, "scancel", job)
    assert sweep.wait() == 2


def test_jobs_outlive_the_command_that_submitted_them(tmp_path, data_dir):
    """Repeating the command waits for them and submits none again."""
    line = (*SWEEP, "trainer.max_epochs=2", "seed=0,1")
    sweep = start(tmp_path, data_dir, "train", *line, "hydra.launcher.array_parallelism=1")
    wait_for(lambda: len(jobs_of(tmp_path)) == 2)
    sweep.kill()
    sweep.wait()
    first, second = jobs_of(tmp_path)
    run(tmp_path, "scontrol", "hold", second)
    wait_for(lambda: squeue("%T", first) == "COMPLETED")
    with (tmp_path / "printed").open("w") as printed:
        again = subprocess.Popen(command(data_dir, *line), cwd=tmp_path, stdout=printed)
    wait_for(lambda: "not submitted again" in (tmp_path / "printed").read_text())
    assert again.poll() is None
    run(tmp_path, "scontrol", "release", second)
    assert again.wait() == 0
    text = (tmp_path / "printed").read_text()
    assert f"Slurm job {second}: outputs/" in text and f"Slurm job {first}: " not in text
    assert "1 of 2 runs are finished and not submitted" in text and "runs: 2 done" in text
    assert jobs_of(tmp_path) == [first, second]


def test_the_run_of_a_cancelled_batch_job_says_so(tmp_path, data_dir):
    """With `sbatch --wrap`, without a sweep; unused tasks do not matter."""
    words = " ".join(command(data_dir, *SMALL, "trainer=ddp_cpu", ENDLESS))
    job = run(tmp_path, "sbatch", "--ntasks=2", "--parsable", f"--wrap={words}").strip()
    wait_for(lambda: n_rows(tmp_path) > 1)
    run(tmp_path, "scancel", job)
    wait_for(lambda: states(tmp_path)["0"][0] != "running")
    wait_for(lambda: squeue("%T", job) == "CANCELLED")
    assert states(tmp_path)["0"] == ("interrupted", f"Slurm job {job}: CANCELLED")


@pytest.mark.parametrize("shell", [False, True])
def test_tasks_of_a_step_share_a_run(tmp_path, data_dir, shell):
    """There is a task per device, however `srun` is called and the job is named."""
    words = command(data_dir, *SMALL, "trainer=ddp_cpu", "trainer.max_epochs=1")
    words = ["bash", "-c", " ".join(words)] if shell else words
    printed = run(tmp_path, "srun", "--ntasks=2", *words)
    assert "MEMBER: 2/2" in printed and printed.count("test accuracy") == 1
    assert states(tmp_path) == {"0": ("done", "")}


def test_packed_tasks_are_separate_runs(tmp_path, data_dir):
    words = " ".join(command(data_dir, *SMALL, "seed=$SLURM_PROCID", "trainer.max_epochs=1"))
    run(tmp_path, "srun", "--ntasks=2", "--ntasks-per-node=2", "bash", "-c", words)
    assert states(tmp_path) == {"0": ("done", ""), "1": ("done", "")}


def test_a_search_gives_the_trials_of_a_serial_one(tmp_path, data_dir):
    """A batch of jobs at a time; the values come from the folders of the runs."""
    search = ("-m", "search=nmnist_sample", "search.n_trials=3", "search.batch_size=2", *SMALL[1:3])
    search = (*search, "search.n_random_trials=1", "search.space.network.n_hidden=[8,12]")
    search = (*search, "threads=1", "trainer.max_epochs=1")
    slurm = (*SWEEP[1:4], "progress=false")
    run(tmp_path, *command(data_dir, *search, *slurm))
    assert len(submitted_jobs(tmp_path / "outputs")) == 3
    (tmp_path / "serial").mkdir()
    run(tmp_path / "serial", *command(data_dir, *search))
    found = trials(tmp_path)
    assert len(found) == 3 and found == trials(tmp_path / "serial")
