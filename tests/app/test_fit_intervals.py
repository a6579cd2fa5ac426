"""Intervals of a fit, also of one that is killed while it makes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from blockspike.app.cli import main
from blockspike.app.fit_intervals import constrained_summary
from blockspike.fitting.synthetic_cells import SyntheticCells

SMALL = (
    "population.n_starts=16", "trainer.max_epochs=16", "progress=false", "run_dir=run",
    "n_bootstrap=6",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (cell,) = SyntheticCells(n_cells=1, n_trials=4, duration_s=4.0).cells()
    trials = [np.asarray(trial[0]) for trial in cell.spike_times_s]
    np.savez(
        "cell.npz", current_pa=cell.current_pa, dt_ms=cell.dt_ms,
        spike_times_s=np.concatenate(trials),
        spike_repeat=np.repeat(np.arange(len(trials)), [len(t) for t in trials]),
        n_repeats=len(trials),
    )  # fmt: skip
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, Any]:
    monkeypatch.setattr("sys.argv", ["blockspike", "fit", "data.path=cell.npz", *SMALL, *overrides])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    return row_of("run")


def row_of(folder: str) -> dict[str, Any]:
    (row,) = pd.read_csv(f"{folder}/fits.csv").to_dict("records")
    return {str(name): value for name, value in row.items()}


def test_intervals_hold_the_fit_and_are_written_beside_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    row = run(monkeypatch)
    names = [x.removesuffix("_low") for x in row if x.endswith("_low")]
    assert sorted(names) == [
        "adaptation_100ms_pa", "adaptation_20ms_pa", "rheobase_pa", "tau_membrane_ms",
    ]  # fmt: skip
    for name in names:
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert row["intervals_from"] == "trials"
    if isinstance(row["not_constrained"], str):
        assert f"does not constrain {row['not_constrained'].split(';')[0]}" in (
            capsys.readouterr().out
        )


def test_no_replicates_no_intervals(folder: Path, monkeypatch: pytest.MonkeyPatch):
    row = run(monkeypatch, "n_bootstrap=0")
    assert not [x for x in row if x.endswith("_low")]
    assert "rheobase_pa" in row


@pytest.mark.slow
def test_a_fit_killed_between_its_replicates_gives_the_same_intervals(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = run(monkeypatch)
    monkeypatch.setattr("blockspike.app.fit_intervals._EPOCHS_A_LINE", 1)

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as at_end:
        at_end.setattr("blockspike.app.fit_intervals.intervals", stop)
        with pytest.raises(AssertionError, match="interrupted; the same command resumes it"):
            run(at_end, "run_dir=other")
    assert Path("other/checkpoints/bootstrap.ckpt").is_file()
    run(monkeypatch, "run_dir=other")
    assert repr(row_of("other")) == repr(whole)  # so that NaN equals NaN


def test_parameters_of_most_cells_are_listed():
    table = pd.DataFrame({"not_constrained": ["rheobase_pa; x", "rheobase_pa", "", "rheobase_pa"]})
    assert constrained_summary(table) == "rheobase_pa"
    assert constrained_summary(pd.DataFrame({"b": [1.0]})) == ""
