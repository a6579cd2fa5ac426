from __future__ import annotations

import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_nwb import DT_MS, MadeSweep, make_nwb1, make_nwb2, membrane_mv, noise_pa

from blockspike.data import recordings
from blockspike.data.recordings import RECORDING_SUFFIXES, Recording, load_recording
from blockspike.data.spikes import bin_spikes, detect_spikes

EPHYS = Path(__file__).resolve().parents[3] / "shared" / "data" / "ephys"
ALLEN = sorted(EPHYS.glob("allen_long_square/*.npz"))
L5 = EPHYS / "l5_pyramidal_noise_9_repeats.npz"
# The stored spikes are not those of the voltage, to tell which of them the reader takes.
pytestmark = pytest.mark.filterwarnings("ignore:.*not high at the stored spikes")
needs_ephys = pytest.mark.skipif(not EPHYS.is_dir(), reason="shared/data/ephys is not here")

SWEEPS = (
    MadeSweep(10, "Noise 2", noise_pa(2), membrane_mv([20, 50])),
    MadeSweep(9, "Noise 1", noise_pa(1), membrane_mv([30])),
    MadeSweep(11, "noise 2", noise_pa(2), membrane_mv([]), np.array([0.04, 0.03])),
)
N = len(SWEEPS[0].current_pa)


def times_ms(recording: Recording, digits: int = 2) -> list[list[list[float] | None]]:
    """Rounded spike times [S][R], None as in the recording."""
    return [
        [None if t is None else np.round(t * 1e3, digits).tolist() for t in of_stimulus]
        for of_stimulus in zip(*recording.spike_times_s, strict=True)
    ]


def check_noise(recording: Recording, stored_spikes: bool = True) -> None:
    """Check the recording of `SWEEPS`; without stored spikes, sweep 11 has none."""
    assert recording.stimuli == ("Noise 1", "Noise 2")
    assert recording.dt_ms == pytest.approx(DT_MS)
    assert recording.current_pa.dtype == np.float64
    np.testing.assert_allclose(recording.current_pa, [noise_pa(1), noise_pa(2)], atol=1e-9)
    last = [30.0, 40.0] if stored_spikes else []
    assert times_ms(recording) == [[[30.0], None], [[20.0, 50.0], last]]


