"""Pruning: when a curve falls behind, and what a run does then."""

from pathlib import Path

import pandas as pd
import pytest

from blockspike.files import read_json
from blockspike.runs.sweeps import run_states
from blockspike.training.pruning import higher_is_better, pruned_epoch

SMALL = ("data=nmnist_sample", "data.n_steps=20", "data.dt_ms=20", "network.n_hidden=8")


@pytest.mark.parametrize(
    ("values", "thresholds", "higher", "epoch"),
    [
        ([0.1, 0.2, 0.3], [None, 0.2, 0.4], True, 2),
        ([0.1, 0.1, 0.3], [None, 0.2, 0.4], True, 1),
        ([0.5, 0.1, 0.1], [None, 0.2, 0.4], True, None),  # the best so far counts
        ([0.1, 0.2], [0.1, 0.2], True, None),  # as good as the threshold
        ([2.0, 1.0], [None, 0.9], False, 1),
        ([2.0, 1.0], [2.1, 1.1], False, None),
        ([0.1], [None, 0.9], True, None),  # not yet
        ([0.1, 0.1], [], True, None),
        ([0.1, 0.1], [0.0], True, None),
    ],
)
def test_a_curve_is_pruned_where_its_best_value_is_worse(values, thresholds, higher, epoch):
    assert pruned_epoch(values, thresholds, higher) == epoch


def test_a_loss_is_better_if_lower():
    assert higher_is_better("val/accuracy") and not higher_is_better("val/loss")


def the_run(folder: Path) -> Path:
    (path,) = folder.rglob("result.json")
    return path.parent


def test_a_pruned_run_is_kept_skipped_and_continued_without_pruning(blockspike, tmp_path):
    run = ("train", *SMALL, "trainer.max_epochs=3")
    blockspike(*run, "pruning=[null,1.0]")
    folder = the_run(tmp_path)
    row = read_json(folder / "result.json")
    assert row["pruned"] is True and row["n_epochs"] == 2
    assert not [name for name in row if "test_acc" in name]
    assert run_states(tmp_path / "outputs")["state"].tolist() == ["pruned"]
    assert "pruned, skipped" in blockspike(*run, "pruning=[null,1.0]").stdout
    for command in (("evaluate", f"run={folder}"), ("publish", f"run={folder}", "name=a")):
        done = blockspike(*command, check=False)
        assert done.returncode == 2 and "got one that a search pruned" in done.stderr
    (folder / "result.json").unlink()  # as if killed after the epoch
    blockspike(*run, "pruning=[null,1.0]")
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    blockspike("collect")
    (collected,) = pd.read_csv(tmp_path / "outputs/tables/runs.csv").to_dict("records")
    assert collected["pruned"] is True

    assert "continued after epoch 2" in blockspike(*run).stdout
    row = read_json(folder / "result.json")
    assert "pruned" not in row and row["n_epochs"] == 3 and row["test_accuracy"] >= 0
    assert run_states(tmp_path / "outputs")["state"].tolist() == ["done"]
    assert "finished, skipped" in blockspike(*run, "pruning=[null,1.0]").stdout
