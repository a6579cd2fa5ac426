"""Searches: refused options, the value for Hydra, kills, failed trials, launchers, figures."""

import random
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hydra._internal.hydra import Hydra
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from blockspike.files import read_json, write_json
from blockspike.runs.sweeps import run_states
from blockspike.search.study import read_studies
from blockspike.training.metrics_table import read_metrics
from killed_search import trials
from killed_sweep import interrupted, killed, n_epochs, start, wait_for

ROOT = Path(__file__).parents[2]
SMALL = ("data.n_steps=40", "data.dt_ms=10", "data.batch_size=50", "threads=1")
SEARCH = (
    "train", "-m", "search=nmnist_sample", *SMALL, "trainer.max_epochs=3", "search.n_trials=8",
    "search.n_random_trials=3", "search.n_unpruned_trials=2",
    "search.space.network.n_hidden=[8,16]", "search.space.optimizer.lr=[1e-4,1e-2,log]",
)  # fmt: skip


@pytest.fixture
def values(monkeypatch) -> list:
    """What jobs return to Hydra."""
    found, run, multirun = [], Hydra.run, Hydra.multirun

    def run_one(*args, **kwargs):
        found.append((job := run(*args, **kwargs)).return_value)
        return job

    def run_many(*args, **kwargs):
        batches = multirun(*args, **kwargs)
        found.extend(job.return_value for batch in batches for job in batch)
        return batches

    monkeypatch.setattr(Hydra, "run", run_one)
    monkeypatch.setattr(Hydra, "multirun", run_many)
    return found


@pytest.mark.parametrize("monitor", ["val/accuracy", "val/loss"])
def test_hydra_gets_the_validation_value_of_the_chosen_epoch(
    blockspike, tmp_path, values, copy_of_run, monitor
):
    """Also of a run that is found finished; never a test value."""
    run = ("train", "data=nmnist_sample", *SMALL, "network.n_hidden=8", "trainer.max_epochs=2")
    folder = copy_of_run(tmp_path, *run, f"monitor={monitor}")
    values.clear()
    assert "finished, skipped" in blockspike(*run, f"monitor={monitor}").stdout
    row = read_json(folder / "result.json")
    chosen = read_metrics(folder / "metrics.csv").set_index("epoch").loc[row["chosen_epoch"] - 1]
    assert values == [chosen[monitor]]
    assert monitor == "val/loss" or values == [row["val_accuracy"]]


@pytest.mark.slow
def test_a_sweeper_gets_the_value_of_new_and_finished_runs_and_none_of_failed_ones(
    blockspike, values
):
    sweep = ("train", "-m", *SMALL, "network.n_hidden=8", "trainer.max_epochs=1", "seed=0,1")
    blockspike(*sweep)
    blockspike(*sweep)
    assert None not in values and values[:2] == values[2:] and len(values) == 4
    blockspike(*sweep, "network.scores=nothing", check=False)
    assert values[4:] == [None, None]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("search=nmnist_sample",), "search: expected -m and search=NAME"),
        (("search.space.optimizer.rate=[0,1]",), "optimizer has _partial_, _target_, eps, fused"),
        (("seed=0,1",), "seed: expected one value in a search, got 0,1"),
        (("optimizer.lr=0.1",), "optimizer.lr: expected no value next to search.space.optimizer"),
        (("search.space.network.n_hidden=[1.5,2.5]",), "network.n_hidden"),
        (("search.space.network.scores=[choice,sum]",), "search.space.network.scores: expected"),
        (("sweep=joblib",), "search.batch_size: expected the number of trials"),
        (("search.n_trials=0",), "search.n_trials: expected an integer ≥ 1, got 0"),
        (("search.trials=3",), "search.trials"),
        (("monitor=test/accuracy",), "monitor: expected val/accuracy or val/loss"),
        (("trainer.max_epochs=0",), "trainer.max_epochs: expected an integer ≥ 1, got 0"),
        (("data.validation_fraction=0",), "search: expected nothing that follows"),
        (("data=shd",), "expected prepared data"),
        (("hydra/sweeper=optuna",), "hydra/sweeper: expected search=NAME, a search that resumes"),
        (("sweep=optuna",), "sweep: expected search=NAME"),
    ],
)
def test_a_wrong_search_is_refused_before_its_first_trial(blockspike, tmp_path, args, words):
    flags = () if args == ("search=nmnist_sample",) else ("-m", "search=nmnist_sample")
    done = blockspike("train", *flags, *args, check=False)
    assert done.returncode == 2 and words in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_space_without_a_search_is_refused(blockspike, tmp_path):
    done = blockspike("train", "search.space.optimizer.lr=[1e-4,1e-2]", check=False)
    assert done.returncode == 2 and "expected -m and search=NAME" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_an_experiment_file_is_refused_in_a_search(blockspike, tmp_path):
    folder = tmp_path / "my_conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "many.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 0,1\n"
    )
    args = ("-m", "--config-dir", "my_conf", "experiment=many", "search=nmnist_sample")
    done = blockspike("train", *args, check=False)
    assert done.returncode == 2 and "hydra.sweeper.params: expected nothing" in done.stderr


@pytest.fixture(scope="module")
def searched(tmp_path_factory, data_dir) -> Path:
    folder = tmp_path_factory.mktemp("searched")
    assert start(folder, data_dir, *SEARCH).wait() == 0
    return folder


