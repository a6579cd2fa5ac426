"""`blockspike collect by=…`: the printed table of means, its files, warnings and refusals."""

import numpy as np
import pandas as pd
import pytest

from made_runs import run, swept, write_runs


def test_means_are_printed_and_written(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", swept())
    done = blockspike("collect", "by=model,data,network.n_hidden")
    rows = [line.split() for line in done.stdout.splitlines() if "±" in line]
    assert rows[0][:3] == ["model", "data", "network.n_hidden"]
    assert rows[1] == ["blocks", "nmnist", "64", "0.510", "±", "0.010", "2"]
    assert len(rows) == 1 + 8 and "all runs" not in done.stdout and not done.stderr
    path = tmp_path / done.stdout.splitlines()[-1]
    assert path.parent == tmp_path / "outputs" / "tables"
    written = pd.read_parquet(path)
    assert written["metric"].tolist() == ["test_accuracy"] * 8
    np.testing.assert_allclose(written["mean"], 0.51 + np.arange(8) / 25)
    pd.testing.assert_frame_equal(written, pd.read_csv(path.with_name(f"{path.stem}.csv")))


def test_what_all_runs_share_is_named_once_above_the_table(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", swept().head(4))
    done = blockspike("collect", "by=model,data,network.n_hidden", "metric=epoch_s")
    assert "all runs: model=blocks, data=nmnist\n" in done.stdout
    (head,) = (line for line in done.stdout.splitlines() if "±" in line and "n_hidden" in line)
    assert head.split()[0] == "network.n_hidden"
    assert "epoch_s, mean ± standard error" in head


def test_settings_that_differ_within_a_mean_are_named_on_stderr(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", swept())
    (line,) = blockspike("collect", "by=model,network.n_hidden").stderr.splitlines()
    assert "differ in more than seed and fold: data" in line


def test_a_key_of_the_configuration_need_not_be_in_the_rows(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", pd.DataFrame([run("a")]), threads=3)
    write_runs(tmp_path / "outputs", pd.DataFrame([run("b", seed=1)]), threads=4)
    done = blockspike("collect", "by=threads")
    assert [line.split()[0] for line in done.stdout.splitlines() if "0.7" in line] == ["3", "4"]


def test_one_experiment_is_averaged(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", pd.DataFrame([run("a"), run("b", test_accuracy=0.2)]))
    done = blockspike("collect", "by=model.method", "experiment_name=b")
    assert "0.2000" in done.stdout and "0.7" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("by=modle", "by: expected one of model, got 'modle'"),
        ("by=model metric=test_acuracy", "metric: expected one of test_accuracy, got"),
        ("metric=epoch_s", "by: expected settings to tell means apart"),
        ("by=model experiment_name=x", "experiment_name: expected one of default, got 'x'"),
    ],
)
def test_bad_input_gives_one_line(blockspike, tmp_path, arguments, words):
    write_runs(tmp_path / "outputs", swept())
    done = blockspike("collect", *arguments.split(), check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert words in line
    assert not list((tmp_path / "outputs").rglob("means*"))
