"""Refused commands, and failures before there is anything to keep, leave no folder behind."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra

from blockspike.app.cli import main

SHD = "`blockspike prepare data=shd data.download=true` downloads them (0.2 GB)"
ALLEN = "`blockspike prepare data=allen data.download=true` downloads them"


def refused(monkeypatch, capfd, folder, command: str) -> str:
    """Run a command in a folder, as a user would; returns the one line that it prints."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["blockspike", *command.split()])
    GlobalHydra.instance().clear()
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train data=shd", SHD),
        ("train data=shd data_dir=mine", "data=shd data.download=true data_dir=mine` downloads"),
        ("train data=nmnist output_dir=results", "(1.2 GB)"),
        ("train data=hd_lauscher", "data/raw/hd_lauscher, got neither; put recordings there, or"),
        ("train data=shd hydra.run.dir=elsewhere/wrong", SHD),
        ("train data=shd replay=nothing.ckpt", SHD),
        ("train model.surrogate=relu data=shd", SHD),
        ("fit", "data.path: expected a value, got nothing; set it with data.path=…"),
        ("fit -m seed=0,1", "data.path: expected a value, got nothing; set it with data.path=…"),
        ("fit data=recordings", "data.path"),
        ("fit -m my_cell.npz", "override: expected key=value, such as data.path=my_cell.npz, got"),
        ("fit --config-dir=x a.npz", "override: expected key=value, such as data.path=a.npz, got"),
        ("train demo", "override: expected key=value, got demo"),
        ("train --config-dir nothing demo", "override: expected key=value, got demo"),
        ("inspect", "path: expected a value, got nothing"),
        ("train data=tonic", "data.dataset: expected a value, got nothing"),
        ("publish name=mine", "run: expected a value, got nothing"),
        ("-m train", "got '-m'; flags follow the command"),
        (
            "train experiment=demo +callbacks.x._target_=pytorch_lightning.callbacks."
            "StochasticWeightAveraging +callbacks.x.swa_lrs=0.1",
            "callbacks.x: expected an average that is validated",
        ),
        (
            "train experiment=demo scheduler=one_cycle callbacks=reload_best",
            "callbacks.reload_best: expected a scheduler that continues from the lowered",
        ),
        ("train experiment=demo +trainer.val_check_interval=0.5", "trainer.val_check_interval: ex"),
        (
            "train -m data=shd data.path='a/x.h5','b/x.h5'",
            "for both data.path='a/x.h5' and data",
        ),
        ("figures run=outputs/nothing x=seed", "x: expected figure=sweep, got run=outputs/nothing"),
        ("figures figure=search metric=x", "metric: expected figure=sweep, got figure=search"),
        ("fit data.path=nothing.npz", "nothing.npz"),
        ("fit experiment=paper_recordings", ALLEN),
        ("fit experiment=recovery data.n_cells=0", "n_cells"),
        ("prepare data=shd", SHD),
        ("prepare data=nmnist_sample data.download=true", "data=nmnist is the whole"),
        ("prepare data=allen", ALLEN),
        ("evaluate run=outputs/nothing", "outputs/nothing"),
        ("evaluate pretrained=hd_lauscher_alif", "data/raw/hd_lauscher"),
        ("evaluate neuron=nothing.json recording=nothing.npz", "nothing.json"),
        ("evaluate run=outputs/nothing stimulus=0", "stimulus: expected neuron=FILE with rec"),
        ("publish run=outputs/nothing name=mine", "outputs/nothing"),
        ("fit data.path=o'neil/cell.npz", "o'neil/cell.npz"),
        ("train data=nmnist_sample --config-dir my=conf", "my=conf' not found"),
        ("benchmark threads=-1", "threads: expected an integer ≥ 1, got -1"),
        ("figures run=outputs/nothing", "outputs/nothing"),
        ("figures figure=classification", "blockspike collect"),
        ("collect", "outputs"),
        ("status", "outputs"),
        ("report run=outputs/nothing", "outputs/nothing"),
        ("report table=nothing.csv", "nothing.csv"),
        ("benchmark study=nothing", "nothing"),
        ("benchmark contenders=nothing", "nothing"),
    ],
)
def test_a_refusal_is_one_line_and_leaves_nothing(monkeypatch, capfd, tmp_path, command, words):
    assert words in refused(monkeypatch, capfd, tmp_path, command)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["joblib", "slurm", "submitit_local"])
