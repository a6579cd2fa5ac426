"""Fits of several neuron models in one table and one picture."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from blockspike.app.compare import compare_fits
from blockspike.figures.fits import compared, fits, rounded
from blockspike.files import write_json


def run(neuron: str, seed: int, etv: float, options: str = "", data_set: str = "cell") -> dict:
    folder = ",".join(x for x in (f"population={neuron.lower()}", options) if x)
    pairs = (option.split("=") for option in options.split(",") if option)
    row: dict[str, Any] = {
        "run": f"fit/{data_set}/{folder}/seed={seed}", "experiment": "fit",
        "data_set": data_set, "neuron": neuron,
        "seed": seed, "n_cells": 1, "test_etv_15ms_median": etv,
        "test_null_etv_15ms_median": 0.1, "test_reliability_etv_15ms_median": 0.9,
        "test_rate_error_median": 0.05, "version.torch": f"2.{seed}",
        "data.dt_ms": 0.5, "population.seed": seed, "fit_s": 1.0, **dict(pairs),
    }  # fmt: skip
    return row


RUNS = [
    run("LIF", 0, 0.5), run("LIF", 1, 0.6), run("GIF", 0, 0.8), run("GIF", 1, 0.8),
    run("GIF", 0, 0.7, "data.dt_ms=1"), run("ALIF", 0, 0.7, data_set="other"),
]  # fmt: skip


def test_means_are_over_seeds_and_the_best_come_first():
    points = compared(pd.DataFrame(RUNS))
    own = points[points["data_set"] == "cell"]
    assert own["fit"].tolist() == ["GIF, dt_ms=0.5", "GIF, dt_ms=1", "LIF"]
    assert own["n_runs"].tolist() == [2, 1, 2]
    assert own["etv_15ms"].tolist() == pytest.approx([0.8, 0.7, 0.55])
    assert own["etv_15ms_error"].tolist()[2] == pytest.approx(0.05)
    assert points[points["data_set"] == "other"]["fit"].tolist() == ["ALIF"]


def test_folds_are_replicates_as_seeds_are():
    folds = [
        run("GIF", seed, 0.8 + 0.01 * k + 0.02 * seed, f"data.fold={k},data.n_folds=3")
        for k in range(3) for seed in range(2)
    ]  # fmt: skip
    (row,) = compared(pd.DataFrame(folds)).to_dict("records")
    assert (row["n_runs"], row["fit"]) == (6, "GIF")
    assert row["etv_15ms"] == pytest.approx(0.82)
    assert row["etv_15ms_error"] == pytest.approx(0.01 / 3**0.5)


def test_fold_0_without_folds_is_none():
    """A recording's `fold` is 0 by default, and earlier versions had none."""
    values = (0.1, 0.2, 0.3, 0.7, 0.8, 0.9)
    runs = [run("GIF", seed, x, "data.fold=0" * (seed > 2)) for seed, x in enumerate(values)]
    (row,) = compared(pd.DataFrame(runs)).to_dict("records")
    assert (row["n_runs"], row["etv_15ms"]) == (6, pytest.approx(0.5))
    assert row["etv_15ms_error"] == pytest.approx(pd.Series(values).sem())


def test_data_sets_may_be_numbers_and_differ_in_signs_alone(tmp_path: Path):
    rows = [run("GIF", 0, 0.5, data_set=name) for name in ("a b", "a_b")]
    rows.append(run("GIF", 0, 0.5) | {"data_set": 313862})
    names = [path.name for path in fits(pd.DataFrame(rows), tmp_path)]
    assert len(set(names)) == 3 and "fits_313862.png" in names


def test_text_has_errors_where_there_are_several_runs_and_leaves_unknown_scores_out():
    table = rounded(compared(pd.DataFrame(RUNS[:3])))
    assert table.columns.tolist() == ["fit", "runs", "etv_15ms", "rate_error"]
    assert table["etv_15ms"].tolist() == ["0.800", "0.550 ± 0.050"]


def test_fits_of_two_experiments_have_names_of_their_own():
    again = [{**row, "experiment": "again"} for row in RUNS[:2]]
    names = compared(pd.DataFrame([*RUNS[:2], *again]))["fit"].tolist()
    assert sorted(names) == ["LIF, experiment=again", "LIF, experiment=fit"]


def test_runs_of_train_are_no_fits():
    with pytest.raises(ValueError, match="expected fits made by"):
        compared(pd.DataFrame({"run": ["a"], "test_accuracy": [0.5]}))
    mixed = pd.DataFrame([*RUNS, {"run": "default/default/seed=0", "test_accuracy": 0.5}])
    assert len(compared(mixed)) == 4


def test_one_picture_a_data_set(tmp_path: Path):
    paths = fits(pd.DataFrame(RUNS), tmp_path)
    assert [path.name for path in paths] == ["fits_cell.png", "fits_other.png"]
    assert all(path.stat().st_size > 5000 for path in paths)
    svg = (tmp_path / "fits_cell.svg").read_text()
    assert all(f"<!-- {text} -->" in svg for text in ("another trial", "constant rate", "LIF"))


def test_a_sweep_prints_its_fits(tmp_path: Path, capsys: pytest.CaptureFixture):
    folders = []
    for row in RUNS[:3]:
        folders.append(tmp_path / row["run"])
        write_json(folders[-1] / "result.json", {k: v for k, v in row.items() if k != "run"})
    compare_fits(tmp_path, folders)
    stated = capsys.readouterr().out
    assert "0.550 ± 0.050" in stated and "GIF" in stated and "fits_cell.png" in stated
    compare_fits(tmp_path, folders[:2])  # seeds of one fit: nothing to compare
    assert capsys.readouterr().out == ""


def test_the_same_fit_with_and_without_a_bootstrap_counts_once():
    runs = [run("GIF", seed, 0.7 + 0.1 * seed) for seed in (0, 1)]
    runs += [{**runs[0], "n_bootstrap": 20}, run("GIF", 0, 0.9, "data.fold=1,data.n_folds=3")]
    with pytest.warns(UserWarning, match="fits: means are not of the same folds"):
        by_fold = compared(pd.DataFrame(runs))
    assert by_fold["n_runs"].tolist() == [1, 2] and by_fold["etv_15ms"].tolist()[1] == 0.75


def test_a_mean_is_unknown_if_a_score_of_a_run_is():
    (row,) = compared(pd.DataFrame([run("GIF", 0, 0.8), run("GIF", 1, float("nan"))])).to_dict(
        "records"
    )
    assert row["n_runs"] == 2 and row["etv_15ms"] != row["etv_15ms"]
