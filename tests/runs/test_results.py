"""Rows of `blockspike collect`; its other tests are in test_sweeps.py."""

import json
from pathlib import Path

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
