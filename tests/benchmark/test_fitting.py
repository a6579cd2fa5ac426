"""The benchmark of fits runs, takes turns and judges its claims."""

import json

import pytest

from blockspike.benchmark import fitting


@pytest.mark.slow
def test_both_methods_are_timed_on_the_same_data():
    batch = fitting.make_batch(2, 300)
    assert batch.current.shape == (300, 3, 2) and batch.window == (0, 300, 300)
    costs = fitting.measure(batch, n_epochs=2, rounds=2)
    assert set(costs) == {"fused", "standard"}
    assert all(len(values) == 2 and min(values) > 0 for values in costs.values())


def test_claims_are_judged():
    good, bad = fitting.claims({"fused": [0.01] * 5, "standard": [1.1] * 5}), fitting.claims(
        {"fused": [0.11] * 5, "standard": [1.1] * 5}
    )  # fmt: skip
    assert [claim.met for claim in good] == [True, True]
    assert [claim.met for claim in bad] == [False, False]
    assert good[0].measured == 2.0


@pytest.mark.slow
def test_only_the_size_of_the_paper_is_judged(tmp_path):
    path = tmp_path / "claims.jsonl"
    arguments = ["--cells", "2", "--steps", "200", "--epochs", "2", "--rounds", "2"]
    assert fitting.main([*arguments, "--json", str(path)]) == 0
    assert [json.loads(line) for line in path.read_text().splitlines()] == []
