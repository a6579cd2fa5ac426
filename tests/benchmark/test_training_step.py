"""The training-step benchmark is complete and times only equal methods; no time is asserted."""

import pytest
import torch

from blockspike.benchmark import training_step
from blockspike.benchmark.training_step import METHODS, Size, Task, Training, make_network
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
        training_step.compare(task, list(METHODS))


def test_a_wrong_gradient_is_not_timed(monkeypatch, task):
    """The published gradient has the spikes of `standard` but another slope."""
    monkeypatch.setitem(METHODS, "fused", ("blocks", "auto"))
    with pytest.raises(RuntimeError, match=r"gradients of fused differ \(layers.*\): no time"):
        training_step.compare(task, list(METHODS))


def test_contenders_take_turns(monkeypatch, batches):
    calls = []

    class Noted(Training):
        def step(self, batch):
            calls.append((self.network, batch))
            return super().step(batch)

    a, b = (Noted(make_network("fused", SMALL)) for _ in range(2))
    steps = training_step.steps_in_turns({"a": (a, batches), "b": (b, batches)}, 3)
    assert [len(taken) for taken in steps.values()] == [3, 3]
    rounds = [calls[2 * k : 2 * k + 2] for k in range(4)]  # the first is the warm-up
    for calls_of_round, i in zip(rounds, (0, 1, 0, 1), strict=True):
        assert {id(network) for network, _ in calls_of_round} == {id(a.network), id(b.network)}
        assert all(batch is batches[i] for _, batch in calls_of_round)


@pytest.mark.slow
def test_contenders_and_floor(task):
    names = [*METHODS, training_step.SCAN]
    rows = training_step.compare(task, names)
    assert [row["contender"] for row in rows] == [*names, "floor"]
    *ours, scan, floor = rows
    assert ("left_out" in scan) == (scan["version"] is None), scan
    for row in ours:
        assert row["rounds"] == 2 and row["update_ms_median"] > 0 and row["rates_hz"]
    moved = floor["moved_mb"] / floor["gb_per_s"] + 1000 * floor["gflop"] / floor["gflop_per_s"]
    assert floor["total_ms_median"] == pytest.approx(moved, rel=0.3, abs=0.02)
    assert floor["total_by_fused"] < 1


def test_bytes_of_the_floor():
    """Per neuron and step: 20.5 forward, 29.5 backward, and 4 between the layers."""
    row = training_step.floor(Size(n_hidden=100, n_steps=50, batch_size=20), None)
    assert row["moved_mb"] == pytest.approx(0.1 * (2 * 50 + 4), abs=0.1)
    wide = training_step.floor(Size(n_hidden=1000, n_steps=50, batch_size=20), None)
    assert wide["gflop"] == pytest.approx(2 * 1000 * 1000 * 1020 / 1e9, rel=0.01)


@pytest.mark.slow
def test_other_parts(task):
    rows = training_step.measure_lengths(task)
    assert [row["case"] for row in rows] == [f"{n} steps" for n in (120, 240, 480, 960)]
    for row, n_steps in zip(rows, (120, 240, 480, 960), strict=True):
        assert row["us_per_step"] == pytest.approx(1000 * row["total_ms_median"] / n_steps, abs=1)
    rows = training_step.measure_refractory(task)
    assert [row["case"] for row in rows] == [f"refractory period {n}" for n in (0, 1, 10, 50, 100)]


@pytest.mark.slow
def test_peak_memory(data):
    """It is at least the spikes and margins of two layers, and not a multiple of everything."""
    size = Size(n_hidden=64, n_steps=240, batch_size=64)
    peak = training_step._peak_in_new_process("fused", data, size)
    array = 240 * 64 * 64 * 4
    assert 4 * array < peak < 20 * array


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.h5: .* prepare data=hd_lauscher_sample"):
        training_step.read_batches(tmp_path / "none.h5", SMALL, 1)