def failure(path: Path, **kwargs) -> str:
    """Message of the ValueError on loading: one line that names the file."""
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}.+$") as caught:
        load_recording(path, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def pynwb():
    return pytest.importorskip("pynwb")


# Steps, charge and spikes


@given(
    dt_ms=st.sampled_from([0.05, 0.1, 0.5, 1, 2, 4, 8]),
    k=st.integers(0, 400_000),
    in_seconds=st.sampled_from([lambda k, dt: k * dt / 1e3, lambda k, dt: k * (dt * 1e-3)]),
)
def test_spikes_on_the_grid_stay_on_it(dt_ms, k, in_seconds):
    counts = bin_spikes(np.array([in_seconds(k, dt_ms)]), dt_ms, 400_001)
    assert counts.dtype == np.float32 and counts.sum() == 1
    assert counts[k] == 1


@pytest.mark.parametrize("dt_ms", [0.05, 0.1, 0.5, 1, 2, 4, 8])
def test_every_step_of_the_grid(dt_ms):
    k = np.arange(20_000)
    for times in (k * dt_ms / 1e3, k * (dt_ms * 1e-3), np.cumsum(np.full(20_000, dt_ms)) / 1e3):
        first = round(times[0] * 1e3 / dt_ms)
        counts = bin_spikes(times, dt_ms, 20_001)
        assert (counts[first : first + 20_000] == 1).all()


def test_times_in_single_precision_stay_on_the_grid():
    k = np.arange(0, 1_000_000, 7)
    times = (k * 1e-4).astype(np.float32)
    assert (np.floor(times.astype(float) * 1e4 + 1e-6) < k).any()
    np.testing.assert_array_equal(np.flatnonzero(bin_spikes(times, 0.1, 1_000_000)), k)


def test_bins_count_spikes_and_drop_later_ones():
    counts = bin_spikes(np.array([0.0, 0.0019, 0.002, 0.0099, 0.01]), 2.0, 5)
    assert counts.tolist() == [2, 1, 0, 0, 1]


@pytest.mark.parametrize("time_s", [-0.001, np.nan])
def test_bins_refuse_impossible_times(time_s):
    with pytest.raises(ValueError, match="times_s: expected seconds >= 0, got"):
        bin_spikes(np.array([time_s]), 1.0, 5)
    with pytest.raises(ValueError, match="dt_ms: expected > 0, got 0"):
        bin_spikes(np.array([0.1]), 0, 5)


def recording_of(current_pa, dt_ms: float) -> Recording:
    current = np.atleast_2d(np.asarray(current_pa, np.float64))
    trains: list[list[np.ndarray | None]] = [[np.empty(0) for _ in current]]
    return Recording("made", current, trains, dt_ms, tuple("abc"[: len(current)]))


@given(
    n_samples=st.integers(1, 300),
    dt_ms=st.floats(0.01, 3),
    factor=st.floats(0.2, 20),
    seed=st.integers(0, 1000),
)
def test_any_step_conserves_charge(n_samples, dt_ms, factor, seed):
    recorded = 500 * np.random.default_rng(seed).standard_normal((2, n_samples))
    new_dt = min(dt_ms * factor, dt_ms * n_samples)
    current = recording_of(recorded, dt_ms).current(new_dt)
    n_steps = int(np.floor(n_samples * dt_ms / new_dt + 1e-9))
    assert current.shape == (2, n_steps)
    # The charge by hand: whole samples, then the part of the last one.
    end = n_steps * new_dt / dt_ms
    whole = min(int(end), n_samples)
    charge = recorded[:, :whole].sum(1)
    if whole < n_samples:
        charge += (end - whole) * recorded[:, whole]
    np.testing.assert_allclose(current.sum(1) * new_dt, charge * dt_ms, rtol=1e-9, atol=1e-6)


def test_mean_of_samples_and_hold():
    recording = recording_of([1.0, 3.0, 5.0, 7.0, 100.0], 0.1)
    np.testing.assert_allclose(recording.current(0.2), [[2, 6]])
    np.testing.assert_allclose(recording.current(0.15), [[5 / 3, 13 / 3, 38]])
    np.testing.assert_allclose(recording.current(0.05)[:, :6], [[1, 1, 3, 3, 5, 5]])
    np.testing.assert_allclose(recording.current(0.1), recording.current_pa)


@pytest.mark.parametrize("dt_ms", [0, -1, np.nan, np.inf, 0.6])
def test_impossible_steps_are_refused(dt_ms):
    with pytest.raises(ValueError, match=r"dt_ms: expected .*the 0.5 ms of made, got"):
        recording_of(np.ones(5), 0.1).current(dt_ms)


def test_trains_of_one_stimulus_leave_out_missing_repeats(tmp_path):
    recording = load_recording(make_nwb1(tmp_path / "a.nwb", SWEEPS))
    assert recording.spike_trains(0, 1.0).shape == (1, 100)
    trains = recording.spike_trains(1, 1.0)
    assert trains.dtype == np.float32
    # Spikes at half height are 2.75 µs before 20 ms.
    assert [np.flatnonzero(t).tolist() for t in trains] == [[19, 49], [30, 40]]
    with pytest.raises(ValueError, match=r"stimulus: expected 0 to 1 of a, got 2"):
        recording.spike_trains(2, 1.0)


# Detection


@pytest.mark.parametrize("dt_ms", [0.005, 0.02, 0.1, 0.2])
def test_detects_upstrokes_at_half_height(dt_ms):
    spikes = [12.0, 20.0, 24.03, 60.0, 91.37]
    voltage = membrane_mv(spikes, round(100 / dt_ms), dt_ms)
    noise = 0.3 * np.random.default_rng(0).standard_normal(len(voltage))
    found = detect_spikes(voltage + noise, dt_ms) * 1e3
    assert len(found) == len(spikes)
    assert np.abs(found - spikes).max() < max(0.1, dt_ms)


@pytest.mark.parametrize("step_mv", [25.0, -25.0, 40.0])
def test_a_step_is_not_a_spike_and_moves_none(step_mv):
    t = np.arange(5000) * DT_MS
    step = np.where((t >= 29) & (t < 70), step_mv, 0.0)
    found = detect_spikes(membrane_mv([30.0, 69.0]) + step, DT_MS) * 1e3
    assert len(found) == 2 and np.abs(found - [30.0, 69.0]).max() < 0.5
    assert len(detect_spikes(-70 + step, DT_MS)) == 0


def test_a_peak_of_two_equal_samples_is_one_spike():
    voltage = membrane_mv([30.0])
    top = int(voltage.argmax())
    voltage[top + 3] = voltage[top]
    assert len(detect_spikes(voltage, DT_MS)) == 1


def test_small_depolarisations_are_not_spikes():
    voltage = -70 + (membrane_mv([30.0]) + 70) * 0.45  # to -25 mV
    assert len(detect_spikes(voltage, DT_MS)) == 0
    assert len(detect_spikes(np.full(100, -70.0), DT_MS)) == 0
    assert len(detect_spikes(np.empty(0), DT_MS)) == 0


# .npz


def write_npz(path: Path, **changes) -> Path:
    """Write one stimulus twice; ``changes`` replaces arrays or, with None, omits them."""
    arrays = {
        "current_pa": noise_pa(0, 1000).astype(np.float32),
        "dt_ms": 0.1,
        "spike_times_s": np.array([0.05, 0.02, 0.03]),
        "spike_repeat": np.array([0, 0, 1], np.int8),
        **changes,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_npz_of_one_stimulus(tmp_path):
    recording = load_recording(str(write_npz(tmp_path / "cell.npz")))
    assert recording.name == "cell" and recording.dt_ms == 0.1
    assert recording.stimuli == ("stimulus 0",)
    np.testing.assert_array_equal(recording.current_pa, noise_pa(0, 1000)[None])
    assert times_ms(recording) == [[[20.0, 50.0], [30.0]]]


def test_npz_without_repeats_or_spikes(tmp_path):
    assert times_ms(load_recording(write_npz(tmp_path / "a.npz", spike_repeat=None))) == [
        [[20.0, 30.0, 50.0]]
    ]
    path = write_npz(tmp_path / "b.npz", spike_times_s=np.empty(0), spike_repeat=None)
    assert times_ms(load_recording(path)) == [[[]]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n_repeats": 3, "spike_repeat": None}, "spike_repeat: .* as n_repeats is 3, got none"),
        ({"stimuli": 3}, "spike_stimulus: expected one per spike, 3, as there are 3 stimuli"),
        (
            {"n_repeats": 2, "voltage_mv": np.full((3, 1000), -60.0)},
            "voltage_mv, repeat: expected 0 to 1, as there are 2 repeats, got 2",
        ),
    ],
)
def test_npz_that_does_not_say_which_spikes_are_whose(tmp_path, changes, words):
    """A forgotten array would make silent trials of the others."""
    current = np.stack([noise_pa(s, 1000) for s in range(changes.pop("stimuli", 1))])
    path = write_npz(tmp_path / "a.npz", current_pa=current, **changes)
    with pytest.raises(ValueError, match=words):
        load_recording(path)


def test_repeats_of_a_stimulus_without_spikes_need_no_numbers(tmp_path):
    current = np.stack([noise_pa(s, 1000) for s in range(2)])
    path = write_npz(
        tmp_path / "a.npz", current_pa=current, n_repeats=np.array([1, 3]), spike_repeat=None,
        spike_stimulus=np.zeros(3, int),
    )  # fmt: skip
    assert [len(x) for x in times_ms(load_recording(path))] == [3, 3]


def test_npz_of_repeats_in_floating_point(tmp_path):
    whole, floats = (
        write_npz(tmp_path / f"{kind}.npz", spike_repeat=np.array([0, 0, 1], kind))
        for kind in ("int64", "float64")
    )
    assert times_ms(load_recording(floats)) == times_ms(load_recording(whole))


def test_npz_of_several_stimuli(tmp_path):
    path = write_npz(
        tmp_path / "a.npz",
        current_pa=np.stack([noise_pa(s, 1000) for s in range(3)]),
        spike_stimulus=np.array([0, 0, 2]),
        n_repeats=np.array([1, 1, 2]),
    )
    recording = load_recording(path)
    assert times_ms(recording) == [[[20.0, 50.0], None], [[], None], [[], [30.0]]]
    some = load_recording(path, stimuli=["STIMULUS 2", "stimulus 0"])
    assert some.stimuli == ("stimulus 0", "stimulus 2")
    np.testing.assert_array_equal(some.current_pa, recording.current_pa[[0, 2]])
    assert times_ms(some) == [[[20.0, 50.0], None], [[], [30.0]]]
    with pytest.raises(ValueError, match="'stimulus 0', 'stimulus 1'.*got 'noise'"):
        load_recording(path, stimuli="noise")


def test_npz_spikes_are_detected_where_not_stored(tmp_path):
    a, b = (membrane_mv([t], 1000, 0.1) for t in (20.0, 40.0))
    bare = {"spike_times_s": None, "spike_repeat": None}
    one = load_recording(write_npz(tmp_path / "one.npz", voltage_mv=a, **bare))
    assert times_ms(one, 0) == [[[20]]]
    two = load_recording(write_npz(tmp_path / "two.npz", voltage_mv=np.stack([a, b]), **bare))
    assert times_ms(two, 0) == [[[20], [40]]]
    voltage = np.stack([[a, b], [b, np.full(1000, np.nan)]])
    current = np.stack([noise_pa(0, 1000), noise_pa(1, 1000)])
    path = write_npz(tmp_path / "many.npz", current_pa=current, voltage_mv=voltage, **bare)
    assert times_ms(load_recording(path), 0) == [[[20], [40]], [[40], None]]
    path = write_npz(tmp_path / "once.npz", current_pa=current, voltage_mv=voltage[0], **bare)
    assert times_ms(load_recording(path), 0) == [[[20]], [[40]]]


def test_npz_stored_spikes_come_before_the_voltage(tmp_path):
    voltage = np.stack([membrane_mv([20], 1000, 0.1)] * 3)
    recording = load_recording(write_npz(tmp_path / "a.npz", voltage_mv=voltage))
    assert times_ms(recording) == [[[20.0, 50.0], [30.0], []]]


def test_npz_stimuli_of_different_length(tmp_path):
    current = np.stack([noise_pa(s, 1000) for s in range(2)])
    current[1, 600:] = np.nan
    voltage = np.stack([membrane_mv([t], 1000, 0.1) for t in (20.0, 30.0)])[None]
    voltage[0, 1, 600:] = np.nan
    times_s, stimulus = np.array([0.02, 0.05, 0.03]), np.array([0, 0, 1])
    arrays = {
        "current_pa": current, "spike_stimulus": stimulus, "spike_repeat": None,
        "voltage_mv": voltage,
    }  # fmt: skip
    recording = load_recording(write_npz(tmp_path / "a.npz", **arrays, spike_times_s=times_s))
    np.testing.assert_array_equal(recording.current_pa, current)
    assert [recording.duration_s(s) for s in range(2)] == [0.1, 0.06]
    assert times_ms(recording) == [[[20.0, 50.0]], [[30.0]]]
    detected = load_recording(write_npz(tmp_path / "b.npz", **arrays, spike_times_s=None))
    assert times_ms(detected, 0) == [[[20]], [[30]]]
    short = load_recording(tmp_path / "a.npz", sweeps=[1])
    np.testing.assert_array_equal(short.current_pa, current[1:, :600])
    late = write_npz(tmp_path / "c.npz", **arrays, spike_times_s=np.array([0.02, 0.05, 0.06]))
    message = "stimulus 1, repeat 0: expected spikes at 0 to 0.06 s"
    assert message in failure(late)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"current_pa": None}, "expected current_pa in a recording, got dt_ms, spike_times_s"),
        ({"dt_ms": None}, "expected dt_ms in a recording"),
        ({"dt_ms": 0.0}, "dt_ms: expected one number, .*, got 0.0"),
        ({"dt_ms": np.nan}, "dt_ms: expected .*, got nan"),
        ({"dt_ms": np.ones(2)}, "dt_ms"),
        ({"current_pa": np.r_[1.0, np.nan, 1.0]}, "stimulus 0: current: .* got nan at sample 1"),
        ({"current_pa": np.ones((50, 2))}, r"shape \(50, 2\), far more .*; transposed\?"),
        ({"current_pa": np.array([[1.0], [np.inf]])}, "stimulus 1: current: .* got inf"),
        ({"current_pa": np.empty(0)}, "length 0"),
        ({"current_pa": np.empty((0, 5))}, r"shape \(0, 5\)"),
        ({"current_pa": np.array(["a"])}, "one number per sample"),
        ({"current_pa": np.array([{}])}, "not a complete .npz of plain arrays"),
        ({"spike_times_s": np.array([0.1] * 3)}, "expected spikes at 0 to 0.1 s, .* at 0.1 s"),
        ({"spike_times_s": np.array([20.0, 50.0, 30.0])}, "got one at 20 s"),
        ({"spike_times_s": np.array([0.01, -0.01, 0.03])}, "got one at -0.01 s"),
        ({"spike_times_s": np.array([0.01, 0.02, np.nan])}, "got one at nan s"),
        ({"spike_times_s": np.zeros((3, 1))}, r"spike_times_s: .* got shape \(3, 1\)"),
        ({"spike_repeat": np.array([0, 1])}, "spike_repeat: expected one per spike, 3, got 2"),
        ({"spike_repeat": np.array([0, -1, 0])}, "spike_repeat: .* got -1"),
        ({"spike_repeat": np.array([0, 0.5, 0])}, "spike_repeat: expected integers .* got 0.5"),
        ({"spike_repeat": np.array(["0"] * 3)}, "spike_repeat: expected integers, got an array"),
        ({"spike_stimulus": np.array([0, 1, 0])}, "spike_stimulus: .* below 1, got 1"),
        ({"spike_times_s": None}, "expected spike times or a voltage .* got neither"),
        ({"voltage_mv": np.full(999, -70.0)}, r"voltage_mv: .* T = 1000, got shape \(999,\)"),
        ({"voltage_mv": np.full((2, 2, 1000), -70.0)}, r"voltage_mv: .* got shape \(2, 2, 1000\)"),
        ({"voltage_mv": np.full(1000, -0.07)}, "peak voltage of 1 to 250 mV, got 0.07 mV"),
        ({"voltage_mv": np.full(1000, 251)}, "peak voltage .* got 251 mV"),
    ],
)
def test_npz_errors(tmp_path, changes, message):
    path = write_npz(tmp_path / "a.npz", **changes)
    with pytest.raises(ValueError, match=message):
        load_recording(path)
    failure(path)


