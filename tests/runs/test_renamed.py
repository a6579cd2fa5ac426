"""Old names: an override is refused with the new spelling, a table is read with new names."""

import pandas as pd
import pytest

from blockspike.runs.renamed import check_names, former_target, present_target, with_new_names


@pytest.mark.parametrize(
    ("command", "override", "expected"),
    [
        ("train", "experiment=e4_shd", "experiment: expected paper_shd, got e4_shd"),
        ("train", "experiment=demo,e4_shd_ours", "experiment: expected shd, got e4_shd_ours"),
        ("train", "experiment=fit_my_recording", "experiment: expected `blockspike fit data.path="),
        ("train", "experiment=e7_recordings", "expected `blockspike fit experiment=paper_recordi"),
        ("train", "experiment=recovery", "expected `blockspike fit experiment=recovery`"),
        ("fit", "population=physical", "population: expected alif, got physical"),
        ("train", "model=neurons", "model: expected `blockspike fit population=alif`"),
        ("train", "fit=ours", "fit: expected `blockspike fit`"),
        ("fit", "experiment=e7_recordings_ours", "expected recordings, got e7_recordings_ours"),
        ("fit", "fit=ours", "fit: expected multistart, got ours"),
        ("fit", "model.n_starts=4", "model.n_starts: expected population.n_starts, got 4"),
        ("fit", "fit.survivors=0.5", "fit.survivors: expected fit.elite_fraction, got 0.5"),
        ("fit", "+fit.root=true", "fit.root: expected fit.loss, got true"),
    ],
)
def test_an_old_spelling_is_refused_with_the_new_one(command, override, expected):
    with pytest.raises(ValueError, match="expected") as raised:
        check_names(command, ["-m", override])
    assert expected in str(raised.value)


def test_own_files_may_have_old_names():
    check_names("train", ["model=neurons", "experiment=recovery"], has_own_files=True)
    with pytest.raises(ValueError, match="fit: expected"):
        check_names("train", ["fit=ours"], has_own_files=True)


@pytest.mark.parametrize(
    ("command", "overrides"),
    [
        ("train", ("experiment=shd", "model=fused", "model.arp_ms=2", "experiment_name=e4_shd")),
        ("fit", ("experiment=recovery", "fit=paper", "population=paper", "-m", "data.dt_ms=1,2")),
    ],
)
def test_present_spellings_pass(command, overrides):
    check_names(command, overrides)


def test_a_table_of_earlier_runs_has_the_present_names():
    table = pd.DataFrame(
        {
            "experiment": ["e4_shd", "e4_shd_ours", "e4_shd_wide", "recovery", "mine"],
            "model.arp_ms": [20.0, 20.0, 20.0, 2.0, 0.0],
            "model.n_starts": [None, None, None, 64.0, None],
            "fit.parameters": [None, None, None, "physical", None],
        }
    )
    new = with_new_names(table)
    assert new["experiment"].tolist() == ["paper_shd", "shd", "shd_wide", "recovery", "mine"]
    assert new["model.arp_ms"].isna().tolist() == [False, False, False, True, False]
    assert new["population.arp_ms"].dropna().tolist() == [2.0]
    assert new["population.n_starts"].dropna().tolist() == [64.0]
    assert new["population._target_"].dropna().tolist() == [
        "blockspike.fitting.population.PhysicalPopulation"
    ]
    assert "fit.parameters" not in new and with_new_names(new).equals(new)


def test_earlier_layers_are_found_by_their_present_name():
    new, old = (f"blockspike.networks.{name}" for name in ("EulerAdLIFLayer", "AdLIFLayer"))
    assert present_target({"_target_": old, "euler": "forward"}) == new
    assert present_target({"_target_": f"{old[:-11]}.layers.AdLIFLayer", "euler": "forward"}) == (
        "blockspike.networks.layers.EulerAdLIFLayer"
    )
    kept = [
        {"_target_": old},  # that of Bittar & Garner
        {"_target_": new, "euler": "symplectic"},
        {"_target_": "my_lab.AdLIFLayer", "euler": "forward"},
        {},
    ]
    assert [present_target(model) for model in kept] == [model.get("_target_") for model in kept]
    assert [former_target(x) for x in (new, old, "my_lab.EulerAdLIFLayer")] == [
        old, old, "my_lab.EulerAdLIFLayer",
    ]  # fmt: skip
    table = pd.DataFrame(
        {"model._target_": [old, old, None], "model.euler": ["forward", None, None]}
    )
    *targets, missing = with_new_names(table)["model._target_"].tolist()
    assert targets == [new, old] and pd.isna(missing)
