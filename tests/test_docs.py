"""README, CONTRIBUTING.md and docs/ are true.

The commands and Python blocks of a page run one after the other in one folder, as printed or, where
that takes longer than seconds, in a short form: see `printed_commands.short`. `.ci/run` runs some
targets of make as they are. What can run in neither stands in EXEMPT with its reason; of those,
configurations are composed. So are those of the commands at the heads of configuration files, which
are not run.
"""

import linecache
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from blockspike.app import evaluate
from blockspike.benchmark import guard, studies, training_step
from page_files import write_cell, write_lab
from printed_commands import (
    EXEMPT,
    PAGES,
    ROOT,
    commands,
    composed,
    parts,
    run_by_ci,
    short,
    to_run,
)

HEADS = [
    line.removeprefix("# ")
    for path in sorted((ROOT / "conf").rglob("*.yaml"))
    for line in path.read_text().splitlines()
    if line.startswith("# blockspike ")
]
CARDS = sorted((ROOT / "src" / "blockspike" / "pretrained").glob("*_*.md"))


def printed() -> set[str]:
    return {command for page in PAGES for command in commands(page)}


@pytest.fixture
def small(monkeypatch):
    """Shrink sizes that no option reaches."""
    monkeypatch.setattr(evaluate, "linear_baseline", lambda train, val, test: 0.1)
    monkeypatch.setattr(studies, "STEPS_MS", (8.0, 1.0, 0.0125))
    monkeypatch.setattr(training_step, "PAPER", training_step.Size(8, 30, 16))
    monkeypatch.setattr(guard, "_SHAPE", (6, 2, 20))
    monkeypatch.setattr(guard.dynamics, "GUARD", guard.dynamics.Size(64, 2, 8, 5))
    for pair in guard.FLOORS:
        monkeypatch.setitem(guard.FLOORS, pair, 1e-9)


@pytest.fixture
def my_cell(tmp_path):
    write_cell(tmp_path / "my_cell.npz")


@pytest.mark.slow
@pytest.mark.usefixtures("small", "my_cell", "my_lab")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if to_run(p)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_a_page_runs_from_top_to_bottom(page, blockspike, tmp_path, data_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}  # later blocks may use what earlier ones defined
    for kind, text in to_run(page):
        if kind == "python":
            exec(compile(text, str(page), "exec"), names)
        else:
            run_shortly(text, blockspike, data_dir, tmp_path)


def run_shortly(command: str, blockspike, data_dir: Path, folder: Path) -> None:
    if command == "make help":
        shown = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True)
        assert b"make demo" in shown.stdout
        return
    assert parts(command), f"{command}: runs nothing of blockspike; run it, or add it to EXEMPT"
    for words in parts(command):
        if words[0] == "blockspike" and "trainer=ddp_cpu" in words:  # starts its own file again
            arguments = [*short(words, data_dir), f"data_dir={data_dir}"]
            process = [sys.executable, "-m", "blockspike", *arguments]
            subprocess.run(process, cwd=folder, check=True)
        else:
            assert words[0] == "blockspike", command
            blockspike(*short(words, data_dir))


def test_commands_are_found():
    found = printed()
    assert sum(command.startswith("blockspike ") for command in found) > 25
    assert sum(command.startswith("make ") for command in found) > 15
    assert run_by_ci() >= {"make test", "make lint", "make demo", "make figures", "make report"}
    assert len(HEADS) > 40


def test_variables_of_make_that_are_printed_exist():
    words = [
        word for command in printed() if command.startswith("make ") for word in command.split()
    ]
    names = {word.split("=")[0] for word in words if "=" in word}
    makefile = (ROOT / "Makefile").read_text()
    assert {"RESULTS"} <= names <= set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))


def test_exempt_are_only_commands_that_are_printed():
    assert not set(EXEMPT) - printed()
    assert all(len(reason) > 10 for reason in EXEMPT.values())


@pytest.mark.parametrize("command", sorted(EXEMPT))
def test_what_is_exempt_is_at_least_there(blockspike, command):
    for words in parts(command):
        if words[0] == "blockspike":
            for arguments in composed(words):
                blockspike(*arguments)
        if words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), command
        for word in words:
            if word.endswith((".py", ".ipynb")):
                assert (ROOT / word).is_file(), command


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(set(HEADS)))
def test_commands_at_the_heads_of_configuration_files_have_a_configuration(blockspike, command):
    for part in command.split(" && "):
        for arguments in composed(shlex.split(part, comments=True)):
            assert blockspike(*arguments).stdout


