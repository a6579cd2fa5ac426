"""Igor waves: a folder of voltages and currents is a cell, and nothing is paired by guess."""

import sys

import numpy as np
import pytest
from made_ibw import write_ibw, write_sweep
from made_nwb import membrane_mv

from blockspike.data.recordings import load_recording

N, DT_MS = 2000, 0.1
STEP_PA = np.where(np.arange(N) < 500, 0.0, 150.0)


def voltage(*spikes_ms: float) -> np.ndarray:
    return membrane_mv(spikes_ms, N, DT_MS)


@pytest.fixture(autouse=True)
def igor2():
    return pytest.importorskip("igor2")


@pytest.fixture
def cell(tmp_path):
    """A folder of three sweeps: 2, 9 and 10, the first two of one stimulus."""
    folder = tmp_path / "cell.1"
    write_sweep(folder, 10, voltage(120.0), -STEP_PA)
    write_sweep(folder, 2, voltage(60.0), STEP_PA)
    return write_sweep(folder, 9, voltage(70.0, 90.0), STEP_PA)


def test_a_folder_is_a_cell(cell):
    recording = load_recording(cell)
    assert recording.name == "cell.1" and recording.dt_ms == pytest.approx(DT_MS)
    np.testing.assert_allclose(recording.current_pa, [STEP_PA, -STEP_PA])
    counts = [[None if t is None else len(t) for t in repeat] for repeat in recording.spike_times_s]
    assert counts == [[1, 1], [2, None]]
    assert load_recording(cell, sweeps=[9]).spike_times_s[0][0] == pytest.approx(
        [0.07, 0.09], abs=1e-4
    )
    with pytest.raises(ValueError, match=r"expected a sweep of \[2, 9, 10\], got 3"):
        load_recording(cell, sweeps=[3])
    with pytest.raises(ValueError, match=r"RecordA2.ibw: expected the folder"):
        load_recording(cell / "RecordA2.ibw")
    with pytest.raises(ValueError, match="electrode: expected none"):
        load_recording(cell, electrode=0)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("units", "per_mv", "current_units", "per_pa"),
    [("V", 1e-3, "A", 1e-12), ("mV", 1, "nA", 1e-3), ("µV", 1e3, "pA", 1)],
)
def test_units_and_byte_orders(tmp_path, order, units, per_mv, current_units, per_pa):
    write_ibw(tmp_path / "v1.ibw", voltage(60) * per_mv, units, DT_MS / 1e3, "s", order=order)
    write_ibw(tmp_path / "i1.ibw", STEP_PA * per_pa, current_units, 1e3 * DT_MS, "µs", order=order)
    recording = load_recording(tmp_path)
    np.testing.assert_allclose(recording.current_pa, [STEP_PA], rtol=1e-6)
    assert recording.spike_times_s[0][0] == pytest.approx([0.06], abs=1e-4)


def test_waves_of_other_length_and_clock_are_cut_and_averaged(tmp_path):
    write_ibw(tmp_path / "v.ibw", voltage(60)[:1500], "mV", DT_MS, "msec")
    write_ibw(tmp_path / "i.ibw", np.repeat(STEP_PA, 2), "pA", DT_MS / 2)
    with pytest.warns(
        UserWarning, match=r"stimulus and response take 0.2 and 0.15 s; both are cut"
    ):
        np.testing.assert_allclose(load_recording(tmp_path).current_pa, [STEP_PA[:1500]])
    write_ibw(tmp_path / "i.ibw", STEP_PA, "pA", x0=-10.0)
    with pytest.warns(UserWarning, match=r"begins \+10 ms after the stimulus"):
        np.testing.assert_allclose(load_recording(tmp_path).current_pa, [STEP_PA[100:1600]])


def test_what_cannot_be_paired_is_refused_by_name(cell):
    write_ibw(cell / "RecordB11.ibw", STEP_PA, "pA")
    with pytest.raises(ValueError, match=r"got only one of them in RecordB11.ibw$"):
        load_recording(cell)
    write_ibw(cell / "RecordC11.ibw", voltage(60))
    with pytest.raises(ValueError, match=r"RecordC11.ibw: expected one voltage .*RecordA10.ibw"):
        load_recording(cell)
    (cell / "RecordC11.ibw").unlink()
    write_ibw(cell / "RecordB02.ibw", STEP_PA, "pA")
    with pytest.raises(ValueError, match=r"expected one current .* a folder is one cell"):
        load_recording(cell)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"units": ""}, "expected data units such as V, mV, A or pA, got ''"),
        ({"units": "Hz"}, "got 'hz'"),
        ({"x_units": ""}, "expected x units of s or ms, got ''"),
        ({"x_units": "m"}, "expected x units of s or ms, got 'm'"),
        ({"dx": 0.0}, "expected a sampling rate"),
        ({"dx": 1e-9}, "expected a sampling rate"),
        ({"units": "V"}, "expected a peak voltage"),
        ({"values": np.zeros(0)}, "voltage: expected samples, got length 0"),
    ],
)
def test_waves_that_do_not_fit_are_refused(cell, options, words):
    write_ibw(cell / "RecordA2.ibw", **({"values": voltage(60.0)} | options))
    with pytest.raises(ValueError, match=rf"RecordA2.ibw: .*{words}"):
        load_recording(cell)


def test_implausible_currents_are_refused(cell):
    write_ibw(cell / "RecordB2.ibw", STEP_PA, "A")
    with pytest.raises(ValueError, match=r"sweep 2: current_pa: expected a peak"):
        load_recording(cell)
    write_ibw(cell / "RecordB2.ibw", np.full(N, np.nan), "pA")
    with pytest.raises(ValueError, match=r"RecordB2.ibw: current: expected finite values"):
        load_recording(cell)


def test_damaged_waves_are_refused(cell):
    path = cell / "RecordA2.ibw"
    whole = path.read_bytes()
    for content, words in (
        (b"", "expected an Igor wave of version"),
        (b"\4\0" + whole[2:], "expected an Igor wave of version"),
        (whole[:40], "expected an Igor wave of version"),
        (whole[: len(whole) // 2], "not a complete Igor wave"),
        (whole[:12] + b"\xff\xff\xff\x7f" + whole[16:], "not a complete Igor wave"),
        (whole[:80] + b"\0\0" + whole[82:], "not a complete Igor wave|expected one number"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=words):
            load_recording(cell)


def test_a_missing_igor2_is_named(cell, monkeypatch):
    monkeypatch.setitem(sys.modules, "igor2.binarywave", None)
    with pytest.raises(ValueError, match="pip install 'blockspike"):
        load_recording(cell)
