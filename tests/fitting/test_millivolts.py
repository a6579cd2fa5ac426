"""Fitted neurons in mV, MΩ and pF."""

import numpy as np
import pytest
import torch

from blockspike.data.parts import Part
from blockspike.fitting.millivolts import COLUMNS, millivolts_of_cells
from blockspike.fitting.parameters import NeuronParameters, simulated_trace

DT_MS, SCALE_PA = 0.5, 80.0
RESET_MV, UNIT_MV, ELECTRODE_MOHM = -62.0, 14.0, 12.0


def neuron() -> NeuronParameters:
    own = {
        "tau_membrane_ms": 15.0, "tau_adaptation_ms": 80.0, "b": 0.3, "gain": 1.1, "rest": 0.1,
        "noise": 0.1, "arp_ms": 3.0, "current_1": 0.2, "tau_current_1_ms": 20.0,
    }  # fmt: skip
    return NeuronParameters(**{k: torch.tensor([x], dtype=torch.float64) for k, x in own.items()})


@pytest.fixture
def recorded() -> tuple[Part, np.ndarray]:
    """Two segments of a current [T, 2, 1] and the voltage [2, T] of a cell that is the neuron."""
    generator = torch.Generator().manual_seed(0)
    current = torch.randn(4000, 2, 1, generator=generator).cumsum(0) * 0.2
    current = current - torch.nn.functional.avg_pool1d(
        current.permute(1, 2, 0), 201, 1, 100, count_include_pad=False
    ).permute(2, 0, 1)
    current = 2 * current / current.std()
    trace = simulated_trace(neuron(), current, DT_MS)
    spikes, membrane = trace.spikes[..., 0].numpy(), trace.membrane[..., 0].numpy()
    middle = np.concatenate([membrane[:1], (membrane[1:] + membrane[:-1]) / 2])
    nano_ampere = current[..., 0].double().numpy() * SCALE_PA / 1000
    voltage = RESET_MV + UNIT_MV * middle + ELECTRODE_MOHM * nano_ampere
    voltage += np.random.default_rng(0).normal(0, 0.3, voltage.shape)
    voltage[spikes > 0] = 30.0
    assert spikes.sum() > 30
    trains = [spikes[:, s][None].astype(np.float32) for s in range(2)]
    return Part(current, [trains], [[0] * len(trains)]), voltage.T.astype(np.float32)


def row(part: Part, voltage: np.ndarray | None) -> dict[str, float]:
    table = millivolts_of_cells(neuron(), part, [voltage], np.array([SCALE_PA]), DT_MS)
    return {str(k): float(x) for k, x in table.iloc[0].items()}


def test_scales_are_recovered(recorded):
    found = row(*recorded)
    assert tuple(found) == COLUMNS
    gain_mv_per_pa = UNIT_MV * 1.1 / SCALE_PA
    assert found["reset_mv"] == pytest.approx(RESET_MV, abs=0.1)
    assert found["threshold_mv"] == pytest.approx(RESET_MV + UNIT_MV, abs=0.2)
    assert found["rest_mv"] == pytest.approx(RESET_MV + 0.1 * UNIT_MV, abs=0.1)
    assert found["resistance_mohm"] == pytest.approx(1000 * gain_mv_per_pa, rel=0.02)
    assert found["capacitance_pf"] == pytest.approx(15.0 / gain_mv_per_pa, rel=0.02)  # ms·pA/mV
    assert found["electrode_mohm"] == pytest.approx(ELECTRODE_MOHM, rel=0.02)
    assert found["voltage_explained"] > 0.98


def test_segments_without_voltage_are_left_out(recorded):
    part, voltage = recorded
    half = voltage.copy()
    half[1] = np.nan
    assert row(part, half)["reset_mv"] == pytest.approx(RESET_MV, abs=0.2)


def test_no_voltage_no_columns(recorded):
    part, voltage = recorded
    assert row(part, None) == {} and row(part, np.full_like(voltage, np.nan)) == {}


def test_the_voltage_of_other_trials_is_not_taken_for_this_one(recorded):
    part, voltage = recorded
    shifted = np.roll(voltage, 500, axis=1)
    assert row(part, shifted) == {}


def test_a_voltage_that_does_not_follow_the_membrane_gives_nothing(recorded):
    part, voltage = recorded
    spikes = voltage > 0
    upside_down = np.where(spikes, voltage, -130 - voltage)
    assert row(part, upside_down.astype(np.float32)) == {}
