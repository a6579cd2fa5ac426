"""`logger=wandb`, offline: the content of wandb's own file."""

import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import wandb
from test_train import SMALL, differences, kill_when, one_run, results, start
from wandb_file import LoggedRun, logged_runs

import blockspike as bs
from blockspike.runs.identity import content_of, plain
from blockspike.runs.run import Run, flatten
from blockspike.training.metrics_table import read_metrics

QUICK = (*SMALL, "trainer.max_epochs=2", "data.batch_size=80")  # all test data in one batch
CHOICES = ",".join(sorted(a for a in QUICK if not a.startswith("threads")))


def random_states() -> list[bytes]:
    states = (torch.get_rng_state().numpy(), np.random.get_state(), random.getstate())
    return [pickle.dumps(state) for state in states]


def by_epoch(path) -> dict[int, dict[str, float]]:
    rows = read_metrics(path).set_index("epoch").to_dict("index")
    return {int(epoch): {str(k): v for k, v in row.items()} for epoch, row in rows.items()}


def check_result(logged: LoggedRun, run: Run) -> None:
    """Check that configuration, learning curve and result equal those in the run's folder."""
    row = run.result()
    assert row is not None
    config = {k: v for k, v in logged.config.items() if k != "_wandb"}
    assert config == json.loads(json.dumps(plain(run.config())))
    assert logged.epochs() == by_epoch(run.folder / "metrics.csv")
    settings = {*content_of(run.config()), *flatten(content_of(run.config()))}
    settings |= {k for k in row if k.startswith(("version.", "git_"))} | {"machine", "python"}
    results = {k: v for k, v in row.items() if k not in settings and not k.endswith("_config")}
    for key in ("experiment", "n_threads", "tags"):
        results.pop(key, None)
    assert {k: logged.summary[k] for k in results} == results
    assert {"data_set", "config_hash", "data_sha256"} < results.keys()
    assert not settings & logged.summary.keys()
    assert logged.exit_code == 0 and wandb.run is None


def test_a_classifier_is_logged_completely_without_changing_its_result(
    blockspike, tmp_path, monkeypatch
):
    monkeypatch.delenv("WANDB_ERROR_REPORTING", raising=False)
    monkeypatch.setenv("WANDB_PROJECT", "spikes")
    states = []
    for folder, logger in (("plain", "csv"), ("logged", "wandb")):
        blockspike(
            "train", *QUICK, f"logger={logger}", f"output_dir={folder}/outputs",
            "experiment_name=mine", "tags=[pilot]",
        )  # fmt: skip
        states.append(random_states())
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    assert not differences(results(tmp_path / "plain"), results(tmp_path / "logged"))
    assert states[0] == states[1]
    assert not logged_runs(tmp_path / "plain")

    run = Run(one_run(tmp_path / "logged"))
    (logged,) = logged_runs(run.folder)
    check_result(logged, run)
    assert logged.about.project == "spikes"
    assert logged.about.display_name == f"mine/{CHOICES}/seed=0"
    assert (logged.about.run_group, logged.about.job_type) == ("mine", "train")
    assert list(logged.about.tags) == ["fused", "nmnist_sample", "pilot"]
    for name in ("train/*", "val/*", "time/*", "test_each_epoch/*"):
        assert logged.defined[name] == ("epoch", set())
    assert logged.defined["val/accuracy"] == ("epoch", {"max"})
    assert logged.defined["val/loss"] == ("epoch", {"min"})
    check_media(logged, run)
    check_confusion(logged, run)
    check_model(logged, run, tmp_path / "downloaded")
    assert all({"lr", "train/grad_norm"} <= row.keys() for row in logged.epochs().values())


def check_model(logged: LoggedRun, run: Run, to: Path) -> None:
    """Check that the artifact's files are those of the run, and make a network."""
    row = run.result()
    (artifact,) = (x for x in logged.artifacts if x.type == "model")  # tables are others
    assert row is not None and artifact.name == f"model-{row['config_hash']}"
    about = json.loads(artifact.metadata)
    assert about == {key: row[key] for key in about} and len(about) == 7
    for entry in artifact.manifest.contents:
        assert Path(entry.local_path) == run.folder / entry.path
        (to / entry.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(entry.local_path, to / entry.path)
    one, other = bs.load_run(run.folder).network, bs.load_run(to).network
    assert all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))


def check_confusion(logged: LoggedRun, run: Run) -> None:
    """Check each class's accuracy, in wandb and in the run's folder."""
    row, table = run.result(), pd.read_csv(run.folder / "confusion.csv")
    counts = table.filter(like="predicted_").to_numpy()
    assert row is not None and counts.trace() / counts.sum() == row["test_accuracy"]
    assert (counts.sum(1) == table["n_test"]).all()
    stored = json.loads(logged.file("media/confusion").read_text())
    assert [row[3:] for row in stored["data"]] == counts.tolist()
    (tested,) = (row for row in logged.history if "test/accuracy" in row)
    of_classes = [tested[f"test/accuracy_class{k}"] for k in table["class"]]
    assert of_classes == pytest.approx(table["accuracy"])


