"""`blockspike report`: one page of figures, numbers, runs and a look into a network."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from blockspike.commands.activity import shown_samples
from blockspike.commands.evaluate import load_run
from blockspike.commands.figures import read_table
from blockspike.commands.train import use_threads
from blockspike.networks import run_layers
from blockspike.report.comparison import comparisons
from blockspike.report.page import found_figures, render
from blockspike.report.viewer import pack_traces
from blockspike.runs import Run, provenance, write_text
from blockspike.sweeps import run_states


def report(cfg: DictConfig) -> Path:
    """Write `report.html` into the output folder, all within one file; returns its path.

    Raises:
        FileNotFoundError: no trained run in the folder `run`, or no file `table`.
        ValueError: the run fits neurons, or the table cannot be read or compared.
    """
    use_threads(cfg.threads)
    output_dir = Path(cfg.output_dir)
    table = _table(cfg)
    figures, missing = found_figures(output_dir / "figures")
    page = render(
        made_by=provenance(),
        figures=figures,
        missing_figures=missing,
        comparisons=comparisons(None if table is None else read_table(table)),
        table_name=None if table is None else str(table),
        states=run_states(output_dir),
        traces=None if cfg.run is None else traces_of(Run(Path(cfg.run))),
        run_name=cfg.run,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "report.html"
    write_text(path, page)
    print(f"{path}: {len(page) / 1e6:.1f} MB, {len(figures)} figures")
    return path


def _table(cfg: DictConfig) -> Path | None:
    """The file that was asked for, or else the one that `collect` wrote, or None."""
    if cfg.table is not None:
        return Path(cfg.table)
    collected = Path(cfg.output_dir) / "tables" / "runs"
    files = (collected.with_suffix(suffix) for suffix in (".parquet", ".csv"))
    return next((file for file in files if file.is_file()), None)


@torch.no_grad()
def traces_of(run: Run) -> dict[str, Any]:
    """The chosen model's hidden layers on the test recordings that `evaluate` shows, packed.

    Raises:
        FileNotFoundError: no trained run in the folder.
        ValueError: it holds fitted neurons.
    """
    data, network = load_run(run)
    events, labels = next(iter(data.test_dataloader()))
    read_as = network(events).scores_of(len(labels)).argmax(1)
    samples = shown_samples(labels).tolist()
    titles = [f"class {int(labels[i])}, read as {int(read_as[i])}" for i in samples]
    return pack_traces(run_layers(network.layers, events), samples, titles, data.dt_ms)
