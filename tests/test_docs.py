"""What README, CONTRIBUTING.md and docs/ print is true.

The commands and Python blocks of a page run one after the other in one folder, as printed or, where
that takes longer than seconds, in a short form: see `printed_commands.short`. `.ci/run` runs some
targets of make as they are. What can run in neither stands in EXEMPT with its reason; of those,
configurations are composed. So are those of the commands at the heads of configuration files, which
are not run.
"""

import linecache
import os
import re
import runpy
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from blockspike.benchmark import guard, studies, training_step
from blockspike.commands import evaluate
from blockspike.synthetic_cells import SyntheticCells
from printed_commands import (
    MODULES,
    PAGES,
    ROOT,
    composed,
    parts,
    python_and_commands,
    run_by_ci,
    short,
)

DOCS = ROOT / "docs"
EXTEND = (DOCS / "extend.md").read_text()
HEADS = [
    line.removeprefix("# ")
    for path in sorted((ROOT / "conf").rglob("*.yaml"))
    for line in path.read_text().splitlines()
    if line.startswith("# blockspike ")
]
CARDS = sorted((ROOT / "src" / "blockspike" / "pretrained").glob("*_*.md"))
_E7 = "data.dt_ms=0.05,0.1,0.5,1,2,4,8"
EXEMPT = {
    "source .venv/bin/activate": "changes the shell that it is typed into",
    "make setup": "the first step of every target that CI runs",
    ".venv/bin/pre-commit install": "changes the clone's git hooks",
    ".venv/bin/jupyter-execute --inplace notebooks/getting_started.ipynb": (
        "test_notebook.py runs the notebook, without writing it"
    ),
    "find src -name '*.nb?' -delete": "other tests use those kernels at the same time",
    **{
        f"blockspike train data=nmnist_sample network.n_hidden=32 optimizer.lr=1e30 "
        f"hydra.run.dir=outputs/wrong{replay}": "goes wrong, as it should; test_replay.py runs it"
        for replay in ("", " replay=outputs/wrong/bad_batch.ckpt")
    },
    "python tests/training/guard_cost.py": "needs the whole of HD-Lauscher, and minutes",
    "make faults": "half an hour; test_faults.py runs its short form",
    "make fuzz": "hours; test_fuzz.py runs its short form",
    "python tests/faults/fuzz.py npz --runs 20000": "minutes; test_fuzz.py runs its short form",
    "make endurance": "an hour and 14 GiB; test_endurance.py runs its short form",
    "python tests/commands/killed_sweep.py data": "minutes; test_sweeps.py runs its short form",
    "pip install 'blockspike[gpu]'": "downloads packages",
    "pip install 'blockspike[nwb]'": "downloads packages",
    "pip install 'blockspike[nir]'": "downloads packages",
    "pip install 'blockspike[wandb]'": "downloads packages",
    "make data-nmnist": "downloads 1.2 GB; test_download.py has a small server",
    "make data-shd": "downloads 0.2 GB; test_download.py has a small server",
    "make data-ephys": "downloads 146 cells; test_allen.py has made-up ones",
    f"blockspike train -m experiment=e7_recordings {_E7}": "needs those 146 cells",
    f"blockspike train -m experiment=e7_recordings_ours {_E7}": "needs those 146 cells",
    "make gpu-check": "needs a CUDA GPU; test_gpu_check.py runs its parts",
    "make nir-peers": "downloads four simulators; test_nir_peers.py does without them",
    "blockspike benchmark device=cuda": "needs a CUDA GPU",
    "blockspike train -m sweep=slurm hydra.launcher.partition=long "
    "hydra.launcher.timeout_min=600 experiment=e4_shd seed=0,1,2": "needs a Slurm cluster",
    "blockspike train -m sweep=slurm hydra.launcher.nodes=2 hydra.launcher.tasks_per_node=4 "
    "hydra.launcher.gpus_per_node=4 trainer=ddp +trainer.num_nodes=2 trainer.devices=4 "
    "experiment=e4_shd seed=0": "needs a Slurm cluster",
    "wandb leet": "takes over the terminal",
    "wandb login": "needs wandb's server",
    "wandb sync outputs/*/*/seed=*/wandb/offline-run-*": "needs wandb's server",
    "python -m blockspike.commands.wandb_dashboard ENTITY/PROJECT": (
        "needs wandb's server; test_wandb_dashboard.py does without"
    ),
}


