"""The dynamics benchmark is complete and its baselines are correct; no time is asserted."""

import json

import pytest
import torch

from blockspike.benchmark import dynamics
from blockspike.benchmark.dynamics import METHODS, SIZES, Claim, Row, Size, differentiate
from blockspike.neurons import alif

SIZE = Size(n_steps=64, batch_size=2, n_neurons=8, arp=5)
ARPS = [0, 5, 63, 200]


def results(name: str, arp: int):
    inputs, gradient = dynamics.make_inputs(SIZE, torch.float64)
    return differentiate(METHODS[name], inputs, gradient, arp)[:2]


@pytest.mark.parametrize("arp", ARPS)
@pytest.mark.parametrize(
    ("baseline", "twin"),
    [
        ("plain loop", "standard"),
        ("grouped convolution", "blocks"),
        ("parallel blocks", "blocks"),
    ],
)
def test_each_baseline_equals_its_twin(baseline, twin, arp):
    spikes, grads = results(baseline, arp)
    expected_spikes, expected_grads = results(twin, arp)
    assert torch.equal(spikes, expected_spikes) and spikes.sum() > 0
    for grad, expected in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(
            grad, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item()
        )


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_has_the_spikes_of_standard(name):
    assert torch.equal(results(name, 5)[0], results("standard", 5)[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["layer", "recording"])
def test_inputs_give_spikes_in_a_few_percent_of_the_steps(name):
    inputs, gradient = dynamics.make_inputs(SIZES[name])
    with torch.no_grad():
        spikes = alif(*inputs, arp=SIZES[name].arp).spikes
    assert 0.005 < spikes.mean() < 0.06
    assert spikes.dtype == gradient.dtype == torch.float32


@pytest.mark.slow
def test_rows_are_complete(tmp_path, capsys):
    rows = dynamics.main(["--size", "small", "--rounds", "3", "--json", str(tmp_path / "c")])
    assert [row.method for row in rows] == list(METHODS)
    assert all(len(row.seconds) == 3 and min(row.seconds) > 0 for row in rows)
    assert all(row.quartiles == tuple(sorted(row.quartiles)) for row in rows)
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*METHODS, "threads", "load average"))
    assert (tmp_path / "c").read_text() == ""  # there are no claims about the small size


def test_claims_are_judged(monkeypatch, tmp_path, capsys):
    seconds = {
        "standard": 60.0,
        "plain loop": 50.0,
        "blocks": 3.0,
        "parallel blocks": 5.0,
        "grouped convolution": 10.0,
        "fused": 2.0,
    }
    monkeypatch.setattr(
        dynamics,
        "measure",
        lambda size, rounds: [Row(size, m, (s, s, s, s, 9 * s), 0) for m, s in seconds.items()],
    )
    rows = dynamics.main(["--json", str(tmp_path / "claims.jsonl")])
    assert dynamics.claims(rows) == [
        Claim("layer: standard / fused", 30.0, "≥ 25", True),
        Claim("recording: standard / fused", 30.0, "≥ 1000", False),
        Claim("layer: grouped convolution / parallel blocks", 2.0, "≥ 3", False),
        Claim("layer: standard / plain loop", 1.2, "≤ 1.5", True),
        Claim("recording: standard / plain loop", 1.2, "≤ 1.5", True),
    ]
    lines = [json.loads(line) for line in (tmp_path / "claims.jsonl").read_text().splitlines()]
    assert [line["met"] for line in lines] == [True, False, False, True, True]
    assert lines[0]["threads"] == torch.get_num_threads()
    assert "NO" in capsys.readouterr().out


def test_unsteady_rounds_leave_a_claim_open():
    unsteady = Row("layer", "standard", (60.0, 60.0, 600.0, 700.0), 0)
    steady = [Row("layer", name, (2.0,) * 4, 0) for name in METHODS if name != "standard"]
    assert not unsteady.steady and all(row.steady for row in steady)
    met = {claim.claim: claim.met for claim in dynamics.claims([unsteady, *steady])}
    assert met == {
        "layer: standard / fused": None,
        "layer: grouped convolution / parallel blocks": False,
        "layer: standard / plain loop": None,
    }


@pytest.mark.parametrize("fault", ["spikes", "gradients"])
def test_a_wrong_method_is_not_timed(monkeypatch, fault):
    def wrong(current, beta, p, b, arp):
        if fault == "spikes":
            return dynamics.plain_loop(current, beta, p, b, arp + 1)
        return dynamics.plain_loop(current, beta, p.detach() + 0 * p, b, arp)

    monkeypatch.setitem(METHODS, "fused", wrong)
    with pytest.raises(RuntimeError, match=f"{fault}.* differ.*no time is reported"):
        dynamics.measure("small")


def test_rounding_is_distinguished_from_an_error():
    current = torch.tensor([0.5, 0.0, 1.0 + 1e-6, 0.0]).view(4, 1, 1)
    trace = alif(current, torch.zeros(1))
    assert trace.spikes.flatten().tolist() == [0, 0, 1, 0]

    def count(*spikes):
        return dynamics.count_rounded(trace, torch.tensor(spikes).view(4, 1, 1))

    assert count(0.0, 0.0, 1.0, 0.0) == 0
    assert count(0.0, 0.0, 0.0, 0.0) == 1
    assert count(0.0, 0.0, 0.0, 1.0) == 1  # differences after the first one are allowed
    for wrong in ((1.0, 0.0, 1.0, 0.0), (0.0, 0.0, 1.0, 1.0), (0.0, 1.0, 0.0, 0.0)):
        with pytest.raises(RuntimeError, match="differ"):
            count(*wrong)


def test_too_few_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        dynamics.main(["--rounds", "1"])
    assert "--rounds: expected at least 2, got 1" in capsys.readouterr().err
