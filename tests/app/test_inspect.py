"""`blockspike inspect`."""

import numpy as np
import pytest
from made_abf import write_abf
from made_nwb import make_nwb2_of, membrane_mv, noise_pa, stimulus_and_response
from test_abf import STEPS, voltages_mv

from blockspike.app.inspect import inspect
from blockspike.fitting.synthetic_cells import SyntheticCells
from made_recordings import write_recording


def shown(capsys, path, sweeps=None) -> str:
    inspect([path], sweeps)
    return " ".join(capsys.readouterr().out.split())


def test_sweeps_of_an_axon_file(tmp_path, capsys):
    path = write_abf(tmp_path / "a.abf", voltages_mv(4, spacing=350)[:, None], epochs=STEPS)
    out = shown(capsys, path)
    assert "voltage in IN 0, stimulus from the command of output Cmd 0" in out
    assert "3 0.4 0.1 0 0 to 25 -70 9 22.5" in out
    assert "a fit would use 4 stimuli (repeats: 1), 13 spikes in 0.24 s of each to fit" in out
    assert "2 0.4 0.1" not in shown(capsys, path, [0, 3])


def test_a_recording_of_arrays(tmp_path, capsys):
    (cell,) = SyntheticCells(n_cells=1, n_trials=2, duration_s=3.0).cells()
    write_recording(cell, tmp_path / "cell.npz")
    out = shown(capsys, tmp_path / "cell.npz")
    assert "stimulus 0" in out and "a fit would use 1 stimulus" in out


def test_the_rest_of_a_voltage_in_arrays(tmp_path, capsys):
    voltage, current = membrane_mv([50.0, 90.0, 150.0], 2000, 0.1), noise_pa(1, 2000)
    np.savez(tmp_path / "a.npz", current_pa=current, dt_ms=0.1, voltage_mv=voltage)
    out = shown(capsys, tmp_path / "a.npz")
    assert f" {np.median(voltage):.0f} 3 " in out


def test_chosen_sweeps_of_arrays_keep_their_numbers(tmp_path, capsys):
    times = np.arange(0.02, 1, 0.04)
    np.savez(
        tmp_path / "cell.npz", current_pa=np.random.default_rng(0).normal(0, 50, (3, 10_000)),
        dt_ms=0.1, spike_times_s=np.tile(times, 3), spike_stimulus=np.repeat([0, 1, 2], len(times)),
    )  # fmt: skip
    out = shown(capsys, tmp_path / "cell.npz", [2])
    assert " 2 stimulus 2 1 0.1 " in out and "stimulus 0" not in out
    with pytest.raises(ValueError, match="stimuli: expected some of stimulus 0"):
        shown(capsys, tmp_path / "cell.npz", [])


def test_a_folder_names_what_would_be_refused(tmp_path, capsys):
    write_abf(tmp_path / "a.abf", voltages_mv(3, spacing=500)[:, None], epochs=STEPS)
    write_abf(tmp_path / "b.abf", voltages_mv(2)[:, None], source=2)
    write_abf(tmp_path / "c.abf", voltages_mv(1)[:, None], epochs=STEPS)
    out = shown(capsys, tmp_path)
    assert "b.abf: expected a recorded current or a known command" in out
    assert "a fit would be refused: c: expected at least 2 spikes" in out
    with pytest.raises(ValueError, match=r"b.abf: expected a recorded current"):
        shown(capsys, tmp_path / "b.abf")
    with pytest.raises(FileNotFoundError, match="expected a recording"):
        shown(capsys, tmp_path / "nothing")


def test_every_electrode_of_a_file_is_shown(tmp_path, capsys):
    pytest.importorskip("pynwb")
    voltage = membrane_mv([5.0, 12.0, 20.0, 41.0], 2500)
    series = [
        *stimulus_and_response("0", noise_pa(1, 2500), voltage, "soma"),
        *stimulus_and_response("d_0", noise_pa(1, 2500), membrane_mv([9.0], 2500), "dend"),
    ]
    out = shown(capsys, make_nwb2_of(tmp_path / "a.nwb", series))
    assert "a.nwb: electrode 'soma'" in out and "a fit would use 1 stimulus (repeats: 1), 3" in out
    assert "a.nwb: electrode 'dend'" in out and "a fit would be refused: a_dend: expected" in out


def test_several_files(blockspike, tmp_path):
    path = write_abf(tmp_path / "a=1.abf", voltages_mv(3, spacing=500)[:, None], epochs=STEPS)
    shown = blockspike("inspect", str(path), str(path), "--sweeps", "0", "--sweeps", "2").stdout
    assert shown.count("a fit would use 2 stimuli") == 2