def check_media(logged: LoggedRun, run: Run) -> None:
    picture = run.folder / "figures" / "raster.png"
    assert logged.file("media/raster").read_bytes() == picture.read_bytes()
    (tested,) = (row for row in logged.history if "test/rate_layer1_hz" in row)
    for layer in (1, 2):
        histogram = logged.media(f"media/rates_layer{layer}_hz")
        edges, counts = np.array(histogram["bins"]), np.array(histogram["values"])
        assert counts.sum() == 16  # hidden neurons
        mean_hz = (counts * (edges[1:] + edges[:-1]) / 2).sum() / 16
        width_hz = edges[1] - edges[0]
        assert tested[f"test/rate_layer{layer}_hz"] == pytest.approx(mean_hz, abs=width_hz / 2)


def test_fits_are_logged_with_their_picture_and_table(blockspike, tmp_path):
    quick = ("data.n_cells=2", "data.duration_s=3", "data.dt_ms=0.5", "population.n_starts=8")
    blockspike(
        "fit", "experiment=recovery", *quick, "trainer.max_epochs=4", "threads=1", "logger=wandb"
    )
    run = Run(one_run(tmp_path))
    (logged,) = logged_runs(run.folder)
    check_result(logged, run)
    assert (logged.about.run_group, logged.about.job_type) == ("recovery", "fit")
    assert list(logged.about.tags) == ["alif", "synthetic_cells"]
    picture = run.folder / "figures" / "recording.png"
    assert logged.file("media/recording").read_bytes() == picture.read_bytes()
    stored = json.loads(logged.file("media/fits").read_text())
    table = pd.DataFrame(stored["data"], columns=stored["columns"])
    fits = pd.read_csv(run.folder / "fits.csv")
    pd.testing.assert_frame_equal(table, fits, check_dtype=False)


@pytest.mark.slow
def test_a_killed_run_resumes_under_its_id_and_misses_no_epoch(
    blockspike, tmp_path, data_dir, monkeypatch
):
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # otherwise the killed process shares ours
    args = ("train", *SMALL, "trainer.max_epochs=4", "logger=wandb")
    process = start(tmp_path, data_dir, *args)
    outputs = tmp_path / "outputs"
    kill_when(
        process,
        lambda: any(len(p.read_text().splitlines()) > 2 for p in outputs.rglob("metrics.csv")),
    )
    assert "continued after epoch" in blockspike(*args).stdout
    run = Run(one_run(tmp_path))
    killed, resumed = logged_runs(run.folder)
    run_id = (run.folder / "wandb_id").read_text()
    assert killed.folder.name.endswith(f"-{run_id}") and killed.exit_code is None
    assert resumed.about.run_id == run_id
    check_result(resumed, run)


def test_a_failed_run_is_closed_as_failed_and_a_long_name_keeps_its_end(blockspike, tmp_path):
    folder = "outputs/" + "a" * 150 + "/seed=3"
    done = blockspike(
        "train", *SMALL, "trainer.limit_train_batches=0", "logger=wandb",
        f"hydra.run.dir='{folder}'", check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "no such checkpoint" in done.stderr
    (logged,) = logged_runs(tmp_path)
    assert logged.exit_code == 1 and wandb.run is None
    assert logged.about.display_name == "a" * 121 + "/seed=3"


@pytest.mark.slow
@pytest.mark.parametrize(
    "failing", ["blockspike.app.wandb_run.activity_of", "blockspike.runs.run.Run.write_result"]
)
def test_a_finished_run_is_complete_in_wandb(blockspike, tmp_path, monkeypatch, failing):
    """The same command finishes a run that ended before wandb had its whole result."""

    def stopped(*_):
        raise RuntimeError("stopped")

    args = ("train", *SMALL, "trainer.max_epochs=1", "logger=wandb")
    with monkeypatch.context() as patch:
        patch.setattr(failing, stopped)
        with pytest.raises(RuntimeError, match="stopped"):
            blockspike(*args)
    (path,) = tmp_path.rglob("metrics.csv")
    run = Run(path.parent)
    (logged,) = logged_runs(tmp_path)
    in_wandb = "write_result" in failing
    assert run.result() is None and wandb.run is None
    assert logged.exit_code == (not in_wandb) and ("test_accuracy" in logged.summary) == in_wandb

    blockspike(*args)
    check_result(logged_runs(tmp_path)[-1], run)


@pytest.mark.slow
def test_wandb_can_be_disabled(blockspike, tmp_path):
    blockspike("train", *SMALL, "debug=fast", "logger=wandb", "logger.wandb.mode=disabled")
    assert one_run(tmp_path) and not logged_runs(tmp_path)
