"""The end of a sweep of `blockspike fit`: its fits in one table and one picture."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich import box
from rich.console import Console
from rich.table import Table

from blockspike.plots.fits import compared, fits, scores_table
from blockspike.plots.style import use_style
from blockspike.runs.run import Run


class CompareFits(Callback):
    """Hydra's callback that compares the fits of a sweep when it has ended."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Compare the finished runs of the experiment."""
        files = Path(config.hydra.sweep.dir).rglob("result.json")
        compare_fits(Path(config.output_dir), sorted(file.parent for file in files))


def compare_fits(output_dir: Path, folders: list[Path]) -> None:
    """Print the test scores of a sweep's fits and draw them; of one fit, do nothing.

    Args:
        output_dir: folder of the runs; the picture goes to `figures` in it.
        folders: of the finished runs.
    """
    rows = [(os.path.relpath(folder, output_dir), Run(folder).result()) for folder in folders]
    table = pd.DataFrame([{"run": run, **row} for run, row in rows if row is not None])
    if "neuron" not in table:
        return
    found = compared(table)
    if sum(len(next(iter(scores.values())).points) for scores in found.values()) < 2:
        return
    for name, scores in found.items():
        _print(scores_table(scores), name)
    use_style()
    print(*fits(table, output_dir / "figures"), sep="\n")


def _print(scores: pd.DataFrame, title: str) -> None:
    table = Table(title=f"{title}, test scores", title_justify="left", box=box.SIMPLE_HEAD)
    for name in scores:
        table.add_column(str(name), justify="left" if name == "fit" else "right", no_wrap=True)
    for row in scores.itertuples(index=False):
        table.add_row(*map(str, row))
    Console(width=max(80, 18 * len(scores.columns))).print(table)
