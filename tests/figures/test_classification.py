"""Figure 4 and its supplements from made tables: values, names and refusals."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.container import BarContainer

from blockspike.figures.classification import classification_figures
from blockspike.figures.panels import mean_over_seeds
from blockspike.figures.paper_numbers import paper_numbers
from blockspike.figures.surrogates import detach_figures, surrogate_figures
from made_runs import run

HD = "HD-Lauscher"


def figures(*rows: dict):
    table = pd.DataFrame(list(rows))
    return classification_figures(table) | surrogate_figures(table) | detach_figures(table)


def lines(axis: Axes) -> dict[str, list[tuple[float, float]]]:
    """Label → points of the lines in the legend."""
    return {
        str(line.get_label()): list(zip(*np.asarray(line.get_data()).tolist(), strict=True))
        for line in axis.get_lines()
        if not str(line.get_label()).startswith("_")
    }


def error_bars(axis: Axes) -> list[tuple[float, float, float]]:
    """(x, lower end, upper end) of every error bar."""
    bars = [c for c in axis.collections if isinstance(c, LineCollection)]
    ends = [np.asarray(segment) for bar in bars for segment in bar.get_segments()]
    return [(float(e[0, 0]), float(e[0, 1]), float(e[1, 1])) for e in ends]


def test_lines_are_means_and_standard_errors_over_seeds():
    accuracies = (0.6, 0.7, 0.74)
    rows = [run(seed=s, test_accuracy=a, epoch_s=10 * a) for s, a in enumerate(accuracies)]
    left, right = figures(*rows, run(arp_ms=40.0, test_accuracy=0.5))[
        "classification_hd_lauscher"
    ].axes
    mean, error = sum(accuracies) / 3, float(np.std(accuracies, ddof=1)) / 3**0.5
    label = "Blocks (published gradient), paper's recipe, 1–3 seeds"
    np.testing.assert_allclose(lines(left)[label], [(20, 100 * mean), (40, 50.0)])
    np.testing.assert_allclose(lines(right)[label], [(20, 10 * mean), (40, 50.0)])
    # The point with one seed has none.
    np.testing.assert_allclose(error_bars(left), [(20, 100 * (mean - error), 100 * (mean + error))])
    assert right.get_yscale() == "log"
    assert "chosen on validation" in left.get_ylabel()
    assert "CPU, 1 thread" in right.get_ylabel()


def test_each_recipe_and_method_has_a_line():
    made = figures(
        run(), run(method="fused", arp_ms=0.0), run("shd", method="fused"),
        run("shd_wide", method="standard"),
    )  # fmt: skip
    left, right = made["classification_hd_lauscher"].axes
    for axis in (left, right):
        assert set(lines(axis)) == {
            "Blocks (published gradient), paper's recipe, 1 seed",
            "fused (standard gradient), paper's recipe, 1 seed",
            "fused (standard gradient), our recipe, 1 seed",
            "standard, recipe wide, 1 seed",
            "published, SHD, GPU: Blocks",
            "published, SHD, GPU: standard",
        }
        assert not error_bars(axis)
    assert lines(left)["published, SHD, GPU: Blocks"][-1] == (100, 81)
    assert lines(right)["published, SHD, GPU: standard"] == [(0, 266)]


def test_a_substitute_data_set_is_named_as_such():
    sample = "N-MNIST sample (1080 recordings)"
    made = figures(
        run(), run(data_set="SHD", seed=1), run("paper_nmnist", sample), run("paper_surrogates")
    )
    assert {name: figure.get_suptitle() for name, figure in made.items()} == {
        "classification_n_mnist_sample_1080_recordings": f"{sample}, not N-MNIST",
        "classification_hd_lauscher": "HD-Lauscher, not SHD",
        "classification_shd": "SHD",
        "surrogates_hd_lauscher": "HD-Lauscher, not SHD",
        "detach_shd_published_values_only": "SHD, published values only",
    }


def test_panels_without_runs_show_the_command_and_the_published_values():
    made = figures(run("paper_surrogates"))
    left, right = made["classification_n_mnist_published_values_only"].axes
    for axis in (left, right):
        assert "experiment=paper_nmnist" in axis.get_title(loc="left")
        assert set(lines(axis)) == {f"published, N-MNIST, GPU: {m}" for m in ("Blocks", "standard")}
    assert made["classification_n_mnist_published_values_only"].get_suptitle() == (
        "N-MNIST, published values only"
    )
    assert "experiment=paper_shd" in (
        made["classification_shd_published_values_only"].axes[0].get_title(loc="left")
    )
    (with_runs,) = made["surrogates_hd_lauscher"].axes
    (without,) = made["detach_shd_published_values_only"].axes
    assert not with_runs.get_title(loc="left")
    assert "blockspike train -m experiment=paper_detach" in without.get_title(loc="left")


def test_a_table_without_runs_of_the_paper_shows_the_published_values():
    few = {k: v for k, v in run("fit/my_cell").items() if "model." not in k}
    for row in (run("demo"), few):
        assert all("published values only" in f.get_suptitle() for f in figures(row).values())


def test_surrogates_are_lines_beside_the_published_ones():
    rows = [run("paper_surrogates", surrogate="boxcar", arp_ms=a) for a in (60.0, 20.0)]
    fused = run("paper_surrogates", surrogate="boxcar", method="fused")
    (axis,) = figures(*rows, fused)["surrogates_hd_lauscher"].axes
    drawn = lines(axis)
    np.testing.assert_allclose(
        drawn["boxcar, Blocks, paper's recipe, 1 seed"], [(20, 70), (60, 70)]
    )
    assert "boxcar, fused, paper's recipe, 1 seed" in drawn
    for name in ("boxcar", "fast sigmoid", "multi-Gaussian"):
        assert [x for x, _ in drawn[f"published, SHD: {name}"]] == [20, 40, 60, 80, 100]


def test_detached_runs_are_points_that_the_surrogates_lack():
    own = [run("paper_surrogates", surrogate="boxcar", arp_ms=a) for a in (20.0, 100.0)]
    other = [
        run("paper_detach", surrogate="boxcar", arp_ms=60.0, detach_spikes=d, test_accuracy=a)
        for d, a in ((True, 0.5), (False, 0.9))
    ]
    not_lacking = [
        run("paper_detach", surrogate="boxcar", arp_ms=100.0, test_accuracy=0.1, seed=1),
        run("paper_detach", surrogate="fast_sigmoid", arp_ms=60.0),
        run("detach", surrogate="boxcar", arp_ms=60.0),
        run("paper_detach", data_set="SHD", surrogate="boxcar", arp_ms=60.0),
    ]
    made = figures(*own, *other, *not_lacking)
    (axis,) = made["surrogates_hd_lauscher"].axes
    drawn = lines(axis)
    name = "boxcar, Blocks, paper's recipe, 1 seed"
    assert [name for name in drawn if "published" not in name] == [name]
    np.testing.assert_allclose(drawn[name], [(20, 70), (60, 50), (100, 70)])
    assert "surrogates_shd" not in made and "surrogates_hd_lauscher" not in figures(*other)


def test_attached_and_detached_are_bars_beside_the_published_ones():
    rows = [
        run("paper_detach", surrogate=s, detach_spikes=d, arp_ms=60.0, test_accuracy=a, seed=seed)
        for s, d, a in (("boxcar", True, 0.6), ("boxcar", False, 0.4), ("fast_sigmoid", True, 0.8))
        for seed in range(1 + (s == "boxcar"))
    ]
    (axis,) = figures(*rows)["detach_hd_lauscher"].axes
    heights = {
        str(bars.get_label()): [bar.get_height() for bar in bars.patches]
        for bars in axis.containers
        if isinstance(bars, BarContainer)
    }
    name = "Blocks, paper's recipe, ARP 60 ms"
    expected = {
        f"attached, {name}, 2 seeds": [np.nan, np.nan, 40],
        f"detached, {name}, 1–2 seeds": [np.nan, 80, 60],
        "attached, published, SHD, ARP 60 ms": [30.6, 71.8, 45],
        "detached, published, SHD, ARP 60 ms": [85.2, 84.4, 67.8],
    }
    assert heights.keys() == expected.keys()
    for label, values in expected.items():
        np.testing.assert_allclose(heights[label], values)
    assert len(error_bars(axis)) == 2  # boxcar's


@pytest.mark.parametrize("as_text", [False, True])
def test_spikes_detached_in_one_place_have_bars_of_their_own(as_text):
    """`collect` writes a column of several types as text."""
    rows = [run("paper_detach", detach_spikes=d, arp_ms=60.0) for d in (True, False, "reset")]
    if as_text:
        rows = [row | {"model.detach_spikes": str(row["model.detach_spikes"])} for row in rows]
    (axis,) = figures(*rows)["detach_hd_lauscher"].axes
    name = "Blocks, paper's recipe, ARP 60 ms, 1 seed"
    bars = {str(bars.get_label()) for bars in axis.containers if isinstance(bars, BarContainer)}
    ours = {label for label in bars if "published" not in label}
    wanted = {"detached", "attached", "detached in the reset alone"}
    assert ours == {f"{spikes}, {name}" for spikes in wanted}


def test_runs_with_other_surrogates_are_no_part_of_the_figures():
    others = [
        run("paper_surrogates", surrogate="arctan"),
        run("paper_surrogates", seed=2) | {"model.surrogate": None},
    ]
    own_line = run("paper_surrogates")
    assert lines(figures(own_line)["surrogates_hd_lauscher"].axes[0]) == lines(
        figures(own_line, *others)["surrogates_hd_lauscher"].axes[0]
    )
    bare = {name: x for name, x in run().items() if name != "model.surrogate"}
    own = {"model.surrogate._target_": "my_lab.Gaussian", "model.surrogate.sigma": 0.3}
    assert lines(figures(bare | own)["classification_shd_published_values_only"].axes[0])


def test_several_runs_of_one_seed_are_refused():
    with pytest.raises(ValueError, match=r"paper_shd.*method blocks, arp_ms 20\.0, seed 0"):
        figures(run(), run(surrogate="boxcar"))


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (pd.DataFrame(), "without experiment, data_set"),
        (pd.DataFrame([run()]).drop(columns="model.method"), "without model.method"),
        (pd.DataFrame([run(method="magic")]), "method: expected fused, .* got 'magic'"),
    ],
)
def test_a_table_without_columns_or_with_unknown_values_is_refused(table, words):
    with pytest.raises(ValueError, match=words):
        classification_figures(table)


def test_the_mean_of_one_seed_has_no_error():
    runs = pd.DataFrame({"arp_ms": [20.0, 20.0, 40.0], "seed": [0, 1, 0], "accuracy": [1, 3, 5]})
    points = mean_over_seeds(runs, ["arp_ms"], "accuracy")
    assert list(points["mean"]) == [2, 5]
    np.testing.assert_array_equal(points["error"], [1, np.nan])
    assert list(points["n_seeds"]) == [2, 1]


def test_unknown_paper_numbers_are_named():
    fastest = paper_numbers(experiment="speed_length", quantity="speedup_total")["value"].max()
    assert fastest == 53.3
    with pytest.raises(ValueError, match="expected one of .*shd.*, got experiment='sdh'"):
        paper_numbers(experiment="sdh")
    with pytest.raises(ValueError, match=r"expected one of .*method.*, got methods='blocks'"):
        paper_numbers(methods="blocks")