def test_nans_at_the_end_of_all_stimuli_are_no_samples(tmp_path):
    current = np.stack([noise_pa(i, 1000) for i in range(2)])
    current[0, 800:], current[1, 600:] = np.nan, np.nan
    of = {"spike_stimulus": np.array([0, 0, 1]), "spike_repeat": None}
    changes = {"current_pa": current, **of}
    recording = load_recording(write_npz(tmp_path / "a.npz", **changes))
    assert recording.current_pa.shape == (2, 800)
    assert np.isnan(recording.current_pa[1, 600:]).all()
    voltage = np.tile(np.linspace(-70.0, -50.0, 1000), (2, 1))  # continues
    path = write_npz(tmp_path / "b.npz", **changes, voltage_mv=voltage)
    with pytest.raises(ValueError, match="current: .* got nan at sample 800"):
        load_recording(path)


def test_npz_selection_errors(tmp_path):
    path = write_npz(tmp_path / "a.npz")
    assert "expected a sweep of 0 to 0, got 3" in failure(path, sweeps=[3])
    assert "stimuli: expected some of stimulus 0, got none" in failure(path, stimuli=[])


@pytest.mark.parametrize("suffix", [".npz", ".nwb", ".h5"])
def test_damaged_and_missing_files(tmp_path, suffix):
    make = write_npz if suffix == ".npz" else lambda path: make_nwb1(path, SWEEPS)
    path = make(tmp_path / f"a{suffix}")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    assert "not a complete" in failure(path)
    path.write_bytes(b"no recording")
    assert "not a complete" in failure(path)
    path.write_bytes(b"")
    assert "not a complete" in failure(path)
    path.unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"a{suffix}: expected a recording.*{RECORDING_SUFFIXES[0]}"
    ):
        load_recording(path)


