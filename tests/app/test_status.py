"""The scores that `blockspike status` prints; states of runs are tested in test_sweeps.py."""

from pathlib import Path

import pandas as pd

from blockspike.app.status import status
from made_runs import run, write_runs


def test_scores_are_shown_beside_the_states(blockspike, tmp_path):
    rows = [run("a", test_accuracy=0.6) | {"val_accuracy": 0.7}, run("a", seed=1)]
    folder, unfinished = write_runs(tmp_path / "outputs", pd.DataFrame(rows))
    (unfinished / "result.json").unlink()
    for path, accuracy in ((folder, 0.65), (unfinished, 0.25)):
        (path / "metrics.csv").write_text(f"epoch,val/accuracy\n0,0.1\n1,{accuracy}\n")
    lines = [line.split() for line in blockspike("status").stdout.splitlines()]
    assert ["run", "state", "epochs", "started", "took", "val", "test", "last", "val"] in lines
    assert ["a/run=0/seed=0", "done", "2", "0.700", "0.600", "0.650"] in lines
    assert ["a/run=1/seed=1", "interrupted", "2", "0.250"] in lines


def test_an_unknown_experiment_is_named(blockspike, tmp_path):
    write_runs(tmp_path / "outputs", pd.DataFrame([run("a"), run("b")]))
    done = blockspike("status", "--experiment", "c", check=False)
    assert done.returncode == 2
    assert "experiment: expected one of a, b, got c" in done.stderr


def test_runs_are_named_in_a_narrow_terminal(tmp_path, monkeypatch, capsys):
    write_runs(tmp_path / "outputs", pd.DataFrame([run("a") | {"val_accuracy": 0.7}]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    status(Path("outputs"))
    assert "a/run=0/seed=0" in capsys.readouterr().out


def test_without_scores_there_are_no_columns_for_them(blockspike, tmp_path):
    (folder,) = write_runs(tmp_path / "outputs", pd.DataFrame([run("a")]))
    (folder / "result.json").unlink()
    assert "val" not in blockspike("status").stdout
