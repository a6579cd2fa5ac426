"""`blockspike collect`: gather finished runs in one tidy table, and average over seeds."""

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blockspike.files import whole_file
from blockspike.plots.means import Means, means, of_experiment, rounded, text_of
from blockspike.runs.results import collect_runs, with_settings
from blockspike.runs.status import run_states


def collect(
    output_dir: Path, by: Sequence[str] = (), metric: str | None = None,
    experiment: str | None = None,
) -> None:  # fmt: skip
    """Write `tables/runs.parquet` and `runs.csv` below the output folder; count what is not there.

    With `by`, print the means of a metric over the runs that agree in these settings, and write
    them to `tables/means_<metric>_by_<settings>.csv`.

    Raises:
        FileNotFoundError: there is no finished run.
        ValueError: a row is damaged; a name in `by`, the metric or the experiment is unknown.
    """
    table = collect_runs(output_dir)
    folder = output_dir / "tables"
    counts = run_states(output_dir)["state"].value_counts()
    left_out = [f"{n} {state}" for state, n in counts.items() if state != "done"]
    more = f"; not in it: {', '.join(left_out)} (blockspike status)" if left_out else ""
    print(f"{folder / 'runs.csv'}: {len(table)} run{'s' * (len(table) > 1)}{more}")
    table = of_experiment(table, experiment)
    if not by and experiment is None and metric is None:
        return
    found = means(with_settings(table, output_dir, by), by, metric)
    for text in found.caveats:
        warnings.warn(text, stacklevel=2)
    _print(found)
    name = re.sub(r"[^\w.,-]+", "_", f"means_{found.metric}_by_{','.join(by)}.csv")
    with whole_file(folder / name) as file:
        found.points.to_csv(file, index=False)
    print(folder / name)


def _print(found: Means) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for name in found.by:
        table.add_column(escape(name), overflow="fold")
    table.add_column(f"{found.metric}, mean ± standard error", justify="right")
    table.add_column("n", justify="right")
    texts = zip(*(found.points[name].map(text_of) for name in found.by), strict=True)
    numbers = zip(rounded(found.points), found.points["n"], strict=True)
    for text, (mean, n) in zip(texts if found.by else [()], numbers, strict=True):
        table.add_row(*map(escape, text), mean, str(n))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