def commands(page: Path) -> set[str]:
    return {text for kind, text in python_and_commands(page) if kind == "command"}


def to_run(page: Path) -> list[tuple[str, str]]:
    """What a page prints and nothing else runs, each once, in order."""
    elsewhere = set(EXEMPT) | run_by_ci()
    return [x for x in dict.fromkeys(python_and_commands(page)) if x[1] not in elsewhere]


def printed() -> set[str]:
    return {command for page in PAGES for command in commands(page)}


@pytest.fixture
def small(monkeypatch):
    """What no option makes small."""
    monkeypatch.setattr(evaluate, "linear_baseline", lambda train, val, test: 0.1)
    monkeypatch.setattr(studies, "STEPS_MS", (8.0, 1.0, 0.0125))
    monkeypatch.setattr(training_step, "PAPER", training_step.Size(8, 30, 16))
    monkeypatch.setattr(guard, "_SHAPE", (6, 2, 20))
    monkeypatch.setitem(guard.dynamics.SIZES, "guard", guard.dynamics.SIZES["small"])
    for pair in guard.FLOORS:
        monkeypatch.setitem(guard.FLOORS, pair, 1e-9)


@pytest.fixture
def my_cell(tmp_path):
    """The recording that pages call my_cell.npz, as long as the longest of them asks for."""
    (cell,) = SyntheticCells(n_cells=1, n_trials=2, duration_s=15.0).cells()
    trials = [np.asarray(trial[0], float) for trial in cell.spike_times_s]
    np.savez(
        tmp_path / "my_cell.npz", current_pa=cell.current_pa, dt_ms=cell.dt_ms,
        spike_times_s=np.concatenate(trials),
        spike_repeat=np.repeat(np.arange(len(trials)), [len(t) for t in trials]),
    )  # fmt: skip


