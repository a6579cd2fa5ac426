"""Studies: the same suggestions from the same trials, and Optuna's own successive halving."""

from dataclasses import replace
from itertools import accumulate

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from blockspike.search.study import (
    Plan,
    check_optuna,
    open_study,
    read_studies,
    suggested,
    thresholds,
    trials_of,
)
from blockspike.training.pruning import pruned_epoch

PLAN = Plan(
    data_sha256="a",
    base="0" * 12,
    space={
        "a": FloatDistribution(1e-4, 1e-1, log=True),
        "b": CategoricalDistribution(["x", "y"]),
        "c": IntDistribution(1, 100),
    },
    monitor="val/accuracy",
    seed=0,
    n_epochs=6,
    batch_size=1,
    n_random_trials=3,
    prune=True,
    n_unpruned_trials=3,
    min_epochs=1,
    reduction_factor=2,
)


def outcome(
    params: dict, values: list[float], state=TrialState.COMPLETE
) -> optuna.trial.FrozenTrial:
    failed = state == TrialState.FAIL
    return create_trial(
        state=state, value=None if failed else max(values), params=params,
        distributions=PLAN.space, intermediate_values=dict(enumerate(values, start=1)),
    )  # fmt: skip


def score(params: dict) -> float:
    return 1 - (np.log10(params["a"]) + 2) ** 2 / 10 - (params["b"] == "x") * 0.2


def finish(plan: Plan, finished: list, running: list[dict], number: int):
    """Trial 4 fails and every fifth is pruned."""
    params = suggested(plan, finished, running, number)
    state = TrialState.PRUNED if number % 5 == 2 else TrialState.COMPLETE
    state = TrialState.FAIL if number == 4 else state
    return outcome(params, [] if number == 4 else [score(params)] * 3, state)


def test_suggestions_depend_on_plan_number_and_finished_trials_only():
    finished = []
    for number in range(30):
        finished.append(finish(PLAN, finished, [], number))
    params = [trial.params for trial in finished]
    for number in (0, 3, 11):
        assert suggested(PLAN, finished[:number], [], number) == params[number]
    assert suggested(replace(PLAN, seed=1), finished[:11], [], 11) != params[11]
    assert suggested(PLAN, finished[:11], [], 12) != params[11]
    other = outcome(params[10], [0.0])
    assert suggested(PLAN, [*finished[:5], *[other] * 6], [], 11) != params[11]
    assert np.median([score(p) for p in params[15:]]) > np.median([score(p) for p in params[:15]])


def test_a_batch_knows_the_parameters_of_its_earlier_trials():
    finished = []
    for number in range(8):
        finished.append(finish(PLAN, finished, [], number))
    same = [suggested(PLAN, finished, [], 9)] * 6  # a clear sign
    assert suggested(PLAN, finished, same, 9) == suggested(PLAN, finished, same, 9)
    assert suggested(PLAN, finished, same, 9) != suggested(PLAN, finished, [], 9)


@pytest.mark.parametrize("monitor", ["val/accuracy", "val/loss"])
@pytest.mark.parametrize(("min_epochs", "factor"), [(1, 2), (2, 3)])
def test_pruning_is_optunas_successive_halving(monitor, min_epochs, factor):
    """Curves of all lengths; Optuna is asked after every epoch, for the best value so far."""
    plan = replace(
        PLAN, monitor=monitor, min_epochs=min_epochs, reduction_factor=factor, n_epochs=13,
        n_unpruned_trials=0,
    )  # fmt: skip
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_epochs, factor, 0)
    higher = plan.direction == "maximize"
    study = optuna.create_study(direction=plan.direction, pruner=pruner)
    rng, found = np.random.default_rng(0), []
    for _ in range(80):
        limits = thresholds(plan, study.get_trials())
        values, trial = rng.normal(rng.normal(), 0.5, 13).tolist(), study.ask()
        ours, theirs = pruned_epoch(values, limits, higher), None
        for epoch, value in enumerate(accumulate(values, max if higher else min)):
            trial.report(value, epoch + 1)
            if trial.should_prune():
                theirs = epoch
                break
        assert ours == theirs
        found.append(theirs)
        if theirs is None:
            study.tell(trial, max(values) if higher else min(values))
        else:
            study.tell(trial, state=TrialState.PRUNED)
    rungs = {epoch + 1 for epoch in found if epoch is not None}
    assert rungs <= ({1, 2, 4, 8} if factor == 2 else {2, 6})
    assert len(rungs) > 1 and None in found


