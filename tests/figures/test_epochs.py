"""Validation curves averaged over folds and seeds."""

import numpy as np
import pandas as pd
import pytest

from blockspike.figures.epochs import epochs, mean_curves
from blockspike.plots.style import use_style


def made(n_epochs: int = 12) -> tuple[pd.DataFrame, list[pd.DataFrame]]:
    """Two sizes, three folds, two seeds: each run has a curve of its own."""
    rng = np.random.default_rng(0)
    rows, metrics = [], []
    for size in (16, 64):
        for fold in range(3):
            for seed in range(2):
                rows.append({
                    "run": f"{size}/{fold}/{seed}", "experiment": "mine", "seed": seed,
                    "data.fold": fold, "network.n_hidden": size, "data.seed": seed,
                })  # fmt: skip
                epoch = np.arange(n_epochs)
                rise = 0.5 + 0.1 * (size > 16) - 0.004 * (epoch - 7) ** 2
                values = rise + 0.01 * rng.standard_normal(n_epochs)
                metrics.append(pd.DataFrame({"epoch": epoch, "val/accuracy": values}))
    return pd.DataFrame(rows), metrics


def test_curves_are_means_over_folds_and_seeds(tmp_path):
    table, metrics = made()
    curves = mean_curves(table, metrics)
    assert [curve.label for curve in curves] == ["network.n_hidden=16", "network.n_hidden=64"]
    for i, curve in enumerate(curves):
        own = np.array([m["val/accuracy"] for m in metrics[6 * i : 6 * i + 6]])
        np.testing.assert_allclose(curve.mean, own.mean(0))
        of_folds = own.reshape(3, 2, -1).mean(1)  # seeds share the recordings of their fold
        np.testing.assert_allclose(curve.standard_error, of_folds.std(0, ddof=1) / np.sqrt(3))
        assert curve.n_runs == 6
        assert curve.best == own.mean(0).argmax() + 1 == 8
        assert "at epoch 8 of 12 (runs: 6)" in str(curve)
    use_style()
    path = epochs(curves, tmp_path)
    assert path == tmp_path / "epochs_mine.png" and path.stat().st_size > 10_000


def test_curves_of_different_folds_are_named():
    table, metrics = made()
    with pytest.warns(UserWarning, match="figure=epochs: means are not of the same folds"):
        mean_curves(table.iloc[2:], metrics[2:])
    mean_curves(table.iloc[2:], metrics[2:], ["network.n_hidden", "data.fold"])


def test_one_run_has_no_error():
    table, metrics = made()
    (curve,) = mean_curves(table.head(1), metrics[:1])
    assert curve.label == "" and np.isnan(curve.standard_error).all()
    assert "±" not in str(curve)


def test_runs_of_different_length_are_named():
    table, metrics = made()
    metrics[1] = metrics[1].head(5)
    with pytest.raises(ValueError, match="n_hidden=16: expected as many epochs in each, got 5 to"):
        mean_curves(table, metrics)


def test_too_many_curves_to_tell_apart_are_refused(tmp_path):
    table, metrics = made()
    (curve,) = mean_curves(table.head(1), metrics[:1])
    with pytest.raises(ValueError, match="at most 16 curves to tell apart, got 17"):
        epochs([curve] * 17, tmp_path)


def test_runs_without_validation_are_left_out():
    table, metrics = made()
    without = [m.drop(columns="val/accuracy") for m in metrics]
    table.loc[6:, "experiment"] = "other"  # is then not in the picture's title
    (curve,) = mean_curves(table, [*metrics[:6], *without[6:]])
    assert curve.label == "" and curve.experiments == ["mine"]
    with pytest.raises(ValueError, match="expected runs with val/accuracy"):
        mean_curves(table, without)
