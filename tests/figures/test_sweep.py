"""The figure of a sweep: points, means, error bars, axes and roles of the settings."""

import itertools

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.lines import Line2D

from blockspike.figures.means import means
from blockspike.figures.sweep import _MARKERS, Roles, _scale, roles, sweep, sweep_figure
from made_runs import run, swept


def figure(table: pd.DataFrame, chosen: Roles | None = None, metric: str | None = None):
    chosen = chosen or roles(table)
    return sweep_figure(means(table, chosen.all, metric), chosen, "title")


def grid(**settings) -> pd.DataFrame:
    """A run for each combination of settings and each of two seeds."""
    rows = [
        run("default", seed=seed, test_accuracy=0.3 + 0.02 * i)
        | dict(zip(settings, values, strict=True))
        for i, (*values, seed) in enumerate(itertools.product(*settings.values(), (0, 1)))
    ]
    return pd.DataFrame(rows)


def mean_lines(axis: Axes) -> list[tuple[Line2D, np.ndarray]]:
    """Lines of means, without the ends of error bars, and their points [n, 2]."""
    drawn = [(line, np.asarray(line.get_xydata(), float)) for line in axis.get_lines()]
    return [(line, xy) for line, xy in drawn if len(xy) and line.get_marker() in _MARKERS]


def lines(axis: Axes) -> dict[str, np.ndarray]:
    """Label → means [n, 2] of each line."""
    drawn = zip(*axis.get_legend_handles_labels(), strict=True)
    labels = {h.get_color(): label for h, label in drawn if isinstance(h, Line2D)}
    return {labels[line.get_color()]: xy for line, xy in mean_lines(axis)}


def test_a_panel_shows_runs_means_and_standard_errors():
    accuracies = (0.6, 0.7, 0.74)
    rows = [run("default", seed=s, test_accuracy=a) for s, a in enumerate(accuracies)]
    rows += [run("default", seed=s, test_accuracy=0.5, arp_ms=40.0) for s in (0, 1)]
    (axis,) = figure(pd.DataFrame(rows)).axes
    (runs,) = (c for c in axis.collections if isinstance(c, PathCollection))
    points = np.asarray(runs.get_offsets())
    np.testing.assert_allclose(points, [(20, a) for a in accuracies] + [(40, 0.5)] * 2)
    mean, error = sum(accuracies) / 3, float(np.std(accuracies, ddof=1)) / 3**0.5
    ((_, points),) = mean_lines(axis)
    np.testing.assert_allclose(points, [(20, mean), (40, 0.5)])
    bars = [s for c in axis.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    expected = np.array([(20, mean - error), (20, mean + error)])
    np.testing.assert_allclose(np.asarray(bars[0], float), expected)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("model.arp_ms", "test_accuracy")


def test_runs_of_one_fold_count_as_one():
    folds = [(0, 0.5), (0, 0.52), (0, 0.54), (1, 0.9), (2, 0.7)]
    table = pd.DataFrame([
        run("default", seed=s, test_accuracy=a) | {"data.fold": fold}
        for s, (fold, a) in enumerate(folds)
    ])  # fmt: skip
    chosen = Roles(x="model.arp_ms", color=[], facet=None)
    found = means(table, chosen.all)
    (axis,) = sweep_figure(found, chosen, "title").axes
    ((_, points),) = mean_lines(axis)
    np.testing.assert_allclose(points[:, 1], found.points["mean"])
    bars = [s for c in axis.collections if isinstance(c, LineCollection) for s in c.get_segments()]
    error = np.ptp(np.asarray(bars[0], float)[:, 1]) / 2
    assert error == pytest.approx(found.points["standard_error"][0])
    assert found.points["mean"][0] == pytest.approx((0.52 + 0.9 + 0.7) / 3)


def test_each_data_set_has_a_panel_and_each_model_a_line():
    drawn = figure(swept(), Roles("network.n_hidden", ["model"], "data"))
    assert [axis.get_title() for axis in drawn.axes] == ["data nmnist", "data shd"]
    expected = means(swept(), ["data", "model", "network.n_hidden"]).points
    for axis, data in zip(drawn.axes, ("nmnist", "shd"), strict=True):
        assert axis.get_xticks().tolist() == [64, 128]
        assert axis.get_xlim()[0] > 55
        shown = lines(axis)
        assert set(shown) == {"blocks", "fused"}
        for model, points in shown.items():
            own = expected[(expected["data"] == data) & (expected["model"] == model)]
            np.testing.assert_allclose(points[:, 1], own["mean"])
            np.testing.assert_allclose(points[:, 0], [64, 128], atol=3)  # side by side
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["blocks", "fused"]
    assert drawn.get_suptitle() == "title: mean ± s.e., 2 runs a point"


def test_a_point_of_one_run_is_not_called_a_mean():
    drawn = figure(swept().query("seed == 0"), Roles("network.n_hidden", ["model"], "data"))
    assert drawn.get_suptitle() == "title: 1 run a point"


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        ((16, 64, 256), "log"),
        ((0.0001, 0.001, 0.01), "log"),
        ((128, 256, 512), "linear"),  # less than a decade
        ((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), "linear"),  # even steps
        ((0, 1, 10, 100), "linear"),  # 0 has no logarithm
        ((1, 20), "log"),
    ],
)
def test_the_axis_is_logarithmic_if_numbers_span_more_than_a_decade_as_ratios(values, scale):
    (axis,) = figure(grid(**{"network.n_hidden": values})).axes
    assert axis.get_xscale() == scale
    low, high = axis.get_xlim()
    assert low > values[0] - 0.1 * values[-1] and high < 2 * values[-1]  # no empty half
    if scale == "log":
        assert axis.get_xticks().tolist() == list(values)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["boxcar", "arctan"], ["arctan", "boxcar"]),
        ([True, False], ["False", "True"]),
        ([10.0, None, 5.0], ["5", "10", "–"]),
    ],
)
def test_names_and_missing_values_are_in_a_row_without_a_line(values, labels):
    (axis,) = figure(grid(**{"model.option": values})).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == labels
    assert axis.get_xticks().tolist() == list(range(len(labels)))
    ((line, points),) = mean_lines(axis)
    assert line.get_linewidth() == 0 and len(points) == len(labels)


