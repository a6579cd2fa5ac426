"""The learning curve of a run."""

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from blockspike.figures import learning_curve as module
from blockspike.plots.style import use_style


@pytest.mark.parametrize("chosen_epoch", [1, 40, 60])
def test_no_line_crosses_the_legend(chosen_epoch, tmp_path, monkeypatch):
    drawn: list[Figure] = []
    monkeypatch.setattr(module, "save", lambda figure, _: drawn.append(figure))
    epoch = np.arange(60)
    columns = {f"{s}/{y}": 1 / (1 + epoch) for s in ("train", "val") for y in ("loss", "accuracy")}
    metrics = pd.DataFrame({"epoch": epoch, **columns})
    scores = {"linear_model_test_accuracy": 0.85, "data_set": "N-MNIST sample (1080 recordings)"}
    use_style()
    module.learning_curve(metrics, scores, chosen_epoch, 0.96, tmp_path / "curve")
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [
        "training", "validation", "chosen epoch", "test 96.0%", "linear model, test 85.0%"
    ]  # fmt: skip
    box = legend.get_window_extent()
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1
    for axis in figure.axes:
        tight = axis.get_tightbbox()
        assert tight is not None and not tight.overlaps(box)
        assert axis.get_legend() is None and not axis.texts
    plt.close(figure)
