"""Active electrode compensation on cells behind a known electrode."""

import numpy as np
import pytest

from blockspike.data.electrode import (
    Electrode,
    Stretch,
    electrode_of,
    estimate_electrode,
    without_electrode,
)
from blockspike.data.recordings import Recording
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.data.spikes import shows_spikes
from made_electrode import DT_MS, Cell, cell_behind, noise_pa, write_cell


@pytest.mark.parametrize(("mohm", "tau_ms"), [(20.0, 0.1), (40.0, 0.3), (80.0, 0.5)])
def test_an_electrode_is_found_and_subtracted(mohm, tau_ms):
    cell = cell_behind(mohm, tau_ms)
    found = estimate_electrode("cell", [cell.stretch()], DT_MS)
    assert found.resistance_mohm == pytest.approx(mohm, rel=0.05)
    assert found.tau_ms == pytest.approx(tau_ms, rel=0.1)
    assert 0 < found.error_mohm < 1
    between = cell.between()
    left = cell.voltage_mv - found.voltage_mv(cell.current_pa) - cell.membrane_mv
    before = cell.voltage_mv - cell.membrane_mv
    assert np.sqrt(np.mean(left[between] ** 2)) < 0.25 < 3 < np.abs(before[between]).mean() + 1
    assert len(cell.spikes) > 50


def test_without_an_electrode_hardly_anything_changes():
    cell = cell_behind(0.0, 0.0)
    found = estimate_electrode("cell", [cell.stretch()], DT_MS)
    assert abs(found.resistance_mohm) < 1
    change = found.voltage_mv(cell.current_pa)[cell.between()]
    assert np.sqrt(np.mean(change**2)) < 0.2


def test_what_a_bridge_has_not_balanced_is_found():
    """A bridge subtracts at once what appears across the electrode with its delay."""
    cell = cell_behind(40.0, 0.3)
    balanced = cell._replace(voltage_mv=cell.voltage_mv - 30.0 * cell.current_pa / 1000)
    found = estimate_electrode("cell", [balanced.stretch()], DT_MS)
    assert found.resistance_mohm == pytest.approx(10.0, abs=1.5)
    assert found.kernel_mohm[0] < -15 < 0 < found.kernel_mohm[2]


def test_parts_of_a_recording_are_taken_together():
    cell = cell_behind(40.0, 0.3)
    first, second = (cell.spikes[cell.spikes < 30_000], cell.spikes[cell.spikes >= 30_000])
    parts = [
        Stretch(cell.current_pa[:30_000], cell.voltage_mv[:30_000], first),
        Stretch(cell.current_pa[30_000:], cell.voltage_mv[30_000:], second - 30_000),
    ]
    found = estimate_electrode("cell", parts, DT_MS)
    assert found.resistance_mohm == pytest.approx(40.0, rel=0.05)


def steps_pa(n: int) -> np.ndarray:
    return 150.0 + 100.0 * (np.arange(n) // 2500 % 2)


def slow_pa(n: int) -> np.ndarray:
    return 150.0 + 100.0 * np.sin(2 * np.pi * np.arange(n) * DT_MS / 500)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (lambda: cell_behind(40.0, 0.3, steps_pa(60_000)), "expected a current that fluctuates"),
        (
            lambda: cell_behind(40.0, 0.3, slow_pa(60_000)),
            "fluctuates within 3 ms, got one that is smooth",
        ),
        (lambda: cell_behind(40.0, 0.3, noise_pa(8_000)), "expected at least 1 s of voltage"),
        (lambda: cell_behind(900.0, 0.3), "expected an electrode of -5 to 500 MΩ"),
        (
            lambda: cell_behind(40.0, 0.3)._replace(spikes=np.arange(300, 60_000, 900)),
            "expected the voltage of the first trial",
        ),
    ],
    ids=["steps", "slow", "short", "implausible", "another trial"],
)
def test_what_cannot_be_estimated_is_refused(cell, message):
    with pytest.raises(ValueError, match=f"my cell: compensation: .*{message}"):
        estimate_electrode("my cell", [cell().stretch()], DT_MS)


def recording_of(cell: Cell, has_voltage: bool = True) -> Recording:
    times_s = (cell.spikes + 0.5) * DT_MS / 1000
    voltage: list[np.ndarray | None] | None = None
    if has_voltage:
        voltage = [cell.voltage_mv.astype(np.float32)]
    return Recording(
        "my cell", cell.current_pa[None], [[times_s]], DT_MS, ("noise",), voltage
    )  # fmt: skip


def test_a_recording_without_voltage_is_refused():
    recording = recording_of(cell_behind(0.0, 0.0, noise_pa(20_000)), has_voltage=False)
    with pytest.raises(ValueError, match="my cell: compensation: expected a voltage in the train"):
        electrode_of(recording, [(0, slice(0, 20_000))])


