"""`logger=mlflow`: refused without mlflow; complete and resumed with it."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from test_train import crashing

from blockspike.app import mlflow_run
from blockspike.files import read_json

QUICK = (
    "train", "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "network.n_hidden=8",
    "trainer.max_epochs=2", "threads=1", "logger=mlflow", "tags=[pilot,mine]",
    "training.lr_factors={*weight:2}",
)  # fmt: skip


def test_a_logger_that_is_not_installed_is_refused_with_the_line_that_installs_it(
    blockspike, monkeypatch
):
    monkeypatch.setattr(mlflow_run, "find_spec", lambda name: None)
    done = blockspike(*QUICK, "logger=mlflow", check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and "pip install 'blockspike[mlflow]'" in line


class Recorder:
    """In place of Lightning's logger: runs, their parameters and tags, in memory."""

    runs: dict[str, dict[str, Any]]

    def __init__(self, run_id: str | None = None, tags: dict[str, str] | None = None, **about: Any):
        self.run_id = run_id or f"id{len(self.runs)}"
        if run_id is None:
            self.runs[self.run_id] = {**about, "tags": tags or {}}
        self.experiment = self

    def log_hyperparams(self, parameters: dict[str, Any]) -> None:
        self.runs[self.run_id]["parameters"] = parameters

    def get_run(self, run_id: str) -> Any:
        return SimpleNamespace(data=SimpleNamespace(tags=self.runs[run_id]["tags"]))

    def set_tag(self, run_id: str, key: str, value: str) -> None:
        self.runs[run_id]["tags"][key] = value


def test_a_run_resumes_under_its_id_with_the_tags_of_its_last_start(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_run, "find_spec", lambda name: name)
    monkeypatch.setattr(mlflow_run, "MLFlowLogger", Recorder)
    monkeypatch.setattr(Recorder, "runs", {}, raising=False)
    run = tmp_path / "mine" / "seed=0"
    run.mkdir(parents=True)

    def start(*tags: str) -> dict[str, Any]:
        config = {"tags": tags, "data": {}, "training": {"lr_factors": {"*weight": 2}}}
        (run / "config.yaml").write_text(json.dumps(config))
        mlflow_run.mlflow_logger(str(run), str(tmp_path), "mine")
        (logged,) = Recorder.runs.values()
        return logged

    logged = start()
    assert logged["run_name"] == "mine/seed=0" and logged["experiment_name"] == "mine"
    assert logged["tracking_uri"] == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert logged["parameters"] == {"training.lr_factors._weight": 2}
    (digest,) = logged["tags"].values()
    assert start()["tags"] == {"config_hash": digest}
    assert start("pilot", "mine")["tags"] == {"config_hash": digest, "tags": "pilot, mine"}
    assert start("final")["tags"] == {"config_hash": digest, "tags": "final"}
    assert start()["tags"] == {"config_hash": digest, "tags": ""}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # mlflow's own
def test_a_run_is_logged_and_resumed(blockspike, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with crashing(monkeypatch, "last.ckpt", 2):
        blockspike(*QUICK, check=False)
    assert "continued after epoch 1" in blockspike(*QUICK).stdout
    (result,) = (tmp_path / "outputs").rglob("result.json")
    folder, row = result.parent, read_json(result)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'default'")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == str(folder.relative_to(tmp_path / "outputs"))
    assert run.data.tags["tags"] == "pilot, mine"
    assert run.data.tags["config_hash"] == row["config_hash"]
    assert run.data.params["network.n_hidden"] == "8" and run.info.status == "FINISHED"
    assert run.data.metrics["test/accuracy"] == pytest.approx(row["test_accuracy"])
    steps = [x.step for x in client.get_metric_history(run.info.run_id, "val/loss")]
    assert len(set(steps)) == 2
