"""Means over seeds of any settings: values, groups of the configuration, warnings and refusals."""

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from blockspike.app.schemas import register_schemas
from blockspike.figures.means import (
    TOP_LEVEL_SETTINGS,
    means,
    of_experiment,
    replicate_of,
    rounded,
    setting,
    text_of,
    varied_settings,
)
from blockspike.figures.panels import where
from blockspike.files import CONF
from blockspike.runs.identity import content_of
from made_runs import run, swept


def test_a_mean_and_its_standard_error_are_those_over_seeds():
    accuracies = (0.6, 0.7, 0.74)
    rows = [run(seed=s, test_accuracy=a) for s, a in enumerate(accuracies)]
    table = pd.DataFrame([*rows, run(arp_ms=40.0, test_accuracy=0.5)])
    found = means(table, ["model.arp_ms"])
    error = float(np.std(accuracies, ddof=1)) / 3**0.5
    assert found.metric == "test_accuracy"
    assert found.points["model.arp_ms"].tolist() == [20, 40]
    assert found.points["n"].tolist() == [3, 1]
    np.testing.assert_allclose(found.points["mean"], [sum(accuracies) / 3, 0.5])
    np.testing.assert_allclose(found.points["standard_error"], [error, np.nan])
    assert not found.warnings
    assert means(table, ["model.arp_ms"], "epoch_s").points["mean"].tolist() == [50, 50]


def test_runs_of_one_fold_count_as_one():
    values = {0: (0.6, 0.62), 1: (0.8, 0.82), 2: (0.9,)}
    rows = [
        run(seed=s, test_accuracy=a) | {"data.fold": fold}
        for fold, of_fold in values.items() for s, a in enumerate(of_fold)
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    (row,) = means(table, []).points.to_dict("records")
    of_folds = np.array([0.61, 0.81, 0.9])
    assert row == pytest.approx({
        "n": 5, "mean": of_folds.mean(), "standard_error": of_folds.std(ddof=1) / 3**0.5
    })  # fmt: skip
    apart = means(table, ["data.fold"]).points
    np.testing.assert_allclose(apart["standard_error"], [0.01, 0.01, np.nan])
    assert not means(table, []).warnings and not means(table, ["data.fold"]).warnings
    other = [run(arp_ms=40.0) | {"data.fold": fold} for fold in range(2)]
    (warning,) = means(pd.DataFrame([*rows, *other]), ["model.arp_ms"]).warnings
    assert "not of the same folds" in warning
    two_sets = pd.concat([table, table.assign(data_set="other", test_accuracy=0.1)])
    assert replicate_of(two_sets).nunique() == 6  # fold 0 of each is of other data
    no_folds = table.assign(**{"data.fold": np.nan})
    expected = table["test_accuracy"].sem()
    assert means(no_folds, []).points["standard_error"].tolist() == pytest.approx([expected])


def test_a_group_of_the_configuration_is_its_choice():
    found = means(swept(), ["model", "data", "network.n_hidden"])
    assert found.points["model"].tolist() == ["blocks"] * 4 + ["fused"] * 4
    assert found.points["data"].tolist() == ["nmnist", "nmnist", "shd", "shd"] * 2
    assert found.points["network.n_hidden"].tolist() == [64, 128] * 4
    assert found.points["n"].tolist() == [2] * 8
    assert found.varied == found.by and not found.mixed


def of_shd() -> pd.DataFrame:
    return where(swept(), "data_config", ["shd"])


def test_settings_that_all_runs_share_are_set_apart():
    found = means(of_shd(), ["model", "data", "trainer.max_epochs"])
    assert found.varied == ["model"]
    assert found.shared == {"data": "shd", "trainer.max_epochs": "40"}


@pytest.mark.parametrize(
    ("by", "mixed"),
    [
        (["network.n_hidden"], ["model", "data"]),
        (["model", "network.n_hidden"], ["data"]),
        (["model", "data"], ["network.n_hidden"]),
        (["model.method", "data_set", "network.n_hidden"], []),
    ],
)
def test_settings_that_differ_within_a_mean_are_named(by, mixed):
    found = means(swept(), by)
    assert found.mixed == mixed
    assert len(found.warnings) == bool(mixed)
    assert all(name in found.warnings[0] for name in mixed)


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("optimizer.lr", [0.001, 0.01]),  # also if it differs in step with the seed
        ("data_sha256", ["a", "b"]),
        ("git_sha", ["a", "b"]),
        ("version.torch", ["2.12", "2.13"]),
        ("machine", ["a", "b"]),
        ("label_smoothing", [0.0, 0.1]),
        ("training.recompute_steps", [None, 5]),  # an option that one run has alone
        ("data.path", ["cell_1.npz", "cell_2.npz"]),
        ("data.seed", [7, 8]),  # other than the seed
        ("experiment", ["a", "b"]),
    ],
)
def test_any_difference_but_the_seed_is_noticed(column, values):
    rows = [run(seed=seed) | {column: value} for seed, value in enumerate(values)]
    assert means(pd.DataFrame(rows), ["model.arp_ms"]).mixed == [column]