def test_voltages_of_both_parts_of_a_data_set_are_compensated(tmp_path):
    cell = cell_behind(40.0, 0.3)
    write_cell(cell, tmp_path / "cell.npz")
    recorded, compensated = (
        RecordingsDataModule(tmp_path / "cell.npz", compensation=how) for how in (None, "aec")
    )
    for data in (recorded, compensated):
        data.setup()
    assert recorded.compensated == [None]
    (electrode,) = compensated.compensated
    assert isinstance(electrode, Electrode)
    # It is that of the training part alone, the first 60 %.
    n = 36_000
    own = estimate_electrode(
        "x", [Stretch(cell.current_pa[:n], cell.voltage_mv[:n].astype(np.float32),
                      cell.spikes[cell.spikes < n])], DT_MS
    )  # fmt: skip
    np.testing.assert_allclose(electrode.kernel_mohm, own.kernel_mohm, rtol=1e-6, atol=1e-9)
    true = cell.membrane_mv.reshape(-1, 5).mean(1)
    quiet = cell.between().reshape(-1, 5).all(1)
    for part, first in (("train_voltage_mv", 0), ("test_mean_voltage_mv", -1)):
        (before,), (after,) = getattr(recorded, part), getattr(compensated, part)
        steps = slice(0, 7200) if first == 0 else slice(12_000 - before.shape[1], 12_000)
        chosen = quiet[steps]
        left = (after[0] - true[steps])[chosen]
        assert np.sqrt(np.mean(left**2)) < 0.3 < 4 < np.mean((before[0] - true[steps])[chosen])
    (shown,), (as_recorded,) = compensated.test_voltage_mv, recorded.test_voltage_mv
    assert shown.shape == as_recorded.shape and (as_recorded - shown).mean() > 4
    assert recorded.sha256 == compensated.sha256


def test_a_cell_whose_electrode_is_not_found_is_named(tmp_path):
    write_cell(cell_behind(40.0, 0.3, steps_pa(60_000)), tmp_path / "cell.npz")
    data = RecordingsDataModule(tmp_path / "cell.npz", compensation="aec")
    with pytest.raises(ValueError, match="cell: compensation: expected a current that fluctuates"):
        data.setup()
    with pytest.raises(ValueError, match="compensation: expected aec or null, got 'bridge'"):
        RecordingsDataModule(tmp_path / "cell.npz", compensation="bridge")  # pyright: ignore


@pytest.mark.parametrize("most", [400_000, 40_000])
def test_little_memory_leaves_enough_intervals_for_the_error(monkeypatch, most):
    """First fewer intervals are taken, down to those of the jackknife, then less of each."""
    cell = cell_behind(40.0, 0.3)
    monkeypatch.setattr("blockspike.data.electrode._MOST_VALUES", most)
    found = estimate_electrode("cell", [cell.stretch()], DT_MS)
    assert found.resistance_mohm == pytest.approx(40.0, rel=0.25)
    whole = cell_behind(40.0, 0.3).stretch()
    monkeypatch.undo()
    assert found.error_mohm > 1.2 * estimate_electrode("cell", [whole], DT_MS).error_mohm


def test_a_kernel_of_another_sampling_rate_is_refused():
    recording = recording_of(cell_behind(0.0, 0.0, noise_pa(20_000)))
    electrode = Electrode(np.ones(3), 0.1, 2 * DT_MS)
    with pytest.raises(ValueError, match="my cell: compensation: expected samples every 0.2 ms"):
        without_electrode(recording, electrode)


def test_the_warm_up_of_the_training_part_is_not_in_the_estimate(tmp_path):
    cell = cell_behind(40.0, 0.3)
    write_cell(cell, tmp_path / "cell.npz")
    second = {"train_s": [[3, 6]], "test_s": [[0, 3]], "compensation": "aec"}
    found = []
    for warm_up_s in (0.0, 3.0):
        data = RecordingsDataModule(tmp_path / "cell.npz", train_warm_up_s=warm_up_s, **second)
        data.setup()
        (electrode,) = data.compensated
        assert electrode is not None
        found.append(electrode.kernel_mohm)
    np.testing.assert_array_equal(*found)


def test_the_voltage_of_every_segment_is_judged():
    """Of segments of different length, the shorter ones end in NaN."""
    fired = np.zeros((1000, 2), bool)
    fired[100::100] = True
    voltage = np.full((1000, 2), -60.0)
    voltage[fired] = 30.0
    voltage[900:, 1] = np.nan
    assert shows_spikes(fired, voltage, 0.5)
    voltage[:900, 1] = -60.0
    assert shows_spikes(fired[:, :1], voltage[:, :1], 0.5)
    assert not shows_spikes(fired[:, 1:], voltage[:, 1:], 0.5)


@pytest.mark.filterwarnings("ignore:.*not high at the stored spikes")
def test_a_stimulus_without_voltage_has_the_steps_of_its_spikes(tmp_path):
    """A cut that rounds past the end of the recording is clipped there, with or without voltage."""
    n, dt_ms = 40_076, 0.05
    rng = np.random.default_rng(0)
    times_s = np.tile(np.arange(0.05, 2.0, 0.1), 2)
    voltage = np.full((1, 2, n), np.nan)
    voltage[0, 0] = rng.normal(-60, 1, n)
    np.savez(
        tmp_path / "cell.npz", current_pa=rng.normal(0, 100, (2, n)), dt_ms=dt_ms,
        spike_times_s=times_s, spike_repeat=np.zeros(len(times_s), int), voltage_mv=voltage,
        spike_stimulus=np.repeat([0, 1], len(times_s) // 2),
    )  # fmt: skip
    data = RecordingsDataModule(tmp_path / "cell.npz")
    data.setup()
    (shown,) = data.test_mean_voltage_mv
    assert shown is not None
    for row, (current, _) in zip(shown, data.test.segments(0), strict=True):
        assert row.shape == current.shape
