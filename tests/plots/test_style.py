"""Labels of logarithmic axes: plain numbers that do not overlap."""

from itertools import pairwise

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from blockspike.plots.style import label_log_axis, save


@pytest.mark.parametrize(
    ("low", "high", "some"),
    [
        (450, 700, {"500"}),  # Matplotlib's own labels are powers of ten: 6 × 10²
        (15, 400, {"20", "50", "100"}),
        (0.04, 9, {"0.1", "1"}),
        (0.3, 5000, {"1", "100"}),
        (0.001, 1000, {"0.001", "1000"}),  # those between depend on Matplotlib
        (2.2, 4.5, {"3", "4"}),
        (98, 102, {"100"}),
    ],
)
def test_a_log_axis_has_plain_labels_that_do_not_overlap(low, high, some):
    figure = Figure(figsize=(3, 2), layout="constrained")
    canvas, axis = FigureCanvasAgg(figure), figure.subplots()
    axis.set(xscale="log", xlim=(low, high))
    label_log_axis(axis.xaxis)
    canvas.draw()
    shown = [
        label for label, x in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True)
        if low <= x <= high
    ]  # fmt: skip
    assert some <= {label.get_text() for label in shown}
    boxes = [label.get_window_extent() for label in shown]
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))
    assert not any(label.get_text() for label in axis.get_xticklabels(minor=True))


def test_a_name_with_dots_keeps_all_of_them(tmp_path):
    for name in ("cell.2", "cell.3"):
        assert save(Figure(), tmp_path / name) == tmp_path / f"{name}.png"
    assert {p.name for p in tmp_path.iterdir()} == {
        f"cell.{n}.{kind}" for n in (2, 3) for kind in ("png", "svg")
    }