def test_an_npy_or_a_flipped_byte_is_no_npz(tmp_path):
    path = tmp_path / "a.npz"
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    assert "not a complete" in failure(path)
    content = bytearray(write_npz(path).read_bytes())
    content[300] ^= 0xFF
    path.write_bytes(content)
    assert "not a complete" in failure(path)


def test_other_suffixes_are_refused(tmp_path):
    path = write_npz(tmp_path / "a.npz").rename(tmp_path / "a.mat")
    assert "expected .npz, .nwb, .abf, got a .mat" in failure(path)


# NWB 1


@pytest.mark.parametrize("text", [bytes, str])
@pytest.mark.parametrize("version", ["1.1.0", "2.0", None])
def test_nwb1(tmp_path, text, version):
    check_noise(load_recording(make_nwb1(tmp_path / "a.nwb", SWEEPS, text, version)))


@pytest.mark.parametrize("text", [bytes, str])
@pytest.mark.parametrize("version", ["1.0", "0.9.2", None])
def test_nwb1_of_an_old_pipeline_holds_si(tmp_path, text, version):
    path = make_nwb1(tmp_path / "a.nwb", SWEEPS, text, version, is_si=True)
    check_noise(load_recording(path))


@pytest.mark.parametrize("text", [bytes, str])
def test_nwb1_of_a_later_pipeline_does_not_hold_si(tmp_path, text):
    message = failure(make_nwb1(tmp_path / "a.nwb", SWEEPS, text, "1.1", is_si=True))
    assert "sweep 9: expected a peak current of 1 to 100,000 pA" in message
    assert "the conversion factor 1e-12 looks wrong" in message


def test_nwb1_under_the_name_h5(tmp_path):
    check_noise(load_recording(make_nwb1(tmp_path / "a.h5", SWEEPS)))


def test_nwb1_choice_of_sweeps_and_stimuli(tmp_path):
    path = make_nwb1(tmp_path / "a.nwb", SWEEPS)
    assert load_recording(path, stimuli=["NOISE 2"]).stimuli == ("Noise 2",)
    assert load_recording(path, stimuli="Noise 1").stimuli == ("Noise 1",)
    assert times_ms(load_recording(path, sweeps=[11])) == [[[30.0, 40.0]]]
    assert load_recording(path, sweeps=[11, 9]).stimuli == ("Noise 1", "noise 2")
    assert times_ms(load_recording(path, ["noise 2"], [11, 9])) == [[[30.0, 40.0]]]
    assert "expected a sweep of [9, 10, 11], got 4" in failure(path, sweeps=[9, 4])
    message = failure(path, stimuli=["Ramp"])
    assert "expected a stimulus of 'Noise 1', 'Noise 2'" in message and "got 'Ramp'" in message
    assert "expected a current-clamp sweep, got none" in failure(path, sweeps=[])


