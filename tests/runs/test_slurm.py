"""Reading Slurm's answers; `tests/app/test_slurm_jobs.py` uses a real Slurm."""

import os
import subprocess
from pathlib import Path

import pytest

from blockspike.files import read_json, write_json
from blockspike.runs.run import Run, time_text
from blockspike.runs.slurm import (
    FORGOTTEN,
    check_launcher,
    is_queued,
    job_states,
    own_job_id,
    rename_job,
    submitted_jobs,
    wait_for_jobs,
    write_jobs,
)
from blockspike.runs.sweeps import run_states


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Make Slurm commands that print these lines or, with exit code 1, these errors."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    def answers(squeue: str = "", sacct: str = "", error: str = "", sbatch: str = "") -> None:
        for name, text in (("squeue", squeue), ("sacct", sacct), ("sbatch", sbatch)):
            (folder / f"{name}.txt").write_text(text)
            (folder / f"{name}.err").write_text(error)
            script = f'#!/bin/sh\ncat "{folder}/{name}.txt"\n'
            if error:
                script += f'cat "{folder}/{name}.err" >&2\nexit 1\n'
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)

    answers()
    return answers


def test_states_of_the_queue_and_of_the_accounts(slurm):
    slurm("12_0|RUNNING|None\n12_1|PENDING|Priority\n13|OUT_OF_MEMORY|OutOfMemory\n")
    assert job_states(["12_0", "12_1", "13"]) == {
        "12_0": "RUNNING", "12_1": "PENDING (Priority)", "13": "OUT_OF_MEMORY",
    }  # fmt: skip
    slurm("12_0|RUNNING|None\n", sacct="12_0|PENDING\n11|CANCELLED by 1000\n10|NODE_FAIL\n")
    assert job_states(["12_0", "11", "10", "9"]) == {
        "12_0": "RUNNING", "11": "CANCELLED", "10": "NODE_FAIL", "9": FORGOTTEN,
    }  # fmt: skip
    assert job_states([]) == {}


