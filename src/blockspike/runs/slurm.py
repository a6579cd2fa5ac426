"""Slurm jobs: which run each one is for, its state, and why it was lost."""

import math
import os
import shutil
import subprocess
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from blockspike.files import read_json, write_json

LOST = {
    "BOOT_FAIL", "CANCELLED", "DEADLINE", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
"""Slurm's states of a job that ended before its run did."""
ENDED = LOST | {"COMPLETED", "FAILED"}
FORGOTTEN = "no longer known to Slurm"
_PAUSE_S = 15.0
_ANSWER_S = 20.0  # without a configuration, Slurm's commands search for a minute


class Job(NamedTuple):
    """A job that was submitted for a run.

    Attributes:
        id: as Slurm prints it, `12` or, in an array, `12_3`.
        submitted: time of submission, seconds since the epoch.
        logs: folder of its logs.
        ended: Slurm's state at its end; "" while unknown.
    """

    id: str
    submitted: float
    logs: str = ""
    ended: str = ""


def own_job_id() -> str | None:
    """Id of the job that this process belongs to, or None."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def write_jobs(output_dir: Path, logs: Path, jobs: Mapping[str, str]) -> None:
    """Record which run got which job, for commands that run later.

    Args:
        output_dir: folder of the runs; the file is `sweeps/slurm/<first job's number>.json` in it.
        logs: folder with a folder of logs for each job.
        jobs: run → id of its job.
    """
    first = next(iter(jobs.values())).partition("_")[0]
    held = {"submitted": time.time(), "logs": str(logs), "runs": dict(jobs), "ended": {}}
    write_json(output_dir / "sweeps" / "slurm" / f"{first}.json", held)


def submitted_jobs(output_dir: Path) -> dict[str, Job]:
    """Last job that was submitted for each run."""
    jobs: dict[str, Job] = {}
    for _, held in _files(output_dir):
        for run, job in held["runs"].items():
            if run not in jobs or jobs[run].submitted < held["submitted"]:
                logs = str(Path(held["logs"]) / job)
                jobs[run] = Job(job, held["submitted"], logs, held["ended"].get(job, ""))
    return jobs


def _files(output_dir: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in (output_dir / "sweeps" / "slurm").glob("*.json"):
        held = read_json(path)
        if held.keys() != {"submitted", "logs", "runs", "ended"}:
            raise ValueError(f"{path}: expected jobs of runs, got something else")
        yield path, held


def wait_for_jobs(output_dir: Path, ids: Collection[str]) -> None:
    """Wait until all these jobs have ended; record how they ended in the files of jobs."""
    pause_s = 1.0
    while True:
        states = job_states(ids)  # None while the controller does not answer
        if states is not None:
            for path, held in _files(output_dir):
                own = held["runs"].values()
                ended = {job: word for job, word in states.items() if job in own and word in ENDED}
                if ended.items() - held["ended"].items():
                    write_json(path, held | {"ended": held["ended"] | ended})
            if not any(map(is_queued, states.values())):
                return
        time.sleep(pause_s)
        pause_s = min(1.5 * pause_s, _PAUSE_S)


def job_states(ids: Collection[str]) -> dict[str, str] | None:
    """State of each job as Slurm names it, with the reason if it is pending.

    Without accounting, Slurm forgets a job minutes after its end (`MinJobAge`).

    Returns:
        id → `RUNNING`, `PENDING (Resources)`, `TIMEOUT`, …, or `FORGOTTEN`; None if there is no
        answer.
    """
    if not ids:
        return {}
    jobs = ",".join(sorted({job.partition("_")[0] for job in ids}))
    command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r"]
    rows = _rows([*command, f"--jobs={jobs}"])
    if rows is None:
        return None
    states = {}
    for job, state, reason in rows:
        is_pending = state == "PENDING" and reason != "None"
        states[job] = f"{state} ({reason})" if is_pending else state
    if set(ids) - states.keys():
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
        kept = _rows([*command, f"--jobs={jobs}"]) or []
        states = {job: state.split()[0] for job, state in kept} | states  # CANCELLED by 1000
    return {job: states.get(job, FORGOTTEN) for job in ids}


def is_queued(state: str) -> bool:
    """Whether a job in this state, of `job_states`, waits, runs or will run again."""
    return state not in ENDED and state != FORGOTTEN


def _rows(command: list[str]) -> list[list[str]] | None:
    """Fields of each line that the command prints; None if there is no answer."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode and "Invalid job id" in done.stderr:  # all are forgotten
        return []
    lines = done.stdout.splitlines()
    return None if done.returncode else [line.split("|") for line in lines if line]


def rename_job(job: str, name: str) -> None:
    """Give a job of an array its own name in the queue; a failure is ignored."""
    command = ["scontrol", "update", f"JobId={job}", f"JobName={name}"]
    with suppress(OSError, subprocess.SubprocessError):
        subprocess.run(command, capture_output=True, timeout=_ANSWER_S, check=False)


def cancelling(jobs: Iterable[str]) -> str:
    """Command that cancels these jobs."""
    return f"scancel {' '.join(sorted({job.partition('_')[0] for job in jobs}))}"


def check_launcher(launcher: Mapping[str, Any]) -> None:
    """Raise ValueError if Slurm is missing, or would end each job before its run has begun.

    A job gets a signal `signal_delay_s` before its time is up.
    """
    minutes, delay_s = launcher["timeout_min"], launcher["signal_delay_s"]
    if minutes * 60 <= delay_s:
        raise ValueError(
            f"hydra.launcher.timeout_min: expected ≥ {math.floor(delay_s / 60) + 1}, more than "
            f"hydra.launcher.signal_delay_s ({delay_s} s), got {minutes}"
        )
    if shutil.which("sbatch") is None:
        raise ValueError(
            "sweep=slurm: expected Slurm's command sbatch on this machine, got none; "
            "sweep=submitit_local runs jobs without Slurm"
        )
