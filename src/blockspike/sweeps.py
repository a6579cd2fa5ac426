"""Which runs belong to a sweep, and how each of them stands."""

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

from blockspike.config import content_hash, content_of
from blockspike.files import read_json, write_json
from blockspike.runs import Run, now, run_folders, time_text

STATES = ("done", "running", "interrupted", "failed", "missing")


class RecordSweep(Callback):
    """Hydra's callback that writes down a sweep's runs before the first one starts.

    They go to `sweeps/<hash of the runs>.json` below the output folder, so that `blockspike status`
    knows what is missing; the same command again writes the same file.
    """

    output_dir: ClassVar[Path]
    planned: ClassVar[dict[str, str] | None] = None
    """Run's folder below `output_dir` → hash of its configuration; None = no sweep was started."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose every job for its folder."""
        if "submitit" in config.hydra.launcher._target_:
            _outlast_lost_jobs()
        RecordSweep.output_dir, RecordSweep.planned = Path(config.output_dir), {}
        try:
            planned = _planned(config)
        except (HydraException, OmegaConfBaseException):
            return  # the sweep itself reports it
        RecordSweep.planned = planned
        name = hashlib.sha256("\n".join(planned).encode()).hexdigest()[:12]
        plan = RecordSweep.output_dir / "sweeps" / f"{name}.json"
        overrides = list(config.hydra.overrides.task)
        write_json(plan, {"overrides": overrides, "runs": planned})


def _outlast_lost_jobs() -> None:
    """Make submitit's launchers go on after a job that was lost, where they would raise."""
    from submitit import Job  # of the extra `sweep`
    from submitit.core.utils import UncompletedJobError

    results = Job.results

    def results_or_none(self: Job[Any]) -> list[Any]:
        try:
            return results(self)
        except UncompletedJobError as error:  # time limit, dead node
            print(f"blockspike train: {str(error).splitlines()[0]}", file=sys.stderr)
            return [JobReturn(status=JobStatus.COMPLETED)]

    Job.results = results_or_none


def _planned(config: DictConfig) -> dict[str, str]:
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    swept = [f"{k}={v}" for k, v in (config.hydra.sweeper.get("params") or {}).items()]
    overrides = parser.parse_overrides([*swept, *config.hydra.overrides.task])
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    planned = {}
    try:
        for job in jobs:
            composed = loader.load_sweep_config(config, job)
            HydraConfig.instance().set_config(composed)  # what ${hydra:…} refers to
            folder = Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir
            with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
                composed.hydra.runtime.output_dir = str(folder)
            HydraConfig.instance().set_config(composed)
            task = copy.deepcopy(composed)
            with open_dict(task):
                del task["hydra"]
            content = content_of(task)
            planned[_name(folder, Path(config.output_dir))] = content_hash(content)
    finally:
        HydraConfig.instance().set_config(config)
    return dict(sorted(planned.items()))


def _name(folder: Path, output_dir: Path) -> str:
    return str(
        folder.relative_to(output_dir) if folder.is_relative_to(output_dir) else folder.absolute()
    )


def run_folder(cfg: DictConfig) -> Path:
    """The run's folder: `cfg.run_dir`, or where it was started with its overrides spelt otherwise.

    `optimizer.lr=1e-3` and `optimizer.lr=0.001` name two folders of one run.
    """
    own = Path(cfg.run_dir)
    if (own / "content.json").is_file():
        return own
    same = run_folders(Path(cfg.output_dir) / cfg.experiment_name)
    return same.get(content_hash(content_of(cfg)), own)


def planned_runs(output_dir: Path) -> dict[str, str]:
    """Folders of all runs that sweeps have planned there, and the hashes of their content."""
    plans = sorted((output_dir / "sweeps").glob("*.json"))
    return {run: digest for path in plans for run, digest in _runs_of(path).items()}


def _runs_of(plan: Path) -> dict[str, str]:
    runs = read_json(plan).get("runs", {})
    if not isinstance(runs, dict) or not all(isinstance(x, str) for x in runs.values()):
        raise ValueError(f"{plan}: expected folders of runs and their hashes, got {runs!r:.60}")
    return runs


def run_states(output_dir: Path, planned: dict[str, str] | None = None) -> pd.DataFrame:
    """How every run stands.

    Args:
        output_dir: where runs lie.
        planned: which, as `RecordSweep.planned`; None = all that are there or planned by a sweep,
            of whatever configuration.

    Returns:
        Columns `run`, `state` (one of `STATES`), `epochs` done, `started` (ISO 8601, the last
        attempt), `seconds` of that attempt (so far, if it is running; up to its last epoch, if it
        was killed), `error` (one line).
    """
    folders = run_folders(output_dir)
    if planned is None:
        there = {str(f.parent.relative_to(output_dir)) for f in output_dir.rglob(".lock")}
        absent = {r for r, digest in planned_runs(output_dir).items() if digest not in folders}
        planned = dict.fromkeys(sorted(there | absent), "")
    columns = ["run", "state", "epochs", "started", "seconds", "error"]
    rows = []
    for run, digest in planned.items():
        folder = output_dir / run
        if not (folder / "status.json").is_file():
            folder = folders.get(digest, folder)  # the same run, its overrides spelt otherwise
        rows.append({"run": run, **_state(Run(folder), digest)})
    return pd.DataFrame(rows, columns=pd.Index(columns))


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
    if run.is_held():
        return row | {"state": "running", "seconds": _seconds(status, now())}
    last_epoch = time_text(metrics.stat().st_mtime) if metrics.is_file() else None
    row["seconds"] = _seconds(status, status.get("ended", last_epoch))
    if planned and status.get("config_hash", planned) != planned:
        return row | {
            "state": "failed",
            "error": "the folder holds a run with another configuration",
        }
    if run.error_log.is_file():
        return row | {
            "state": "failed",
            "error": run.error_log.read_text().strip().splitlines()[-1],
        }
    if run.result() is not None:
        return row | {"state": "done"}
    return row | {"state": "interrupted" if status else "missing"}


def _seconds(status: dict[str, Any], ended: str | None) -> float:
    try:
        began, end = (datetime.fromisoformat(str(time)) for time in (status["started"], ended))
        return max((end - began).total_seconds(), 0.0)
    except (KeyError, ValueError, TypeError):  # not there, or not as we write it
        return float("nan")


def sweep_summary(states: pd.DataFrame, output_dir: Path) -> str:
    """How many runs are in which state, then those that are not done, each with its error."""
    counts = {s: int((states["state"] == s).sum()) for s in STATES}
    lines = ["runs: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)]
    not_done = pd.DataFrame(states[states["state"] != "done"])
    for row in not_done.to_dict("records"):
        folder = output_dir / row["run"]
        lines.append(f"  {row['state']}: {folder}")
        if row["error"]:
            lines.append(f"    {row['error']}")
        if Run(folder).error_log.is_file():
            lines.append(f"    log: {Run(folder).error_log}")
    if counts["done"] < len(states):
        lines.append("the same command again runs what is not done")
    return "\n".join(lines)


def sweep_is_done() -> bool:
    """Print how a sweep ended, whatever process ran its jobs; True also if there was none."""
    if RecordSweep.planned is None:
        return True
    if not RecordSweep.planned:
        print("blockspike train: which runs this sweep has is not known", file=sys.stderr)
        return False
    states = run_states(RecordSweep.output_dir, RecordSweep.planned)
    print(sweep_summary(states, RecordSweep.output_dir))
    return bool((states["state"] == "done").all())
