"""Which runs belong to a sweep, and how each of them stands."""

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from blockspike.runs import Run, now, read_json, write_text

STATES = ("done", "running", "interrupted", "failed", "missing")


class RecordSweep(Callback):
    """Hydra's callback that writes down a sweep's runs before the first one starts.

    They go to `sweeps/<hash of the runs>.json` below the output folder, so that `blockspike status`
    knows what is missing; the same command again writes the same file.
    """

    output_dir: ClassVar[Path]
    runs: ClassVar[list[str] | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Compose every job for its folder."""
        try:
            folders = _folders(config)
        except (HydraException, OmegaConfBaseException):
            return  # the sweep itself reports it
        output_dir = Path(config.output_dir)
        runs = sorted(str(f.relative_to(output_dir)) for f in folders)
        RecordSweep.output_dir, RecordSweep.runs = output_dir, runs
        name = hashlib.sha256("\n".join(runs).encode()).hexdigest()[:12]
        plan = output_dir / "sweeps" / f"{name}.json"
        plan.parent.mkdir(parents=True, exist_ok=True)
        overrides = list(config.hydra.overrides.task)
        write_text(plan, json.dumps({"overrides": overrides, "runs": runs}, indent=1))


def _folders(config: DictConfig) -> list[Path]:
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    overrides = parser.parse_overrides(list(config.hydra.overrides.task))
    (jobs,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    folders = []
    for job in jobs:
        composed = loader.load_sweep_config(config, job)
        HydraConfig.instance().set_config(composed)  # what ${hydra:…} refers to
        folders.append(Path(composed.hydra.sweep.dir) / composed.hydra.sweep.subdir)
    HydraConfig.instance().set_config(config)
    return folders


def planned_runs(output_dir: Path) -> list[str]:
    """Folders, relative to `output_dir`, of all runs that sweeps have planned there."""
    plans = (read_json(path) for path in sorted((output_dir / "sweeps").glob("*.json")))
    return sorted({run for plan in plans for run in plan["runs"]})


def run_states(output_dir: Path, runs: Iterable[str] | None = None) -> pd.DataFrame:
    """How every run stands.

    Args:
        output_dir: where runs lie.
        runs: their folders relative to it; None = all that are there or planned by a sweep.

    Returns:
        Columns `run`, `state` (one of `STATES`), `epochs` done, `started` (ISO 8601, the last
        attempt), `seconds` of that attempt (so far, if it is running), `error` (one line).
    """
    if runs is None:
        there = {str(f.parent.relative_to(output_dir)) for f in output_dir.rglob(".lock")}
        runs = sorted(there | set(planned_runs(output_dir)))
    columns = ["run", "state", "epochs", "started", "seconds", "error"]
    rows = [{"run": run, **_state(Run(output_dir / run))} for run in runs]
    return pd.DataFrame(rows, columns=pd.Index(columns))


def _state(run: Run) -> dict[str, Any]:
    status, error = read_json(run.folder / "status.json"), run.folder / "error.log"
    metrics = run.folder / "metrics.csv"
    row = {"error": "", "started": status.get("started", ""), "seconds": _seconds(status)}
    row["epochs"] = len(metrics.read_text().splitlines()) - 1 if metrics.is_file() else 0
    if run.is_held():
        return row | {"state": "running", "seconds": _seconds({**status, "ended": now()})}
    if error.is_file():
        return row | {"state": "failed", "error": error.read_text().strip().splitlines()[-1]}
    if run.result() is not None:
        return row | {"state": "done"}
    return row | {"state": "interrupted" if status else "missing"}


def _seconds(status: dict[str, Any]) -> float:
    if "started" not in status or "ended" not in status:
        return float("nan")
    began, ended = (datetime.fromisoformat(status[k]) for k in ("started", "ended"))
    return (ended - began).total_seconds()


def sweep_summary(states: pd.DataFrame, output_dir: Path) -> str:
    """How many runs are in which state, then those that are not done, each with its error."""
    counts = {s: int((states["state"] == s).sum()) for s in STATES}
    lines = ["runs: " + ", ".join(f"{n} {s}" for s, n in counts.items() if n)]
    not_done = pd.DataFrame(states[states["state"] != "done"])
    for row in not_done.to_dict("records"):
        folder = output_dir / row["run"]
        lines.append(f"  {row['state']}: {folder}")
        if row["error"]:
            lines += [f"    {row['error']}", f"    log: {folder / 'error.log'}"]
    if counts["done"] < len(states):
        lines.append("the same command again runs what is not done")
    return "\n".join(lines)
