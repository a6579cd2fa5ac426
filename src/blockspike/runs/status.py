"""The state of every run, read from its folder."""

from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from blockspike.runs.run import Run

STATES = ("done", "pruned", "running", "interrupted", "failed")
_NAN = float("nan")
_COLUMNS = [
    "run", "state", "epochs", "started", "seconds", "val_score", "test_score", "last_val_score",
    "error", "folder",
]  # fmt: skip


def run_states(output_dir: Path) -> pd.DataFrame:
    """State of every run below a folder.

    Returns:
        Columns `run`, `state` (one of `STATES`), `epochs` done, `started` (ISO 8601, the last
        attempt), `seconds` of all epochs so far, `val_score` and `test_score` of the chosen model
        (accuracies, of fits the explained temporal variance), `last_val_score` of the last epoch,
        `error` (one line) and `folder`.
    """
    folders = sorted(file.parent for file in output_dir.rglob("status.json"))
    rows = [
        {"run": str(folder.relative_to(output_dir)), **_state(Run(folder)), "folder": folder}
        for folder in folders
    ]
    return pd.DataFrame(rows, columns=pd.Index(_COLUMNS))


def _state(run: Run) -> dict[str, Any]:
    try:
        status, row = run.status(), run.result() or {}
    except ValueError as error:  # a damaged file
        return {
            "state": "failed",
            "epochs": 0,
            "started": "",
            "error": " ".join(str(error).split()),
        }
    state = status.get("state", "interrupted")
    if run.is_held():
        state = "running"
    elif row:
        state = "done"
    elif state in ("running", "done"):  # its process was killed
        state = "interrupted"
    error = ""
    if state == "failed" and run.error_log.is_file():
        error = run.error_log.read_text(encoding="utf-8").strip().splitlines()[-1]
    metrics = _metrics(run.folder / "metrics.csv")
    last = metrics.iloc[-1] if len(metrics) else {}
    return {
        "state": state,
        "epochs": len(metrics),
        "started": status.get("started", ""),
        "seconds": float(metrics["time/epoch_s"].sum()) if "time/epoch_s" in metrics else _NAN,
        "val_score": row.get("val_accuracy", _NAN),
        "test_score": row.get("test_accuracy", row.get("test_etv_15ms_median", _NAN)),
        "last_val_score": last.get("val/accuracy", _NAN),
        "error": error,
    }


def _metrics(file: Path) -> pd.DataFrame:
    """Whole rows of `metrics.csv`; a last one may be half written."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError:
        return pd.DataFrame()
    whole = "\n".join(text.split("\n")[:-1])
    return pd.read_csv(StringIO(whole)) if whole else pd.DataFrame()