def test_nwb1_without_names_groups_by_current(tmp_path):
    unnamed = [replace(sweep, name=None) for sweep in SWEEPS]
    path = make_nwb1(tmp_path / "a.nwb", unnamed)
    recording = load_recording(path)
    assert recording.stimuli == ("stimulus 0", "stimulus 1")
    assert times_ms(recording) == [[[30.0], None], [[20.0, 50.0], [30.0, 40.0]]]
    assert "expected a stimulus of unnamed ones only" in failure(path, stimuli=["Noise 1"])


def test_nwb1_same_name_and_other_current_are_two_stimuli(tmp_path):
    sweeps = [replace(SWEEPS[0], number=i, current_pa=noise_pa(0) * i) for i in (1, 2)]
    recording = load_recording(make_nwb1(tmp_path / "a.nwb", sweeps))
    assert recording.stimuli == ("Noise 2", "Noise 2") and len(recording.spike_times_s) == 1


def test_nwb1_other_places_of_names_and_spikes(tmp_path):
    path = make_nwb1(tmp_path / "a.nwb", SWEEPS)
    with h5py.File(path, "r+") as file:
        for sweep in SWEEPS:
            name = f"Sweep_{sweep.number}/aibs_stimulus_name"
            file.move(f"acquisition/timeseries/{name}", f"stimulus/presentation/{name}")
        file.move("analysis/spike_times/Sweep_11", "analysis/aibs_spike_times/Sweep_11")
        file["analysis/spike_times/Sweep_9"] = h5py.Empty("f8")
    recording = load_recording(path)
    assert recording.stimuli == ("Noise 1", "Noise 2")
    assert times_ms(recording) == [[[], None], [[20.0, 50.0], [30.0, 40.0]]]


STIMULUS = "epochs/Sweep_9/stimulus/timeseries"
RESPONSE = "epochs/Sweep_9/response/timeseries"


def changed(path: Path, key: str, attribute: str | None, value) -> Path:
    """Replace a dataset of `SWEEPS`, or an attribute of one; None removes it."""
    make_nwb1(path, SWEEPS)
    with h5py.File(path, "r+") as file:
        place = file if attribute is None else file[key].attrs
        name = key if attribute is None else attribute
        kept = {} if attribute is not None or name not in file else dict(file[name].attrs)
        if name in place:
            del place[name]
        if value is not None:
            place[name] = value
            if attribute is None:
                file[name].attrs.update(kept)
    return path


@pytest.mark.parametrize(
    ("key", "attribute", "value", "message"),
    [
        ("epochs", None, None, "got no epochs"),
        (f"{STIMULUS}/data", None, None, f"sweep 9: {STIMULUS}/data: expected a dataset"),
        (f"{STIMULUS}/starting_time", None, None, "starting_time: expected a dataset, got none"),
        (f"{STIMULUS}/starting_time", "rate", None, "expected a sampling rate in Hz, got none"),
        (f"{STIMULUS}/starting_time", "rate", 0.0, "sampling rate of .* got 0.0 Hz"),
        (f"{STIMULUS}/starting_time", "rate", -1.0, "sampling rate of .* got -1.0 Hz"),
        (f"{STIMULUS}/data", "unit", None, "sweep 9: unit of the stimulus: .* got none"),
        (f"{RESPONSE}/data", "unit", None, "sweep 9: unit of the response: .* got none"),
        (f"{STIMULUS}/data", "unit", "pA", "unit of the stimulus: expected A or V, got 'pA'"),
        (f"{RESPONSE}/data", "unit", b"Amps", "expected a response in volts"),
        (f"{STIMULUS}/data", "conversion", 1.0, "current of .* conversion factor 1 looks wrong"),
        (f"{STIMULUS}/data", "conversion", None, "conversion factor 1 looks wrong"),
        (f"{RESPONSE}/data", "conversion", 1e-6, "voltage of .* factor 1e-06 looks wrong"),
        (f"{RESPONSE}/data", "conversion", 1.0, "expected a peak voltage of 1 to 250 mV"),
        (f"{RESPONSE}/data", "conversion", np.nan, "factor nan looks wrong"),
        (f"{STIMULUS}/data", None, np.array([1, np.nan]), "current: .* got nan at sample 1"),
        (f"{STIMULUS}/data", None, np.empty(0), "length 0"),
        (f"{STIMULUS}/data", None, np.ones((5, 2)), r"shape \(5, 2\)"),
        (f"{RESPONSE}/data", None, np.full(7, -70.0), r"voltage .* current, 5000, .* \(7,\)"),
        (RESPONSE, None, None, "sweep 9: expected spike times or a voltage"),
        ("analysis/spike_times/Sweep_9", None, np.array([0.2]), "at 0 to 0.1 s, .* at 0.2 s"),
        ("analysis/spike_times/Sweep_9", None, np.array([-1.0]), "got one at -1 s"),
        ("analysis/spike_times/Sweep_9", None, np.array([np.nan]), "got one at nan s"),
    ],
)
def test_nwb1_errors(tmp_path, key, attribute, value, message):
    path = changed(tmp_path / "a.nwb", key, attribute, value)
    with pytest.raises(ValueError, match=message):
        load_recording(path)
    failure(path)
    if key != "epochs":  # a fault of one sweep leaves the others readable
        assert load_recording(path, sweeps=[10, 11]).stimuli == ("Noise 2",)


