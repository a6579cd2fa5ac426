"""The study of a search: what its trials depend on, and its record in an SQLite file.

Optuna's sampler suggests parameters, but its file holds finished trials only, each written in one
transaction. The parameters of a trial are a function of the plan, its number and the trials that
finished before its batch, so a search that is killed at any time continues to the same trials.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from blockspike.runs.run import cannot_lock
from blockspike.search.space import rounded
from blockspike.training.pruning import higher_is_better

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import FrozenTrial

FILE = "studies.db"


@dataclass(frozen=True)
class Plan:
    """All that determines a study's trials.

    Attributes:
        base: hash of the configuration without the parameters.
        data_sha256: hash of the data; None if they have none.
        space: key of the configuration → distribution.
        monitor: the metric that is optimised.
        seed: of the sampler.
        n_epochs: of a trial that is not pruned.
        batch_size: trials that run at a time; they do not know of each other's values.
        n_random_trials: trials before the sampler uses what it has seen.
        prune: whether trials are pruned.
        n_unpruned_trials: trials that pass a rung before it prunes.
        min_epochs: epochs up to the first rung.
        reduction_factor: of the number of trials from rung to rung.
    """

    base: str
    data_sha256: str | None
    space: dict[str, BaseDistribution]
    monitor: str
    seed: int
    n_epochs: int
    batch_size: int
    n_random_trials: int
    prune: bool
    n_unpruned_trials: int
    min_epochs: int
    reduction_factor: int

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Optuna's word for what is better."""
        return "maximize" if higher_is_better(self.monitor) else "minimize"

    def digest(self) -> str:
        """Hash of the plan, 12 hexadecimal digits."""
        space = {key: repr(distribution) for key, distribution in self.space.items()}
        content = json.dumps({**vars(self), "space": space}, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


def suggested(
    plan: Plan, finished: Sequence[FrozenTrial], running: Sequence[dict[str, Any]], number: int
) -> dict[str, Any]:
    """Parameters of a trial, by Optuna's tree-structured Parzen estimator (Bergstra et al., 2011).

    Args:
        plan: of the study.
        finished: the trials before the trial's batch, in the order of their numbers.
        running: parameters of the trials before it in its batch.
        number: of the trial; with the plan's seed, it seeds the sampler.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = int(np.random.SeedSequence([plan.seed, number]).generate_state(1)[0])
    with _without_experimental_warnings():
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=plan.n_random_trials, seed=seed, constant_liar=True
        )
    study = optuna.create_study(direction=plan.direction, sampler=sampler)
    study.add_trials(finished)
    for params in running:
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=params, distributions=plan.space
            )
        )
    drawn = study.ask(plan.space).params
    return {key: rounded(drawn[key], distribution) for key, distribution in plan.space.items()}


def thresholds(plan: Plan, finished: Sequence[FrozenTrial]) -> list[float | None]:
    """Value of each epoch below which a trial is pruned; see `training.pruning.pruned_epoch`.

    Asynchronous successive halving (Li et al., MLSys 2020): the first rung is after `min_epochs`
    epochs, each further one after `reduction_factor` times as many. One in `reduction_factor`
    trials that reach a rung passes it. None: no rung, or too few trials have reached it.
    """
    import optuna

    higher = plan.direction == "maximize"
    failed = optuna.trial.TrialState.FAIL
    curves = [
        list(accumulate(trial.intermediate_values.values(), max if higher else min))
        for trial in finished
        if trial.state != failed
    ]
    found: list[float | None] = [None] * (plan.n_epochs - 1 if plan.prune else 0)
    rung = plan.min_epochs
    while rung <= len(found):
        values = sorted((c[rung - 1] for c in curves if len(c) >= rung), reverse=higher)
        n_passing = max((len(values) + 1) // plan.reduction_factor, 1)
        if len(values) >= max(plan.n_unpruned_trials, 1):
            found[rung - 1] = values[n_passing - 1]
        rung *= plan.reduction_factor
    return found


@contextmanager
def open_study(folder: Path, name: str, plan: Plan) -> Iterator[Study]:
    """Open a study of `folder/studies.db`, or make it; no other process may write meanwhile.

    Raises:
        ValueError: another search runs in the folder, or the file is damaged.
    """
    import optuna

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{FILE}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{folder}: expected no other search here, but one is running"
            ) from None
        except OSError as error:
            raise cannot_lock(folder, error) from error
        with _storage(folder / FILE) as storage:
            study = optuna.create_study(
                storage=storage, study_name=name, direction=plan.direction, load_if_exists=True
            )
            if "monitor" not in study.user_attrs:
                study.set_user_attr("monitor", plan.monitor)
            yield study


def trials_of(study: Study) -> list[FrozenTrial]:
    """Finished trials in the order of their numbers."""
    return sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)


@dataclass(frozen=True)
class StudyRecord:
    """A study as a figure shows it.

    Attributes:
        name: of the study.
        monitor: the metric that is optimised.
        path: the file that holds it.
        trials: the finished trials.
        importances: parameter → share of the metric's variance, by PED-ANOVA; empty if there are
            too few trials.
    """

    name: str
    monitor: str
    path: Path
    trials: list[FrozenTrial]
    importances: dict[str, float]


def read_studies(output_dir: Path) -> list[StudyRecord]:
    """Read all studies below a folder; none where Optuna never wrote.

    Raises:
        ValueError: there are some, but Optuna is not installed, or a file is damaged.
    """
    files = sorted(output_dir.rglob(FILE))
    if files:
        check_optuna()
    return [record for file in files for record in _records(file)]


def _records(file: Path) -> Iterator[StudyRecord]:
    import optuna

    with _storage(file) as storage:
        for name in optuna.get_all_study_names(storage):
            study = optuna.load_study(study_name=name, storage=storage)
            monitor = study.user_attrs.get("monitor", "value")
            yield StudyRecord(name, monitor, file, trials_of(study), _importances(study))


def _importances(study: Study) -> dict[str, float]:
    """Importance of each parameter; {} where it cannot be computed."""
    import optuna

    complete = [t for t in trials_of(study) if t.state == optuna.trial.TrialState.COMPLETE]
    if len({trial.value for trial in complete}) < 2:
        return {}
    with _without_experimental_warnings():
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        return optuna.importance.get_param_importances(study, evaluator=evaluator)


def check_optuna() -> None:
    """Raise ValueError if Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise ValueError(
            "search: expected the package optuna, which is not installed; "
            "install it with pip install 'blockspike[search]'"
        ) from None


@contextmanager
def _storage(file: Path) -> Iterator[Any]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    from sqlalchemy.exc import DatabaseError

    try:
        storage = optuna.storages.RDBStorage(f"sqlite:///{file.absolute()}")
    except (DatabaseError, RuntimeError) as error:  # the latter: of another version of Optuna
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{file}: expected studies of Optuna, got another file ({reason})"
        ) from error
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


@contextmanager
def _without_experimental_warnings() -> Iterator[None]:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
