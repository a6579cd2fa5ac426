"""Shared by all tests: the real recordings that the repository ships, prepared once."""

import os

os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton; see gpu_check.py

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    # A core each: threads of two workers that wait for each other took three times the CPU time.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hypothesis import settings

from blockspike.app.cli import main
from blockspike.data.nmnist import prepare_nmnist
from blockspike.data.shd_file import describe, find_h5, prepare_shd
from blockspike.files import SAMPLES

settings.register_profile("blockspike", deadline=None)  # an example may compile kernels
settings.load_profile("blockspike")

NMNIST_SAMPLE = SAMPLES / "nmnist" / "nmnist_1080.tar.xz"
HD_LAUSCHER_SAMPLE = SAMPLES / "hd_lauscher"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> Path:
    """A data folder with the prepared samples."""
    folder = tmp_path_factory.mktemp("data")
    prepare_nmnist(NMNIST_SAMPLE, folder / "nmnist_sample.h5")
    files = find_h5(HD_LAUSCHER_SAMPLE)
    prepare_shd(files, folder / "hd_lauscher_sample.h5", describe(files))
    return folder


@pytest.fixture(autouse=True)
def no_full_error(monkeypatch) -> None:
    """Errors are one line, whatever the environment or a test before says."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Tests that set no seed draw the same numbers, whatever ran before."""
    torch.manual_seed(0)


@dataclass
class Finished:
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


def exit_code(folder: Path, data_dir: Path, args: tuple[str, ...]) -> int:
    """Run `blockspike …` in a folder, as a user would but without a new interpreter."""
    with_data = [f"data_dir={data_dir}"] if args[0] in ("train", "prepare") else []
    if args[0] == "evaluate":
        with_data = [f"--data-dir={data_dir}"]
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        patch.setattr(sys, "argv", ["blockspike", *args, *with_data])
        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        finally:
            torch.set_num_threads(threads)
    return 0


@pytest.fixture(scope="session")
def copy_of_run(tmp_path_factory, data_dir) -> Callable[..., Path]:
    """Copies what `blockspike …` leaves in an empty folder; the same command runs only once."""
    made: dict[tuple[str, ...], Path] = {}

    def copy(to: Path, *args: str, sample: str = "") -> Path:
        """Returns the folder of the one run; `sample` is a name for the data in the folder."""
        if args not in made:
            folder = tmp_path_factory.mktemp("run")
            if sample:
                shutil.copy(data_dir / "nmnist_sample.h5", folder / sample)
            assert exit_code(folder, data_dir, args) == 0
            made[args] = folder
        shutil.copytree(made[args], to, dirs_exist_ok=True)
        (result,) = (to / "outputs").rglob("result.json")
        return result.parent

    return copy


@pytest.fixture
def blockspike(monkeypatch, capfd, tmp_path, data_dir):
    """Run `blockspike …` in an empty folder, as a user would but without a new interpreter."""

    def run(*args: str, check: bool = True) -> Finished:
        monkeypatch.chdir(tmp_path)
        capfd.readouterr()
        code = exit_code(tmp_path, data_dir, args)
        shown = capfd.readouterr()
        assert not check or code == 0, shown.err
        return Finished(code, shown.out, shown.err)

    return run
