"""Training segments are entered by neurons that have adapted to the current before them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import blockspike as bs
from blockspike.fitting.distance import Window, squared_distance
from blockspike.fitting.parameters import NeuronParameters, simulated_trace

DT_MS, WARM_UP_S = 0.5, 2.0
SEGMENTS_S = [[2.0, 2.5], [4.5, 5.5]]
NEURON = bs.FittedNeuron(
    "cell", tau_membrane_ms=12.0, tau_adaptation_ms=60.0, b=0.4, gain_per_pa=0.02, rest=0.3,
    arp_ms=2.0, dt_ms=DT_MS, current_1_pa=10.0, tau_current_1_ms=30.0,
)  # fmt: skip


@pytest.fixture
def recording(tmp_path):
    """A file of one sweep of 6 s, of which the neuron's own spikes are those recorded."""
    rng = np.random.default_rng(0)
    current_pa = np.convolve(rng.normal(60, 300, 12_000), np.ones(8) / 8, "same")
    spikes = NEURON.simulate(current_pa)
    np.savez(
        tmp_path / "cell.npz", current_pa=current_pa, dt_ms=DT_MS,
        spike_times_s=(np.flatnonzero(spikes) + 0.5) * DT_MS / 1000,
    )  # fmt: skip
    return tmp_path / "cell.npz"


def made(path, **options) -> bs.RecordingsDataModule:
    segments = {"train_s": SEGMENTS_S, "test_s": [[5.5, 6.0]], "held_out": 0.25} | options
    data = bs.RecordingsDataModule(path, dt_ms=DT_MS, **segments)
    data.setup()
    return data


def simulated(current: torch.Tensor, scale_pa: float):
    own = NEURON.parameters()
    scaled: NeuronParameters = replace(own, gain=own.gain * scale_pa)
    return simulated_trace(scaled, current.double(), DT_MS)


def test_segments_continue_the_simulation_of_the_whole_sweep(recording):
    data = made(recording, train_warm_up_s=WARM_UP_S)
    current, _, (first, split, last) = data.batch()
    assert first == 4000 and data.train.first == [[4000, 4000]]
    torch.testing.assert_close(last, torch.tensor([[5000], [6000]]))
    torch.testing.assert_close(split, torch.tensor([[4750], [5500]]))
    scale_pa = float(data.scale_pa[0])
    whole_pa = bs.load_recording(recording).current(DT_MS)[0].astype(np.float32)
    whole = simulated(torch.from_numpy(whole_pa / scale_pa).view(-1, 1, 1), scale_pa)
    warm = simulated(current, scale_pa)
    cold = simulated(made(recording).train.current, scale_pa)
    for segment, (start_s, stop_s) in enumerate(SEGMENTS_S):
        steps = slice(round(start_s * 1000 / DT_MS), round(stop_s * 1000 / DT_MS))
        n = steps.stop - steps.start
        for name in ("spikes", "membrane", "threshold"):
            expected = getattr(whole, name)[steps, 0, 0]
            own = getattr(warm, name)[first : first + n, segment, 0]
            torch.testing.assert_close(own, expected, rtol=0, atol=1e-6)
            assert not torch.equal(getattr(cold, name)[:n, segment, 0], expected)
        assert whole.spikes[steps].sum() > 5


def test_the_warm_up_is_neither_fitted_nor_scaled_by(recording):
    warm, cold = made(recording, train_warm_up_s=WARM_UP_S), made(recording)
    assert warm.scale_pa == cold.scale_pa
    current, target, window = warm.batch()
    assert cold.batch()[2][0] == 0 and torch.equal(current[4000:], cold.batch()[0])
    shown = Window(*window)
    silent = torch.zeros_like(target)
    before = torch.zeros_like(target)
    before[:3000] = 1.0  # far before the first fitted step
    found = squared_distance(before, silent, float(np.exp(-DT_MS / 10)), shown)
    assert all(float(x.max()) < 1e-12 for x in found)


def test_a_cell_without_some_segment_has_nothing_to_compare_there():
    nothing = torch.zeros(50, 2, 2)
    last = torch.tensor([[50, 40], [50, 0]])
    window = Window(20, last, last)
    fitted, _ = squared_distance(nothing + 1, nothing, 0.5, window)
    assert fitted[1, 1] == 0 and (fitted > 0).sum() == 3
    with pytest.raises(ValueError, match="window: expected 0 ≤ first ≤ split"):
        squared_distance(nothing, nothing, 0.5, Window(20, torch.full((2, 2), 10), last))


@pytest.mark.parametrize(
    "options",
    [
        {"train_warm_up_s": -1.0},
        {"train_warm_up_s": float("inf")},
        {"train_warm_up_s": 2.5},
        {"train_warm_up_s": 0.1, "train_s": None, "test_s": None},
    ],
)
def test_a_warm_up_that_does_not_fit_is_refused(options):
    with pytest.raises(ValueError, match="train_warm_up_s: expected"):
        bs.RecordingsDataModule("x.npz", **{"train_s": SEGMENTS_S, "test_s": [[5.5, 6]]} | options)
