"""Searches: their trials are runs, which resume after kills and are pruned."""

import random
import re
from pathlib import Path

import optuna
import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from blockspike.files import read_json
from blockspike.runs.status import run_states
from blockspike.training.metrics_table import read_metrics
from killed_search import trials
from killed_sweep import interrupted, killed, n_epochs, start, wait_for

ROOT = Path(__file__).parents[2]
SMALL = ("data.n_steps=40", "data.dt_ms=10", "data.batch_size=50", "threads=1")
SEARCH = (
    "search", "nmnist_sample", *SMALL, "trainer.max_epochs=3", "search.n_trials=8",
    "search.space.network.n_hidden=[8,16]", "search.space.optimizer.lr=[1e-4,1e-2,log]",
)  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "Missing argument"),
        (("mine",), "search: expected one of nmnist_sample, shd, got mine"),
        (("nmnist_sample", "search.space.optimizer.rate=[0,1]"), "rate"),
        (("nmnist_sample", "search.space.optimizer.lr=[choice,1]"), "search.space.optimizer.lr:"),
        (("nmnist_sample", "search.trials=3"), "got {'trials'}"),
        (("nmnist_sample", "monitor=test/accuracy"), "monitor: expected val/accuracy or val/loss"),
        (("nmnist_sample", "data=shd"), "expected prepared data"),
    ],
)
def test_a_wrong_search_ends_in_one_line(blockspike, args, words):
    done = blockspike("search", *args, check=False)
    assert done.returncode == 2 and words in done.stderr and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def searched(tmp_path_factory, data_dir) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    assert start(folder, data_dir, *SEARCH).wait() == 0
    return folder


@pytest.mark.slow
def test_trials_are_runs_and_their_values_those_of_validation(searched):
    (file,) = searched.rglob("study.db")
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{file}")
    table = run_states(searched / "outputs")
    states = dict(zip(table["folder"], table["state"], strict=True))
    assert len(study.trials) == 8 and len(states) == 8
    for trial in study.trials:
        folder = Path(trial.user_attrs["run"])
        metrics = read_metrics(folder / "metrics.csv")["val/accuracy"]
        assert list(trial.intermediate_values.values()) == metrics.tolist()
        if trial.state.name == "COMPLETE":
            row = read_json(folder / "result.json")
            assert trial.value == row["val_accuracy"] and states[folder] == "done"
        else:
            assert trial.state.name == states[folder].upper() == "PRUNED"
    assert "PRUNED" in {trial.state.name for trial in study.trials}


@pytest.mark.slow
def test_a_repeatedly_killed_search_gives_the_same_trials(searched, tmp_path, data_dir):
    """Each kill is an epoch or two later; `tools/killed_search.py` is the long form."""
    rng, amid = random.Random(3), set()
    for _ in range(2):
        process = start(tmp_path, data_dir, *SEARCH)
        enough = n_epochs(tmp_path) + rng.randint(1, 2)
        wait_for(lambda enough=enough: n_epochs(tmp_path) >= enough, process)
        assert killed(process, rng.uniform(0, 0.2))
        amid |= set(interrupted(tmp_path))
    assert amid
    assert start(tmp_path, data_dir, *SEARCH).wait() == 0
    assert trials(tmp_path) == trials(searched)


@pytest.mark.slow
def test_a_finished_search_runs_nothing_and_another_space_is_refused(blockspike, tmp_path):
    few = (*SEARCH, "search.n_trials=2", "trainer.max_epochs=1")
    assert "epoch 1/1" in blockspike(*few).stdout
    again = blockspike(*few).stdout
    assert "epoch 1/1" not in again and "2 done" in again and "best: trial" in again
    done = blockspike(*few, "search.space.optimizer.lr=[1e-3,1e-2]", check=False)
    assert done.returncode == 2 and "another configuration or space" in done.stderr


@pytest.mark.slow
def test_the_printed_line_is_what_a_wandb_agent_runs(tmp_path, data_dir, monkeypatch):
    """The agent names the run; its parameters are overrides."""
    page = (ROOT / "docs" / "howto" / "search.md").read_text()
    (block,) = re.findall(r"```yaml\n(command:.*?|.*?\nparameters:.*?)```", page, re.DOTALL)
    sweep = yaml.safe_load(block)
    values = {"network.dropout": 0.25, "network.n_hidden": 64, "optimizer.lr": 0.001}
    assert sweep["parameters"].keys() == values.keys()
    parts = create_sweep_command_args({"args": {k: {"value": v} for k, v in values.items()}})
    *words, last = sweep["command"]
    words += parts[last.strip("${}")]
    assert f"```bash\n{' '.join(words)}\n```" in page

    for name, value in {"SWEEP_ID": "abc", "RUN_ID": "of-agent", "MODE": "offline"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    args = (*words[1:], *SMALL, "trainer.max_epochs=1")
    assert start(tmp_path, data_dir, *args).wait() == 0
    (folder,) = tmp_path.rglob("offline-run-*")
    assert folder.name.endswith("of-agent")
    assert interrupted(tmp_path) == [] and len(list(tmp_path.rglob("result.json"))) == 1
