"""Refused commands, and failures before there is anything to keep, leave no file behind."""

import os
import subprocess
import sys
from importlib.metadata import version

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
        ("train SAMPLE model.surrogate=relu", "model.surrogate: expected one of"),
        ("train +modle=fused", "modle: expected a key of train"),
        ("train SAMPLE +network.foo=1", "unexpected keyword argument 'foo'"),
        ("train SAMPLE +optimizer.foo=1", "optimizer: got an unexpected keyword argument 'foo'"),
        ("train network.foo=1", "network.foo"),
        ("train model=relu", "model/relu"),
        ("train SAMPLE network.n_hidden=100000000", "can't allocate memory"),
        ("train SAMPLE network.n_layers=0", "n_hidden, n_layers: expected a number for each"),
        ("train data=tonic", "data.dataset"),
        ("train --config-dir nothing", "nothing"),
        ("train data=nmnist_sample --config-dir my=conf", "my=conf"),
        ("fit", "data.path"),
        ("fit a.npz", "a.npz"),
        ("fit data.path=nothing.npz", "nothing.npz"),
        ("fit experiment=paper_recordings", ALLEN),
        ("fit experiment=recovery data.n_cells=0", "n_cells"),
        ("prepare data=shd", SHD),
        ("prepare data=nmnist_sample data.download=true", "data=nmnist is the whole"),
        ("prepare data=allen", ALLEN),
        ("evaluate outputs/nothing", "outputs/nothing"),
        ("evaluate hd_lauscher_alif", "data/raw/hd_lauscher"),
        ("evaluate nothing.json --recording nothing.npz", "nothing.json"),
        ("evaluate nothing.json", "--recording: expected"),
        ("publish outputs/nothing mine", "outputs/nothing"),
        ("collect", "outputs"),
        ("status", "outputs"),
        ("inspect nothing.npz", "nothing.npz"),
    ],
)
def test_an_error_is_one_line_and_leaves_nothing(
    monkeypatch, capfd, tmp_path, data_dir, command, words
):
    command = command.replace("SAMPLE", f"data_dir={data_dir}")
    assert words in refused(monkeypatch, capfd, tmp_path, command)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


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
    assert done.returncode == 0 and "prepare" in done.stdout, done.stderr


@pytest.mark.parametrize("command", ["--help", "train --help", "inspect my_cell.npz"])
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
    assert done.returncode == 1 and "Traceback" not in done.stderr
