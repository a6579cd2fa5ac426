"""Sweeps: killed, under every launcher, with runs that fail; how they are listed and collected."""

import json
import subprocess
import sys

import pandas as pd
import pytest
from killed_sweep import killed_and_restarted, runs_table, start

SMALL = ("data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10")
FOUR = (*SMALL, "model=standard,fused", "network.n_hidden=8", "seed=0,1", "trainer.max_epochs=2")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, data_dir, "train", "-m", "threads=1", *FOUR).wait() == 0
    return runs_table(folder)


def test_a_sweep_killed_at_random_moments_ends_in_the_same_table(tmp_path, data_dir, undisturbed):
    sweep = ("threads=1", *FOUR)
    assert killed_and_restarted(tmp_path, data_dir, sweep, n_kills=3, seed=1, longest_s=12) > 0
    pd.testing.assert_frame_equal(runs_table(tmp_path), undisturbed, check_exact=True)


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_every_launcher_gives_the_same_table(tmp_path, data_dir, undisturbed, launcher):
    """Each gives a run one thread here, so that runs side by side do not fight."""
    process = start(tmp_path, data_dir, "train", "-m", f"sweep={launcher}", *FOUR)
    assert process.wait() == 0
    pd.testing.assert_frame_equal(runs_table(tmp_path), undisturbed, check_exact=True)


def test_jobs_that_run_side_by_side_share_the_cores(blockspike):
    shown = blockspike("train", "--cfg", "job", "sweep=joblib").stdout
    assert "threads: ${cores:${hydra:launcher.n_jobs}}" in shown
    slurm = blockspike("train", "--cfg", "hydra", "-p", "hydra.launcher", "sweep=slurm").stdout
    assert "cpus_per_task: 4" in slurm


@pytest.mark.parametrize("launcher", ["serial", "joblib"])
def test_failed_runs_are_listed_and_the_others_finish(
    blockspike, tmp_path, data_dir, launcher, monkeypatch
):
    sweep = ("train", "-m", f"sweep={launcher}", *SMALL[1:], "data=nmnist,nmnist_sample")
    sweep += ("network.n_hidden=8", "trainer.max_epochs=1")
    done = blockspike(*sweep, check=False)
    assert done.returncode == 2
    assert "runs: 1 done, 1 failed" in done.stdout
    failed = "outputs/default/data.dt_ms=10,data.n_steps=40,data=nmnist,network.n_hidden=8,"
    failed += "trainer.max_epochs=1/seed=0"
    assert f"failed: {failed}" in done.stdout.replace(f"{tmp_path}/", "")
    assert "nmnist.h5: prepared data not found" in done.stdout
    log = (tmp_path / failed / "error.log").read_text()
    assert log.startswith("Traceback") and "FileNotFoundError" in log

    shown = blockspike("status").stdout
    assert "1 done, 1 failed" in shown and "prepared data not found" in shown
    assert json.loads((next(tmp_path.rglob("sweeps/*.json"))).read_text())["runs"]


def test_status_knows_what_is_missing_interrupted_and_running(blockspike, tmp_path, data_dir):
    sweep = ("-m", *SMALL, "seed=0,1", "network.n_hidden=8", "trainer.max_epochs=1000")
    process = start(tmp_path, data_dir, "train", *sweep)
    try:
        while not list(tmp_path.rglob("last.ckpt")):
            assert process.poll() is None
        shown = blockspike("status", "experiment_name=default").stdout
        assert "1 running, 1 missing" in shown
    finally:
        process.kill()
        process.wait()
    shown = blockspike("status").stdout
    assert "1 interrupted, 1 missing" in shown
    assert "no run here" in blockspike("status", "experiment_name=other", check=False).stderr


def test_an_error_is_forgotten_once_the_run_succeeds(blockspike, tmp_path, data_dir):
    sweep = ("train", "-m", *SMALL, "network.n_hidden=8", "trainer.max_epochs=1", "seed=0,1")
    blockspike(*sweep, "hydra.sweep.subdir='s${seed}'")
    wrong = blockspike(*sweep, "optimizer.lr=0.5", "hydra.sweep.subdir='s${seed}'", check=False)
    assert "runs: 2 failed" in wrong.stdout and "another configuration" in wrong.stdout
    again = blockspike(*sweep, "hydra.sweep.subdir='s${seed}'")
    assert "runs: 2 done" in again.stdout
    assert not list(tmp_path.rglob("error.log"))