@pytest.mark.parametrize("unit", [b"A", "Amps", "amperes", np.array([b"A"])])
def test_nwb1_units(tmp_path, unit):
    check_noise(load_recording(changed(tmp_path / "a.nwb", f"{STIMULUS}/data", "unit", unit)))


@pytest.mark.parametrize("unit", [b"V", "Volts"])
def test_nwb1_voltage_clamp(tmp_path, unit):
    path = changed(tmp_path / "a.nwb", f"{STIMULUS}/data", "unit", unit)
    assert load_recording(path).stimuli == ("Noise 2",)
    for choice in ({"sweeps": [9]}, {"sweeps": [9, 10]}, {"stimuli": ["Noise 1"]}):
        assert "sweep 9: expected current clamp" in failure(path, **choice)


@pytest.mark.parametrize("n_samples", [100, N + 1])
def test_nwb1_sweeps_of_different_length(tmp_path, n_samples):
    last = MadeSweep(12, "Noise 1", noise_pa(1, n_samples), membrane_mv([], n_samples))
    path = make_nwb1(tmp_path / "a.nwb", [*SWEEPS, last])
    recording = load_recording(path)
    assert recording.stimuli == ("Noise 1", "Noise 2", "Noise 1")  # no repeat of the longer one
    assert recording.current_pa.shape == (3, max(N, n_samples))
    assert [recording.n_samples(s) for s in range(3)] == [N, N, n_samples]
    assert recording.voltage_mv is not None
    for s, current in enumerate((noise_pa(1), noise_pa(2), last.current_pa)):
        np.testing.assert_allclose(recording.current_pa[s, : len(current)], current, atol=1e-9)
        assert np.isnan(recording.current_pa[s, len(current) :]).all()
        n_steps = len(current) // 25  # of 0.5 ms
        assert recording.spike_trains(s, 0.5).shape[1] == n_steps
        means = recording.current(0.5)[s]
        expected = np.reshape(current[: 25 * n_steps], (n_steps, 25)).mean(1)
        np.testing.assert_allclose(means[:n_steps], expected, atol=1e-6)
        assert np.isnan(means[n_steps:]).all()
        voltage = recording.voltage(s, 0.5)
        assert voltage is not None and voltage.shape == (n_steps,)
    assert load_recording(path, sweeps=[12]).current_pa.shape == (1, n_samples)


def test_much_padding_is_refused(tmp_path, monkeypatch):
    short = [
        MadeSweep(20 + i, f"Short {i}", noise_pa(9 + i, 100), membrane_mv([], 100))
        for i in range(3)
    ]
    path = make_nwb1(tmp_path / "a.nwb", [*SWEEPS, *short])
    monkeypatch.setattr(recordings, "_MOST_PADDING_BYTES", 8 * 3 * (N - 100))
    assert load_recording(path).current_pa.shape == (5, N)
    monkeypatch.setattr(recordings, "_MOST_PADDING_BYTES", 8 * 3 * (N - 100) - 1)
    expected = "expected sweeps of similar length, got 100 to 5,000 samples in 5 of them; choose"
    assert expected in failure(path)


def test_nwb1_sweeps_of_different_rate(tmp_path):
    path = changed(tmp_path / "a.nwb", f"{STIMULUS}/starting_time", "rate", 1e5)
    message = failure(path)
    assert "expected sweeps of one dt, got 0.01 ms in 9 (Noise 1) and 0.02 ms in 10" in message


# NWB 2


@pytest.mark.parametrize("table", [True, False])
def test_nwb2(tmp_path, pynwb, table):
    path = make_nwb2(tmp_path / "a.nwb", SWEEPS, table)
    check_noise(load_recording(path), stored_spikes=False)
    assert load_recording(path, stimuli=["NOISE 2"]).stimuli == ("Noise 2",)
    assert "expected a sweep of [9, 10, 11], got 4" in failure(path, sweeps=[4])
    message = failure(path, stimuli=["Ramp"])
    assert "expected a stimulus of 'Noise 1', 'Noise 2'" in message and "got 'Ramp'" in message


def test_nwb2_without_sweep_numbers(tmp_path, pynwb):
    recording = load_recording(make_nwb2(tmp_path / "a.nwb", SWEEPS, numbered=False), sweeps=[0, 2])
    assert times_ms(recording) == [[[20.0, 50.0], []]]
    recording = load_recording(make_nwb2(tmp_path / "b.nwb", SWEEPS, table=False, numbered=False))
    check_noise(recording, stored_spikes=False)  # paired by the numbers in their names


def test_nwb2_names(tmp_path, pynwb):
    unnamed = [replace(sweep, name=None) for sweep in SWEEPS]
    recording = load_recording(make_nwb2(tmp_path / "a.nwb", unnamed))
    assert recording.stimuli == ("stimulus_9", "stimulus_10")
    assert times_ms(recording) == [[[30.0], None], [[20.0, 50.0], []]]
    typed = load_recording(make_nwb2(tmp_path / "b.nwb", unnamed, stimulus_type="Noise"))
    assert typed.stimuli == ("Noise", "Noise")


@pytest.mark.parametrize("table", [True, False])
def test_nwb2_voltage_clamp(tmp_path, pynwb, table):
    path = make_nwb2(tmp_path / "a.nwb", SWEEPS, table, voltage_clamp=[9])
    assert load_recording(path).stimuli == ("Noise 2",)
    for choice in ({"sweeps": [9]}, {"stimuli": ["Noise 1"]}):
        assert "sweep 9: expected current clamp" in failure(path, **choice)