@pytest.mark.slow
@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_commands_on_the_cards_of_trained_networks_have_a_configuration(blockspike, card):
    found = commands(card)
    assert {command.split()[1] for command in found} == {"train", "evaluate"}
    for command in found:
        (arguments,) = composed(shlex.split(command))
        assert blockspike(*arguments).stdout


def test_the_map_of_the_house_is_true():
    house = (ROOT / "docs" / "development" / "house.md").read_text()
    room, drawn, source = Path(), set(), ROOT / "src" / "blockspike"
    for indent, name in re.findall(r"^(  |    )([a-z_]+(?:\.py|/))", house, re.MULTILINE):
        room = room if len(indent) == 4 else Path()
        assert (source / room / name).exists(), f"{room}/{name}"
        drawn.add((room / name).as_posix())
        room = room / name if len(indent) == 2 else room
    packages = {path.parent.relative_to(source) for path in source.rglob("__init__.py")}
    rooms = {path.as_posix() for path in packages if len(path.parts) == 1}
    assert rooms <= drawn and len(drawn) > 30


def test_the_readme_is_short_and_prints_its_output(capsys):
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 120
    (source,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", readme, re.DOTALL)
    exec(source, {})
    assert capsys.readouterr().out == shown


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """Make a folder with exactly the files that docs/howto/extend.md shows."""
    for name, value in write_lab(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "my_lab"]:
        del sys.modules[name]


@pytest.mark.slow
def test_a_custom_model_learns_and_its_run_is_collected(blockspike, my_lab):
    blockspike(
        "train", "--config-dir", "my_conf", "model=soft_reset", "data=two_tones",
        "network.n_hidden=32", "trainer.max_epochs=10", "optimizer.lr=0.02", "model.tau_ms=10",
        "network.n_layers=1", "experiment_name=learns",
    )  # fmt: skip
    (run,) = (p.parent for p in (my_lab / "outputs" / "learns").rglob("result.json"))
    scores = blockspike("evaluate", str(run), "--trust")
    assert pd.read_json(run / "result.json", typ="series")["test_accuracy"] > 0.8, scores.stdout
    blockspike("plot", "run", str(run))
    assert (run / "figures" / "raster.png").is_file()
    blockspike("collect")
    (row,) = pd.read_csv(my_lab / "outputs" / "tables" / "runs.csv").to_dict("records")
    assert row["data_set"] == "Two tones"
    assert row["model._target_"] == "my_lab.neurons.SoftResetLayer"


WRONG = """
def reverse_step(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    grad_before = grad_state[0] + (grad_spike - reset_has_grad * grad_state[0]) * slope
    return grad_before, (grad_before * state[0],), (grad_before,)
"""  # β is missing from the last


@pytest.mark.slow
def test_a_custom_model_is_small_and_its_derivative_right(my_lab):
    assert len((my_lab / "my_lab" / "neurons.py").read_text().splitlines()) <= 60
    runpy.run_path(str(my_lab / "my_lab" / "check.py"))
    source = (my_lab / "my_lab" / "neurons.py").read_text()
    wrong = source.replace("SOFT_RESET =", f"{WRONG}\n\nSOFT_RESET =")
    wrong = wrong.replace("step=step)", "step=step, reverse_step=reverse_step)")
    assert wrong.count("reverse_step") == 3
    (my_lab / "my_lab" / "neurons.py").write_text(wrong)
    for name in ("my_lab.neurons", "my_lab"):
        del sys.modules[name]
    linecache.clearcache()
    with pytest.raises(AssertionError, match="not close"):  # nor is the old kernel taken
        runpy.run_path(str(my_lab / "my_lab" / "check.py"))


def test_a_wrong_argument_of_a_custom_model_is_named(blockspike, my_lab):
    arguments = ("train", "--config-dir", "my_conf", "model=soft_reset", "data=two_tones")
    done = blockspike(*arguments, "+model.tau=3", check=False)
    assert done.returncode == 2 and "tau" in done.stderr
    done = blockspike(*arguments, "model.tau_ms=-3", check=False)
    assert done.returncode == 2 and "tau_ms" in done.stderr
