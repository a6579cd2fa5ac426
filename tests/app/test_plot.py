"""`blockspike plot` of a table; pictures of one run are tested in test_train.py."""

import pandas as pd
import pytest

from made_runs import run, swept


@pytest.mark.slow
def test_runs_are_collected_and_drawn(blockspike, tmp_path):
    blockspike(
        "train", "experiment=paper_shd", "data=hd_lauscher_sample", "debug=fast",
        "experiment_name=paper_shd", "network.n_hidden=8", "data.n_steps=60", "data.dt_ms=20",
    )  # fmt: skip
    blockspike("collect")
    done = blockspike("plot", "paper", "classification")
    stems = (
        "classification_n_mnist_published_values_only",
        "classification_hd_lauscher_sample_660_recordings",
    )
    assert done.stdout.split() == [f"outputs/figures/{stem}.png" for stem in stems]
    made = {p.name for p in (tmp_path / "outputs" / "figures").iterdir()}
    assert made == {f"{stem}.{suffix}" for stem in stems for suffix in ("png", "svg", "json")}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_another_table_is_read_by_its_suffix(blockspike, tmp_path, suffix):
    table = pd.DataFrame([run()])
    if suffix == "csv":
        table.to_csv(tmp_path / "mine.csv", index=False)
    else:
        table.to_parquet(tmp_path / "mine.parquet", index=False)
    blockspike("plot", "paper", "classification", f"--table=mine.{suffix}", "--output-dir=there")
    assert (tmp_path / "there" / "figures" / "classification_hd_lauscher.png").is_file()


def test_a_sweep_is_drawn_with_its_source(blockspike, tmp_path):
    (tmp_path / "outputs" / "tables").mkdir(parents=True)
    swept().to_csv(tmp_path / "outputs" / "tables" / "runs.csv", index=False)
    settings = ("--x=network.n_hidden", "--color=model,model.method", "--facet=data")
    done = blockspike("plot", "sweep", *settings, "--metric=epoch_s", "--experiment=default")
    path = "outputs/figures/sweep_default_epoch_s.png"
    assert (done.stdout.strip(), done.stderr) == (path, "")
    for suffix in (".png", ".svg", ".json"):
        assert (tmp_path / path).with_suffix(suffix).is_file()
    done = blockspike("plot", "sweep", "--x=network.n_hidden", "--color=model", "--facet=seed")
    assert "differ in more than seed and fold: data" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sweep --x n_hidden", "x: expected one of network.n_hidden, got 'n_hidden'"),
        ("sweep --metric loss", "metric: expected one of "),
        ("epochs", "`blockspike collect` writes, got a table without run"),
        ("sweep --experiment defualt", "experiment_name: expected one of default, got"),
    ],
)
def test_settings_of_a_sweep_that_do_not_fit_are_refused(blockspike, tmp_path, arguments, words):
    swept().to_csv(tmp_path / "runs.csv", index=False)
    done = blockspike("plot", *arguments.split(), "--table=runs.csv", check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert words in line
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("paper speeed", ("classification", "speeed")),
        ("paper classification", ("outputs/tables/runs.csv", "blockspike collect")),
        ("paper classification --table runs.txt", (".parquet", ".csv", "runs.txt")),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(blockspike, tmp_path, arguments, words):
    done = blockspike("plot", *arguments.split(), check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line
    assert not list(tmp_path.iterdir())
