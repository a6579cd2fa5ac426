"""Axon files: the stimulus is the one that was applied, or the file is refused by name."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from made_abf import write_abf

from blockspike.data.recordings import load_recording

N, RATE_HZ = 4000, 10_000.0  # 0.4 s
STEPS = ((0.0, 0.0, 500), (-50.0, 25.0, 2000))  # holding, then the step
SHARED = Path(__file__).parents[3] / "shared" / "data" / "abf"


def voltages_mv(n_sweeps: int, n_spikes: int = 3, spacing: int = 200) -> np.ndarray:
    """Voltages [S, T] at −70 mV; sweep s has n_spikes · s spikes, `spacing` samples apart."""
    time = np.arange(N)
    voltage = np.full((n_sweeps, N), -70.0)
    for s in range(n_sweeps):
        for k in range(n_spikes * s):
            voltage[s] += 100 * np.exp(-0.5 * ((time - 700 - spacing * k) / 4) ** 2)
    return voltage


def of_command(command: np.ndarray) -> np.ndarray:
    """Samples at which the steps of a command [T] begin and end."""
    return np.flatnonzero(np.diff(command)) + 1


def test_steps_are_read_from_the_command(tmp_path):
    path = write_abf(tmp_path / "a.abf", voltages_mv(4)[:, None], epochs=STEPS)
    recording = load_recording(path)
    assert recording.dt_ms == pytest.approx(0.1)
    assert [len(t) for t in recording.spike_times_s[0]] == [0, 3, 6, 9]  # pyright: ignore
    step = recording.current_pa[:, 1000]
    np.testing.assert_allclose(step, [-50, -25, 0, 25])
    first, last = of_command(recording.current_pa[0])
    assert last - first == 2000 and first == N // 64 + 500  # Axon holds for 1/64 of a sweep first


def test_the_holding_current_is_that_of_the_header(tmp_path):
    options = {"epochs": ((200.0, 0.0, 1000), (-30.0, 0.0, 1000)), "holding": 15.0}
    path = write_abf(tmp_path / "a.abf", voltages_mv(2)[:, None], **options)
    current = load_recording(path).current_pa[0]
    changes = of_command(current)
    assert [current[0], *current[changes]] == [15, 200, -30, 15]
    path = write_abf(tmp_path / "b.abf", voltages_mv(2)[:, None], holding=15.0)
    np.testing.assert_allclose(load_recording(path).current_pa, 15)


def test_repeats_are_known_by_the_command(tmp_path):
    rng = np.random.default_rng(0)
    command = np.zeros(N)
    command[562:2562] = 50
    recorded = command + rng.normal(0, 2, (4, N))
    data = np.stack([voltages_mv(4), recorded], 1)
    path = write_abf(tmp_path / "a.abf", data, ("mV", "pA"), epochs=((0, 0, 500), (50, 0, 2000)))
    recording = load_recording(path)
    assert recording.current_pa.shape == (1, N) and len(recording.spike_times_s) == 4


def test_the_current_of_another_cell_is_refused(tmp_path):
    other = np.tile(np.where(np.arange(N) < 2000, 0.0, -400.0), (2, 1))
    data = np.stack([voltages_mv(2), other], 1)
    path = write_abf(tmp_path / "a.abf", data, ("mV", "pA"), epochs=STEPS)
    with pytest.raises(ValueError, match="is it that of another cell"):
        load_recording(path)


def test_a_recorded_current_is_preferred(tmp_path):
    current = np.zeros((2, N))
    current[:, 1000:3000] = [[30.0], [60.0]]
    data = np.stack([voltages_mv(2), current], 1)
    path = write_abf(tmp_path / "a.abf", data, ("mV", "pA"), epochs=((0, 0, 938), (30, 30, 2000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # recorded and commanded agree
        found = load_recording(path).current_pa
    np.testing.assert_allclose(found, current, atol=0.02)
    path = write_abf(tmp_path / "b.abf", data, ("mV", "pA"), epochs=((0, 0, 938), (30, 60, 2000)))
    with pytest.warns(UserWarning, match="sweep 1: the recorded current, .* by up to 30 pA"):
        np.testing.assert_allclose(load_recording(path).current_pa, current, atol=0.02)


def test_units_are_converted(tmp_path):
    voltage = voltages_mv(2)
    current = np.tile(np.where(np.arange(N) < 1000, 0, 0.2), (2, 1))  # nA
    data = np.stack([voltage / 1000, current], 1)
    path = write_abf(tmp_path / "a.abf", data, ("V", "nA"), output_units=("mV", "mV"))
    recording = load_recording(path)
    assert recording.current_pa[:, 2000] == pytest.approx(200, abs=20)
    repeats = [len(repeat[0]) for repeat in recording.spike_times_s]  # pyright: ignore
    assert repeats == [0, 3]  # of one current


@pytest.mark.parametrize("has_current", [False, True])
@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"has_user_list": True, "epochs": STEPS}, "a user list changes it"),
        ({"source": 2}, "it was played from a stimulus file"),
        ({"source": 7}, "its waveform has an unknown source"),
        ({"output_units": ("mV", "mV")}, "no output is in amperes"),
        ({"kind": 3, "epochs": STEPS}, "its waveform has other parts than steps and ramps"),
    ],
)
def test_a_command_that_is_not_known_is_refused(tmp_path, changed, why, has_current):
    voltage = voltages_mv(2)
    if has_current:
        data = np.stack([voltage, np.full_like(voltage, 50.0)], 1)
        path = write_abf(tmp_path / "a.abf", data, ("mV", "pA"), **changed)
        assert load_recording(path).current_pa.mean() == pytest.approx(50, abs=0.1)
        return
    path = write_abf(tmp_path / "a.abf", voltage[:, None], **changed)
    with pytest.raises(ValueError, match=rf"a.abf: expected a recorded current or .*: {why}"):
        load_recording(path)


@pytest.mark.parametrize(
    ("units", "words"),
    [
        (("pA",), "expected a recorded voltage in mV or V, got IN 0 in pA"),
        (("",), "expected a recorded voltage in mV or V, got IN 0 in "),
        (("mV", "pA", "pA"), "expected one recorded current, got"),
    ],
)
def test_channels_that_do_not_fit_are_named(tmp_path, units, words):
    data = np.repeat(voltages_mv(2)[:, None], len(units), 1)
    with pytest.raises(ValueError, match=words):
        load_recording(write_abf(tmp_path / "a.abf", data, units, epochs=STEPS))


def test_two_electrodes_are_refused(tmp_path):
    data = np.repeat(voltages_mv(2)[:, None], 2, 1)
    path = write_abf(
        tmp_path / "a.abf", data, ("mV", "mV"), output_units=("pA", "pA"), epochs=STEPS
    )
    with pytest.raises(ValueError, match="expected one electrode in current clamp, got 2"):
        load_recording(path)


def test_a_second_voltage_without_a_current_is_left_alone(tmp_path):
    data = np.stack([voltages_mv(3), np.zeros((3, N))], 1)
    path = write_abf(tmp_path / "a.abf", data, ("mV", "mV"), epochs=STEPS)
    assert [len(t) for t in load_recording(path).spike_times_s[0]] == [0, 3, 6]  # pyright: ignore


def test_sweeps_are_chosen_by_number(tmp_path):
    path = write_abf(tmp_path / "a.abf", voltages_mv(4)[:, None], epochs=STEPS)
    recording = load_recording(path, sweeps=[1, 3])
    np.testing.assert_allclose(recording.current_pa[:, 1000], [-25, 25])
    with pytest.raises(ValueError, match=r"expected a sweep of \[0, 1, 2, 3\], got 7"):
        load_recording(path, sweeps=[7])


def test_damaged_files_are_refused(tmp_path):
    path = write_abf(tmp_path / "a.abf", voltages_mv(2)[:, None], epochs=STEPS)
    whole = path.read_bytes()
    for content, words in (
        (b"", "does not begin with ABF"),
        (b"ATF " + whole[4:], "does not begin with ABF"),
        (whole[:300], "not a complete Axon file"),
        (whole[: len(whole) // 2], "not a complete Axon file"),
        (whole[:10] + b"\xff\xff\xff\x7f" + whole[14:], "not a complete Axon file"),
        (whole[:16] + b"\xff\xff\xff\x7f" + whole[20:], "not a complete Axon file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_recording(path)


# What each real file holds, as its protocol says; None = refused with these words.
REAL = {
    "171116sh_0016": (11, 0, 100),  # a ramp
    "171116sh_0017": "stimulus file",
    "171116sh_0018": (17, -100, 300),
    "17o05028_ic_steps": (16, -50, 100),
    "190619B_0003": (10, -120, 420),
    "2019_07_24_0055_fsi": (17, -100, 300),
    "2020_03_02_0000": "sweep 15, channel .*: expected a peak voltage",
    "File_axon_5": (9, -100, 300),
    "opto_aps_bad_units": "expected a recorded voltage in mV or V, got IN 0 in pA",
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the example files are not here")
@pytest.mark.filterwarnings("ignore:.*the median of the voltage is -3")  # of 2020_03_02
@pytest.mark.parametrize("name", REAL)
def test_real_files(name):
    path, expected = SHARED / f"{name}.abf", REAL[name]
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            load_recording(path)
        return
    recording = load_recording(path)
    n_sweeps, low, high = expected
    assert recording.current_pa.shape[0] == n_sweeps
    assert (recording.current_pa.min(), recording.current_pa.max()) == (low, high)
    assert sum(len(t) for t in recording.spike_times_s[0] if t is not None) > 5


@pytest.mark.skipif(not SHARED.is_dir(), reason="the example files are not here")
def test_a_real_user_list_is_seen_in_the_recorded_current():
    """Its sweep 5 has 25 pA, where pyABF's command says 50."""
    path = SHARED / "2020_03_02_0000.abf"
    with pytest.warns(UserWarning, match="abf: the median of the voltage is -3"):
        recording = load_recording(path, sweeps=[0, 5])
    assert np.median(recording.current_pa[1, 3000:4500]) == pytest.approx(23.5, abs=1)
