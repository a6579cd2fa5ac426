"""The dashboard as a server would receive it; none is contacted."""

import re
import warnings
from importlib.util import find_spec
from typing import Any

import pytest
from test_train import SMALL
from wandb_file import logged_runs

pytestmark = pytest.mark.skipif(find_spec("wandb_workspaces") is None, reason="needs extra wandb")


@pytest.fixture
def module() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from pydantic, when imported
        from blockspike.app import wandb_dashboard
    return wandb_dashboard


@pytest.fixture
def section(module) -> dict[str, Any]:
    view = module.dashboard("my_team", "spikes")._to_model()
    assert (view.entity, view.project) == ("my_team", "spikes")
    return view.spec.model_dump(by_alias=True, exclude_none=True)["section"]


def panels_of(section: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return {
        s["name"]: [{"kind": p["viewType"], **p["config"]} for p in s["panels"]]
        for s in section["panelBankConfig"]["sections"]
    }


def test_sections_and_axes(section):
    panels = panels_of(section)
    assert list(panels) == [
        "Test accuracy", "Accuracy", "Loss", "Firing rates", "Optimisation", "Media",
        "Fits of neurons", "Time",
    ]  # fmt: skip
    lines = [p for own in panels.values() for p in own if p["kind"] == "Run History Line Plot"]
    assert len(lines) == 10 and {p["xAxis"] for p in lines} == {"epoch"}
    assert section["settings"]["shouldAutoGeneratePanels"]


def test_runs_and_bars_are_grouped(section):
    (runs,) = section["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("run", "group"), ("config", "choices.value.model"), ("config", "model.value.arp_ms"),
        ("config", "data_config.value"), ("config", "network.value.n_hidden"),
        ("config", "choices.value.population"),
    ]  # fmt: skip
    bars = panels_of(section)["Test accuracy"]
    assert [p["metrics"] for p in bars] == [["test_accuracy"], ["val_accuracy"]]
    assert not any(p.get("groupBy") for p in bars)  # a mean over different neurons
    assert {p["groupAgg"] for p in bars} == {"mean"}


@pytest.mark.slow
def test_it_shows_metrics_that_runs_log(blockspike, tmp_path, section):
    blockspike("train", *SMALL, "debug=fast", "logger=wandb")
    few = ("data.n_cells=1", "data.duration_s=3", "data.dt_ms=0.5", "population.n_starts=2")
    blockspike("fit", "experiment=recovery", *few, "trainer.max_epochs=1", "logger=wandb")
    runs = logged_runs(tmp_path)
    logged = {name for run in runs for row in (run.summary, *run.history) for name in row}
    shown = [p for own in panels_of(section).values() for p in own]
    names = {name for p in shown for name in (*p.get("metrics", ()), *p.get("mediaKeys", ()))}
    assert len(runs) == 2 and len(names) > 10
    assert not names - logged
    patterns = [p["metricRegex"] for p in shown if "metricRegex" in p]
    layers = [[name for name in logged if re.fullmatch(x, name)] for x in patterns]
    assert list(map(len, layers)) == [2, 2]
