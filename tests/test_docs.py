"""Every file and every command on the pages of docs/ that show how to do something works."""

import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md")), *sorted((ROOT / "conf").rglob("*.yaml"))]
COMMAND = re.compile(r"blockspike ((?:prepare|train|evaluate|benchmark|figures|status) [^`|\n]*)")
# What cannot be composed without a file, a folder of one's own, or is a flag.
NEEDS_MORE = ("--config-dir", "--help", "--check", "data.raw=<", "…")
EXTEND = (DOCS / "extend.md").read_text()


def blocks(language: str, text: str = EXTEND) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_commands_on_sweeps_run(tmp_path, data_dir):
    """Each in a process of its own: one of them starts another."""
    lines = "".join(blocks("bash", (DOCS / "sweeps.md").read_text())).splitlines()
    assert len(lines) == 4
    for line in lines:
        _, name, *arguments = shlex.split(line)
        extra = (f"data_dir={data_dir}", "data.n_steps=20", "data.dt_ms=20")
        command = [sys.executable, "-m", "blockspike.cli", name, *arguments]
        command += extra if name == "train" else ()
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.rglob("result.json"))) == 9


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    """A stranger's folder with exactly the files that docs/extend.md shows."""
    for source in blocks("python"):
        path = tmp_path / source.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    names = re.findall(r"`(my_conf/[a-z_/]+\.yaml)`", EXTEND)
    assert len(names) == len(blocks("yaml")) == len(blocks("python")) == 2
    for name, source in zip(names, blocks("yaml"), strict=True):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    write_tones(tmp_path / "my_recordings")
    monkeypatch.syspath_prepend(tmp_path)
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


def test_a_strangers_model_and_data_set_train_sweep_and_are_collected(blockspike, my_lab):
    for line in "".join(blocks("bash")).splitlines():
        _, *arguments = shlex.split(line)
        blockspike(*arguments)
    table = pd.read_csv(my_lab / "outputs" / "tables" / "runs.csv")
    assert set(table["data_set"]) == {"Two tones"}
    assert set(table["model._target_"].dropna()) == {"my_lab.neurons.SoftResetLayer"}
    blockspike(
        "train", "--config-dir", "my_conf", "model=soft_reset", "data=two_tones",
        "network.n_hidden=32", "trainer.max_epochs=25", "optimizer.lr=0.01", "model.tau_ms=10",
        "experiment_name=learns",
    )  # fmt: skip
    (run,) = (p.parent for p in (my_lab / "outputs" / "learns").rglob("result.json"))
    scores = blockspike("evaluate", f"run={run}")
    assert pd.read_json(run / "result.json", typ="series")["test_accuracy"] > 0.8, scores.stdout
    blockspike("figures", f"run={run}")
    assert (run / "figures" / "raster.png").is_file()


def test_a_wrong_argument_of_a_strangers_model_is_named(blockspike, my_lab):
    arguments = ("train", "--config-dir", "my_conf", "model=soft_reset", "data=two_tones")
    done = blockspike(*arguments, "+model.tau=3", check=False)
    assert done.returncode == 2 and "tau" in done.stderr
    done = blockspike(*arguments, "model.tau_ms=-3", check=False)
    assert done.returncode == 2 and "tau_ms" in done.stderr


def commands() -> list[str]:
    """Every command in a page or at the head of a configuration file, once."""
    found = {m.strip() for page in PAGES for m in COMMAND.findall(page.read_text())}
    found = {part.partition("#")[0].strip() for f in found for part in f.split("&& blockspike ")}
    return sorted(c for c in found if "=" in c and not any(x in c for x in NEEDS_MORE))


@pytest.mark.parametrize("command", commands())
def test_every_command_that_is_printed_has_a_configuration(blockspike, command):
    """Those of README and pages also run, here or in test_readme.py, where they end in minutes."""
    name, *overrides = shlex.split(command)
    several = [o for o in overrides if o != "-m"]
    first = [o.split(",")[0] if "[" not in o and name == "train" else o for o in several]
    blockspike(name, "--cfg", "job", *first)


def test_commands_are_found():
    assert len(commands()) > 50


def test_every_module_and_target_that_is_printed_exists():
    text = "".join(page.read_text() for page in PAGES)
    for module in set(re.findall(r"python -m\s+(blockspike[a-z_.]+)", text)):
        assert find_spec(module.rstrip(".")), module
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    printed = set(re.findall(r"`make ([a-z-]+)", text))
    assert "figures" in printed and printed <= targets, printed - targets