def test_a_time_that_spans_more_than_a_decade_has_a_logarithmic_axis():
    table = grid(**{"network.n_hidden": (16, 32)})
    (axis,) = figure(table.assign(epoch_s=[1.0, 1.0, 50.0, 50.0]), metric="epoch_s").axes
    assert axis.get_yscale() == "log"
    (axis,) = figure(table.assign(test_accuracy=[0.05, 0.05, 0.9, 0.9])).axes
    assert axis.get_yscale() == "linear"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Roles("network.n_hidden", ["model"], "data")),
        ({"x": "model"}, Roles("model", ["network.n_hidden"], "data")),
        ({"facet": "model"}, Roles("network.n_hidden", ["data"], "model")),
        ({"color": ["data"]}, Roles("network.n_hidden", ["data"], None)),
        ({"x": "data", "color": ["model"]}, Roles("data", ["model"], None)),
    ],
)
def test_settings_that_are_not_given_are_those_that_differ(given, expected):
    assert roles(swept(), **given) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"x": "modle"}, "^x: expected one of model, got 'modle'"),
        ({"x": "model", "color": ["modle"]}, "^color: expected one of model, got 'modle'"),
        ({"facet": "modle"}, "^facet: expected one of model, got 'modle'"),
        ({"x": "model", "facet": "model"}, "^x, color, facet: expected different .* model, model"),
    ],
)
def test_a_wrong_setting_is_named_by_its_option(given, words):
    with pytest.raises(ValueError, match=words):
        roles(swept(), **given)


def test_runs_that_differ_in_the_seed_alone_have_no_axis():
    with pytest.raises(ValueError, match="x: expected a setting, since runs differ in the seed"):
        roles(pd.DataFrame([run(), run(seed=1)]))


