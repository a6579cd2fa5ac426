"""Tab completion, typed into real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from blockspike.app.cli import COMMANDS
from blockspike.app.completion import candidates

BIN = Path(sys.executable).parent
START = {
    "bash": ["--norc", "--noprofile", "-i"],
    "zsh": ["-f", "-i"],
}


@pytest.fixture(params=sorted(START))
def shell(request, tmp_path):
    """An interactive shell in an empty folder, with completion enabled as --help describes."""
    program = shutil.which(request.param)
    if program is None:
        assert "REQUIRE_SHELLS" not in os.environ, f"{request.param} is not installed"
        pytest.skip(f"{request.param} is not installed")
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "PS1": "> ", "TERM": "dumb"}
    child = pexpect.spawn(
        program, START[request.param], cwd=tmp_path, env=env, encoding="utf-8", timeout=60,
        dimensions=(40, 400),
    )  # fmt: skip
    child.sendline(f'eval "$(blockspike completion {request.param})"; echo "is"on')
    child.expect("ison")
    yield child
    child.close(force=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("blockspike prep", "prepare"),
        ("blockspike train model=ad", "model=adlif"),
        ("blockspike train network.n_h", "network.n_hidden="),
        ("blockspike train model=se_adlif model.eu", "model.euler="),
        ("blockspike train -m model.max_d", "model.max_delay="),
        ("blockspike status exp", "experiment_name="),
        ("blockspike evaluate run=outp", "run=outputs"),
    ],
)
def test_tab_completes_what_is_typed(shell, tmp_path, typed, completed):
    (tmp_path / "outputs").mkdir()
    shell.send(f"{typed}\t")
    before = typed.rsplit(" ", 1)[0]
    assert shell.expect_exact(f"{before} {completed}") == 0  # the first of the patterns


def test_the_script_of_an_unknown_shell_is_refused():
    done = subprocess.run(
        [BIN / "blockspike", "completion", "fish"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "expected bash or zsh, got fish" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_completes_its_own_options_and_groups_only(command):
    found = candidates(COMMANDS, f"blockspike {command} ")
    assert found
    assert ("model=" in found) == (command == "train")
    assert not [x for x in found if "schema" in x]


def test_a_line_that_does_not_compose_completes_nothing():
    assert candidates(COMMANDS, "blockspike train model=nothing model.") == []


def test_completion_does_not_load_pytorch():
    code = "import sys; from blockspike.app.completion import candidates as c"
    code += "; c(('train',), 'blockspike train m')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"], check=False
    )
    assert done.returncode == 0