def test_results_and_seeds_are_no_differences():
    rows = [
        run(seed=s, test_accuracy=s / 9) | {"data.seed": s, "epoch_s": s, "config_hash": str(s)}
        for s in range(3)
    ]
    assert not means(pd.DataFrame(rows), ["model.arp_ms"]).mixed


def test_every_setting_at_the_top_level_is_known():
    """Such a setting has no dot in its name, so that `means` must know it."""
    register_schemas()
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        for command, own in (("train", []), ("fit", ["data.path=x"])):
            places = ["data_config=x", "choices=null", "run_dir=x"]
            settings = content_of(compose(command, [*own, *places]))
            names = {name for name, value in settings.items() if not isinstance(value, dict)}
            assert names - {"seed", "experiment_name", "data_config"} <= set(TOP_LEVEL_SETTINGS)


def test_fits_have_a_metric_of_their_own():
    fits = [
        {"experiment": "fit", "seed": seed, "population_config": name, "test_etv_15ms_median": 0.5}
        for name in ("lif", "alif")
        for seed in range(2)
    ]
    table = pd.concat([pd.DataFrame([run()]), pd.DataFrame(fits)], ignore_index=True)
    found = means(table, ["population"])
    assert found.metric == "test_etv_15ms_median"
    assert found.points["population"].tolist() == ["alif", "lif"]
    assert found.n_left_out == 1 and "1" in found.warnings[0]
    assert means(table, ["model.arp_ms"]).metric == "test_accuracy"


def test_runs_with_and_without_a_setting_are_two_means():
    rows = [run(), run(seed=1) | {"training.recompute_steps": 5}]
    found = means(pd.DataFrame(rows), ["model.method", "training.recompute_steps"])
    assert found.points["n"].tolist() == [1, 1]
    assert found.varied == ["training.recompute_steps"]


@pytest.mark.parametrize(
    ("by", "metric", "words"),
    [
        (["network.n_hiden"], None, r"by: expected one of network\.n_hidden.*, got 'network.n_hid"),
        (["n_hidden"], None, r"by: expected one of network\.n_hidden, got 'n_hidden'"),
        (["modle"], None, "by: expected one of model, got 'modle'"),
        (["model"], "accuracy", r"metric: expected one of test_accuracy, got 'accuracy'"),
        (["model"], "model.method", r"metric: expected one of .*, got 'model.method'"),
        (["model", "model"], None, "by: expected different names, got model, model"),
        (["epoch_s"], "epoch_s", "metric: expected a column that is not in by, got 'epoch_s'"),
    ],
)
def test_unknown_names_are_refused_with_the_near_ones(by, metric, words):
    with pytest.raises(ValueError, match=words):
        means(swept(), by, metric)


def test_without_the_usual_metric_the_columns_of_numbers_are_named():
    table = swept().drop(columns="test_accuracy")
    with pytest.raises(ValueError, match=r"metric: expected one of seed, .*epoch_s.* since no run"):
        means(table, ["model"])


def test_the_fewest_settings_that_tell_runs_apart():
    assert varied_settings(swept()) == ["model", "data", "network.n_hidden"]
    assert varied_settings(of_shd()) == ["model", "network.n_hidden"]
    assert varied_settings(of_shd().head(1)) == []
    assert varied_settings(pd.DataFrame([run(), run(arp_ms=40.0)])) == ["model.arp_ms"]


def test_one_experiment_is_chosen_by_name():
    table = pd.DataFrame([run("a"), run("b", seed=1)])
    assert of_experiment(table, "b")["seed"].tolist() == [1]
    assert len(of_experiment(table, None)) == 2
    with pytest.raises(ValueError, match="experiment_name: expected one of a, b, got 'c'"):
        of_experiment(table, "c")


def test_means_are_rounded_to_their_errors():
    points = pd.DataFrame({"mean": [0.94321, 0.9], "standard_error": [0.00321, np.nan]})
    assert rounded(points) == ["0.9432 ± 0.0032", "0.9000"]
    points = pd.DataFrame({"mean": [1234.5], "standard_error": [56.0]})
    assert rounded(points) == ["1234 ± 56"]
    points = pd.DataFrame({"mean": [0.5, 0.25], "standard_error": [0.0, 1e-17]})
    assert rounded(points) == ["0.5000 ± 0.0000", "0.2500 ± 0.0000"]


@pytest.mark.parametrize(
    ("value", "text"),
    [([[0, 8]], "[[0, 8]]"), ("a", "a"), (16.0, "16"), (0.1, "0.1"), (np.nan, "–"), (None, "–")],
)
def test_settings_have_short_texts(value, text):
    assert text_of(value) == text


def test_a_setting_may_be_a_column():
    assert setting(swept(), "seed").tolist() == [0, 1] * 8
