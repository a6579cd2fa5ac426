"""Runs in MLflow: named by their folder and resumed under their id.

mlflow, of the extra `mlflow`, is imported only when a run that logs to it starts.
"""

import fcntl
import os
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import MLFlowLogger

from blockspike.files import write_text
from blockspike.runs.identity import content_hash, content_of
from blockspike.runs.run import Run, cannot_lock, flatten, is_first_process


def mlflow_logger(
    run_dir: str, output_dir: str, experiment: str, tracking_uri: str | None = None
) -> MLFlowLogger:
    """Start or resume the MLflow run of `run_dir` and return Lightning's logger for it.

    Its name is the folder below `output_dir`; its parameters are what the result depends on, and
    its tag `config_hash` is their hash, as in `tables/runs.csv`. The words of the configuration's
    `tags` are one tag, `tags`, which follows each start's.

    Args:
        run_dir: folder of a started run.
        output_dir: folder of all runs, which holds the database `mlflow.db`.
        experiment: name of the experiment in MLflow.
        tracking_uri: address of an MLflow server; None = that database.

    Raises:
        ValueError: mlflow is not installed, or the file system has no locks.
    """
    if find_spec("mlflow") is None:
        raise ValueError("logger: expected mlflow, got none; pip install 'blockspike[mlflow]'")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    run, root = Run(Path(run_dir)), Path(output_dir).absolute()
    id_file = run.folder / "mlflow_id"
    options: dict[str, Any] = {
        "experiment_name": experiment,
        "run_name": os.path.relpath(run.folder, output_dir),
        "tracking_uri": tracking_uri or f"sqlite:///{root / 'mlflow.db'}",
        "artifact_location": None if tracking_uri else (root / "mlflow_artifacts").as_uri(),
    }
    content = content_of(run.config())
    tags = ", ".join(run.config().get("tags") or ())
    options["tags"] = {"config_hash": content_hash(content)} | ({"tags": tags} if tags else {})
    if not is_first_process():
        return MLFlowLogger(**options)  # which logs nothing
    with (root / ".mlflow.lock").open("w") as lock:  # runs of a sweep make one database
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise cannot_lock(root, error) from error
        if id_file.is_file():
            logger = MLFlowLogger(**options, run_id=id_file.read_text(encoding="utf-8"))
            client, run_id = logger.experiment, logger.run_id
            if tags or "tags" in client.get_run(run_id).data.tags:
                client.set_tag(run_id, "tags", tags)  # Lightning only does so for a new run
            return logger
        logger = MLFlowLogger(**options)
        parameters = {re.sub(r"[^\w ./-]", "_", k): v for k, v in flatten(content).items()}
        logger.log_hyperparams(parameters)
        write_text(id_file, str(logger.run_id))
        return logger
