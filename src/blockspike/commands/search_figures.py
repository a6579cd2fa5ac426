"""Pictures of the studies below an output folder."""

from pathlib import Path

import pandas as pd

from blockspike.figures.search import search
from blockspike.figures.style import use_style
from blockspike.figures.tables import source_of
from blockspike.search.study import read_studies


def draw_searches(output_dir: Path) -> list[Path]:
    """Draw every study into `output_dir/figures`; returns the PNGs' paths.

    Raises:
        ValueError: there are studies, but Optuna is not installed.
    """
    use_style()
    paths = []
    for study in read_studies(output_dir):
        trials = pd.DataFrame(
            [{"number": t.number, "state": t.state.name, "value": t.value} for t in study.trials]
        )
        if trials.empty:
            continue
        path = output_dir / "figures" / f"search_{study.name}"
        paths.append(search(trials, study.monitor, study.importances, study.name, path))
        source_of(study.path, len(trials)).write_beside(paths[-1])
    return paths