def test_a_launcher_that_is_not_installed_is_named(monkeypatch, capfd, tmp_path, name):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("blockspike.app.overrides.version", missing)
    line = refused(monkeypatch, capfd, tmp_path, f"train -m sweep={name} seed=0,1")
    assert f"got {name}; install it with pip install 'blockspike[sweep]'" in line
    assert not list(tmp_path.iterdir())


def test_other_folders_are_kept(monkeypatch, capfd, tmp_path):
    (tmp_path / "outputs" / "mine").mkdir(parents=True)
    refused(monkeypatch, capfd, tmp_path, "train data=shd")
    assert [p.name for p in (tmp_path / "outputs").rglob("*")] == ["mine"]
    (tmp_path / "empty").mkdir()
    refused(monkeypatch, capfd, tmp_path / "empty", "train data=shd output_dir=.")
    assert (tmp_path / "empty").is_dir()


@pytest.mark.parametrize(
    ("choice", "n_logs"),
    [pytest.param("seed=0,1", 2, marks=pytest.mark.slow), ("model=fused,nothing", 0)],
)
def test_a_sweep_keeps_the_errors_of_its_runs(monkeypatch, capfd, tmp_path, choice, n_logs):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["blockspike", "train", "-m", "data=shd", choice])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit):
        main()
    # The sweep's own process prints it, wherever the run's process sends its output.
    assert (SHD if n_logs else "model: expected one of") in "".join(capfd.readouterr())
    assert len(list(tmp_path.rglob("error.log"))) == n_logs
    assert not [p for p in tmp_path.rglob("*") if p.is_dir() and not list(p.iterdir())]


def test_a_run_s_folder_without_its_key_is_reported(monkeypatch, capfd, tmp_path):
    (tmp_path / "outputs/x/seed=0").mkdir(parents=True)
    line = refused(monkeypatch, capfd, tmp_path, "figures outputs/x/seed=0")
    assert "such as run=outputs/x/seed=0, got outputs/x/seed=0" in line


def test_the_package_runs_as_a_module_and_tells_its_version():
    command = [sys.executable, "-m", "blockspike", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"blockspike {version('blockspike')}\n"


def test_help_is_printed_in_any_locale():
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    code = "import sys; sys.argv[1:] = ['--help']; from blockspike.app.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "blockspike COMMAND" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "command", ["--help", "train --help", "completion bash", "inspect my_cell.npz"]
)
def test_a_reader_of_the_output_may_leave(command, tmp_path):
    np.savez(
        tmp_path / "my_cell.npz", current_pa=np.full(2000, 100.0), dt_ms=0.5,
        spike_times_s=np.linspace(0.1, 0.9, 9),
    )  # fmt: skip
    ours, theirs = os.pipe()
    os.close(ours)  # as `| head` does when it has enough
    code = f"import sys; sys.argv[1:] = {command.split()}; from blockspike.app.cli import main; main()"
    program = [sys.executable, "-c", code]
    done = subprocess.run(program, stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(theirs)
    progress = "Reading my_cell: 100 %\n" * command.startswith("inspect")
    assert (done.returncode, done.stderr) == (1, progress)


def test_a_pipe_that_breaks_elsewhere_is_an_error(monkeypatch):
    def broken() -> None:
        raise BrokenPipeError

    monkeypatch.setattr("blockspike.app.cli._main", broken)
    with pytest.raises(BrokenPipeError):
        main()
