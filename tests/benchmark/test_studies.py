"""The studies are complete and their rows describe what ran; no time is asserted."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from blockspike.benchmark import fitting, roofline, studies, tradeoff
from blockspike.benchmark.layers import Size
from blockspike.benchmark.remote import Remote
from blockspike.benchmark.studies import STUDIES, Options, pieces
from blockspike.benchmark.timing import Turn, summary, take_turns
from blockspike.benchmark.tradeoff import STEPS_MS, Neuron, noise, spike_time_error_ms
from blockspike.neurons import alif

SMALL = Options(n_steps=(30,), arp_steps=(2, 5), batch_size=(2,), rounds=2, memory=False)


def test_grids_are_as_published(data_dir):
    keys = [piece.key for piece in pieces("length", Options(batch_size=(32, 64, 128)))]
    assert len(keys) == 90 and all(k["n_inputs"] == 1000 and k["n_units"] == 128 for k in keys)
    assert {k["n_steps"] for k in keys} == {512, 1024, 2048}
    assert len([*pieces("layers", Options())]) == 15
    options = Options(data_path=str(data_dir / "hd_lauscher_sample.h5"))
    everything = [str(p.key) for study in STUDIES if study != "gpu" for p in pieces(study, options)]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contenders": ("fused", "fusd")}, "contenders: expected some of fused, .*, got fusd"),
        ({"rounds": 1}, "rounds: expected at least 2, got 1"),
        ({"device": "gpu"}, "device: expected cpu or cuda, got 'gpu'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_an_unknown_study_is_refused():
    with pytest.raises(ValueError, match="study: expected some of roofline, .* got 'speed'"):
        next(pieces("speed", SMALL))


def test_a_study_without_the_chosen_contenders_is_refused():
    with pytest.raises(ValueError, match="contenders: expected some of study 'layers', got sinabs"):
        next(pieces("layers", replace(SMALL, contenders=("sinabs",))))


def test_the_study_of_fits_times_the_chosen_method_alone(monkeypatch):
    (piece,) = STUDIES["fit"](replace(SMALL, contenders=("fused",)))
    assert piece.contenders == ("fused",)
    timed = []
    monkeypatch.setattr(fitting, "make_batch", lambda *_: None)
    monkeypatch.setattr(fitting, "epoch_s", lambda method, *_: timed.append(method) or 1.0)
    rows = piece.measure()
    assert [row["contender"] for row in rows] == ["fused"] and set(timed) == {"fused"}


def test_rows_of_layers():
    options = replace(SMALL, contenders=("fused", "blocks", "standard"))
    piece, _ = pieces("length", options)
    rows = piece.measure()
    assert [row["contender"] for row in rows] == ["fused", "blocks", "standard"]
    for row in rows:
        assert row["rounds"] == 2 and 0 < row["total_ms_q25"] <= row["total_ms_median"]
        assert row["forward_ms_median"] < row["total_ms_q75"]
    assert rows[0]["total_by_fused"] == 1
    assert len({row["firing_per_step"] for row in rows}) == 1 and rows[0]["firing_per_step"] > 0
    assert 0 < rows[0]["input_density"] < 1


def fail_to_make():
    raise ImportError("no module named snntorch")


@pytest.mark.slow
def test_failed_and_slow_contenders_get_a_row(monkeypatch):
    monkeypatch.setattr(studies, "_start_peer", lambda name, size, device: Remote(fail_to_make))
    options = replace(SMALL, contenders=("fused", "standard", "snnTorch"), longest_turn_s=0.0)
    first, second = pieces("length", options)
    left_out = [{row["contender"]: row["left_out"] for row in p.measure()} for p in (first, second)]
    again = {k: f"not run, at another refractory period: {v}" for k, v in left_out[0].items()}
    assert left_out[1] == again
    assert left_out[0]["snnTorch"] == "ImportError: no module named snntorch"
    assert "longer than longest_turn_s" in left_out[0]["standard"]


def test_contenders_take_turns_after_a_warm_up():
    order = []

    def run(name, seconds):
        order.append(name)
        return Turn(seconds, 2 * seconds)

    def broken():
        raise RuntimeError("no\nluck")

    turns = iter([Turn(1.0, 1.0)])
    found = take_turns(
        {"a": lambda: run("a", 1.0), "b": broken, "c": lambda: run("c", 9.0),
         "d": lambda: next(turns)},
        2,
        10.0,
    )  # fmt: skip
    assert order == ["a", "c", "c", "a", "a"]  # c is tried again, then left out
    assert found == {
        "a": [Turn(1.0, 2.0)] * 2,
        "b": "RuntimeError: no luck",
        "c": "took 27 s, longer than longest_turn_s",
        "d": "StopIteration: ",  # only in a later round
    }


def test_ratios_are_medians_of_rounds():
    turns = [Turn(1.0, 2.0), Turn(2.0, 4.0), Turn(9.0, 9.0)]
    row = summary(turns, [Turn(0.5, 1.0), Turn(2.0, 2.0), Turn(1.0, 9.0)])
    assert row["forward_by_fused"] == 2.0 and row["backward_by_fused"] == 2.0
    assert row["total_by_fused"] == 1.8 and row["total_ms_median"] == 6000
    assert not row["steady"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["standard", "fused"])
def test_memory_is_that_of_the_layer(name):
    size = Size(1000, 8, 100, 64, arp_steps=10)
    peak = studies._peak_mib(name, size, SMALL)
    element = size.n_steps * size.batch_size * size.n_units * 4 / 2**20
    assert peak is not None
    assert (peak > 10 * element) == (name == "standard") and peak > 2 * element, peak / element


@pytest.mark.slow
def test_tradeoff(monkeypatch):
    monkeypatch.setattr(studies, "STEPS_MS", STEPS_MS[:6])
    monkeypatch.setattr(studies, "_FINEST_MS", 0.25)
    piece = next(pieces("tradeoff", replace(SMALL, simulated_s=0.4)))
    rows = piece.measure()
    assert {(row["contender"], row["dt_ms"]) for row in rows} == {
        (method, dt_ms) for method in tradeoff.METHODS for dt_ms in STEPS_MS[:6]
    }
    errors = {row["dt_ms"]: row["spike_time_error_ms"] for row in rows}
    assert errors[0.25] == 0 < errors[0.5] < errors[1.0] < errors[8.0]
    assert all(row["total_ms_median"] > 0 for row in rows)


@pytest.mark.slow
def test_every_method_has_the_spikes_of_fused_at_every_step_length():
    current = noise(0.4)
    for dt_ms in STEPS_MS:
        neuron = Neuron(current, dt_ms)
        expected = neuron.spike_times_ms("fused")
        for method in tradeoff.METHODS:
            for mine, wanted in zip(neuron.spike_times_ms(method), expected, strict=True):
                np.testing.assert_array_equal(mine, wanted)


def test_the_noise_is_the_same_at_every_step_length():
    current = noise(0.4)
    assert current.mean() == pytest.approx(0.9, abs=0.3) and 0.5 < current.std() < 1.3
    for dt_ms in (1.0, 8.0):
        neuron = Neuron(current, dt_ms)
        gain = 1 - math.exp(-dt_ms / 20)
        assert len(neuron.current) == 400 / dt_ms and neuron.arp == round(2 / dt_ms)
        assert (neuron.current.mean() / gain).item() == pytest.approx(current.mean().item(), 1e-4)
    with pytest.raises(
        ValueError, match=r"simulated_s: expected a multiple of 0.008 s, got 0.4001"
    ):
        noise(0.4001)


@pytest.mark.parametrize(
    ("mine", "wanted", "error"),
    [
        ([1.0, 5.0], [1.0, 5.0], 0.0),
        ([1.5], [1.0], 0.5),
        ([1.0], [1.0, 4.0], 1.0),  # 0 in one direction, 0 and 3 in the other
        ([], [], 0.0),
        ([], [1.0], math.inf),
    ],
)
def test_spike_time_error(mine, wanted, error):
    assert spike_time_error_ms([np.array(mine)], [np.array(wanted)]) == error
    assert spike_time_error_ms([np.array(wanted)], [np.array(mine)]) == error


@pytest.fixture
def small_roofline(monkeypatch):
    monkeypatch.setattr(roofline, "LAYER", Size(64, 2, 50, 8, arp_steps=3, recurrent=False))
    monkeypatch.setattr(roofline, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(roofline, "_COPY", [])


@pytest.mark.slow
@pytest.mark.usefixtures("small_roofline")
def test_roofline():
    rows = next(pieces("roofline", SMALL)).measure()
    by_name = {row["contender"]: row for row in rows}
    assert {"copy", "copy past the caches", "blocks, MultiGaussian", "leaky integrator"} <= set(
        by_name
    )
    moved = {kernel.name: kernel.bytes_moved for kernel in roofline.kernels()}
    for name, row in by_name.items():
        if "copy" in name:
            continue
        for i, part in enumerate(("forward", "backward")):
            gb_per_s = moved[name][i] / row[f"{part}_ms_median"] / 1e6
            assert row[f"{part}_gb_per_s"] == pytest.approx(gb_per_s, rel=0.1)
            for copy in ("copy", "copy past the caches"):
                share = row[f"{part}_share_of_{copy.replace(' ', '_')}"]
                expected = gb_per_s / by_name[copy]["gb_per_s"]
                assert share == pytest.approx(expected, rel=0.1)


@pytest.mark.usefixtures("small_roofline")
def test_bytes_are_those_that_a_kernel_reads_and_writes():
    shape = (64, 2, 8)
    current = torch.full(shape, 0.3, requires_grad=True)
    parameters = [torch.full(shape[2:], x, requires_grad=True) for x in (0.9, 0.9, 0.5)]
    kept = {}
    with saved_tensors_hooks(lambda x: kept.setdefault(x.data_ptr(), x), lambda x: x):
        trace = alif(current, *parameters, arp=3)
    assert current.data_ptr() in kept
    states = sum(x.nbytes for x in kept.values() if x.numel() > 24) - current.nbytes
    states -= trace.state.values.nbytes  # after the last step, not read by backward
    forward = current.nbytes + trace.spikes.nbytes + trace.events.array.nbytes + states
    backward = trace.spikes.nbytes + current.nbytes + states + current.nbytes
    fused = next(k for k in roofline.kernels() if k.name == "fused, MultiGaussian")
    assert fused.bytes_moved == (forward, backward)


@pytest.mark.usefixtures("small_roofline")
@pytest.mark.parametrize("streaming", [True, False])
def test_a_copy_moves_the_stated_bytes(streaming):
    assert roofline.copy_s(streaming) > 0
    source, target = roofline._COPY
    assert source.nbytes == target.nbytes == 2**16
    source.uniform_()
    roofline.copy_s(streaming)
    assert torch.equal(source, target)
