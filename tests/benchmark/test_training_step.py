"""The training-step benchmark is complete and times only equal methods; no time is asserted."""

import json
import statistics

import pytest
import torch
from rich.console import Console

from blockspike.benchmark import training_step
from blockspike.benchmark.timing import Claim
from blockspike.benchmark.training_step import METHODS, PARTS, Size, Task, Training, make_network
from blockspike.neurons.events import EventBatch

SMALL = Size(n_hidden=24, n_steps=240, batch_size=4)


@pytest.fixture(scope="module")
def data(data_dir):
    return data_dir / "hd_lauscher_sample.h5"


@pytest.fixture(scope="module")
def batches(data):
    return training_step.read_batches(data, SMALL, 2)


@pytest.fixture
def task(data, batches):
    return Task(data, SMALL, batches, rounds=2)


def test_batches_are_full_and_differ(data, batches):
    assert [events.shape for events, _ in batches] == [(240, 4, 700)] * 2
    assert not torch.equal(batches[0][0].row_ptr, batches[1][0].row_ptr)
    big = Size(batch_size=400)
    assert len(training_step.read_batches(data, big, 5)) == 1
    with pytest.raises(ValueError, match="expected at least 4000 training recordings, got"):
        training_step.read_batches(data, Size(batch_size=4000), 1)


@pytest.mark.parametrize(("n_steps", "times"), [(7, 1), (7, 3), (1, 2), (4, 5)])
def test_repeated_events_equal_dense_concatenation(n_steps, times):
    spikes = torch.poisson(torch.full((7, 3, 5), 0.4), generator=torch.Generator().manual_seed(0))
    repeated = training_step.repeat_in_time(EventBatch.from_dense(spikes), n_steps, times)
    assert torch.equal(repeated.dense(), torch.cat([spikes[:n_steps]] * times))


@pytest.mark.parametrize(("n_steps", "times"), [(0, 1), (8, 1), (7, 0)])
def test_bad_repetitions_are_refused(n_steps, times):
    events = EventBatch.from_dense(torch.zeros(7, 3, 5))
    with pytest.raises(ValueError, match=f"expected 1 to 7 .* got {n_steps} and {times}"):
        training_step.repeat_in_time(events, n_steps, times)


def test_sums_of_weights_are_exact():
    network = make_network("fused")
    for layer in (*network.layers, network.readout):
        quanta = layer.get_parameter("weight") * 2**12
        assert torch.equal(quanta, quanta.round()) and quanta.abs().max() < 2**12
    assert network.get_parameter("layers.0.recurrent_weight").count_nonzero() > 60_000


def test_contenders_start_from_equal_weights():
    networks = [make_network(name, SMALL, arp) for name in METHODS for arp in (0, 10)]
    start = networks[0].state_dict()
    for network in networks[1:]:
        for key, value in network.state_dict().items():
            assert torch.equal(value, start[key])
    assert {layer.arp for network in networks for layer in network.layers} == {0, 10}


def test_a_step_trains_and_the_next_starts_over(batches):
    network = make_network("fused", SMALL)
    start = {key: value.clone() for key, value in network.state_dict().items()}
    training = Training(network)
    seconds = training.step(batches[0])
    assert min(seconds.forward, seconds.backward, seconds.update) > 0
    assert seconds.total == seconds.forward + seconds.backward + seconds.update
    moved = {key for key, value in network.state_dict().items() if not value.equal(start[key])}
    assert moved == start.keys() - {"layers.0.b", "layers.1.b"}
    rates = training.rates_hz(batches[0])
    assert len(rates) == 2 and min(rates) > 0
    assert all(value.equal(start[key]) for key, value in network.state_dict().items())


def test_check_passes(batches):
    training_step.check(batches[0], SMALL)


@pytest.mark.parametrize(
    ("name", "key", "change", "message"),
    [
        ("fused", "layers.0.weight", 1.5, "spikes of fused differ"),
        ("blocks", "layers.1.weight", 1.5, "spikes of blocks differ"),
        ("fused", "readout.weight", 1.01, "loss of fused differs"),
        ("standard", "layers.0.weight", 0.0, "a hidden layer is silent"),
    ],
)
def test_a_wrong_method_is_not_timed(monkeypatch, batches, task, name, key, change, message):
    def wrong(of, *args):
        network = make_network(of, *args)
        if of == name:
            network.get_parameter(key).data.mul_(change)
        return network

    monkeypatch.setattr(training_step, "make_network", wrong)
    monkeypatch.setattr(training_step, "take_turns", None)
    with pytest.raises(RuntimeError, match=f"{message}: no time is reported"):
        training_step.compare(task, Console())


def test_a_wrong_gradient_is_not_timed(monkeypatch, task):
    """The published gradient has the spikes of `standard` but another slope."""
    monkeypatch.setitem(METHODS, "fused", ("blocks", "auto"))
    with pytest.raises(RuntimeError, match=r"gradients of fused differ \(layers.*\): no time"):
        training_step.compare(task, Console())


