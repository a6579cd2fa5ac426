"""`blockspike collect`: gather finished runs in one tidy table."""

from pathlib import Path

from omegaconf import DictConfig

from blockspike.runs.results import collect_runs


def collect(cfg: DictConfig) -> None:
    """Write `tables/runs.parquet` and `runs.csv` below the output folder."""
    table = collect_runs(Path(cfg.output_dir))
    folder = Path(cfg.output_dir) / "tables"
    print(f"{folder / 'runs.parquet'}: {len(table)} runs")
