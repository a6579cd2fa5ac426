"""`blockspike figures`: pictures of a finished, evaluated run."""

from pathlib import Path

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from blockspike.figures.learning_curve import learning_curve
from blockspike.figures.raster import raster
from blockspike.figures.style import use_style
from blockspike.runs import Run, read_json


def figures(cfg: DictConfig) -> None:
    """Draw the learning curve and a raster into the run's folder, PNG and SVG.

    Raises:
        FileNotFoundError: the run is not finished or not evaluated.
    """
    run = Run(Path(cfg.run))
    row, scores = run.result(), read_json(run.folder / "evaluation.json")
    if row is None or not scores:
        raise FileNotFoundError(
            f"{run.folder}: expected a finished run that was evaluated; "
            f"run `blockspike evaluate run={run.folder}`"
        )
    use_style()
    metrics = pd.read_csv(run.folder / "metrics.csv")
    folder = run.folder / "figures"
    print(
        learning_curve(
            metrics, scores, row["chosen_epoch"], row["test_accuracy"], folder / "learning_curve"
        )
    )
    with np.load(run.folder / "activity.npz") as activity:
        print(raster(dict(activity), folder / "raster"))
