"""Recordings that can be read but cannot be right are refused, or warned of, by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blockspike.data.recordings import load_recording

DT_MS, N_SAMPLES = 0.1, 20_000  # 2 s
TIMES_S = np.arange(0.1, 2, 0.1)


def noise_pa(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 100, N_SAMPLES)


def voltage_mv(times_s: np.ndarray = TIMES_S, width_ms: float = 1.0) -> np.ndarray:
    """A membrane at −70 mV with spikes to +30 mV."""
    time_ms = np.arange(N_SAMPLES) * DT_MS
    spikes = [np.exp(-0.5 * ((time_ms - 1e3 * t) / (width_ms / 2.355)) ** 2) for t in times_s]
    return -70 + 100 * np.sum(spikes, axis=0)


def saved(folder: Path, **changed: Any) -> Path:
    arrays: dict[str, Any] = {"current_pa": noise_pa(), "dt_ms": DT_MS, "spike_times_s": TIMES_S}
    path = folder / "cell.npz"
    np.savez(path, **{name: x for name, x in (arrays | changed).items() if x is not None})
    return path


def test_a_plausible_recording_is_read_without_a_word(tmp_path):
    assert len(load_recording(saved(tmp_path)).spike_times_s[0][0]) == len(TIMES_S)  # pyright: ignore
    found = load_recording(saved(tmp_path, voltage_mv=voltage_mv(), spike_times_s=None))
    np.testing.assert_allclose(found.spike_times_s[0][0], TIMES_S, atol=1e-3)  # pyright: ignore
    assert load_recording(saved(tmp_path, current_pa=np.zeros(N_SAMPLES))).current_pa.max() == 0


@pytest.mark.parametrize(
    ("factor", "unit"), [(1e-12, "A"), (1e-3, "nA"), (1e3, "fA"), (1e-6, "µA"), (1e9, None)]
)
def test_another_unit_is_refused_by_name(tmp_path, factor, unit):
    hint = rf"plausible in {unit}$" if unit else "pA$"
    with pytest.raises(
        ValueError, match=rf"current_pa: expected a peak of 1 to 100,000 pA.*{hint}"
    ):
        load_recording(saved(tmp_path, current_pa=factor * noise_pa()))


@pytest.mark.parametrize("peak", [2.0, 50_000.0])
def test_an_unusual_current_is_warned_of(tmp_path, peak):
    current = noise_pa()
    with pytest.warns(UserWarning, match="which is unusual; is the unit pA"):
        load_recording(saved(tmp_path, current_pa=current * peak / np.abs(current).max()))


def test_merged_trials_are_refused(tmp_path):
    both = np.sort(np.concatenate([TIMES_S, TIMES_S + 0.0003]))
    with pytest.raises(ValueError, match=r"0.5 ms apart, got 0.3 ms at 0.1 s; are trials merged"):
        load_recording(saved(tmp_path, spike_times_s=both))
    repeat = np.tile([0, 1], len(TIMES_S))
    assert (
        len(load_recording(saved(tmp_path, spike_times_s=both, spike_repeat=repeat)).spike_times_s)
        == 2
    )


def test_repeats_are_numbered_from_0(tmp_path):
    repeat = 1 + np.arange(len(TIMES_S)) % 2
    with pytest.raises(ValueError, match="got none in repeat 0; are repeats numbered from 1"):
        load_recording(saved(tmp_path, spike_repeat=repeat))
    said = load_recording(saved(tmp_path, spike_repeat=repeat, n_repeats=4)).spike_times_s
    assert [len(train[0]) for train in said] == [0, 10, 9, 0]  # pyright: ignore
    with pytest.raises(ValueError, match="expected 0 to 1, as there are 2 repeats, got 2"):
        load_recording(saved(tmp_path, spike_repeat=repeat, n_repeats=2))
    with pytest.raises(ValueError, match="n_repeats: expected an integer"):
        load_recording(saved(tmp_path, spike_repeat=repeat, n_repeats=0.5))


def test_a_repeat_without_spikes_and_voltage_is_missing_and_not_silent(tmp_path):
    voltage = np.full((3, len(noise_pa())), -70.0)
    voltage[1] = np.nan
    repeat = 2 * (np.arange(len(TIMES_S)) % 2)
    for own in (repeat, 0 * repeat):  # also if the later one is silent
        with pytest.raises(ValueError, match="got none in repeat 1"):
            load_recording(saved(tmp_path, spike_repeat=own, voltage_mv=voltage))
    voltage[1] = -70.0  # silent
    said = load_recording(saved(tmp_path, spike_repeat=repeat, voltage_mv=voltage)).spike_times_s
    assert [len(train[0]) for train in said] == [10, 0, 9]  # pyright: ignore


def test_a_voltage_of_nan_in_part_is_refused(tmp_path):
    voltage = voltage_mv()
    voltage[N_SAMPLES // 2 :] = np.nan
    with pytest.raises(ValueError, match="expected numbers, got NaN from sample 10000 on in 50%"):
        load_recording(saved(tmp_path, voltage_mv=voltage, spike_times_s=None))


def test_swapped_traces_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got them in the current; are the two swapped"):
        load_recording(
            saved(tmp_path, current_pa=voltage_mv(), voltage_mv=noise_pa() / 4, spike_times_s=None)
        )


@pytest.mark.parametrize("factor", [0.05, 10.0])
def test_a_wrong_time_step_is_warned_of(tmp_path, factor):
    voltage = voltage_mv(TIMES_S, width_ms=1.0 if factor < 1 else 0.6)
    with pytest.warns(UserWarning, match="ms right"):
        load_recording(
            saved(tmp_path, dt_ms=factor * DT_MS, voltage_mv=voltage, spike_times_s=None)
        )


def test_a_train_that_no_neuron_sustains_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="1000 spikes in 2 s, expected at most 300 Hz"):
        load_recording(saved(tmp_path, spike_times_s=np.arange(1000) * 0.002))
