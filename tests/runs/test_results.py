"""Checks of a row by `blockspike collect`; its other tests are in test_sweeps.py."""

import json
import re
from pathlib import Path

import pytest

from blockspike.runs.results import collect_runs
from blockspike.runs.run import provenance

ROW = {
    "experiment": "paper_shd", "data_set": "SHD", "seed": 0, "config_hash": "0123", "git_sha": None,
    "git_dirty": False, "machine": "box", "python": "3.11.2", "n_threads": 2,
    "data_config": "shd", "model.method": "fused", "model.arp_ms": 10.0,
    "model.surrogate": "boxcar", "model.detach_spikes": True, "network.n_hidden": 8,
    "data.dt_ms": 2.0, "trainer.accelerator": "cpu", "epoch_s": 1.5, "test_accuracy": 0.5,
    **{f"version.{name}": number for name, number in provenance()["versions"].items()},
}  # fmt: skip


def write(folder: Path, row: dict) -> Path:
    path = folder / "run" / "result.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": ...}, "python: expected str, got nothing"),
        ({"version.torch": None}, "version.torch: expected str, got None"),
        ({"version.pytorch-lightning": ...}, "version.pytorch-lightning: expected str"),
        ({"data_config": ...}, "data_config: expected str, got nothing"),
        ({"model.method": 3}, "model.method: expected str, got 3"),
        ({"model.arp_ms": "10"}, "model.arp_ms: expected float, got '10'"),
        ({"model.detach_spikes": 1}, "model.detach_spikes: expected bool, got 1"),
        ({"network.n_hidden": True}, "network.n_hidden: expected int, got True"),
        ({"epoch_s": None}, "epoch_s: expected float, got None"),
    ],
)
def test_a_row_without_a_column_or_of_another_type_is_refused(tmp_path, change, words):
    changed = {k: v for k, v in {**ROW, **change}.items() if v is not ...}
    path = write(tmp_path, changed)
    with pytest.raises(ValueError, match=re.escape(f"{path}: {words}")):
        collect_runs(tmp_path)


def test_every_damaged_row_is_named(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, ROW)
    first, last = (tmp_path / name / "run" / "result.json" for name in "ac")
    first.write_text("{")
    last.write_text(json.dumps({**ROW, "seed": None}))
    with pytest.raises(ValueError, match="expected JSON") as error:
        collect_runs(tmp_path)
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == [
        str(first),
        str(last),
    ]


def test_every_version_that_a_run_records_is_required(tmp_path):
    for name in provenance()["versions"]:
        write(tmp_path, {k: v for k, v in ROW.items() if k != f"version.{name}"})
        with pytest.raises(ValueError, match=f"version.{name}: expected str, got nothing"):
            collect_runs(tmp_path)


def test_a_row_may_lack_columns_that_its_model_does_not_have(tmp_path):
    strangers = {k: v for k, v in ROW.items() if not k.startswith(("model.", "network."))}
    write(tmp_path, {**strangers, "model.tau_ms": 3})
    assert collect_runs(tmp_path)["model.tau_ms"].tolist() == [3]


def test_rows_of_commands_are_accepted(blockspike, tmp_path):
    """Rows of a classifier and of a fit."""
    blockspike("train", "debug=fast", "network.n_hidden=8", "data.n_steps=20", "data.dt_ms=20")
    blockspike(
        "fit", "experiment=recovery", "data.n_cells=1", "data.duration_s=2",
        "population.n_starts=2", "trainer.max_epochs=1",
    )  # fmt: skip
    assert len(collect_runs(tmp_path / "outputs")) == 2
