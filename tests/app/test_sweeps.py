"""Sweeps under every launcher: kills, failed runs, `status` and `collect`."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from omegaconf import OmegaConf

from blockspike.files import read_json
from blockspike.runs.run import Run, RunRefusedError
from blockspike.runs.status import run_states
from killed_sweep import interrupted, killed, n_epochs, runs_table, start, wait_for

SMALL = ("data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10")
FOUR = (*SMALL, "model=standard,fused", "network.n_hidden=8", "seed=0,1", "trainer.max_epochs=2")


def the_error(folder: Path) -> str:
    """The error of the one failed run, which `status` wraps."""
    (error,) = filter(None, run_states(folder / "outputs")["error"])
    return error


def pid_of(folder: Path, n_epochs: int) -> int:
    """Process id of the run with this `max_epochs`, once it has finished an epoch."""
    found: list[int] = []

    def look() -> bool:
        for path in folder.rglob("metrics.csv"):
            if f"max_epochs={n_epochs}/" in str(path) and len(path.read_text().splitlines()) > 1:
                found.append(read_json(path.parent / "status.json")["pid"])
        return bool(found)

    wait_for(look)
    return found[0]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, data_dir) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder, data_dir, "train", "-m", "threads=1", *FOUR).wait() == 0
    return runs_table(folder)


@pytest.mark.slow
def test_a_repeatedly_killed_sweep_gives_the_same_table(tmp_path, data_dir, undisturbed):
    """Each kill is an epoch or two later, at a random moment."""
    rng, amid = random.Random(1), set()
    for _ in range(3):
        process = start(tmp_path, data_dir, "train", "-m", "threads=1", *FOUR)
        enough = n_epochs(tmp_path) + rng.randint(1, 2)
        wait_for(lambda enough=enough: n_epochs(tmp_path) >= enough, process)
        assert killed(process, rng.uniform(0, 0.2))
        amid |= set(interrupted(tmp_path))
    assert amid
    assert start(tmp_path, data_dir, "train", "-m", "threads=1", *FOUR).wait() == 0
    pd.testing.assert_frame_equal(runs_table(tmp_path), undisturbed, check_exact=True)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib"])
def test_every_launcher_gives_the_same_table(tmp_path, data_dir, undisturbed, launcher):
    """Each run has one thread, so that concurrent runs do not compete."""
    process = start(tmp_path, data_dir, "train", "-m", f"sweep={launcher}", *FOUR)
    assert process.wait() == 0
    pd.testing.assert_frame_equal(runs_table(tmp_path), undisturbed, check_exact=True)


def test_concurrent_jobs_share_the_cores(blockspike):
    shown = blockspike("train", "--cfg", "job", "sweep=joblib").stdout
    assert "threads: ${cores:${hydra:launcher.n_jobs}}" in shown
    slurm = blockspike("train", "--cfg", "hydra", "-p", "hydra.launcher", "sweep=slurm").stdout
    assert "cpus_per_task: 4" in slurm


@pytest.mark.parametrize("launcher", ["serial", pytest.param("joblib", marks=pytest.mark.slow)])
def test_failed_runs_are_listed_and_the_others_finish(blockspike, tmp_path, launcher):
    sweep = ("train", "-m", f"sweep={launcher}", *SMALL, "optimizer.lr=1e30,1e-3")
    sweep += ("network.n_hidden=8", "trainer.max_epochs=1")
    done = blockspike(*sweep, check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "blockspike train: " in done.stderr and " is nan at " in the_error(tmp_path)
    (failed,) = tmp_path.rglob("error.log")
    assert failed.read_text().startswith("Traceback") and "lr=1e+30" in str(failed)
    assert launcher == "joblib" or f"1 failed:\n  {failed.parent}: " in done.stderr
    assert "1 done, 1 failed" in blockspike("status").stdout


@pytest.mark.slow
def test_a_sweep_defined_in_an_experiment_file_is_planned(blockspike, tmp_path):
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "many.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 0,1\n"
    )
    args = ("-m", "--config-dir", str(tmp_path / "my_conf"), "experiment=many", *SMALL)
    done = blockspike("train", *args, "network.n_hidden=8", "trainer.max_epochs=1")
    assert done.stdout.count("test accuracy") == 2


def test_a_run_finished_meanwhile_by_another_process_is_refused(tmp_path):
    enter(tmp_path)
    with pytest.raises(RunRefusedError, match="another configuration"):
        enter(tmp_path, {"x": 1})
    with pytest.raises(RunRefusedError, match="the data have changed"):
        enter(tmp_path, data_sha256="other")
    one_batch, all_of_them = ({"trainer": {"limit_test_batches": x}} for x in (1, 1.0))
    enter(tmp_path / "limited", one_batch)
    with pytest.raises(RunRefusedError, match=r"limit_test_batches: 1 → 1\.0"):
        enter(tmp_path / "limited", all_of_them)
    Run(tmp_path).write_result({"seed": 0})
    with pytest.raises(RunRefusedError, match="finished it meanwhile"):
        enter(tmp_path)


@pytest.fixture
def control_c():
    """Let commands receive SIGINT even if the tests run in the background and ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_control_c_interrupts_the_runs(blockspike, tmp_path, data_dir, control_c, sweep):
    args = (*sweep, *SMALL, "network.n_hidden=8", "trainer.max_epochs=1000")
    process = start(tmp_path, data_dir, "train", *args)
    pid_of(tmp_path, 1000)
    os.killpg(process.pid, signal.SIGINT)  # as from a terminal
    assert process.wait() == 1
    assert "1 interrupted" in blockspike("status").stdout
    assert not list(tmp_path.rglob("error.log"))


