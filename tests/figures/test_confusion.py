"""The confusion matrix as a picture, and as a file."""

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch

from blockspike.figures.confusion import confusion_figure
from blockspike.plots.style import use_style
from blockspike.training.confusion import read_confusion, write_confusion


@pytest.mark.parametrize("n_classes", [2, 20, 35])
def test_rows_are_shares_of_the_true_class_and_few_classes_have_numbers(n_classes):
    use_style()
    counts = np.eye(n_classes, dtype=int) * 8
    counts[0, 1] = 2
    figure = confusion_figure(counts)
    axis = figure.axes[0]
    share = axis.images[0].get_array()
    assert share is not None and share[0, 1] == pytest.approx(0.2) and share[1, 1] == 1
    texts = [text.get_text() for text in axis.texts]
    assert len(texts) == (n_classes + 1 if n_classes <= 20 else 0)
    assert f"of {8 * n_classes + 2}" in axis.get_title()
    figure.draw_without_rendering()
    labels = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(labels))


def test_the_file_has_a_row_for_each_true_class(tmp_path):
    write_confusion(tmp_path / "confusion.csv", torch.tensor([[3, 1], [0, 0]]))
    table = pd.read_csv(tmp_path / "confusion.csv")
    assert list(table) == ["class", "n_test", "accuracy", "predicted_0", "predicted_1"]
    assert table.loc[0].tolist() == [0, 4, 0.75, 3, 1]
    assert np.isnan(table["accuracy"][1])  # none was tested
    assert read_confusion(tmp_path / "confusion.csv").tolist() == [[3, 1], [0, 0]]


@pytest.mark.parametrize("text", ["", "class,predicted_0\n0,x\n", "class,predicted_0\n0,1\n1,1\n"])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "confusion.csv").write_text(text)
    with pytest.raises(ValueError, match="confusion.csv: expected a row and a column per class"):
        read_confusion(tmp_path / "confusion.csv")