def test_a_forgotten_job_differs_from_an_unreachable_slurm(slurm):
    slurm(error="slurm_load_jobs error: Invalid job id specified")
    assert job_states(["12"]) == {"12": FORGOTTEN}
    slurm(error="slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    assert job_states(["12"]) is None


def test_without_slurm_there_is_no_answer(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert job_states(["12"]) is None


@pytest.mark.parametrize("state", ["PENDING (Resources)", "RUNNING", "COMPLETING", "SUSPENDED"])
def test_states_of_queued_jobs(state):
    assert is_queued(state)
    assert not is_queued("TIMEOUT") and not is_queued(FORGOTTEN)


def test_id_of_the_own_job(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    assert own_job_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "15")
    assert own_job_id() == "15"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert own_job_id() == "12_3"


def attempt(folder: Path, started: float, job: str | None, error: str = "") -> None:
    """Write what a run's process leaves when it is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".lock").touch()
    status = {"state": "running", "started": time_text(started), "slurm_job": job}
    write_json(folder / "status.json", status)
    if error:
        Run(folder).write_error(ValueError(error))


def state(output_dir: Path) -> tuple[str, str]:
    (row,) = run_states(output_dir).to_dict("records")
    return row["state"], row["error"]


def test_a_run_ended_with_its_job_is_interrupted(tmp_path, slurm):
    """Even if its parent saw the process die and recorded a failure."""
    run = tmp_path / "outputs" / "a"
    attempt(run, 1e9, "13")
    slurm("13|NODE_FAIL|None\n")
    assert state(run.parent) == ("interrupted", "Slurm job 13: NODE_FAIL")
    attempt(run, 1e9, "13", "the run's process was killed (SIGKILL; out of memory?)")
    slurm("13|OUT_OF_MEMORY|OutOfMemory\n")
    assert state(run.parent) == ("interrupted", "Slurm job 13: OUT_OF_MEMORY")


def test_a_runs_own_error_is_kept(tmp_path, slurm):
    run = tmp_path / "outputs" / "a"
    attempt(run, 1e9, "13", "no such file")
    slurm("13|COMPLETED|None\n")
    assert state(run.parent) == ("failed", "ValueError: no such file")


def test_a_run_that_failed_before_its_job_was_ended_has_failed(tmp_path, slurm):
    """As one of several runs in a job."""
    run = tmp_path / "outputs" / "a"
    attempt(run, 1e9, "13", "NaN in layer 1")
    status = read_json(run / "status.json")
    write_json(run / "status.json", status | {"state": "failed", "ended": time_text(1e9 + 9)})
    slurm("13|TIMEOUT|None\n")
    assert state(run.parent) == ("failed", "ValueError: NaN in layer 1")


def test_a_job_name_that_slurm_does_not_accept_in_time_is_no_error(monkeypatch):
    def too_long(*args, **kwargs):
        raise subprocess.TimeoutExpired("scontrol", 20)

    monkeypatch.setattr(subprocess, "run", too_long)
    rename_job("12", "mine")


def test_the_last_of_several_attempts_counts(tmp_path, slurm):
    output_dir = tmp_path / "outputs"
    slurm("12|TIMEOUT|None\n14|CANCELLED|None\n")
    write_jobs(output_dir, tmp_path / "logs", {"a": "12"})
    (submitted,) = submitted_jobs(output_dir).values()
    attempt(output_dir / "a", submitted.submitted + 60, "12")
    assert state(output_dir) == ("interrupted", "Slurm job 12: TIMEOUT")
    attempt(output_dir / "a", submitted.submitted + 90, None)  # by hand, without Slurm
    assert state(output_dir) == ("interrupted", "")
    attempt(output_dir / "a", submitted.submitted - 90, "11")  # and then submitted again
    assert state(output_dir) == ("interrupted", "Slurm job 12: TIMEOUT")
    write_jobs(output_dir, tmp_path / "logs", {"a": "14", "b": "15"})
    assert state_of(output_dir, "a") == ("interrupted", "Slurm job 14: CANCELLED")


def state_of(output_dir: Path, run: str) -> tuple[str, str]:
    row = run_states(output_dir, {run: ""}).to_dict("records")[0]
    return row["state"], row["error"]


def test_how_jobs_ended_is_kept_once_slurm_forgets_it(tmp_path, slurm):
    output_dir = tmp_path / "outputs"
    write_jobs(output_dir, Path("outputs/.submitit"), {"a": "12_0", "b": "12_1"})
    slurm("12_0|FAILED|NonZeroExitCode\n12_1|COMPLETED|None\n")
    wait_for_jobs(output_dir, ["12_0", "12_1"])
    slurm(error="slurm_load_jobs error: Invalid job id specified")
    failed = "Slurm job 12_0: FAILED; its logs: outputs/.submitit/12_0"
    assert state_of(output_dir, "a") == ("missing", failed)
    (path,) = output_dir.rglob("12.json")
    assert read_json(path)["ended"] == {"12_0": "FAILED", "12_1": "COMPLETED"}


@pytest.mark.parametrize("row", [{}, {"pruned": True}])
def test_the_job_of_a_run_that_needs_no_other_is_not_its_error(tmp_path, slurm, row):
    attempt(tmp_path / "a", 0.0, "12")
    slurm("12|COMPLETED|None\n")
    write_jobs(tmp_path, tmp_path / "logs", {"a": "12"})
    wait_for_jobs(tmp_path, ["12"])
    write_json(tmp_path / "a" / "result.json", row | {"config_hash": ""})
    assert state(tmp_path) == ("pruned" if row else "done", "")


def test_a_malformed_file_of_jobs_is_named(tmp_path):
    write_json(tmp_path / "sweeps" / "slurm" / "12.json", {"runs": []})
    with pytest.raises(ValueError, match="12.json: expected jobs of runs"):
        submitted_jobs(tmp_path)


def test_a_time_limit_within_the_signals_delay_is_refused(slurm, monkeypatch):
    check_launcher({"timeout_min": 3, "signal_delay_s": 120})
    with pytest.raises(ValueError, match=r"timeout_min: expected ≥ 3, more than .* got 2"):
        check_launcher({"timeout_min": 2, "signal_delay_s": 120})
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match="expected Slurm's command sbatch"):
        check_launcher({"timeout_min": 3, "signal_delay_s": 120})


def test_a_refused_sweep_submits_and_plans_nothing(blockspike, tmp_path, slurm):
    slurm(sbatch="Submitted batch job 12\n")
    done = blockspike("train", "-m", "sweep=slurm", "hydra.launcher.timeout_min=2", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("blockspike train: hydra.launcher.timeout_min: expected ≥ 3")
    assert done.stderr.count("\n") == 1
    assert not list((tmp_path / "outputs").rglob("*.json"))