def test_nwb2_parts_of_a_series(tmp_path, pynwb):
    path = make_nwb2(tmp_path / "a.nwb", SWEEPS)
    with h5py.File(path, "r+") as file:
        for key in ("stimuli/stimulus", "responses/response"):
            column = file[f"general/intracellular_ephys/intracellular_recordings/{key}"]
            assert isinstance(column, h5py.Dataset)
            rows = column[()]
            rows["idx_start"], rows["count"] = 500, 3000
            column[...] = rows
    recording = load_recording(path)
    np.testing.assert_allclose(recording.current_pa[0], noise_pa(1)[500:3500], atol=1e-9)
    assert times_ms(recording) == [[[20.0], None], [[10.0, 40.0], []]]


def test_nwb2_faults(tmp_path, pynwb):
    path = tmp_path / "a.nwb"
    mute = replace(SWEEPS[1], voltage_mv=None)
    assert "sweep 9: expected spike times or a voltage" in failure(make_nwb2(path, [mute]))
    wrong = make_nwb2(path, SWEEPS, conversion_pa=1.0)
    assert "conversion factor 1 looks wrong" in failure(wrong)
    nan = replace(SWEEPS[1], current_pa=np.full(N, np.nan))
    assert "sweep 9: current: expected finite values" in failure(make_nwb2(path, [nan]))
    twice = [SWEEPS[0], replace(SWEEPS[0], number=9)]
    make_nwb2(path, twice, table=False)
    with h5py.File(path, "r+") as file:
        for key in ("stimulus/presentation/stimulus_9", "acquisition/response_9"):
            file[key].attrs["sweep_number"] = np.uint32(10)
    assert "got stimulus_10, stimulus_9, response_10, response_9" in failure(path)
    del_stimulus = make_nwb2(path, SWEEPS, table=False)
    with h5py.File(del_stimulus, "r+") as file:
        del file["stimulus/presentation/stimulus_9"]
    assert "sweep 9: stimulus: expected" in failure(path, sweeps=[9])
    with h5py.File(path, "r+") as file:
        del file["session_start_time"]
    assert "expected a complete NWB 2 file" in failure(path)


