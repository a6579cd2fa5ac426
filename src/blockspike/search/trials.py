"""The trials of a search: each is a run, resumed and skipped like any other."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from blockspike.runs.run import Run
from blockspike.runs.sweeps import planned_run, run_states
from blockspike.search.space import as_override, extremes, read_space
from blockspike.search.study import (
    Plan,
    check_optuna,
    open_study,
    suggested,
    thresholds,
    trials_of,
)
from blockspike.training.metrics_table import read_metrics
from blockspike.training.pruning import MONITORS, higher_is_better, pruned_epoch

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

_LEAST = {
    "n_trials": 1, "n_random_trials": 0, "n_unpruned_trials": 0, "min_epochs": 1,
    "reduction_factor": 2,
}  # fmt: skip
Launch = Callable[[Sequence[Sequence[str]], int], Any]
OpenData = Callable[[DictConfig], str | None]


@dataclass(frozen=True)
class _Trial:
    """A trial that is to run, or has run.

    Attributes:
        number: from 0.
        params: key → value.
        thresholds: see `blockspike.search.study.thresholds`.
        overrides: Hydra's, of its run.
        run: folder of its run below the output folder.
        content: hash of its run's configuration.
    """

    number: int
    params: dict[str, Any]
    thresholds: list[float | None]
    overrides: list[str]
    run: str
    content: str


def run_search(
    config: DictConfig, arguments: list[str], launch: Launch, open_data: OpenData
) -> None:
    """Run the trials that the study lacks, in batches, and print how the search ended.

    Args:
        config: the search's configuration with Hydra's own node.
        arguments: overrides of the command line.
        launch: (overrides of each job, number of the first) runs jobs and waits for them.
        open_data: checks the configuration of a run and opens its data; returns their hash.

    Raises:
        ValueError: the space or an option is wrong, Optuna is not installed, another search runs in
            the folder, a trial's folder holds a run of other data, a trial was interrupted, or
            trials failed, which are named.
        FileNotFoundError: the data are missing.
    """
    check_optuna()
    fixed = [x for x in arguments if not x.lstrip("+~").startswith("search.")]
    plan = _plan(config, fixed, open_data)
    output_dir = Path(config.output_dir)
    name = f"{config.hydra.runtime.choices.search}-{plan.digest()}"
    search = _Search(config, fixed, plan, output_dir, launch)
    with open_study(output_dir / config.experiment_name, name, plan) as study:
        while len(trials_of(study)) < config.search.n_trials:
            search.run_batch(study, config.search.n_trials)
        _print_end(study, plan)
        failed = [t for t in trials_of(study) if t.state.name == "FAIL"]
    if failed:
        lines = [
            f"trial {t.number} ({t.user_attrs['run']}: {t.user_attrs['error']})" for t in failed
        ]
        raise ValueError(f"search: {len(failed)} of its trials failed: {'; '.join(lines)}")


def monitored_value(folder: Path, monitor: str) -> float | None:
    """Validation value of the epoch that a run chose; None if it is not finished.

    Also None without a validation split, and where somebody has removed the `metrics.csv` of a
    finished run.

    Args:
        folder: of the run.
        monitor: `val/accuracy` or `val/loss`.
    """
    row, file = Run(folder).result(), folder / "metrics.csv"
    if row is None or row.get("pruned") or not file.is_file():
        return None
    metrics = read_metrics(file).set_index("epoch")
    if monitor not in metrics:
        return None
    return float(metrics[monitor].loc[row["chosen_epoch"] - 1])


def _plan(config: DictConfig, fixed: list[str], open_data: OpenData) -> Plan:
    """Check the search's options and read its plan."""
    options = config.search
    for name, least in _LEAST.items():
        if options[name] < least:
            raise ValueError(f"search.{name}: expected an integer ≥ {least}, got {options[name]}")
    if config.monitor not in MONITORS:
        raise ValueError(f"monitor: expected {' or '.join(MONITORS)}, got {config.monitor!r}")
    n_epochs = config.trainer.max_epochs
    if not isinstance(n_epochs, int) or n_epochs < 1:
        raise ValueError(f"trainer.max_epochs: expected an integer ≥ 1, got {n_epochs}")
    for override in fixed:
        key, _, value = override.partition("=")
        if _is_swept(value):
            raise ValueError(f"{key}: expected one value in a search, got {value}")
    space = read_space(config)
    _, base = planned_run(config, fixed)
    for params in extremes(space):  # a value of the wrong type is refused here
        planned_run(config, [*fixed, *(as_override(k, v) for k, v in params.items())])
    return Plan(
        base=base,
        data_sha256=open_data(config),
        space=space,
        monitor=config.monitor,
        seed=config.seed,
        n_epochs=n_epochs,
        batch_size=_batch_size(config),
        n_random_trials=options.n_random_trials,
        prune=options.prune,
        n_unpruned_trials=options.n_unpruned_trials,
        min_epochs=options.min_epochs,
        reduction_factor=options.reduction_factor,
    )


def _is_swept(value: str) -> bool:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(f"x={value}").is_sweep_override()


def _batch_size(config: DictConfig) -> int:
    size, launcher = config.search.batch_size, config.hydra.runtime.choices["hydra/launcher"]
    if size is None and launcher == "basic":
        return 1
    if size is None or size < 1:
        given = "nothing" if size is None else size
        raise ValueError(
            f"search.batch_size: expected the number of trials that run at a time, ≥ 1, got {given}"
        )
    return size


