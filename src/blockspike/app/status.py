"""`blockspike status`: show the progress of runs."""

import sys
from pathlib import Path

import pandas as pd
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blockspike.runs.status import STATES, run_states

_SCORES = {"val_score": "val", "test_score": "test", "last_val_score": "last val"}
_COLOURS = dict(zip(STATES, ("green", "green", "cyan", "yellow", "red"), strict=True))


def status(output_dir: Path, experiment: str | None = None) -> None:
    """Print a table of all runs below the output folder.

    `val` and `test` are scores of the chosen model, `last val` is that of the last epoch so far:
    accuracies, of fits the explained temporal variance (ETV).

    Raises:
        FileNotFoundError: there are no runs.
        ValueError: none of this experiment.
    """
    states = run_states(output_dir)
    if experiment is not None:
        known = sorted({x.partition("/")[0] for x in states["run"]})
        states = pd.DataFrame(states[states["run"].str.startswith(f"{experiment}/")])
        if known and states.empty:
            raise ValueError(f"experiment: expected one of {', '.join(known)}, got {experiment}")
    if states.empty:
        raise FileNotFoundError(f"{output_dir}: expected runs, got none")
    counts = [f"{n} {s}" for s in STATES if (n := int((states["state"] == s).sum()))]
    table = Table(title=", ".join(counts), box=box.SIMPLE_HEAD)
    table.add_column("run", overflow="fold", min_width=20)
    for name in ("state", "epochs", "started", "took"):
        table.add_column(name, no_wrap=True)
    shown = {n: title for n, title in _SCORES.items() if states[n].notna().to_numpy().any()}
    for title in shown.values():
        table.add_column(title, justify="right", no_wrap=True)
    if has_errors := any(states["error"]):
        table.add_column("error", overflow="fold", min_width=12)
    for row in states.to_dict("records"):
        state = f"[{_COLOURS[row['state']]}]{row['state']}[/]"
        took = "" if row["seconds"] != row["seconds"] else _duration(row["seconds"])
        started = row["started"][:16].replace("T", " ")
        run, error = escape(row["run"]), escape(row["error"])
        scores = ("" if row[n] != row[n] else f"{row[n]:.3f}" for n in shown)
        cells = [run, state, str(row["epochs"]), started, took, *scores]
        table.add_row(*cells, *[error] * has_errors)
    # A pipe has no width, and folder names are long.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
