"""`blockspike search NAME`: a search for hyperparameters by Optuna, whose trials are runs."""

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback

from blockspike.app.compose import compose
from blockspike.app.train import train
from blockspike.files import CONF
from blockspike.neurons import NotFiniteError
from blockspike.runs.identity import content_hash, content_of, plain
from blockspike.runs.run import Run, flatten
from blockspike.runs.studies import FILE, load_optuna
from blockspike.training.callbacks import MONITORS
from blockspike.training.metrics_table import read_metrics

if TYPE_CHECKING:
    import optuna

_BEAT_S, _STALE_S = 2, 10  # heartbeat of a trial; silence after which its process counts as dead
_RETRIES = 100  # of a trial whose process died


def search(name: str, overrides: Sequence[str] = ()) -> "optuna.Study":
    """Run the trials that the study lacks; the best of them is printed.

    A search that was killed continues with the same command, and so do its trials. The same command
    in several processes, on one machine or many, makes them share the study.

    Args:
        name: of a file of conf/search, which has n_trials, overrides and the space.
        overrides: as of `blockspike train`; `search.KEY=VALUE` changes a value of that file.

    Raises:
        ValueError: a setting is wrong, or the folder holds the study of another search.
        FileNotFoundError: there is no such file, or the data are missing.
    """
    optuna = load_optuna()
    options, fixed = _options(name, overrides)
    base = compose("train", fixed)
    folder = Path(base.output_dir, base.experiment_name)
    folder.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(
        f"sqlite:///{(folder / FILE).absolute()}", {"connect_args": {"timeout": 60}},
        heartbeat_interval=_BEAT_S, grace_period=_STALE_S,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(_RETRIES),
    )  # fmt: skip
    best = "minimize" if MONITORS.get(base.monitor) == "min" else "maximize"
    pruner = optuna.pruners.MedianPruner(n_warmup_steps=options.min_epochs)
    study = optuna.create_study(
        storage=storage, study_name=name, direction=best, pruner=pruner, load_if_exists=True
    )
    _check_is_same(study, base, options.space, folder)
    if _trials(study, "RUNNING"):
        print(f"waiting {_STALE_S} s for trials that may run elsewhere")
        time.sleep(_STALE_S + _BEAT_S)
        optuna.storages.fail_stale_trials(study)
    while (n := len(_ended(study))) < options.n_trials:
        # A sampler for each trial: a search that was killed draws what it would have drawn.
        seed = np.random.SeedSequence([base.seed, n + len(_trials(study, "RUNNING"))])
        study.sampler = optuna.samplers.TPESampler(seed=int(seed.generate_state(1)[0]))
        study.optimize(
            lambda trial: _objective(trial, fixed, options.space),
            n_trials=1, catch=(NotFiniteError, RuntimeError), callbacks=[_print_trial],
        )  # fmt: skip
    _print_end(study)
    return study


