"""The figure of a search: every trial, the best so far, importances."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from blockspike.figures.search import search

TRIALS = pd.DataFrame(
    {
        "number": [0, 1, 2, 3, 4],
        "state": ["COMPLETE", "PRUNED", "COMPLETE", "FAIL", "COMPLETE"],
        "value": [0.5, 0.2, 0.4, np.nan, 0.7],
    }
)


@pytest.fixture
def axes(monkeypatch):
    """The axes of the figure that was drawn last."""
    drawn: list = []
    monkeypatch.setattr(plt, "close", lambda figure: drawn.extend(figure.axes))
    yield drawn
    monkeypatch.undo()
    plt.close("all")


@pytest.mark.parametrize(
    ("monitor", "best"), [("val/accuracy", [0.5, 0.5, 0.7]), ("val/loss", [0.5, 0.4, 0.4])]
)
def test_every_trial_and_the_best_so_far_are_drawn(axes, tmp_path, monitor, best):
    path = search(
        TRIALS, monitor, {"optimizer.lr": 0.9, "b": 0.1}, "a study", tmp_path / "search_a"
    )
    assert path.is_file() and path.with_suffix(".svg").is_file()
    left, right = axes
    lines = {str(line.get_label()): line for line in left.lines}
    assert lines["best so far"].get_ydata().tolist() == best
    assert lines["chosen epoch"].get_xdata().tolist() == [0, 2, 4]
    assert lines["pruned, last value"].get_xdata().tolist() == [1]
    assert lines["failed"].get_xdata().tolist() == [3]
    assert [label.get_text() for label in right.get_yticklabels()] == ["b", "optimizer.lr"]
    assert [bar.get_width() for bar in right.patches] == [0.1, 0.9]


def test_a_study_without_a_finished_trial_is_drawn(axes, tmp_path):
    failed = pd.DataFrame(TRIALS[TRIALS["state"] == "FAIL"])
    search(failed, "val/loss", {}, "a study", tmp_path / "search_a")
    assert "too few finished trials" in axes[1].texts[0].get_text()