def test_contenders_take_turns(monkeypatch, batches):
    calls = []

    class Noted(Training):
        def step(self, batch):
            calls.append((self.network, batch))
            return super().step(batch)

    a, b = (Noted(make_network("fused", SMALL)) for _ in range(2))
    steps = training_step.take_turns({"a": (a, batches), "b": (b, batches)}, 3)
    assert [len(taken) for taken in steps.values()] == [3, 3]
    turns = [(x.network, batches[i]) for i in (0, 0, 1, 0) for x in (a, b)]
    assert len(calls) == len(turns)
    assert all(c[0] is t[0] and c[1] is t[1] for c, t in zip(calls, turns, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "contenders"),
    [
        ("comparison", ["standard", "blocks", "fused"]),
        ("length", ["T=120", "T=240", "T=480", "T=960"]),
        ("refractory", ["arp=0", "arp=1", "arp=10", "arp=50", "arp=100"]),
    ],
)
def test_parts_are_complete(task, capsys, part, contenders):
    costs = PARTS[part](task, Console())
    assert list(costs) == contenders
    assert all(len(values) == 2 and min(values) > 0 for values in costs.values())
    printed = capsys.readouterr().out
    assert all(f"{name}: the hidden layers fire at" in printed for name in contenders)


def test_length_is_per_step_of_time(monkeypatch, task):
    def one_second(contenders, rounds):
        return {name: [training_step.StepTime(0.5, 0.25, 0.25)] * rounds for name in contenders}

    monkeypatch.setattr(training_step, "take_turns", one_second)
    costs = training_step.measure_lengths(task, Console())
    assert costs["T=120"] == (1 / 120,) * 2 and costs["T=960"] == (1 / 960,) * 2


@pytest.mark.slow
def test_peak_memory(data):
    """It is at least the spikes and margins of two layers, and not a multiple of everything."""
    size = Size(n_hidden=64, n_steps=240, batch_size=64)
    peak = training_step._peak_in_fresh_process("fused", data, size)
    array = 240 * 64 * 64 * 4
    assert 4 * array < peak < 20 * array


def test_memory_is_measured_in_new_processes_in_turns(monkeypatch, task, capsys):
    asked = []

    def peak(name, data, size):
        asked.append((name, data, size))
        return {"standard": 900, "fused": 300}[name] << 20

    monkeypatch.setattr(training_step, "_peak_in_fresh_process", peak)
    costs = training_step.measure_memory(task, Console())
    assert asked == [(name, task.data, SMALL) for name in ("standard", "fused")] * 2
    assert costs == {"standard": (900 << 20,) * 2, "fused": (300 << 20,) * 2}
    assert "300" in capsys.readouterr().out


COSTS = {
    "comparison": {"standard": (60.0,) * 5, "blocks": (1.0,) * 5, "fused": (5.0,) * 5},
    "memory": {"standard": (9.0,) * 5, "fused": (3.0,) * 5},
    "length": {"T=1": (1.0,) * 5, "T=2": (1.5,) * 5, "T=4": (0.75,) * 5},
    "refractory": {"arp=0": (1.0,) * 5, "arp=1": (1.3,) * 5},
}


def test_claims_are_judged(monkeypatch, data, tmp_path, capsys):
    for part, costs in COSTS.items():
        monkeypatch.setitem(PARTS, part, lambda task, console, costs=costs: costs)
    path = tmp_path / "claims.jsonl"
    assert training_step.main(["--data", str(data), "--json", str(path)]) == COSTS
    expected = [
        Claim("comparison: standard / fused", 12.0, "≥ 10", True),
        Claim("memory: standard / fused", 3.0, "≥ 4", False),
        Claim("length: most / least per step of time", 2.0, "≤ 1.2", False),
        Claim("refractory: slowest / fastest", 1.3, "≤ 1.3", True),
    ]
    assert training_step.claims(COSTS) == expected
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["met"] for line in lines] == [True, False, False, True]
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("NO", "yes", "threads", "load average", *PARTS))


def test_only_the_chosen_parts_are_measured(monkeypatch, data):
    for part, costs in COSTS.items():
        monkeypatch.setitem(PARTS, part, lambda task, console, costs=costs: costs)
    measured = training_step.main(
        ["--data", str(data), "--only", "length", "memory", "--rounds", "2"]
    )
    assert list(measured) == ["length", "memory"]


def test_the_ratio_is_the_median_of_the_rounds():
    costs = {"standard": (10.0, 40.0, 90.0), "fused": (1.0, 2.0, 3.0)}
    ratio = training_step.claims({"comparison": costs})[0].measured
    assert ratio == statistics.median([10, 20, 30])


def test_unsteady_rounds_leave_a_claim_open():
    unsteady = (1.0, 1.0, 1.0, 9.0, 9.0)
    for part, name in [("comparison", "fused"), ("memory", "standard"), ("length", "T=2")]:
        claim = training_step.claims({part: COSTS[part] | {name: unsteady}})[0]
        assert claim.met is None
    blocks_unsteady = COSTS["comparison"] | {"blocks": unsteady}
    assert training_step.claims({"comparison": blocks_unsteady})[0].met is True


def test_missing_file_is_one_clear_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        training_step.main(["--data", str(tmp_path / "none.h5")])
    message = capsys.readouterr().err
    assert "none.h5" in message and "blockspike prepare data=hd_lauscher_sample" in message
    assert "blockspike prepare data=hd_lauscher" in message
