"""Intervals from fits to resampled trials and segments."""

import numpy as np
import pytest
import torch

from blockspike.data.parts import Part
from blockspike.fitting.bootstrap import (
    OF_RESAMPLED,
    OF_SIMULATED,
    intervals,
    resample,
    unconstrained,
)
from blockspike.fitting.parameters import NeuronParameters
from blockspike.fitting.voltage import RecordedVoltage

N, T = 40, 300


def part(*n_trials: int) -> Part:
    """One cell with so many trials in each segment."""
    random = np.random.default_rng(0)
    trains = [(random.random((n, T)) < 0.05).astype(np.float32) for n in n_trials]
    return Part(torch.randn(T, len(n_trials), 1), [trains], [[0] * len(trains)])


def neuron(noise: float = 0.2) -> NeuronParameters:
    own = {
        "tau_membrane_ms": 10.0, "tau_adaptation_ms": 100.0, "b": 0.1, "gain": 1.0, "rest": 0.5,
        "noise": noise, "arp_ms": 1.0,
    }  # fmt: skip
    return NeuronParameters(**{k: torch.tensor([x], dtype=torch.float64) for k, x in own.items()})


def test_trials_are_drawn_within_their_segment():
    data = part(4, 3)
    drawn = resample(data, neuron(), N, 0.5, seed=0)
    assert drawn.target.shape == drawn.current.shape == (T, 2, N)
    assert (drawn.how, drawn.inflation) == (
        ["trials"],
        pytest.approx(OF_RESAMPLED * np.sqrt(3 / 2)),
    )
    assert torch.equal(drawn.current, data.current.expand(-1, -1, N))
    for segment, trains in enumerate(data.trains[0]):
        means = drawn.target[:, segment]
        assert len(torch.unique(means, dim=1)[0]) > 5  # different draws
        assert means.mean() == pytest.approx(trains.mean(), rel=0.1)
        assert not means[:, 0][torch.from_numpy(trains.max(0) == 0)].any()


def test_one_segment_of_a_single_trial_has_none_to_draw():
    drawn = resample(part(4, 1), neuron(), N, 0.5, seed=0)
    assert drawn.how == ["simulated trials"]
    assert len(torch.unique(drawn.target[:, 1], dim=1)[0]) > 5
    assert set((4 * drawn.target[:, 0]).unique().tolist()) >= {0, 1, 2}  # means of four trials
    assert set(drawn.target[:, 1].unique().tolist()) == {0, 1}
    assert resample(part(4, 1), neuron(noise=0.0), N, 0.5, seed=0).how == [""]


def test_segments_are_drawn_too_where_there_are_enough():
    data = part(*[1] * 6)
    drawn = resample(data, neuron(), N, 0.5, seed=0)
    assert (drawn.how, drawn.inflation) == (
        ["segments"],
        pytest.approx(OF_RESAMPLED * np.sqrt(6 / 5)),
    )
    original = {tuple(x.tolist()) for x in data.current[:, :, 0].T}
    for replicate in range(N):
        for segment in range(6):
            current = drawn.current[:, segment, replicate]
            assert tuple(current.tolist()) in original
            (source,) = [s for s in range(6) if torch.equal(data.current[:, s, 0], current)]
            own = data.trains[0][source][0]
            assert np.array_equal(drawn.target[:, segment, replicate].numpy(), own)
    assert resample(part(*[3] * 6), neuron(), 2, 0.5, seed=0).how == ["trials and segments"]


def test_a_single_trial_is_simulated_by_a_neuron_with_noise():
    drawn = resample(part(1), neuron(), N, 0.5, seed=0)
    assert (drawn.how, drawn.inflation.tolist()) == (["simulated trials"], [OF_SIMULATED])
    assert len(torch.unique(drawn.target[:, 0], dim=1)[0]) > 10
    silent = resample(part(1), neuron(noise=0.0), N, 0.5, seed=0)
    assert silent.how == [""] and np.isnan(silent.inflation).all()