@pytest.mark.slow
def test_a_folder_of_another_configuration_is_refused_and_unchanged(blockspike, tmp_path):
    sweep = ("train", "-m", *SMALL, "network.n_hidden=8", "trainer.max_epochs=1", "seed=0,1")
    sweep = (*sweep, "hydra.sweep.subdir='s${seed}'")
    blockspike(*sweep)
    wrong = blockspike(*sweep, "optimizer.lr=0.5", check=False)
    assert wrong.stderr.count("another configuration") == 4  # when it happens, and at the end
    assert not list(tmp_path.rglob("error.log"))
    assert blockspike(*sweep).stdout.count("finished, skipped") == 2


@pytest.mark.slow
def test_an_error_is_removed_once_the_run_succeeds(blockspike, tmp_path):
    args = ("train", *SMALL, "network.n_hidden=8", "trainer.max_epochs=1")
    blockspike(*args)
    (result,) = tmp_path.rglob("result.json")
    result.unlink()
    best = result.parent / "checkpoints" / "best.ckpt"
    whole = best.read_bytes()
    best.write_bytes(whole[:1000])
    assert "not a readable checkpoint" in blockspike(*args, check=False).stderr
    assert "1 failed" in blockspike("status").stdout and list(tmp_path.rglob("error.log"))
    best.write_bytes(whole)
    blockspike(*args)
    assert not list(tmp_path.rglob("error.log"))


