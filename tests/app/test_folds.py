"""Cross-validation over speakers, and training on everything."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from blockspike.app.loaded_run import load_run
from blockspike.app.trainer import read_checkpoint
from blockspike.files import read_json
from blockspike.training.metrics_table import read_metrics

SMALL = (
    "data=hd_lauscher_sample",
    "network.n_hidden=8",
    "data.n_steps=50",
    "data.dt_ms=20",
    "data.channel_pooling=20",
    "trainer.max_epochs=3",
    "threads=1",
)
VIEWS = "data.test_shifts=[-100,0,100]"


def runs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "outputs").rglob("result.json"))


def evaluate_with_views(blockspike, folder: Path) -> None:
    """On the speaker who was held out, with and without the views of the test."""
    done = blockspike("evaluate", str(folder))
    row, scores = read_json(folder / "result.json"), read_json(folder / "evaluation.json")
    network, data, *_ = load_run(folder)
    assert scores["n_val"] == len(data.val_indices) and "with 3 views of each" in done.stdout
    assert scores["val_accuracy"] == pytest.approx(row["val_accuracy"])
    batches = list(data.val_dataloader())
    x = torch.cat([events.dense() for events, _ in batches], 1)  # [T, B, 35], 20 channels in one
    y = torch.cat([labels for _, labels in batches])
    left, right = torch.roll(x, -5, 2), torch.roll(x, 5, 2)
    left[..., -5:] = right[..., :5] = 0
    with torch.no_grad():
        summed = torch.stack([network(view).scores for view in (left, x, right)]).sum(0)
    assert scores["val_accuracy_with_views"] == pytest.approx(
        (summed.argmax(1) == y).double().mean().item()
    )


@pytest.mark.slow
def test_folds_are_validated_but_not_tested(blockspike, tmp_path):
    """Each fold holds out a speaker of its own; their mean is the score to choose by."""
    blockspike("train", "-m", *SMALL, VIEWS, "data.validation=speaker", "data.fold=0,1,2")
    rows = [read_json(folder / "result.json") for folder in runs(tmp_path)]
    assert [row["data.fold"] for row in rows] == [0, 1, 2]
    assert len({row["config_hash"] for row in rows}) == 3
    for row, folder in zip(rows, runs(tmp_path), strict=True):
        assert "test_accuracy" not in row
        assert "a fold, not tested" in (folder / "train.log").read_text()
        curve = read_metrics(folder / "metrics.csv")["val/accuracy"]
        assert row["val_accuracy"] == pytest.approx(max(curve))
    blockspike("collect", "--by=data")
    table = pd.read_csv(tmp_path / "outputs/tables/runs.csv")
    assert table["val_accuracy"].tolist() == pytest.approx([row["val_accuracy"] for row in rows])
    drawn = blockspike("plot", "epochs")
    assert "best mean validation accuracy" in drawn.stdout and "(runs: 3)" in drawn.stdout
    assert (tmp_path / "outputs/figures/epochs_default.png").is_file()
    refused = blockspike("plot", "run", str(runs(tmp_path)[0]), check=False)
    assert "expected a tested run, got a fold" in refused.stderr
    evaluate_with_views(blockspike, runs(tmp_path)[0])
    blockspike("collect", "--by=data", "--metric=val_accuracy_with_views")
    (runs(tmp_path)[1] / "metrics.csv").unlink()
    (line,) = blockspike("plot", "epochs", check=False).stderr.splitlines()
    assert "metrics.csv" in line


@pytest.mark.slow
def test_without_validation_the_model_of_the_last_epoch_is_tested(blockspike, tmp_path):
    whole = ("data.validation_fraction=0", "monitor=val/loss", VIEWS)
    done = blockspike("train", *SMALL, *whole)
    assert "model of epoch 3, trained on everything" in done.stdout
    (folder,) = runs(tmp_path)
    row = read_json(folder / "result.json")
    assert (row["chosen_epoch"], row["n_epochs"]) == (3, 3)
    assert "val_accuracy" not in row
    network, data, *_ = load_run(folder)
    with torch.no_grad():
        rates = [network(events).rates[0] for events, _ in data.test_dataloader()]
        n_samples = [len(labels) for _, labels in data.test_dataloader()]
    rate_hz = np.average(rates, weights=n_samples) * 1000 / data.dt_ms
    assert row["rate_layer1_hz"] == pytest.approx(rate_hz, rel=1e-4)
    assert read_checkpoint(folder / "checkpoints/best.ckpt")["epoch"] == 2
    assert "finished, skipped" in blockspike("train", *SMALL, *whole).stdout
    blockspike("status")
    evaluated = blockspike("evaluate", str(folder))
    assert f"test accuracy {row['test_accuracy']:.2%}" in evaluated.stdout
    assert "trained on everything" in evaluated.stdout
    with torch.no_grad():
        right = [
            network(x).scores.argmax(1) == y
            for x, y in data.scored_dataloader("test", with_views=False)
        ]
    expected = torch.cat(right).double().mean().item()
    assert f"with 3 views of each, {expected:.2%} without" in evaluated.stdout
    blockspike("collect")
    table = pd.read_csv(tmp_path / "outputs/tables/runs.csv")
    assert table["test_accuracy_without_views"].tolist() == pytest.approx([expected])
    blockspike("plot", "run", str(folder))
    blockspike("report")
    blockspike("publish", str(folder), "mine")
    card = (tmp_path / "outputs/published/mine.md").read_text()
    assert "| epochs, on all training data | 3 |" in card


@pytest.mark.parametrize(
    "option",
    [
        "callbacks=early_stopping",
        "test_each_epoch=true",
    ],
)
def test_what_follows_validation_is_refused_without_it(blockspike, tmp_path, option):
    given = ("data=nmnist_sample", "data.validation_fraction=0", *option.split())
    done = blockspike("train", *given, check=False)
    (line,) = done.stderr.splitlines()
    assert "data.validation_fraction: expected a share > 0 for test_each_epoch or early" in line
    assert not list(tmp_path.rglob("*.json"))
