"""Accuracy against spikes from made tables: means, names and refusals."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PathCollection

from blockspike.figures.neurons import neuron_figures

ALIF = {
    "run": "digits/model.arp_ms=0", "experiment": "digits", "data_set": "HD-Lauscher",
    "test_accuracy": 0.9, "n_parameters": 239656, "n_epochs": 60, "rate_layer1_hz": 4.0,
    "rate_layer2_hz": 6.0, "network.n_hidden": 256, "data.n_steps": 120, "data.dt_ms": 10.0,
}  # fmt: skip
SE = ALIF | {
    "run": "se_adlif/default", "experiment": "se_adlif", "model._target_": "a.b.EulerAdLIFLayer",
    "model.euler": "symplectic", "model.q": 120.0, "model.max_delay": 0,
}  # fmt: skip


def table(*rows: dict) -> pd.DataFrame:
    """Rows of runs; the n-th has seed n."""
    return pd.DataFrame(
        [row | {"run": f"{row['run']}/seed={n}", "seed": n} for n, row in enumerate(rows)]
    )


def marks(axis: Axes) -> dict[str, tuple[float, float, str]]:
    """Label → spikes, accuracy and fill colour of the mark."""
    found = {}
    for line in axis.get_lines():
        if not str(line.get_label()).startswith("_"):
            x, y = (float(values[0]) for values in np.asarray(line.get_data()))
            found[str(line.get_label())] = (x, y, str(line.get_markerfacecolor()))
    return found


def error_bars(axis: Axes) -> list[list[float]]:
    """(spikes, lower end, upper end) of every error bar."""
    bars = [c for c in axis.collections if isinstance(c, LineCollection)]
    ends = [np.asarray(segment) for bar in bars for segment in bar.get_segments()]
    return [[float(e[0, 0]), float(e[0, 1]), float(e[1, 1])] for e in ends]


def test_a_mark_is_the_mean_of_a_recipes_seeds():
    rows = [SE | {"test_accuracy": a, "rate_layer1_hz": f} for a, f in ((0.93, 10), (0.95, 14))]
    ((name, figure),) = neuron_figures(table(*rows, ALIF)).items()
    assert name == "neurons_hd_lauscher" and figure.axes[0].get_title() == "HD-Lauscher"
    drawn = marks(figure.axes[0])
    assert list(drawn) == [
        "SE-adLIF, q = 120, 240 k, 60 epochs, 2 seeds",
        "ALIF, 240 k, 60 epochs, 1 seed",
    ]
    mean, alone = drawn.values()
    assert mean[:2] == pytest.approx((18 * 256 * 1.2, 94.0))
    assert alone[:2] == pytest.approx((10 * 256 * 1.2, 90.0))
    assert np.allclose(error_bars(figure.axes[0]), [[18 * 256 * 1.2, 93.0, 95.0]])
    dots = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    places = np.concatenate([np.asarray(dot.get_offsets()) for dot in dots]).round()
    assert {tuple(place) for place in places} == {(4915, 93), (6144, 95), (3072, 90)}


def test_recipes_delays_and_custom_models_are_distinguished():
    delayed = SE | {"run": "se_adlif/model.max_delay=20", "model.max_delay": 20}
    forward = SE | {"run": "se_adlif/model=ef_adlif", "model.euler": "forward", "model.q": 24}
    half = SE | {"run": "se_adlif/data.unchanged=0.5", "data.unchanged": 0.5}
    own = ALIF | {"run": "digits/model=mine", "model._target_": "mine.SoftReset"}
    ((_, figure),) = neuron_figures(table(SE, delayed, forward, half, own)).items()
    drawn = marks(figure.axes[0])
    assert set(drawn) == {
        "SE-adLIF, q = 120, 240 k, 60 epochs, 1 seed",
        "SE-adLIF, q = 120, delays ≤ 20 steps, 240 k, 60 epochs, 1 seed",
        "EF-adLIF, q = 24, 240 k, 60 epochs, 1 seed",
        "SE-adLIF, q = 120, 50 % of the data unchanged, 240 k, 60 epochs, 1 seed",
        "SoftReset, 240 k, 60 epochs, 1 seed",
    }
    open_ = {label for label, mark in drawn.items() if mark[2] == "white"}
    assert open_ == {"SE-adLIF, q = 120, delays ≤ 20 steps, 240 k, 60 epochs, 1 seed"}


def test_runs_without_a_test_are_left_out():
    held_out = SE | {"run": "loso/data.fold=0", "test_accuracy": float("nan")}
    (figure,) = neuron_figures(table(ALIF, held_out)).values()
    assert list(marks(figure.axes[0])) == ["ALIF, 240 k, 60 epochs, 1 seed"]
    assert list(neuron_figures(table(held_out))) == ["neurons"]


def test_data_sets_are_never_drawn_together():
    made = neuron_figures(table(ALIF, ALIF | {"data_set": "HD-Lauscher (660 recordings)"}))
    assert set(made) == {"neurons_hd_lauscher", "neurons_hd_lauscher_660_recordings"}


def test_without_runs_the_command_is_shown():
    for rows in (table(ALIF | {"experiment": "paper_shd"}), table(ALIF).head(0)):
        (figure,) = neuron_figures(rows).values()
        assert "blockspike train -m experiment=se_adlif" in figure.axes[0].get_title(loc="left")


def test_missing_columns_and_repeated_seeds_are_named():
    with pytest.raises(ValueError, match="a table without n_epochs"):
        neuron_figures(table(ALIF).drop(columns="n_epochs"))
    with pytest.raises(ValueError, match="got several of experiment digits"):
        neuron_figures(pd.concat([table(ALIF), table(ALIF)]))
    with pytest.raises(ValueError, match="blockspike collect"):
        neuron_figures(pd.DataFrame({"run": ["a"]}))


def test_layers_of_other_sizes_count_by_layer():
    lists = SE | {"network.n_hidden": "[100, 50]", "test_accuracy": 0.95}
    figure = neuron_figures(table(lists, ALIF | {"network.n_hidden": "256"}))["neurons_hd_lauscher"]
    by_layer, same = (spikes for spikes, _, _ in marks(figure.axes[0]).values())
    assert by_layer == pytest.approx((4 * 100 + 6 * 50) * 1.2)
    assert same == pytest.approx(10 * 256 * 1.2)


def test_neurons_without_eulers_method_are_named_after_their_layer():
    rows = [
        SE | {"run": f"digits/model={name}", "model._target_": f"blockspike.networks.{name}",
              "model.euler": np.nan, "model.q": np.nan}
        for name in ("AdLIFLayer", "CSiLIFLayer", "TheirLayer")
    ]  # fmt: skip
    ((_, figure),) = neuron_figures(table(*rows)).items()
    assert [label.split(",")[0] for label in marks(figure.axes[0])] == [
        "adLIF", "C-SiLIF", "TheirLayer",
    ]  # fmt: skip