@pytest.mark.slow
def test_a_run_starts_while_another_process_reads_its_lock(tmp_path):
    (tmp_path / ".lock").touch()
    with (tmp_path / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        with pytest.raises(RunRefusedError, match="already running"):
            enter(tmp_path)
        threading.Timer(0.5, fcntl.flock, (lock, fcntl.LOCK_UN)).start()
        enter(tmp_path)


def enter(folder: Path, content: dict | None = None, data_sha256: str = "x") -> None:
    with Run(folder).recorded(OmegaConf.create({"data": {}, **(content or {})}), data_sha256):
        pass


def test_brackets_in_names_and_errors_are_shown(blockspike, tmp_path):
    run = Run(tmp_path / "outputs" / "[bold]mine")
    with (
        pytest.raises(ValueError, match="layers"),
        run.recorded(OmegaConf.create({"data": {}})),
    ):
        raise ValueError("layers[/red]: expected [1, 2]")
    shown = blockspike("status").stdout
    assert "[bold]mine" in shown and "layers[/red]: expected [1, 2]" in shown


FAILS = """
from pytorch_lightning import Callback
class Fails(Callback):
    def on_train_epoch_end(self, trainer, module):
        if trainer.global_rank == 0:
            raise RuntimeError("no more of this")
"""


@pytest.mark.slow
def test_a_run_of_two_processes_fails_alone(blockspike, tmp_path, data_dir, monkeypatch):
    """Its processes find a configuration folder outside the package."""
    (tmp_path / "strange.py").write_text(FAILS)
    folder = tmp_path / "my_conf" / "callbacks"
    folder.mkdir(parents=True)
    (folder / "fails.yaml").write_text("fails:\n  _target_: strange.Fails\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    args = ("--config-dir", "my_conf", "callbacks=fails,none", "sweep=joblib", *SMALL)
    args = (*args, "trainer=ddp_cpu", "network.n_hidden=8", "trainer.max_epochs=1")
    assert start(tmp_path, data_dir, "train", "-m", *args).wait() != 0
    assert "1 done, 1 failed" in blockspike("status").stdout
    assert "no more of this" in the_error(tmp_path)


@pytest.mark.slow
def test_a_batch_size_that_is_no_multiple_of_the_processes_is_refused(tmp_path, data_dir):
    command = [sys.executable, "-m", "blockspike", "train", "trainer=ddp_cpu", *SMALL]
    command += ["data.batch_size=63", f"data_dir={data_dir}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "batch_size: expected a multiple of the 2 processes" in done.stderr


@pytest.fixture
def finished(copy_of_run, tmp_path):
    run = copy_of_run(tmp_path, "train", *SMALL, "network.n_hidden=8", "trainer.max_epochs=1")
    return run / "result.json", read_json(run / "result.json")


def test_collected_rows_record_their_origin_and_the_rest_is_counted(blockspike, finished, tmp_path):
    path, _ = finished
    assert blockspike("collect").stdout == "outputs/tables/runs.csv: 1 run\n"
    shutil.copytree(path.parent, tmp_path / "outputs" / "killed")
    (tmp_path / "outputs" / "killed" / "result.json").unlink()
    assert "1 run; not in it: 1 interrupted (blockspike status)" in blockspike("collect").stdout
    (row,) = pd.read_csv(tmp_path / "outputs/tables/runs.csv").to_dict("records")
    for name in ("config_hash", "git_sha", "git_dirty", "machine", "python", "version.torch"):
        assert row[name] == row[name], name  # not NaN


def test_one_recipe_on_two_data_sets_is_two_runs(blockspike, finished, tmp_path, data_dir):
    """Even if the second file has the same content."""
    same = ("data=nmnist", f"data.path={data_dir / 'nmnist_sample.h5'}", *SMALL[1:])
    blockspike("train", *same, "network.n_hidden=8", "trainer.max_epochs=1")
    blockspike("collect")
    table = pd.read_csv(tmp_path / "outputs/tables/runs.csv")
    assert sorted(table["data_config"]) == ["nmnist", "nmnist_sample"]
    assert table["config_hash"].nunique() == 2


def test_the_first_of_two_folders_with_the_same_run_is_collected_with_a_warning(
    blockspike, finished, tmp_path
):
    _, row = finished
    for name in ("copy", "zcopy"):
        (tmp_path / "outputs" / name).mkdir()
        (tmp_path / "outputs" / name / "result.json").write_text(json.dumps(row))
    done = blockspike("collect")
    (line,) = done.stderr.splitlines()
    assert "copy: the same run" in line and row["config_hash"] in line and "zcopy" in line
    (collected,) = pd.read_csv(tmp_path / "outputs/tables/runs.csv").to_dict("records")
    assert collected["run"] == "copy"


def test_a_damaged_result_is_refused(blockspike, finished, tmp_path):
    path, _ = finished
    copy = tmp_path / "outputs" / "copy" / "result.json"
    copy.parent.mkdir()
    copy.write_text(path.read_text()[:50])
    said = blockspike("collect", check=False).stderr
    assert "copy/result.json: expected" in said and "damaged" in said


def test_numbers_and_words_in_one_column_make_a_table(blockspike, finished, tmp_path):
    _, row = finished
    other = tmp_path / "outputs" / "other" / "result.json"
    other.parent.mkdir()
    other.write_text(json.dumps({**row, "config_hash": "other", "trainer.devices": "auto"}))
    blockspike("collect")
    table = pd.read_parquet(tmp_path / "outputs/tables/runs.parquet")
    assert table["trainer.devices"].tolist() == ["1", "auto"]
