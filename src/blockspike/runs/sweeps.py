"""Sweeps: their runs and the state of each run."""

import copy
import hashlib
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from blockspike.files import read_json, write_json
from blockspike.runs.identity import content_hash, content_of
from blockspike.runs.run import Run, run_folders
from blockspike.runs.scores import scores
from blockspike.runs.slurm import (
    FORGOTTEN,
    LOST,
    Job,
    check_launcher,
    is_queued,
    job_states,
    submitted_jobs,
)

UNFINISHED = ("running", "interrupted", "failed", "missing")
STATES = ("done", "pruned", *UNFINISHED)


class RecordSweep(Callback):
    """Hydra callback that records a sweep's runs before the first one starts.

    They go to `sweeps/<hash of the runs>.json` in the output folder, so that `blockspike status`
    knows which are missing; repeating the command writes the same file.
    """

    output_dir: ClassVar[Path]
    planned: ClassVar[dict[str, str] | None] = None
    """Folder of each run below `output_dir` → hash of its configuration; None without a sweep."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose every job to find its folder; a search finds those of its trials itself."""
        launcher = config.hydra.launcher._target_
        if "hydra_submitit_launcher" in launcher:
            _outlast_lost_jobs()
        if "blockspike_launcher" in launcher:
            try:
                check_launcher(config.hydra.launcher)
            except ValueError:
                return  # the launcher itself reports it, before it submits anything
        if config.get("search") is not None:
            return
        RecordSweep.output_dir, RecordSweep.planned = Path(config.output_dir), {}
        try:
            planned = _planned(config)
        except (HydraException, OmegaConfBaseException):
            return  # the sweep itself reports it
        except ValueError as error:  # Hydra would turn it into a warning and continue
            print(f"blockspike: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        RecordSweep.planned = planned
        name = hashlib.sha256("\n".join(planned).encode()).hexdigest()[:12]
        plan = RecordSweep.output_dir / "sweeps" / f"{name}.json"
        overrides = list(config.hydra.overrides.task)
        write_json(plan, {"overrides": overrides, "runs": planned})


def _outlast_lost_jobs() -> None:
    """Make submitit's launcher continue after a lost job instead of raising."""
    from submitit import Job  # of the extra `sweep`
    from submitit.core.utils import UncompletedJobError

    results = Job.results

    def results_or_none(self: Job[Any]) -> list[Any]:
        try:
            return results(self)
        except UncompletedJobError as error:  # time limit, dead node
            print(f"blockspike: {str(error).splitlines()[0]}", file=sys.stderr)
            return [JobReturn(status=JobStatus.COMPLETED)]

    Job.results = results_or_none


def _planned(config: DictConfig) -> dict[str, str]:
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    swept = [f"{k}={v}" for k, v in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = parser.parse_overrides([*swept, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    runs: dict[str, str] = {}
    job_of: dict[str, list[str]] = {}
    for job in jobs:
        folder, runs_hash = planned_run(config, job)
        other = job_of.setdefault(folder, job)
        data = [[x for x in a if x.startswith("data.")] for a in (other, job)]
        if runs.get(folder, runs_hash) != runs_hash or data[0] != data[1]:
            one, two = (
                " ".join(x for x in a if x not in b) for a, b in ((other, job), (job, other))
            )
            raise ValueError(
                f"-m: expected a folder for each run, got {folder} for both {one} and {two}; "
                "start them one by one, with another experiment_name"
            )
        runs[folder] = runs_hash
    return dict(sorted(runs.items()))


def planned_run(config: DictConfig, overrides: list[str]) -> tuple[str, str]:
    """Folder of a job's run below the output folder, and the hash of its configuration.

    Args:
        config: the sweep's configuration with Hydra's own node.
        overrides: the job's overrides.
    """
    loader = GlobalHydra.instance().config_loader()
    composed = loader.load_sweep_config(config, overrides)
    try:
        HydraConfig.instance().set_config(composed)  # what ${hydra:…} refers to
        folder = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
        with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
            composed.hydra.runtime.output_dir = str(folder)
        HydraConfig.instance().set_config(composed)
        task = copy.deepcopy(composed)
        with open_dict(task):
            del task["hydra"]
        return _name(folder, Path(config.output_dir)), content_hash(content_of(task))
    finally:
        HydraConfig.instance().set_config(config)


def _name(folder: Path, output_dir: Path) -> str:
    return str(
        folder.relative_to(output_dir) if folder.is_relative_to(output_dir) else folder.absolute()
    )


def run_folder(cfg: DictConfig) -> Path:
    """Find the run's folder: `cfg.run_dir`, or that of the same run under another spelling.

    `optimizer.lr=1e-3` and `optimizer.lr=0.001` name two folders of one run. A folder that the
    command itself names is used as it is, so that a run can be repeated.
    """
    own = Path(cfg.run_dir)
    overrides = HydraConfig.get().overrides
    given = [o.lstrip("+") for o in (*overrides.task, *overrides.hydra)]
    is_named = any(o.startswith(("run_dir=", "hydra.run.", "hydra.sweep.")) for o in given)
    if is_named or (own / "content.json").is_file():
        return own
    same = run_folders(Path(cfg.output_dir) / cfg.experiment_name)
    return same.get(content_hash(content_of(cfg)), own)


def planned_runs(output_dir: Path) -> dict[str, str]:
    """Folders of all runs that sweeps have planned in `output_dir` → hashes of their content."""
    plans = sorted((output_dir / "sweeps").glob("*.json"))
    return {run: digest for path in plans for run, digest in _runs_of(path).items()}


def _runs_of(plan: Path) -> dict[str, str]:
    runs = read_json(plan).get("runs", {})
    if not isinstance(runs, dict) or not all(isinstance(x, str) for x in runs.values()):
        raise ValueError(f"{plan}: expected folders of runs and their hashes, got {runs!r:.60}")
    return runs


def run_states(output_dir: Path, planned: dict[str, str] | None = None) -> pd.DataFrame:
    """State of every run.

    Args:
        output_dir: folder of the runs.
        planned: the runs, as `RecordSweep.planned`; None = all that exist or that a sweep planned,
            whatever their configuration.

    Returns:
        Columns `run`, `state` (one of `STATES`), `epochs` done, `started` (ISO 8601, the last
        attempt), `seconds` of all attempts (so far, if it is running; up to its last epoch, if it
        was killed), `val_score`, `test_score` and `last_val_score` (see `scores`), `error` (one
        line), `folder`: where the run is, which is not the folder that `run` names if its overrides
        were spelt differently.
    """
    folders = run_folders(output_dir)
    if planned is None:
        there = {str(f.parent.relative_to(output_dir)) for f in output_dir.rglob(".lock")}
        absent = {r for r, digest in planned_runs(output_dir).items() if digest not in folders}
        planned = dict.fromkeys(sorted(there | absent), "")
    columns = ["run", "state", "epochs", "started", "seconds"]
    columns += ["val_score", "test_score", "last_val_score", "error", "folder"]
    rows = []
    for run, digest in planned.items():
        folder = output_dir / run
        if not (folder / "status.json").is_file():
            folder = folders.get(digest, folder)
        rows.append({"run": run, "folder": folder, **_state(Run(folder), digest)})
    explained = ("done", "running", "pruned")
    _add_slurms_word(output_dir, [r for r in rows if r["state"] not in explained])
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _add_slurms_word(output_dir: Path, rows: list[dict[str, Any]]) -> None:
    """Add how a run's last attempt ended if that was a Slurm job and Slurm reports it."""
    submitted = submitted_jobs(output_dir)
    jobs = {r["run"]: _last_job(Run(r["folder"]), submitted.get(r["run"])) for r in rows}
    states = job_states({job.id for job in jobs.values() if job and not job.ended}) or {}
    for row in rows:
        job = jobs[row["run"]]
        word = (job.ended or states.get(job.id, FORGOTTEN)) if job else FORGOTTEN
        if job is None or word == FORGOTTEN:
            continue
        if row["state"] == "failed" and (word not in LOST or _has_failed(Run(row["folder"]))):
            continue
        logs = f"; its logs: {job.logs}" if word == "FAILED" and job.logs else ""
        row["error"] = f"Slurm job {job.id}: {word}{logs}"
        if row["state"] == "failed":  # since Slurm ended its processes
            row["state"] = "interrupted"


def _has_failed(run: Run) -> bool:
    """Whether the run itself recorded a failure; its job may have ended hours later."""
    try:
        return read_json(run.folder / "status.json").get("state") == "failed"
    except ValueError:  # damaged
        return True


def _last_job(run: Run, submitted: Job | None) -> Job | None:
    """Job of the last attempt; None if the attempt was not a job."""
    try:
        status = read_json(run.folder / "status.json")
        began = datetime.fromisoformat(status["started"]).timestamp()
    except (KeyError, ValueError, TypeError):  # not started, or damaged
        return submitted
    own = status.get("slurm_job")
    if submitted is not None and (own == submitted.id or began < submitted.submitted):
        return submitted
    return None if own is None else Job(own, began)


def runs_to_submit(output_dir: Path, planned: dict[str, str]) -> tuple[set[str], dict[str, str]]:
    """Choose the runs of a sweep that need a Slurm job; print why the others do not.

    Args:
        output_dir: folder of the runs.
        planned: as `RecordSweep.planned`.

    Returns:
        The runs to submit, and run → id of the job for those that have one in the queue.

    Raises:
        OSError: Slurm does not answer.
    """
    state = run_states(output_dir, planned).set_index("run")["state"].to_dict()
    jobs = {run: job for run, job in submitted_jobs(output_dir).items() if run in planned}
    states = job_states({job.id for job in jobs.values() if not job.ended})
    if states is None:
        raise OSError("sweep=slurm: Slurm does not answer (squeue)")
    queued = {r: j.id for r, j in jobs.items() if is_queued(states.get(j.id, FORGOTTEN))}
    done = {run for run in planned if state[run] == "done"}
    running = {run for run in planned if state[run] == "running"} - queued.keys()
    for run, job in queued.items():
        print(f"Slurm job {job}: {output_dir / run}, {states[job]}: not submitted again")
    for run in sorted(running):
        print(f"{output_dir / run}: running, not submitted")
    if done:
        print(f"{len(done)} of {len(planned)} runs are finished and not submitted")
    sys.stdout.flush()  # into files too: a long wait follows
    return planned.keys() - done - running - queued.keys(), queued


def _state(run: Run, planned: str) -> dict[str, Any]:
    try:
        return _state_of_whole(run, planned)
    except ValueError as error:  # a damaged file
        nothing = {"epochs": 0, "started": "", "seconds": float("nan")}
        return {**nothing, "state": "failed", "error": " ".join(str(error).split())}


def _state_of_whole(run: Run, planned: str) -> dict[str, Any]:
    status, metrics = read_json(run.folder / "status.json"), run.folder / "metrics.csv"
    row = {"error": "", "started": status.get("started", "")}
    row["epochs"] = max(metrics.read_bytes().count(b"\n") - 1, 0) if metrics.is_file() else 0
    result = run.result()
    row |= scores(result, metrics)
    if run.is_held():
        return row | {"state": "running", "seconds": _or_nan(run.seconds(runs=True))}
    row["seconds"] = _or_nan(run.seconds(runs=False))
    if planned and status.get("config_hash", planned) != planned:
        return row | {
            "state": "failed",
            "error": "the folder holds a run with another configuration",
        }
    if run.error_log.is_file():
        return row | {
            "state": "failed",
            "error": run.error_log.read_text(encoding="utf-8").strip().splitlines()[-1],
        }
    if result is not None:
        return row | {"state": "pruned" if result.get("pruned") else "done"}
    return row | {"state": "interrupted" if status else "missing"}


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def sweep_summary(states: pd.DataFrame) -> str:
    """Count the runs in each state, and list those that are not done with their errors."""
    counts = {s: int((states["state"] == s).sum()) for s in STATES}
    lines = ["runs: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)]
    not_done = pd.DataFrame(states[states["state"] != "done"])
    for row in not_done.to_dict("records"):
        folder = Path(row["folder"])
        lines.append(f"  {row['state']}: {folder}")
        if row["error"]:
            lines.append(f"    {row['error']}")
        if Run(folder).error_log.is_file():
            lines.append(f"    log: {Run(folder).error_log}")
    if counts["done"] < len(states):
        lines.append("the same command again runs what is not done")
    return "\n".join(lines)


def finished_runs() -> list[Path]:
    """Folders of the finished runs of this process's sweep; none without a sweep."""
    if not RecordSweep.planned:
        return []
    states = run_states(RecordSweep.output_dir, RecordSweep.planned)
    return states["folder"][states["state"] == "done"].tolist()


def sweep_is_done() -> bool:
    """Print how a sweep ended, whichever process ran its jobs; True also without a sweep."""
    if RecordSweep.planned is None:
        return True
    if not RecordSweep.planned:
        print("blockspike: the runs of this sweep are unknown", file=sys.stderr)
        return False
    states = run_states(RecordSweep.output_dir, RecordSweep.planned)
    print(sweep_summary(states))
    return bool((states["state"] == "done").all())
