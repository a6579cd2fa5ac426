"""Refused commands, and failures before there is anything to keep, leave no file behind."""

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
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["joblib", "slurm"])
def test_a_launcher_that_is_not_installed_is_named(monkeypatch, capfd, tmp_path, name):
    def missing(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr("blockspike.app.overrides.version", missing)
    line = refused(monkeypatch, capfd, tmp_path, f"train -m sweep={name} seed=0,1")
    assert f"got {name}; install it with pip install 'blockspike[sweep]'" in line
    assert not list(tmp_path.iterdir())


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
    code = (
        f"import sys; sys.argv[1:] = {command.split()}; from blockspike.app.cli import main; main()"
    )
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
