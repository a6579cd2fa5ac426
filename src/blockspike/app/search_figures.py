"""Pictures of the studies below an output folder."""

from pathlib import Path

import pandas as pd

from blockspike.figures.search import search
from blockspike.plots.style import use_style
from blockspike.runs.studies import studies


def draw_searches(output_dir: Path) -> list[Path]:
    """Draw every study into `output_dir/figures`; returns the PNGs' paths.

    Raises:
        ValueError: there are studies, but Optuna is not installed.
    """
    use_style()
    paths = []
    for study in studies(output_dir):
        trials = pd.DataFrame(
            [{"number": t.number, "state": t.state.name, "value": t.value} for t in study.trials]
        )
        if trials.empty:
            continue
        path = output_dir / "figures" / f"search_{study.study_name}"
        paths.append(search(trials, study.user_attrs["monitor"], {}, study.study_name, path))
    return paths