def test_two_processes_train_as_one_does(tmp_path, data_dir):
    """The same batches, shared: equal losses and weights but for the order of sums."""
    args = ("-m", *SMALL, "seed=0,1", "network.n_hidden=8", "trainer.max_epochs=1")
    for trainer in ("cpu", "ddp_cpu"):
        process = start(tmp_path, data_dir, "train", f"trainer={trainer}", *args)
        assert process.wait() == 0
    table = runs_table(tmp_path).set_index("seed").sort_index()
    one, two = (table[table["trainer.devices"] == n] for n in (1, 2))
    assert len(one) == len(two) == 2
    for column in ("test_accuracy", "val_accuracy", "train_accuracy", "rate_layer1_hz"):
        assert one[column].tolist() == pytest.approx(two[column].tolist(), rel=1e-4), column
    losses = {}
    for path in tmp_path.rglob("metrics.csv"):
        losses[path.parent.relative_to(tmp_path).as_posix()] = pd.read_csv(path)["val/loss"][0]
    assert len(set(losses)) == 4
    for run, loss in losses.items():
        other = run.replace("trainer=cpu", "trainer=ddp_cpu")
        assert loss == pytest.approx(losses[other], rel=1e-4)


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path, data_dir):
    command = [sys.executable, "-m", "blockspike.cli", "train", "trainer=ddp_cpu", *SMALL]
    command += ["data.batch_size=63", f"data_dir={data_dir}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "batch_size: got 63, expected a multiple of the 2 processes" in done.stderr


@pytest.fixture
def finished(blockspike, tmp_path):
    blockspike("train", *SMALL, "network.n_hidden=8", "trainer.max_epochs=1")
    (path,) = tmp_path.rglob("result.json")
    return path, json.loads(path.read_text())


def test_collected_rows_know_where_they_come_from(blockspike, finished, tmp_path):
    blockspike("collect")
    (row,) = pd.read_csv(tmp_path / "outputs/tables/runs.csv").to_dict("records")
    for name in ("config_hash", "git_sha", "git_dirty", "machine", "python", "version.torch"):
        assert row[name] == row[name], name  # not NaN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": "0"}, "seed: found '0', expected a int"),
        ({"test_accuracy": 89.2}, "0 to 1"),
        ({"config_hash": None}, "config_hash"),
        ({"machine": ...}, "machine: found nothing"),
    ],
)
def test_a_row_that_is_no_result_is_refused(blockspike, finished, change, words):
    path, row = finished
    row = {k: v for k, v in {**row, **change}.items() if v is not ...}
    path.write_text(json.dumps(row))
    done = blockspike("collect", check=False)
    assert done.returncode == 2
    assert words in done.stderr and "result.json" in done.stderr


def test_one_recipe_on_two_data_sets_is_two_runs(blockspike, finished, tmp_path, data_dir):
    """Also where the second one's file holds the same."""
    same = ("data=nmnist", f"data.path={data_dir / 'nmnist_sample.h5'}", *SMALL[1:])
    blockspike("train", *same, "network.n_hidden=8", "trainer.max_epochs=1")
    blockspike("collect")
    table = pd.read_csv(tmp_path / "outputs/tables/runs.csv")
    assert sorted(table["data_config"]) == ["nmnist", "nmnist_sample"]
    assert table["config_hash"].nunique() == 2


def test_damaged_and_doubled_results_are_refused(blockspike, finished, tmp_path):
    path, row = finished
    copy = tmp_path / "outputs" / "copy" / "result.json"
    copy.parent.mkdir()
    copy.write_text(json.dumps(row))
    assert "hold the same run" in blockspike("collect", check=False).stderr
    copy.write_text(path.read_text()[:50])
    assert "copy/result.json: not a result" in blockspike("collect", check=False).stderr


def test_numbers_and_words_in_one_column_make_a_table(blockspike, finished, tmp_path):
    _, row = finished
    other = tmp_path / "outputs" / "other" / "result.json"
    other.parent.mkdir()
    other.write_text(json.dumps({**row, "config_hash": "other", "trainer.devices": "auto"}))
    blockspike("collect")
    table = pd.read_parquet(tmp_path / "outputs/tables/runs.parquet")
    assert table["trainer.devices"].tolist() == ["1", "auto"]
