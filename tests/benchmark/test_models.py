"""The benchmark of every neuron model is complete; no time is asserted."""

import json
from functools import partial

import pytest
import torch

from blockspike.benchmark import models

SHAPE = (60, 2, 9)


@pytest.mark.slow
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("name", models.MODELS)
def test_inputs_give_spikes_in_a_few_percent_of_the_steps(name, recurrent):
    simulate, _ = models.MODELS[name]
    with torch.no_grad():
        spikes = simulate(**models.make_inputs(name, recurrent, (1024, 2, 64))).spikes
    assert 0.01 < spikes.mean() < 0.25


@pytest.mark.slow
def test_claims_are_judged(tmp_path, capsys):
    options = ["--shape", *map(str, SHAPE), "--rounds", "2"]
    claims = models.main([*options, "--json", str(tmp_path / "claims.jsonl")])
    assert len(claims) == 2 * len(models.MODELS)
    printed = capsys.readouterr().out
    assert all(f"{name}, recurrent: standard / fused" in printed for name in models.MODELS)
    (first, *_) = map(json.loads, (tmp_path / "claims.jsonl").read_text().splitlines())
    assert first["claim"] == "ALIF: standard / fused" and first["needed"] == "≥ 20"


def test_nothing_is_timed_if_spikes_differ(monkeypatch):
    simulate, parameters = models.MODELS["SE-adLIF"]

    def wrong(method, current, **arguments):
        scale = 1.5 if method == "fused" else 1.0
        return simulate(scale * current, method=method, **arguments)

    monkeypatch.setitem(models.MODELS, "SE-adLIF", (partial(wrong), parameters))
    with pytest.raises(RuntimeError, match="SE-adLIF: spikes of the two methods differ"):
        models.measure("SE-adLIF", False, 2, SHAPE)
