"""Runs in MLflow (extra `mlflow`): named by their folder and resumed under their id."""

import fcntl
import os
import re
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import MLFlowLogger
from pytorch_lightning.utilities import rank_zero_only

from blockspike.files import write_text
from blockspike.runs.identity import content_hash, content_of
from blockspike.runs.run import flatten


class FolderLogger(MLFlowLogger):
    """Lightning's logger for the MLflow run of a folder.

    Its parameters are what the result depends on, of the first start; its tags are `config_hash`,
    their hash, and `tags`, those of the last start.

    Args:
        run_dir: folder of a started run.
        output_dir: folder of all runs, for the database `mlflow.db`.
        name: of the run.
        experiment: name of the experiment in MLflow.
        tracking_uri: address of an MLflow server; None = that database.
    """

    def __init__(
        self, run_dir: str, output_dir: str, name: str, experiment: str, tracking_uri: str | None
    ):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        root, self.id_file = Path(output_dir).absolute(), Path(run_dir, "mlflow_id")
        place: dict[str, Any] = {"tracking_uri": tracking_uri}
        if tracking_uri is None:
            place["tracking_uri"] = f"sqlite:///{root / 'mlflow.db'}"
            place["artifact_location"] = (root / "mlflow_artifacts").as_uri()
        run_id = self.id_file.read_text() if self.id_file.is_file() else None
        super().__init__(experiment, name, run_id=run_id, **place)
        self.lock = root / ".mlflow.lock"

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        """Start the run and log its configuration."""
        content = content_of(cast(DictConfig, OmegaConf.create(params)))
        with self.lock.open("w") as lock:  # runs of a sweep make one database
            fcntl.flock(lock, fcntl.LOCK_EX)
            client, run_id = self.experiment, str(self.run_id)
        client.set_tag(run_id, "config_hash", content_hash(content))
        client.set_tag(run_id, "tags", ", ".join(params["tags"]))
        if not self.id_file.is_file():
            write_text(self.id_file, run_id)
            own = {re.sub(r"[^\w./ -]", "_", k): v for k, v in flatten(content).items()}
            super().log_hyperparams(own)
