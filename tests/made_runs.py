"""Rows of runs as `blockspike collect` writes them, for tests of figures and tables."""

import itertools
import json
from pathlib import Path

import pandas as pd

from blockspike.runs.run import provenance


def run(experiment="paper_shd", data_set="HD-Lauscher", **columns) -> dict:
    """A row as `blockspike collect` writes it, as far as figures and comparison need it."""
    row = {
        "experiment": experiment, "data_set": data_set, "seed": 0, "n_threads": 1,
        "model.method": "blocks", "model.arp_ms": 20.0, "model.surrogate": "multi_gaussian",
        "model.detach_spikes": True, "trainer.accelerator": "cpu", "test_accuracy": 0.7,
        "epoch_s": 50.0,
    }  # fmt: skip
    names = {name.rsplit(".", 1)[-1]: name for name in row}
    return row | {names[name]: value for name, value in columns.items()}


def swept() -> pd.DataFrame:
    """Table of a sweep of model × data × n_hidden × seed."""
    sets = {"nmnist": "N-MNIST", "shd": "SHD"}
    rows = [
        run("default", sets[data], seed=seed, method=model, test_accuracy=0.5 + i / 50)
        | {"model_config": model, "data_config": data, "network.n_hidden": n_hidden}
        | {"data.n_steps": 400 if data == "nmnist" else 600, "trainer.max_epochs": 40}
        for i, (model, data, n_hidden, seed) in enumerate(
            itertools.product(("blocks", "fused"), sets, (64, 128), (0, 1))
        )
    ]
    return pd.DataFrame(rows)


def write_runs(output_dir: Path, table: pd.DataFrame, **config: object) -> list[Path]:
    """Folders of finished runs, with a row and a configuration; returns them."""
    versions = {f"version.{name}": x for name, x in provenance()["versions"].items()}
    made_by = {"git_sha": None, "git_dirty": False, "machine": "box", "python": "3.11.2"}
    folders = []
    for i, row in enumerate(table.to_dict("records")):
        folder = output_dir / str(row["experiment"]) / f"run={i}" / f"seed={row['seed']}"
        folder.mkdir(parents=True)
        row = {
            "data_config": "shd",
            **made_by,
            **versions,
            **row,
            "config_hash": f"{row['experiment']}{i}",
        }
        (folder / "result.json").write_text(json.dumps(row))
        (folder / "config.yaml").write_text(json.dumps(config))
        (folder / "status.json").write_text(json.dumps({"config_hash": row["config_hash"]}))
        (folder / ".lock").touch()
        folders.append(folder)
    return folders
