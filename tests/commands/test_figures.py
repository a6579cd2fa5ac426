"""`blockspike figures` of a table; pictures of one run are tested in test_train.py."""

import pandas as pd
import pytest

MADE = {
    "experiment": "paper_shd", "data_set": "HD-Lauscher", "seed": 0, "n_threads": 1,
    "model.method": "fused", "model.arp_ms": 20.0, "model.surrogate": "multi_gaussian",
    "model.detach_spikes": True, "trainer.accelerator": "cpu", "test_accuracy": 0.7,
    "epoch_s": 50.0,
}  # fmt: skip


@pytest.mark.slow
def test_runs_are_collected_and_drawn(blockspike, tmp_path):
    blockspike(
        "train", "experiment=paper_shd", "data=hd_lauscher_sample", "debug=fast",
        "experiment_name=paper_shd", "network.n_hidden=8", "data.n_steps=60", "data.dt_ms=20",
    )  # fmt: skip
    blockspike("collect")
    done = blockspike("figures", "figure=classification")
    stems = (
        "classification_n_mnist_published_values_only",
        "classification_hd_lauscher_sample_660_recordings",
    )
    assert done.stdout.split() == [f"outputs/figures/{stem}.png" for stem in stems]
    made = {p.name for p in (tmp_path / "outputs" / "figures").iterdir()}
    assert made == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "json")}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_another_table_is_read_by_its_suffix(blockspike, tmp_path, suffix):
    table = pd.DataFrame([MADE])
    if suffix == "csv":
        table.to_csv(tmp_path / "mine.csv", index=False)
    else:
        table.to_parquet(tmp_path / "mine.parquet", index=False)
    blockspike("figures", "figure=classification", f"table=mine.{suffix}", "output_dir=there")
    assert (tmp_path / "there" / "figures" / "classification_hd_lauscher.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", ("run=FOLDER", "figure=classification", "neither")),
        ("run=here figure=classification", ("run=FOLDER", "figure=classification", "both")),
        ("figure=speeed", ("classification", "speeed")),
        ("figure=classification", ("outputs/tables/runs.csv", "blockspike collect")),
        ("figure=classification table=runs.txt", (".parquet", ".csv", "runs.txt")),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(blockspike, tmp_path, arguments, words):
    done = blockspike("figures", *arguments.split(), check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())