def _options(name: str, overrides: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """Content of the search's file, and the overrides that all trials share."""
    file = CONF / "search" / f"{name}.yaml"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.yaml")))
        raise FileNotFoundError(f"search: expected one of {known}, got {name}")
    own = [x.removeprefix("search.") for x in overrides if x.startswith("search.")]
    options = OmegaConf.merge(OmegaConf.load(file), OmegaConf.from_dotlist(own))
    if unknown := set(map(str, options)) - {"n_trials", "min_epochs", "overrides", "space"}:
        raise ValueError(f"search: expected n_trials, min_epochs or space.KEY, got {unknown}")
    shared = [f"experiment_name=search/{name}", *options.overrides]
    space = {k: x for k, x in flatten(plain(cast(DictConfig, options.space))).items() if x}
    fixed = [*shared, *(x for x in overrides if not x.startswith("search."))]
    return cast(DictConfig, OmegaConf.merge(options, {"space": None}, {"space": space})), fixed


def _check_is_same(
    study: "optuna.Study", base: DictConfig, space: DictConfig, folder: Path
) -> None:
    """Raise ValueError if the study has trials of another configuration or space."""
    own = f"{content_hash(content_of(base))} {json.dumps(plain(space), sort_keys=True)}"
    if study.user_attrs.setdefault("search", own) != own:
        raise ValueError(
            f"{folder}: holds a search with another configuration or space; choose another "
            "experiment_name, or delete the folder"
        )
    study.set_user_attr("search", own)
    study.set_user_attr("monitor", base.monitor)


def _suggested(trial: "optuna.Trial", key: str, spec: Any) -> Any:
    """A value from [low, high], [low, high, log] or [choice, option, option, …]."""
    match spec:
        case ["choice", *options] if len(options) > 1:
            return trial.suggest_categorical(key, options)
        case [int(low), int(high), *log] if log in ([], ["log"]):
            return trial.suggest_int(key, low, high, log=bool(log))
        case [int() | float() as low, int() | float() as high, *log] if log in ([], ["log"]):
            return trial.suggest_float(key, low, high, log=bool(log))
    raise ValueError(
        f"search.space.{key}: expected [low, high], [low, high, log] or [choice, option, …], "
        f"got {spec}"
    )


def _objective(trial: "optuna.Trial", fixed: list[str], space: DictConfig) -> float:
    drawn = {key: _suggested(trial, key, spec) for key, spec in plain(space).items()}
    is_word = {key: isinstance(x, str) and x.isidentifier() for key, x in drawn.items()}
    words = {key: x if is_word[key] else json.dumps(x) for key, x in drawn.items()}
    given = [*fixed, *(f"{key}={word}" for key, word in words.items())]
    cfg = compose("train", given)
    run = Run(cfg.run_dir)
    trial.set_user_attr("run", str(run.folder))
    sys.argv = [sys.argv[0], "train", *given, f"run_dir='{run.folder}'"]  # to start its processes
    reports = _Reports(trial, run, cfg.monitor)
    try:
        row = train(cfg, [reports])
    except (NotFiniteError, RuntimeError) as error:
        trial.set_user_attr("error", " ".join(str(error).split()))
        raise
    before = trial.study.user_attrs.get("data_sha256", row["data_sha256"])
    if before != row["data_sha256"]:
        raise ValueError(f"{run.folder}: the data have changed since the search started")
    trial.study.set_user_attr("data_sha256", before)
    values = reports.send()
    return values[row["chosen_epoch"] - 1]


class _Reports(Callback):
    """Reports each epoch of a run to its trial, and ends the run if the trial is pruned."""

    def __init__(self, trial: "optuna.Trial", run: Run, monitor: str):
        self.trial, self.file, self.monitor = trial, run.folder / "metrics.csv", monitor
        self.n_sent = 0

    def send(self) -> list[float]:
        """Report the epochs that are new in `metrics.csv`; returns the values of all."""
        values = read_metrics(self.file)[self.monitor].tolist()
        for epoch in range(self.n_sent, len(values)):
            self.trial.report(values[epoch], epoch + 1)
        self.n_sent = len(values)
        return values

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune here, where the last epoch's checkpoint is written, also after a kill."""
        if trainer.current_epoch > 0:
            self.send()
            if self.trial.should_prune():
                raise load_optuna().TrialPruned


def _trials(study: "optuna.Study", *states: str) -> list[Any]:
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in states]


def _ended(study: "optuna.Study") -> list[Any]:
    """Trials that are done, pruned or failed by themselves; others failed with their process."""
    failed = [t for t in _trials(study, "FAIL") if "error" in t.user_attrs]
    return _trials(study, "COMPLETE", "PRUNED") + failed


def _print_trial(study: "optuna.Study", trial: Any) -> None:
    how = {
        "COMPLETE": f"{study.user_attrs['monitor']} {trial.value or 0:.4g}",
        "PRUNED": f"pruned after epoch {len(trial.intermediate_values)}",
    }.get(trial.state.name, f"failed: {trial.user_attrs.get('error')}")
    values = " ".join(f"{key}={value}" for key, value in trial.params.items())
    print(f"trial {trial.number}: {how}; {values}", flush=True)


def _print_end(study: "optuna.Study") -> None:
    counts = Counter(t.state.name for t in _ended(study))
    words = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
    ends = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if counts[state])
    print(f"{study.study_name}: {ends}")
    if counts["COMPLETE"]:
        best = study.best_trial
        values = " ".join(f"{key}={value}" for key, value in best.params.items())
        print(f"best: trial {best.number}, {study.user_attrs['monitor']} {best.value:.4g}")
        print(f"  {best.user_attrs['run']}\n  {values}")