def test_nothing_is_pruned_early_or_without_pruning():
    params = {"a": 0.01, "b": "x", "c": 1}
    trials = [outcome(params, [0.1 * i] * 6) for i in range(5)]
    assert thresholds(PLAN, trials) == [0.2, 0.2, None, 0.2, None]
    assert thresholds(PLAN, trials[:2]) == [None] * 5
    assert thresholds(replace(PLAN, prune=False), trials) == []
    falling = [outcome(params, [0.5, 0.4], TrialState.PRUNED) for _ in range(3)]
    assert thresholds(PLAN, falling) == [0.5, 0.5, None, None, None]  # the best so far
    failed = outcome(params, [], TrialState.FAIL)
    assert thresholds(PLAN, [*falling, failed]) == thresholds(PLAN, falling)
    assert thresholds(replace(PLAN, n_epochs=1), trials) == []


def test_a_study_is_kept_and_another_plan_is_another_study(tmp_path):
    trial = outcome({"a": 0.01, "b": "x", "c": 1}, [0.1, 0.2])
    for n_before in (0, 1):
        with open_study(tmp_path, PLAN.digest(), PLAN) as study:
            assert len(trials_of(study)) == n_before
            study.add_trial(trial)
    other = replace(PLAN, space={"a": FloatDistribution(1e-4, 1.0)})
    more = replace(PLAN, batch_size=2), replace(PLAN, data_sha256="b")
    assert len({plan.digest() for plan in (PLAN, other, *more)}) == 4
    with open_study(tmp_path, other.digest(), other) as study:
        assert trials_of(study) == []
    first, second = sorted(read_studies(tmp_path), key=lambda study: -len(study.trials))
    assert (first.name, first.monitor) == (PLAN.digest(), "val/accuracy")
    assert [t.params for t in first.trials] == [trial.params] * 2
    assert first.trials[0].intermediate_values == {1: 0.1, 2: 0.2}
    assert not second.trials and not second.importances


def test_a_parameter_that_matters_is_important(tmp_path):
    finished = []
    for number in range(30):
        params = suggested(replace(PLAN, n_random_trials=30), finished, [], number)
        finished.append(outcome(params, [score(params)]))
    with open_study(tmp_path, "one", PLAN) as study:
        study.add_trials(finished)
    (record,) = read_studies(tmp_path)
    assert sum(record.importances.values()) == pytest.approx(1)
    assert max(record.importances, key=record.importances.__getitem__) == "a"


def test_two_searches_in_one_folder_are_refused(tmp_path):
    with (
        open_study(tmp_path, "a", PLAN),
        pytest.raises(ValueError, match="expected no other search here"),
        open_study(tmp_path, "b", PLAN),
    ):
        pass


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "studies.db").write_bytes(b"no database" * 100)
    with pytest.raises(ValueError, match=r"studies.db: expected studies of Optuna"):
        read_studies(tmp_path)


def test_the_sampler_may_start_without_random_trials():
    plan = replace(PLAN, n_random_trials=0)
    assert suggested(plan, [], [], 0) == suggested(plan, [], [], 0)


def test_a_missing_optuna_is_named(monkeypatch, tmp_path):
    assert read_studies(tmp_path) == []
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(ValueError, match=r"pip install 'blockspike\[search\]'"):
        check_optuna()
