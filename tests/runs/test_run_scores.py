"""Scores of finished and unfinished runs, as `status` and the report show them."""

import fcntl

import pandas as pd
import pytest

from blockspike.runs.scores import scores
from blockspike.runs.sweeps import run_states
from made_runs import run, write_runs

METRICS = "epoch,val/loss,val/accuracy,train/loss\n0,2.1,0.25,2.2\n1,1.9,0.5,2.0\n"
NAMES = ["val_score", "test_score", "last_val_score"]


def test_scores_of_a_finished_classifier_a_fit_and_a_running_one(tmp_path):
    classifier = run("a", test_accuracy=0.6) | {"val_accuracy": 0.7}
    fit = {**run("b"), "fit_s": 1.0, "test_etv_15ms_median": 0.8}
    del fit["test_accuracy"]
    (first,) = write_runs(tmp_path, pd.DataFrame([classifier]))
    write_runs(tmp_path, pd.DataFrame([fit]))
    (running,) = write_runs(tmp_path, pd.DataFrame([run("c")]))
    (running / "result.json").unlink()
    for folder in (first, running):
        (folder / "metrics.csv").write_text(METRICS)
    with (running / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        states = run_states(tmp_path)
    assert states["state"].tolist() == ["done", "done", "running"]
    shown = states[NAMES].astype(object).where(states[NAMES].notna(), None).to_numpy().tolist()
    assert shown == [[0.7, 0.6, 0.5], [None, 0.8, None], [None, None, 0.5]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (METRICS, 0.5),
        (METRICS + "2,1.8,0.7", 0.5),  # killed within a row
        (METRICS[:4], None),
        (METRICS.splitlines()[0] + "\n", None),  # no epoch yet
        ("", None),
        ("epoch,train/loss\n0,2.0\n", None),  # of a fit
        (METRICS.replace("0.5", "x"), None),
        ("\x00\n\x00\n", None),
        (None, None),
    ],
)
def test_the_last_epochs_score_is_that_of_the_last_whole_row(tmp_path, text, expected):
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    found = scores(None, tmp_path / "metrics.csv")["last_val_score"]
    assert (found if found == found else None) == expected


def test_a_damaged_file_of_metrics_has_no_score(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"\xff\xfe\n\xff\n")
    assert pd.isna(scores({"test_accuracy": "high"}, tmp_path / "metrics.csv")["last_val_score"])
    assert pd.isna(scores({"test_accuracy": "high"}, tmp_path / "metrics.csv")["test_score"])