@dataclass(frozen=True)
class _Search:
    """A search as it runs; the arguments of `run_search`, and its plan."""

    config: DictConfig
    fixed: list[str]
    plan: Plan
    output_dir: Path
    launch: Launch

    def run_batch(self, study: Study, n_trials: int) -> None:
        """Run the rest of the batch that the next trial belongs to, and record it.

        Raises:
            ValueError: a trial was interrupted; those before it are recorded.
        """
        trials = self._batch(trials_of(study), n_trials)
        states = self._states(trials)
        to_run = {t.run: t for t in trials if self._outcome(t, states[t.run], False) is None}
        if to_run:
            self.launch([t.overrides for t in to_run.values()], trials[0].number)
            states = self._states(trials)
        for trial in trials:
            state = states[trial.run]
            outcome = self._outcome(trial, state, trial.run in to_run)
            if outcome is None:
                raise ValueError(
                    f"search: expected trial {trial.number} to finish, but it is {state['state']}: "
                    f"{state['folder']}; the same command continues"
                )
            study.add_trial(outcome)
            _print_trial(study, self.plan)

    def _batch(self, recorded: list[FrozenTrial], n_trials: int) -> list[_Trial]:
        """The trials of the present batch that are not recorded yet."""
        size = self.plan.batch_size
        first = len(recorded) // size * size
        finished, running = recorded[:first], [dict(t.params) for t in recorded[first:]]
        limits = thresholds(self.plan, finished)
        trials = []
        for number in range(len(recorded), min(first + size, n_trials)):
            params = suggested(self.plan, finished, running, number)
            running.append(params)
            trials.append(self._trial(number, params, limits))
        return trials

    def _trial(self, number: int, params: dict[str, Any], limits: list[float | None]) -> _Trial:
        overrides = [*self.fixed, *(as_override(key, value) for key, value in params.items())]
        run, content = planned_run(self.config, overrides)
        values = ",".join("null" if x is None else repr(x) for x in limits)
        return _Trial(number, params, limits, [*overrides, f"pruning=[{values}]"], run, content)

    def _states(self, trials: list[_Trial]) -> dict[str, dict[str, Any]]:
        states = run_states(self.output_dir, {t.run: t.content for t in trials})
        return {row["run"]: row for row in states.to_dict("records")}

    def _outcome(self, trial: _Trial, state: dict[str, Any], has_run: bool) -> FrozenTrial | None:
        """The finished trial, or None; a failure counts only if the trial has just run.

        It depends on the run's curve and the trial's thresholds alone, also if the folder holds
        more epochs, which another search or command trained.
        """
        import optuna

        made = {"params": trial.params, "distributions": self.plan.space}
        attributes: dict[str, Any] = {"run": str(state["folder"])}
        make, kinds = optuna.trial.create_trial, optuna.trial.TrialState
        if state["state"] == "failed" and has_run:
            attributes["error"] = state["error"]
            return make(state=kinds.FAIL, user_attrs=attributes, **made)
        if state["state"] not in ("done", "pruned"):
            return None
        folder = Path(state["folder"])
        Run(folder).check_data(self.plan.data_sha256)
        values = read_metrics(folder / "metrics.csv")[self.plan.monitor].tolist()
        last = pruned_epoch(values, trial.thresholds, higher_is_better(self.plan.monitor))
        if last is None and state["state"] == "pruned":
            return None
        if last is None:
            kind, value = kinds.COMPLETE, monitored_value(folder, self.plan.monitor)
        else:
            values = values[: last + 1]
            kind, value = kinds.PRUNED, values[-1]
        curve = dict(enumerate(values, start=1))
        return make(
            state=kind, value=value, intermediate_values=curve, user_attrs=attributes, **made
        )


def _text(params: dict[str, Any]) -> str:
    return " ".join(as_override(key, value) for key, value in params.items())


def _best(study: Study) -> FrozenTrial | None:
    """The best finished trial, of equal ones the first."""
    complete = [t for t in trials_of(study) if t.state.name == "COMPLETE"]
    sign = 1 if study.direction.name == "MINIMIZE" else -1
    return min(complete, key=lambda trial: sign * (trial.value or 0.0), default=None)


def _print_trial(study: Study, plan: Plan) -> None:
    trial, best = trials_of(study)[-1], _best(study)
    word = {
        "COMPLETE": f"{plan.monitor} {trial.value or 0:.4g}",
        "PRUNED": f"pruned after epoch {len(trial.intermediate_values)}",
        "FAIL": f"failed: {trial.user_attrs.get('error')}",
    }[trial.state.name]
    so_far = "" if best is None else f" (best: {best.value:.4g} of trial {best.number})"
    print(f"trial {trial.number}: {word}{so_far}; {_text(trial.params)}", flush=True)


def _print_end(study: Study, plan: Plan) -> None:
    trials, best = trials_of(study), _best(study)
    words = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed"}
    counts = Counter(trial.state.name for trial in trials)
    ends = ", ".join(f"{counts[state]} {word}" for state, word in words.items() if counts[state])
    epochs = {trial.user_attrs["run"]: len(trial.intermediate_values) for trial in trials}
    n_epochs, n_repeated = sum(epochs.values()), len(trials) - len(epochs)
    n, n_planned = len(trials), len(trials) * plan.n_epochs
    word = "trial" if n == 1 else "trials"
    print(f"{study.study_name}: {n} {word}: {ends}; {n_epochs} of {n_planned} epochs")
    if n_repeated:
        print(f"trials with the parameters of an earlier one, not trained again: {n_repeated}")
    if best is not None:
        print(
            f"best: trial {best.number}, {plan.monitor} {best.value:.4g}, {best.user_attrs['run']}"
        )
        print(f"  {_text(best.params)}")
    sys.stdout.flush()
