"""`blockspike collect`: gather finished runs in one tidy table, and average over seeds."""

import re
import sys
from pathlib import Path

from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blockspike.figures.means import Means, means, of_experiment, rounded, text_of
from blockspike.figures.panels import plural_range
from blockspike.files import whole_file
from blockspike.runs.results import collect_runs, with_settings
from blockspike.runs.status import run_states


def collect(cfg: DictConfig) -> None:
    """Write `tables/runs.parquet` and `runs.csv` below the output folder; count what is not there.

    With `by`, print the means of a metric over the runs that agree in these settings, and write
    them to `tables/means_<metric>_by_<settings>.parquet` and `.csv`.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a row is damaged; a name in `by`, the metric or the experiment is unknown.
    """
    if not cfg.by and (cfg.metric, cfg.experiment_name) != (None, None):
        raise ValueError("by: expected settings to tell means apart, such as by=model, got none")
    output_dir = Path(cfg.output_dir)
    table = collect_runs(output_dir)
    folder = output_dir / "tables"
    counts = run_states(output_dir)["state"].value_counts()
    left_out = [f"{n} {state}" for state, n in counts.items() if state != "done"]
    more = f"; not in it: {', '.join(left_out)} (blockspike status)" if left_out else ""
    print(f"{folder / 'runs.parquet'}: {plural_range([len(table)], 'run')}{more}")
    if not cfg.by:
        return
    table = with_settings(of_experiment(table, cfg.experiment_name), output_dir, cfg.by)
    found = means(table, list(cfg.by), cfg.metric)
    _print(found)
    for warning in found.warnings:
        print(f"blockspike collect: {warning}", file=sys.stderr)
    print(_write(found, folder))


def _print(found: Means) -> None:
    """Print a row per mean; settings that all runs share are named above."""
    if found.shared:
        print("all runs: " + ", ".join(f"{name}={value}" for name, value in found.shared.items()))
    table = Table(box=box.SIMPLE_HEAD)
    for name in found.varied:
        is_number = found.points[name].dtype.kind in "if"
        table.add_column(escape(name), justify="right" if is_number else "left", overflow="fold")
    table.add_column(f"{found.metric}, mean ± standard error", justify="right")
    table.add_column("n", justify="right")
    settings = found.points[found.varied].to_numpy(object).tolist()
    for own, mean, n in zip(settings, rounded(found.points), found.points["n"], strict=True):
        table.add_row(*(escape(text_of(value)) for value in own), mean, str(n))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _write(found: Means, folder: Path) -> Path:
    name = re.sub(r"[^\w.,-]+", "_", f"means_{found.metric}_by_{','.join(found.by)}")
    points = found.points.assign(metric=found.metric)
    with whole_file(folder / f"{name}.csv") as file:
        points.to_csv(file, index=False)
    with whole_file(folder / f"{name}.parquet") as file:
        points.to_parquet(file, index=False)
    return folder / f"{name}.parquet"
