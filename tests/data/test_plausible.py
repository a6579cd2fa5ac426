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
    trains = load_recording(saved(tmp_path, spike_repeat=repeat, n_repeats=4)).spike_times_s
    assert [len(train[0]) for train in trains] == [0, 10, 9, 0]  # pyright: ignore
    with pytest.raises(ValueError, match="expected 0 to 1, as there are 2 repeats, got 2"):
        load_recording(saved(tmp_path, spike_repeat=repeat, n_repeats=2))
    with pytest.raises(ValueError, match="n_repeats: expected an integer"):
        load_recording(saved(tmp_path, spike_repeat=repeat, n_repeats=0.5))


@pytest.mark.filterwarnings("ignore:.*not high at the stored spikes")
def test_a_repeat_without_spikes_and_voltage_is_missing_and_not_silent(tmp_path):
    voltage = np.full((3, len(noise_pa())), -70.0)
    voltage[1] = np.nan
    repeat = 2 * (np.arange(len(TIMES_S)) % 2)
    for own in (repeat, 0 * repeat):  # also if the later one is silent
        with pytest.raises(ValueError, match="got none in repeat 1"):
            load_recording(saved(tmp_path, spike_repeat=own, voltage_mv=voltage))
    voltage[1] = -70.0  # silent
    trains = load_recording(saved(tmp_path, spike_repeat=repeat, voltage_mv=voltage)).spike_times_s
    assert [len(train[0]) for train in trains] == [10, 0, 9]  # pyright: ignore


def test_spikes_beside_voltages_of_several_repeats_need_their_repeat(tmp_path):
    voltages = np.stack([voltage_mv(), voltage_mv(TIMES_S[:5])])
    with pytest.raises(ValueError, match="spike_repeat: expected one per spike, 19, as there are"):
        load_recording(saved(tmp_path, voltage_mv=voltages))
    times_s, repeat = np.r_[TIMES_S, TIMES_S[:5]], np.repeat([0, 1], [19, 5])
    path = saved(tmp_path, voltage_mv=voltages, spike_times_s=times_s, spike_repeat=repeat)
    assert [len(train[0]) for train in load_recording(path).spike_times_s] == [19, 5]  # pyright: ignore


@pytest.mark.parametrize("times_s", [0.8 * TIMES_S, TIMES_S + 0.05])
def test_stored_spikes_that_the_voltage_does_not_show_are_reported(tmp_path, times_s):
    with pytest.warns(UserWarning, match="repeat 0: the voltage is not high at the stored spikes"):
        load_recording(saved(tmp_path, voltage_mv=voltage_mv(), spike_times_s=times_s))
    load_recording(saved(tmp_path, voltage_mv=voltage_mv()))  # without a warning


@pytest.mark.parametrize("change", [lambda v: 2 * v, lambda v: -v, lambda v: v + 75])
@pytest.mark.parametrize("stored", [TIMES_S, None])
@pytest.mark.filterwarnings("ignore:.*not high at the stored spikes")
def test_a_rest_that_no_membrane_has_is_reported(tmp_path, change, stored):
    with pytest.warns(UserWarning, match="the median of the voltage is .* expected -110 to -20 mV"):
        load_recording(saved(tmp_path, voltage_mv=change(voltage_mv()), spike_times_s=stored))


@pytest.mark.parametrize(("fill", "times_s"), [(0.0, None), (np.nan, TIMES_S[TIMES_S < 1.5])])
def test_a_sweep_filled_up_at_its_end_is_reported(tmp_path, fill, times_s):
    voltage = np.where(np.arange(N_SAMPLES) < 15_000, voltage_mv(), fill)
    path = saved(tmp_path, voltage_mv=voltage, spike_times_s=times_s)
    with pytest.warns(UserWarning, match="voltage_mv: 0 or NaN from 1.5 s on, while the current"):
        load_recording(path)
    over = np.where(np.arange(N_SAMPLES) < 15_000, noise_pa(), 0.0)
    load_recording(saved(tmp_path, current_pa=over, voltage_mv=voltage, spike_times_s=times_s))


@pytest.mark.parametrize("factor", [10, 100])
def test_spikes_at_the_start_of_a_current_are_reported(tmp_path, factor):
    with pytest.warns(
        UserWarning, match=r"all 19 spikes are in the first 1.9 of .* s; is the time"
    ):
        load_recording(saved(tmp_path, dt_ms=factor * DT_MS))
    step = 100.0 * (np.arange(N_SAMPLES) > 100)  # a neuron may fire at its onset only
    load_recording(saved(tmp_path, current_pa=step, spike_times_s=TIMES_S[:12] / 20))


def test_a_voltage_of_nan_in_part_is_refused(tmp_path):
    voltage = voltage_mv()
    voltage[N_SAMPLES // 2 :] = np.nan
    with pytest.raises(
        ValueError, match="got NaN in 10000 of 20000 samples, first in sample 10000"
    ):
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


def test_a_voltage_with_few_samples_is_reported(tmp_path):
    with pytest.warns(UserWarning, match="missed in a voltage with a sample every 2 ms"):
        load_recording(saved(tmp_path, dt_ms=2.0, voltage_mv=voltage_mv(), spike_times_s=None))


def test_a_train_that_no_neuron_sustains_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="1000 spikes in 2 s, expected at most 300 Hz"):
        load_recording(saved(tmp_path, spike_times_s=np.arange(1000) * 0.002))