@pytest.fixture
def copied(searched, tmp_path) -> Path:
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.slow
def test_a_repeatedly_killed_search_gives_the_same_trials(searched, tmp_path, data_dir):
    """Each kill is an epoch or two later; `tools/killed_search.py` is the long form."""
    found, rng, amid = trials(searched), random.Random(3), set()
    n_pruned = sum(state == "PRUNED" for state, *_ in found)
    assert len(found) == 8 and n_pruned > 0
    for _ in range(3):
        process = start(tmp_path, data_dir, *SEARCH)
        enough = n_epochs(tmp_path) + rng.randint(1, 2)
        wait_for(lambda enough=enough: n_epochs(tmp_path) >= enough, process)
        assert killed(process, rng.uniform(0, 0.2))
        amid |= set(interrupted(tmp_path))
    assert amid
    assert start(tmp_path, data_dir, *SEARCH).wait() == 0
    assert trials(tmp_path) == found
    states = run_states(tmp_path / "outputs")["state"].value_counts()
    assert states["pruned"] == n_pruned and states["done"] == 8 - n_pruned


@pytest.mark.slow
def test_a_finished_search_runs_nothing_and_a_longer_one_continues(blockspike, copied):
    before, written = trials(copied), {p: p.stat().st_mtime for p in copied.rglob("*.ckpt")}
    shown = blockspike(*SEARCH).stdout
    assert "8 trials" in shown and "skipped" not in shown and "epoch 1/3" not in shown
    assert {p: p.stat().st_mtime for p in copied.rglob("*.ckpt")} == written
    best = max(value for state, _, value, _ in before if state == "COMPLETE")
    assert f"val/accuracy {best:.4g}" in shown
    blockspike(*SEARCH, "search.n_trials=9")
    assert trials(copied)[:8] == before and len(trials(copied)) == 9


@pytest.mark.slow
def test_a_search_whose_record_is_lost_takes_its_finished_runs(blockspike, copied):
    before = trials(copied)
    (file,) = copied.rglob("studies.db")
    file.unlink()
    assert "epoch 1/3" not in blockspike(*SEARCH).stdout
    assert trials(copied) == before


@pytest.mark.slow
def test_a_run_of_other_data_is_no_trial(blockspike, copied):
    (file,) = copied.rglob("studies.db")
    file.unlink()
    for path in copied.rglob("data.json"):
        write_json(path, read_json(path) | {"data_sha256": "0" * 64})
    done = blockspike(*SEARCH, check=False)
    assert done.returncode == 2 and "the data have changed since the run started" in done.stderr
    assert trials(copied) == []


@pytest.mark.slow
def test_a_repeated_trial_is_not_trained_again(blockspike, tmp_path):
    none = ("search.space.optimizer.lr=null", "search.space.network.n_hidden=null")
    none = (*none, "search.space.network.dropout=null", "search.n_trials=3", "search.prune=false")
    space = "search.space.network.scores=[choice,sum,mean]"
    shown = blockspike(*SEARCH, *none, space, "trainer.max_epochs=1").stdout
    n_runs = len(list(tmp_path.rglob("result.json")))
    assert n_runs < 3 and f"; {n_runs} of 3 epochs" in shown
    assert f"an earlier one, not trained again: {3 - n_runs}" in shown


@pytest.mark.slow
def test_other_launchers_give_the_same_trials(tmp_path, data_dir):
    """In batches of two; a trial does not know the values of its own batch."""
    few = (*SEARCH, "search.batch_size=2", "search.n_trials=3", "search.n_random_trials=1")
    few = (*few, "trainer.max_epochs=1")
    folders = [tmp_path / name for name in ("serial", "joblib", "submitit_local")]
    for folder in folders:
        assert start(folder, data_dir, *few, f"sweep={folder.name}").wait() == 0
    one, *others = map(trials, folders)
    assert len(one) == 3 and others == [one, one]


@pytest.mark.slow
def test_failed_trials_are_kept_and_named_and_the_search_continues(blockspike, tmp_path):
    space = "search.space.network.scores=[choice,sum,nothing]"
    args = (*SEARCH, space, "search.n_trials=4", "trainer.max_epochs=1")
    done = blockspike(*args, check=False)
    states = [state for state, *_ in trials(tmp_path)]
    assert done.returncode == 2 and set(states) == {"COMPLETE", "FAIL"} and len(states) == 4
    for number in (i for i, state in enumerate(states) if state == "FAIL"):
        assert f"trial {number} (outputs/" in done.stderr.replace(f"{tmp_path}/", "")
    assert "network.scores=nothing" in done.stderr and "scores: expected" in done.stderr
    again = blockspike(*args, check=False)
    assert again.returncode == 2 and "scores: expected" in again.stderr
    assert "epoch 1/1" not in again.stdout


@pytest.mark.slow
def test_a_study_is_drawn_and_in_the_report(blockspike, copied):
    (path,) = blockspike("figures", "figure=search").stdout.split()
    (study,) = read_studies(copied / "outputs")
    assert Path(path).stem == f"search_{study.name}"
    (copied / path).unlink()
    blockspike("report")
    page = (copied / "outputs" / "report.html").read_text()
    assert f"<b>search_{study.name}</b>" in page and "studies.db</code>, 8 rows" in page
    assert ">pruned</span>" in page
    assert "<h3>" not in page  # a search is no sweep: all that differs varies at once
    blockspike("collect")
    table = pd.read_csv(copied / "outputs" / "tables" / "runs.csv")
    assert table["pruned"].eq(True).sum() == sum(t.state.name == "PRUNED" for t in study.trials)
    assert table["test_accuracy"].isna().equals(table["pruned"].eq(True))


def test_a_figure_without_a_study_names_the_command(blockspike):
    done = blockspike("figures", "figure=search", check=False)
    assert done.returncode == 2 and "blockspike train -m search=" in done.stderr


@pytest.mark.slow
def test_the_printed_line_is_what_a_wandb_agent_runs(tmp_path, data_dir, monkeypatch):
    """The agent names the run; its parameters are overrides."""
    page = (ROOT / "docs" / "howto" / "search.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
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
