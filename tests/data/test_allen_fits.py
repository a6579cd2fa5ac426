"""The experiments on recordings, by the command line, on a folder in AllenSDK's layout."""

import json

import numpy as np
import pandas as pd
import pytest
from made_nwb import MadeSweep, make_nwb1, noise_pa


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["paper_recordings", "recordings"])
def test_experiments_on_a_folder_of_allensdk(blockspike, tmp_path, experiment):
    rng = np.random.default_rng(0)
    n_samples = {"Noise 1": 50_000, "Noise 2": 60_000}  # 1 and 1.2 s
    for cell in (11, 12):
        folder = tmp_path / "allen" / f"specimen_{cell}"
        folder.mkdir(parents=True)
        currents = {name: noise_pa(cell, n) for name, n in n_samples.items()}
        sweeps = [
            MadeSweep(
                number,
                name,
                currents[name],
                None,
                np.linspace(0.03, 0.93, 15) + rng.uniform(0, 0.05, 15),
            )
            for number, name in enumerate(["Noise 1", "Noise 2"] * 4)
        ]
        make_nwb1(folder / "ephys.nwb", sweeps)
    segments = "[[0,0.4],[0.5,0.9]]"
    blockspike(
        "fit", "-m", f"experiment={experiment}", "data.path=allen", f"data.train_s={segments}",
        f"data.test_s={segments}", "data.dt_ms=0.05,1", "trainer.max_epochs=2", "threads=1",
    )  # fmt: skip
    runs = sorted((tmp_path / "outputs" / experiment).rglob("result.json"))
    rows = [json.loads(path.read_text()) for path in runs]
    assert sorted(row["data.dt_ms"] for row in rows) == [0.05, 1]
    assert all(row["n_cells"] == 2 and row["n_failed"] == 0 for row in rows)
    assert all(row["data_set"] == "Allen Cell Types, mouse layer 4" for row in rows)
    table = pd.read_csv(runs[0].parent / "fits.csv")
    assert list(table["cell"]) == ["specimen_11", "specimen_12"]
    assert (table["test_recorded_hz"] > 0).all()
