"""Every file and every command on the pages of docs/ that show how to do something works."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

DOCS = Path(__file__).parents[1] / "docs"
EXTEND = (DOCS / "extend.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", EXTEND, re.DOTALL)


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
