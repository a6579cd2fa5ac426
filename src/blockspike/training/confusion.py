"""`confusion.csv`: how many samples of each class a classifier takes for each class."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from blockspike.files import whole_file

if TYPE_CHECKING:
    from torch import Tensor


def write_confusion(path: Path, confusion: Tensor) -> None:
    """Write a row per true class: its number of samples, its accuracy and the predicted classes.

    Args:
        path: of the file.
        confusion: counts [true class, predicted class].
    """
    counts = confusion.numpy()
    n_samples = counts.sum(1)
    with np.errstate(invalid="ignore"):  # a class without samples
        accuracy = counts.diagonal() / n_samples
    predicted = {f"predicted_{k}": column for k, column in enumerate(counts.T)}
    about = {"class": np.arange(len(counts)), "n_test": n_samples, "accuracy": accuracy}
    with whole_file(path) as temporary:
        pd.DataFrame(about | predicted).to_csv(temporary, index=False)


def read_confusion(path: Path) -> np.ndarray:
    """Read the counts [true class, predicted class] that `write_confusion` wrote.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        table = pd.read_csv(path)
        counts = table.filter(regex="^predicted_").to_numpy(np.int64)
    except ValueError as error:  # also of pandas
        counts, reason = np.empty((0, 1)), str(error)
    else:
        reason = f"shape {counts.shape}"
    if counts.shape[0] != counts.shape[1]:
        raise ValueError(f"{path}: expected a row and a column per class, got {reason}")
    return counts