@pytest.mark.usefixtures("small", "my_cell", "my_lab")
@pytest.mark.parametrize(
    "page", [p for p in PAGES if to_run(p)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_a_page_runs_from_top_to_bottom(page, blockspike, tmp_path, data_dir, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind, text in to_run(page):
        if kind == "python":
            exec(compile(text, str(page), "exec"), {})
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
            process = [sys.executable, "-m", "blockspike.cli", *arguments]
            subprocess.run(process, cwd=folder, check=True)
        elif words[0] == "blockspike":
            blockspike(*short(words, data_dir))
        else:
            program, flag, module, *arguments = words
            assert (program, flag, arguments) == ("python", "-m", []), command
            data = ("--data", str(data_dir / "hd_lauscher_sample.h5"))
            own = data if module.endswith("training_step") else ()
            import_module(module).main([*MODULES[module], *own])


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
    assert {"RUN", "RESULTS"} <= names <= set(re.findall(r"^([A-Z_]+) \?=", makefile, re.MULTILINE))


def test_exempt_are_only_commands_that_are_printed():
    assert not set(EXEMPT) - printed()
    assert all(len(reason) > 10 for reason in EXEMPT.values())


@pytest.mark.parametrize("command", sorted(EXEMPT))
def test_what_is_exempt_is_at_least_there(blockspike, command):
    for words in parts(command):
        if words[0] == "blockspike":
            blockspike(*composed(words))
        if words[:2] == ["python", "-m"]:
            assert find_spec(words[2]), command
        for word in words:
            if word.endswith((".py", ".ipynb")):
                assert (ROOT / word).is_file(), command


@pytest.mark.parametrize("command", sorted(set(HEADS)))
def test_commands_at_the_heads_of_configuration_files_have_a_configuration(blockspike, command):
    for part in command.split(" && "):
        shown = blockspike(*composed(shlex.split(part, comments=True)))
        assert ": " in shown.stdout


def test_pages_inside_the_package_print_no_other_commands():
    inside = [page for page in (ROOT / "src").rglob("*.md") if commands(page)]
    others = [page for page in inside if page not in CARDS]
    assert others
    for page in others:
        assert commands(page) <= printed() | run_by_ci(), page


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_commands_on_the_cards_of_trained_networks_have_a_configuration(blockspike, card):
    found = commands(card)
    assert {command.split()[1] for command in found} == {"train", "evaluate"}
    for command in found:
        assert ": " in blockspike(*composed(shlex.split(command))).stdout


def test_the_map_and_the_links_are_true():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
    readme = (ROOT / "README.md").read_text()
    for name in re.findall(r"^ {2,4}([a-z_]+(?:\.py|/))", readme, re.MULTILINE):
        assert list((ROOT / "src" / "blockspike").rglob(name.rstrip("/"))), name


def blocks(language: str) -> list[str]:
    """Code blocks of docs/extend.md."""
    return re.findall(rf"```{language}\n(.*?)```", EXTEND, re.DOTALL)


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """A stranger's folder with exactly the files that docs/extend.md shows."""
    for source in blocks("python"):
        path = tmp_path / source.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    names = re.findall(r"`(my_conf/[a-z_/]+\.yaml)`", EXTEND)
    assert len(names) == len(blocks("yaml")) == 2 and len(blocks("python")) == 3
    for name, source in zip(names, blocks("yaml"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    write_tones(tmp_path / "my_recordings")
    monkeypatch.syspath_prepend(tmp_path)
    paths = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    (allowed,) = re.findall(r"^export BLOCKSPIKE_ALLOW=(\w+)$", EXTEND, re.MULTILINE)
    monkeypatch.setenv("BLOCKSPIKE_ALLOW", allowed)
    yield tmp_path
    for name in [n for n in sys.modules if n.split(".")[0] == "my_lab"]:
        del sys.modules[name]


def write_tones(folder: Path) -> None:
    """Spikes that walk up or down 20 channels in 50 ms, with noise."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for split, n_samples in (("train", 200), ("test", 40)):
        label = rng.integers(0, 2, n_samples)
        channel = np.tile(np.arange(20), n_samples)
        falls = np.repeat(label, 20) == 1
        time_ms = 2.5 * np.where(falls, 19 - channel, channel) + rng.uniform(0, 2, len(channel))
        order = np.lexsort((time_ms, np.repeat(np.arange(n_samples), 20)))
        np.savez(
            folder / f"{split}.npz", time_ms=time_ms[order], channel=channel[order],
            n_events=np.full(n_samples, 20), label=label,
        )  # fmt: skip


def test_a_strangers_model_learns_and_its_run_is_collected(blockspike, my_lab):
    blockspike(
        "train", "--config-dir", "my_conf", "model=soft_reset", "data=two_tones",
        "network.n_hidden=32", "trainer.max_epochs=10", "optimizer.lr=0.02", "model.tau_ms=10",
        "network.n_layers=1", "experiment_name=learns",
    )  # fmt: skip
    (run,) = (p.parent for p in (my_lab / "outputs" / "learns").rglob("result.json"))
    scores = blockspike("evaluate", f"run={run}")
    assert pd.read_json(run / "result.json", typ="series")["test_accuracy"] > 0.8, scores.stdout
    blockspike("figures", f"run={run}")
    assert (run / "figures" / "raster.png").is_file()
    blockspike("collect")
    (row,) = pd.read_csv(my_lab / "outputs" / "tables" / "runs.csv").to_dict("records")
    assert row["data_set"] == "Two tones"
    assert row["model._target_"] == "my_lab.neurons.SoftResetLayer"


def test_a_strangers_model_is_small_and_its_derivative_right(my_lab):
    assert len((my_lab / "my_lab" / "neurons.py").read_text().splitlines()) <= 60
    runpy.run_path(str(my_lab / "my_lab" / "check.py"))
    source = (my_lab / "my_lab" / "neurons.py").read_text()
    wrong = source.replace("(beta * grad_before,)", "(grad_before,)")
    assert wrong != source
    (my_lab / "my_lab" / "neurons.py").write_text(wrong)
    for name in ("my_lab.neurons", "my_lab"):
        del sys.modules[name]
    linecache.clearcache()
    with pytest.raises(AssertionError, match="not close"):  # nor is the old kernel taken
        runpy.run_path(str(my_lab / "my_lab" / "check.py"))


def test_a_wrong_argument_of_a_strangers_model_is_named(blockspike, my_lab):
    arguments = ("train", "--config-dir", "my_conf", "model=soft_reset", "data=two_tones")
    done = blockspike(*arguments, "+model.tau=3", check=False)
    assert done.returncode == 2 and "tau" in done.stderr
    done = blockspike(*arguments, "model.tau_ms=-3", check=False)
    assert done.returncode == 2 and "tau_ms" in done.stderr