def voltage_of(data: Part) -> RecordedVoltage:
    """Known in the second half of the first segment and in all others."""
    shape = data.current.shape
    mv = torch.arange(1, shape[0] * shape[1] + 1).reshape(shape[1], shape[0]).T.unsqueeze(2).float()
    weight = torch.ones(shape)
    weight[: T // 2, 0] = 0
    first = [torch.from_numpy(trains[0]) for trains in data.trains[0]]
    return RecordedVoltage(mv * weight, weight, torch.stack(first, 1).unsqueeze(2))


def test_blocks_of_a_voltage_are_drawn_beside_trials():
    data, dt_ms = part(4, 4), 20.0  # 25 steps are a block
    own = voltage_of(data)
    drawn = resample(data, neuron(), N, dt_ms, seed=0, voltage=own)
    assert drawn.how == ["trials and blocks of the voltage"]
    assert drawn.inflation == pytest.approx(OF_RESAMPLED * np.sqrt(4 / 3))
    assert torch.equal(drawn.target, resample(data, neuron(), N, dt_ms, seed=0).target)
    assert drawn.voltage is not None
    mv, weight, spikes = drawn.voltage
    assert torch.equal(mv, own.mv.expand(-1, -1, N))
    assert torch.equal(spikes, own.spikes.expand(-1, -1, N))
    blocks = weight.reshape(T // 25, 25, 2, N)
    assert torch.equal(blocks, blocks[:, :1].expand_as(blocks)) and not blocks[:6, :, 0].any()
    assert (weight.sum((0, 1)) == own.weight.sum()).all()  # 18 of 18 blocks
    assert set(weight.unique().tolist()) >= {0, 1, 2, 3}
    assert weight.mean(2)[own.weight[:, :, 0] > 0].mean() == pytest.approx(1)


def test_a_voltage_comes_with_its_segment():
    data = part(*[1] * 6)
    own = voltage_of(data)
    drawn = resample(data, neuron(), N, 0.5, seed=0, voltage=own)
    assert drawn.how == ["segments"] and drawn.voltage is not None
    assert len(torch.unique(drawn.voltage.mv, dim=2)[0, 0]) > 10
    for replicate in range(N):
        for segment in range(6):
            target = drawn.target[:, segment, replicate]
            assert torch.equal(target, drawn.voltage.spikes[:, segment, replicate])
            source = int(drawn.voltage.mv[-1, segment, replicate]) // T - 1
            for x, whole in zip(drawn.voltage, own, strict=True):
                assert torch.equal(x[:, segment, replicate], whole[:, source, 0])
            assert torch.equal(target, torch.from_numpy(data.trains[0][source][0]))


def test_too_few_blocks_of_a_voltage_give_no_interval():
    data = part(4)
    drawn = resample(data, neuron(), 2, 6.0, seed=0, voltage=voltage_of(data))  # 0.9 s
    assert drawn.how == [""] and np.isnan(drawn.inflation).all()
    alone = part(1)
    drawn = resample(alone, neuron(), 2, 20.0, seed=0, voltage=voltage_of(alone))  # 6 blocks
    assert drawn.how == ["simulated trials and blocks of the voltage"]
    assert drawn.inflation == pytest.approx(OF_SIMULATED * np.sqrt(6 / 5))
    settling = Part(alone.current, alone.trains, [[T - 75]])  # 3 blocks that are fitted
    drawn = resample(settling, neuron(), 2, 20.0, seed=0, voltage=voltage_of(alone))
    assert drawn.how == [""]


def test_a_fit_to_first_trials_is_repeated_on_them():
    drawn = resample(part(4), neuron(), N, 0.5, seed=0, first_trial_only=True)
    assert drawn.how == ["simulated trials"]
    assert set(drawn.target.unique().tolist()) == {0, 1}  # single trials and no means


def test_the_same_seed_draws_the_same():
    first, second, other = (resample(part(4), neuron(), 5, 0.5, seed=s).target for s in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_intervals_cover_a_mean_as_often_as_they_say():
    random = np.random.default_rng(0)
    samples = random.normal(5.0, 1.0, (2000, 9))
    drawn = random.integers(9, size=(2000, 64, 9))
    means = np.take_along_axis(samples[:, None], drawn, 2).mean(2)
    found = intervals({"rest": samples.mean(1)}, {"rest": means}, np.full(2000, np.sqrt(9 / 8)))
    covered = (found["rest_low"] < 5) & (found["rest_high"] > 5)
    assert covered.mean() == pytest.approx(0.88, abs=0.03)  # 9 samples: t and not normal


def test_what_is_positive_stays_so_and_what_is_wide_is_named():
    values = {"tau_membrane_ms": np.array([10.0, 10.0]), "b": np.array([0.1, 0.1])}
    spread = np.linspace(-1, 1, 9)
    repeated = {
        "tau_membrane_ms": np.stack([10 * np.exp(2 * spread), 10 + 0.1 * spread]),
        "b": np.stack([0.1 + 0.01 * spread, 0.1 + spread]),
    }
    found = intervals(values, repeated, np.ones(2))
    assert (found["tau_membrane_ms_low"] > 0).all()
    assert found["tau_membrane_ms_low"][0] < 3 and found["tau_membrane_ms_high"][0] > 30
    assert unconstrained(values, found, 0) == ["tau_membrane_ms"]
    assert unconstrained(values, found, 1) == ["b"]
    nothing = intervals(values, repeated, np.full(2, np.nan))
    assert np.isnan(nothing["b_low"]).all() and unconstrained(values, nothing, 0) == []
