"""`blockspike collect --by`: the printed table of means, its file, warnings and errors."""

import numpy as np
import pandas as pd
import pytest

from blockspike.app.collect import means
from made_runs import run, swept, write_runs


def test_means_are_printed_and_written(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", swept())
    done = blockspike("collect", "--by", "model,data,network.n_hidden")
    rows = [line.split() for line in done.stdout.splitlines() if "±" in line]
    assert rows[0][:3] == ["model", "data", "network.n_hidden"]
    assert rows[1] == ["blocks", "nmnist", "64", "0.51", "±", "0.01", "2"]
    assert len(rows) == 1 + 8 and not done.stderr
    path = tmp_path / done.stdout.splitlines()[-1]
    assert path.parent == tmp_path / "outputs" / "tables"
    np.testing.assert_allclose(pd.read_csv(path)["mean"], 0.51 + np.arange(8) / 25)


def test_another_metric_and_another_setting(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", pd.DataFrame([run("a")]), threads=3)
    write_runs(tmp_path / "outputs", pd.DataFrame([run("b", seed=1)]), threads=4)
    done = blockspike("collect", "--by", "threads", "--metric", "epoch_s")
    head, *rows = (line.split() for line in done.stdout.splitlines()[1:] if line.strip("─ "))
    assert head[0] == "threads" and "epoch_s," in head
    assert [row[0] for row in rows[:2]] == ["3", "4"]


def test_one_experiment_is_averaged(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", pd.DataFrame([run("a"), run("b", test_accuracy=0.2)]))
    done = blockspike("collect", "--by", "model.method", "--experiment", "b")
    assert " 0.2 " in done.stdout and "0.7" not in done.stdout


def test_settings_that_differ_within_a_mean_are_named(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", swept())
    with pytest.warns(UserWarning, match="^averaged runs differ in data_config, data_set"):
        blockspike("collect", "--by", "model,network.n_hidden")


def test_each_fold_counts_once():
    folds = pd.DataFrame({"data.fold": [0, 0, 0, 1], "val_accuracy": [0.1, 0.2, 0.3, 0.6]})
    (found,) = means(folds, [], "val_accuracy").to_dict("records")
    assert found["n"] == 4
    np.testing.assert_allclose(found["mean"], 0.4)  # of 0.2 and 0.6
    np.testing.assert_allclose(found["standard_error"], 0.2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--by modle", "expected a column of the table, got modle"),
        ("--by model --metric acuracy", "expected a column of the table, got acuracy"),
        ("--by model --experiment x", "expected a run with test_accuracy, got none"),
    ],
)
def test_bad_input_gives_one_line(blockspike, tmp_path, arguments, words):
    write_runs(tmp_path / "outputs", swept())
    done = blockspike("collect", *arguments.split(), check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
    assert not list((tmp_path / "outputs").rglob("means*"))
