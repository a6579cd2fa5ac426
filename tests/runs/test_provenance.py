"""The commit that a run records is blockspike's own, whatever repository it is installed in."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import blockspike
from blockspike.runs.run import provenance

SOURCE = Path(blockspike.__file__).parents[2]


def git(folder: Path, *args: str) -> str:
    own = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *own, *args]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path):
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "-m", "another project")
    return tmp_path


def test_a_checkout_has_its_commit():
    if not (SOURCE / ".git").exists():
        pytest.skip("not a checkout")
    assert provenance()["git_sha"] == git(SOURCE, "rev-parse", "HEAD")


@pytest.mark.slow
@pytest.mark.parametrize("place", ["venv", "src", "."])
def test_a_copy_in_another_projects_repository_has_no_commit(repository, place):
    """Installed in its virtual environment, as one of its packages, and at its root."""
    folder = repository / place
    if place == "venv":
        venv.create(folder)
        (folder,) = (folder / "lib").glob("python*/site-packages")
    folder.mkdir(exist_ok=True)
    package = folder / "blockspike"
    source = Path(blockspike.__file__).parent
    ignore = shutil.ignore_patterns("samples", "pretrained", "__pycache__")
    shutil.copytree(source, package, symlinks=True, ignore=ignore)
    code = (
        "from blockspike.runs.run import provenance as p; print(p()['git_sha'], p()['git_dirty'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=repository,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )  # fmt: skip
    assert done.stdout.split() == ["None", "False"]


def test_without_git_there_is_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    made = provenance()
    assert made["git_sha"] is None and not made["git_dirty"]
    assert made["versions"]["blockspike"]