def test_nwb2_without_pynwb(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynwb", None)
    path = tmp_path / "a.nwb"
    with h5py.File(path, "w") as file:
        file.attrs["nwb_version"] = "2.6.0"
    assert "pip install 'blockspike[nwb]'" in failure(path)
    check_noise(load_recording(make_nwb1(path, SWEEPS)))


# Real recordings, which are not in the repository


def upward_crossings_ms(voltage_mv: np.ndarray, dt_ms: float, level_mv: float) -> np.ndarray:
    above = voltage_mv >= level_mv
    return (np.flatnonzero(above[1:] & ~above[:-1]) + 1) * dt_ms


def fast_upstrokes_ms(voltage_mv: np.ndarray, dt_ms: float) -> np.ndarray:
    """First sample of each upstroke of at least 20 mV/ms that rises above −20 mV."""
    fast = np.diff(voltage_mv) >= 20 * dt_ms
    starts = np.flatnonzero(fast & ~np.r_[False, fast[:-1]])
    reach = round(1 / dt_ms)
    starts = [i for i in starts if voltage_mv[i : i + reach].max() > -20 and voltage_mv[i] < -20]
    # A noisy foot may be fast twice; the last start is that of the upstroke.
    return (
        np.array([i for i, j in zip(starts, [*starts[1:], 1e9], strict=True) if j - i > reach])
        * dt_ms
    )


def allen_features_ms(path: Path) -> dict[str, np.ndarray]:
    extractor = importlib.import_module("allensdk.ephys.ephys_extractor")
    with np.load(path) as data:
        v, i = (data[key].astype(np.float64) for key in ("voltage_mv", "current_pa"))
        t = np.arange(len(v)) * data["dt_ms"] * 1e-3
    sweep = extractor.EphysSweepFeatureExtractor(t=t, v=v, i=i, filter=10)
    sweep.process_spikes()
    return {key: sweep.spike_feature(key) * 1e3 for key in ("threshold_t", "peak_t")}


def largest_difference_ms(found_ms: np.ndarray, expected_ms: np.ndarray) -> float:
    assert len(found_ms) == len(expected_ms) > 0
    return float(np.abs(found_ms - expected_ms).max())


@needs_ephys
@pytest.mark.parametrize("path", ALLEN, ids=lambda path: path.stem)
def test_allen_sweeps_and_crossings(path):
    found = load_recording(path).spike_times_s[0][0]
    assert found is not None
    with np.load(path) as data:
        voltage, dt_ms = data["voltage_mv"].astype(np.float64), float(data["dt_ms"])
    crossings = [upward_crossings_ms(voltage, dt_ms, level) for level in (0.0, -20.0)]
    for times in [*crossings, fast_upstrokes_ms(voltage, dt_ms)]:
        assert largest_difference_ms(found * 1e3, times) < 0.5


@needs_ephys
@pytest.mark.filterwarnings("ignore")  # from allensdk's imports
@pytest.mark.parametrize("path", ALLEN, ids=lambda path: path.stem)
def test_allen_sweeps_and_allensdk(path):
    pytest.importorskip("allensdk")
    found = load_recording(path).spike_times_s[0][0]
    assert found is not None
    for times in allen_features_ms(path).values():
        assert largest_difference_ms(found * 1e3, times) < 0.5


@needs_ephys
@pytest.mark.parametrize("repeat", [0, 1])
def test_l5_voltage_gives_the_stored_spikes(repeat):
    stored = load_recording(L5).spike_times_s[repeat][0]
    assert stored is not None
    with np.load(L5) as data:
        found = detect_spikes(data["voltage_mv"][repeat], float(data["dt_ms"]))
    assert largest_difference_ms(found * 1e3, stored * 1e3) < 0.5


@needs_ephys
def test_l5_has_nine_repeats():
    recording = load_recording(L5)
    assert recording.current_pa.shape == (1, 150_000)
    assert recording.spike_trains(0, 0.1).shape == (9, 150_000)
    assert recording.spike_trains(0, 0.1).sum() == 1582


def voltage_of(recording: Recording, stimulus: int, dt_ms: float) -> np.ndarray:
    voltage = recording.voltage(stimulus, dt_ms)
    assert voltage is not None
    return voltage


def test_the_voltage_of_a_step_is_the_largest_of_its_first_repeat(tmp_path):
    rng = np.random.default_rng(0)
    voltage = rng.normal(-60, 2, (2, 3, 1000))
    voltage[0, 1] = np.nan  # stimulus 1 was first given in repeat 1
    np.savez(
        tmp_path / "cell.npz", current_pa=rng.normal(0, 50, (3, 1000)), dt_ms=0.1,
        voltage_mv=voltage, spike_times_s=[0.01, 0.02], spike_repeat=[0, 1], n_repeats=2,
        spike_stimulus=[0, 1],
    )  # fmt: skip
    recording = load_recording(tmp_path / "cell.npz")
    assert recording.spike_times_s[0][1] == [0.02]  # of the repeat whose voltage there is
    for stimulus, repeat in ((0, 0), (1, 1), (2, 0)):
        expected = voltage[repeat, stimulus].reshape(-1, 5).max(1)
        np.testing.assert_allclose(voltage_of(recording, stimulus, 0.5), expected, rtol=1e-6)
    np.testing.assert_allclose(voltage_of(recording, 0, 0.1), voltage[0, 0], rtol=1e-6)
    twice = np.repeat(voltage[0, 0], 2)
    np.testing.assert_allclose(voltage_of(recording, 0, 0.05), twice, rtol=1e-6)
    mean = recording.voltage(0, 0.05, "mean")
    assert mean is not None
    np.testing.assert_allclose(mean, twice, rtol=1e-6)
    odd = voltage_of(recording, 0, 0.7)  # 142 steps of 7 samples; 6 samples are left over
    assert len(odd) == len(recording.current(0.7)[0]) == 142
    np.testing.assert_allclose(odd[-1], voltage[0, 0, 987:994].max(), rtol=1e-6)


def test_another_voltage_is_another_recording():
    voltage = np.random.default_rng(0).normal(-60, 2, 1000).astype(np.float32)
    own = Recording("cell", np.zeros((1, 1000)), [[np.array([0.01])]], 0.1, ("noise",), [voltage])
    others = [replace(own, voltage_mv=x) for x in (None, [None], [voltage + 1])]
    assert len({x.sha256() for x in (own, *others)}) == 4
    assert replace(own, voltage_mv=[voltage.copy()]).sha256() == own.sha256()


@pytest.mark.parametrize("make", [make_nwb1, make_nwb2])
def test_the_voltage_of_a_file_of_sweeps_is_that_of_the_first_repeat(tmp_path, make):
    if make is make_nwb2:
        pytest.importorskip("pynwb")
    first, second = membrane_mv([50.0]), membrane_mv([80.0])
    sweeps = [
        MadeSweep(number, "Noise 1", noise_pa(0), v) for number, v in ((3, first), (5, second))
    ]
    recording = load_recording(make(tmp_path / "cell.nwb", sweeps))
    assert len(recording.spike_times_s) == 2
    np.testing.assert_allclose(voltage_of(recording, 0, DT_MS), first, rtol=1e-5)


def test_a_recording_of_spikes_has_no_voltage(tmp_path):
    np.savez(tmp_path / "cell.npz", current_pa=np.arange(99.0), dt_ms=0.1, spike_times_s=[0.001])
    recording = load_recording(tmp_path / "cell.npz")
    assert recording.voltage_mv is None and recording.voltage(0, 0.5) is None


def test_what_a_recording_has_not_is_refused():
    arrays = {"spike_times_s": [[np.array([2e-4])]], "dt_ms": 0.1, "stimuli": ("noise",)}
    with pytest.raises(
        ValueError, match=r"^current_pa: expected \[1, T\] for 1 stimuli, got \[9\]$"
    ):
        Recording("a", np.zeros(9), **arrays)
    for own, words in (
        (
            {"spike_times_s": [[np.array([0.1])] * 2]},
            r"\[0\]: expected .* of 1 stimuli, got 2 in a",
        ),
        ({"spike_times_s": [np.array([0.1])]}, r"\[0\]: expected a list .*, got 1 in a ndarray"),
        ({"spike_times_s": [[0.1]]}, r"\[0\]\[0\]: expected an array \[n\] or None, got 0.1"),
        ({"spike_times_s": [[None]]}, "expected a repeat of noise, got none"),
        ({"spike_times_s": [None]}, r"\[0\]: expected a list .*, got NoneType"),
        ({"voltage_mv": [1.0]}, r"voltage_mv: expected lengths \[9\], or None, got \[1\]"),
        ({"voltage_mv": [np.zeros(8)]}, r"voltage_mv: expected lengths \[9\], or None, got \[8\]"),
        ({"current_pa": [[0.0] * 9]}, r"expected \[1, T\] for 1 stimuli, got list"),
    ):
        with pytest.raises(ValueError, match=words):
            Recording(**{"name": "a", "current_pa": np.zeros((1, 9)), **arrays, **own})
    with pytest.raises(ValueError, match="^sweeps: expected a list of numbers, got 0$"):
        load_recording("a.npz", sweeps=0)  # pyright: ignore[reportArgumentType]
    recording = Recording("a", np.zeros((1, 9)), voltage_mv=[np.zeros(9, np.float32)], **arrays)
    for call in (recording.n_samples, recording.duration_s):
        for number in (-1, 1):
            with pytest.raises(ValueError, match=f"^stimulus: expected 0 to 0 of a, got {number}$"):
                call(number)
    with pytest.raises(ValueError, match="^of_step: expected largest or mean, got 'median'$"):
        recording.voltage(0, 0.5, "median")  # pyright: ignore[reportArgumentType]