def test_a_label_may_be_missing_from_a_panel():
    table = swept()
    is_absent = (table["model_config"] == "fused") & (table["data_config"] == "nmnist")
    chosen = Roles("network.n_hidden", ["model"], "data")
    drawn = figure(pd.DataFrame(table[~is_absent]), chosen)
    assert [set(lines(axis)) for axis in drawn.axes] == [{"blocks"}, {"blocks", "fused"}]
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["blocks", "fused"]


def test_a_mean_over_different_settings_says_so_in_the_picture():
    drawn = figure(swept(), Roles("network.n_hidden", ["model"], None))
    assert "differ in more than seed and fold: data" in " ".join(drawn.get_suptitle().split())


def test_each_combination_of_two_settings_has_a_colour():
    table = grid(**{"network.n_hidden": (8, 16), "model_config": ("a", "b"), "model.q": (1.0, 2.0)})
    drawn = figure(table, Roles("network.n_hidden", ["model", "model.q"], None))
    assert set(lines(drawn.axes[0])) == {"a, 1", "a, 2", "b, 1", "b, 2"}


def test_files_are_named_by_experiment_and_metric(tmp_path):
    path, found = sweep(swept(), tmp_path, roles(swept()), "epoch_s")
    assert path == tmp_path / "sweep_default_epoch_s.png" and path.is_file()
    assert path.with_suffix(".svg").is_file() and found.metric == "epoch_s"
    two = pd.concat([swept(), swept().assign(experiment="fit/a b")], ignore_index=True)
    assert sweep(two, tmp_path, roles(swept()))[0].name == "sweep_all_test_accuracy.png"


def test_only_runs_with_the_metric_choose_what_is_shown():
    """Of folds there is no test accuracy."""
    folds = [run("default") | {"data.fold": k, "val_accuracy": 0.5} for k in range(3)]
    table = pd.DataFrame([run("default", test_accuracy=0.5, arp_ms=a) for a in (20.0, 40.0)])
    table = pd.concat([table, pd.DataFrame(folds).assign(test_accuracy=np.nan)], ignore_index=True)
    assert roles(table).all == ["model.arp_ms"]
    assert roles(table, metric="val_accuracy").all == ["data.fold"]
    table.loc[table["data.fold"] == 1, "model.arp_ms"] = 7.0  # with a setting, folds are averaged
    assert roles(table, metric="val_accuracy").all == ["model.arp_ms"]
    assert roles(table, x="data.fold", metric="val_accuracy").color == ["model.arp_ms"]
    with pytest.raises(ValueError, match="differ in the seed alone"):  # a fold has one role
        roles(pd.DataFrame(folds), color=["data.fold"])


def test_points_are_moved_aside_by_a_share_of_the_nearest_distance():
    scale = _scale(pd.Series([1.0, 2.0, 10.0]))
    moved = scale.shifted(np.array([1.0, 10.0]), np.array([0.5, 0.5]))
    np.testing.assert_allclose(moved, [1.075, 10.225])


def test_many_combinations_have_one_colour_and_one_entry():
    rows = [
        run("default", test_accuracy=0.5 + 0.01 * i)
        | {"optimizer.lr": 1e-3 * (i + 1), "network.n_hidden": 16 + i, "network.dropout": i / 100}
        for i in range(17)
    ]
    chosen = Roles("optimizer.lr", ["network.n_hidden", "network.dropout"], None)
    for n, n_entries in ((17, 1), (16, 16)):
        drawn = figure(pd.DataFrame(rows[:n]), chosen)
        (legend,) = drawn.legends
        texts = [text.get_text() for text in legend.get_texts()]
        assert len(texts) == n_entries and texts[0].startswith("17 combinations, too") == (n == 17)
        (axis,) = drawn.axes
        means_shown = mean_lines(axis)
        assert len({line.get_color() for line, _ in means_shown}) == n_entries
        assert sorted(y for _, xy in means_shown for y in xy[:, 1]) == pytest.approx(
            [0.5 + 0.01 * i for i in range(n)]
        )
