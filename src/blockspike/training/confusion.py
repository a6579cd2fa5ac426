"""`confusion.csv`: how many samples of each class a classifier takes for each class."""

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from blockspike.files import whole_file


def write_confusion(path: Path, confusion: ArrayLike) -> None:
    """Write a row per true class: its number of samples, its accuracy and the predicted classes.

    Args:
        path: of the file.
        confusion: counts [true class, predicted class].
    """
    counts = np.asarray(confusion)
    table = pd.DataFrame(counts).add_prefix("predicted_")
    n_test = counts.sum(1)
    with np.errstate(invalid="ignore"):  # a class without samples
        table.insert(0, "accuracy", counts.diagonal() / n_test)
    table.insert(0, "n_test", n_test)
    with whole_file(path) as temporary:
        table.to_csv(temporary, index_label="class")


def read_confusion(path: Path) -> np.ndarray:
    """Read the counts [true class, predicted class] that `write_confusion` wrote."""
    return pd.read_csv(path).filter(regex="^predicted_").to_numpy(np.int64)
