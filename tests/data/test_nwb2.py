"""NWB 2 as rigs and converters write it: clocks, padding, electrodes, holding currents, pairs."""

import warnings
from dataclasses import replace
from itertools import chain
from typing import Any

import h5py
import numpy as np
import pytest
from made_nwb import (
    DT_MS,
    RATE_HZ,
    MadeSeries,
    make_nwb2_of,
    membrane_mv,
    noise_pa,
    stimulus_and_response,
)

from blockspike.data import nwb2
from blockspike.data.hdf5 import check_tree
from blockspike.data.limits import ReadLimit
from blockspike.data.recordings import load_recording
from blockspike.data.sweeps import SeveralElectrodesError

pytest.importorskip("pynwb")

N = 5000
CURRENT, VOLTAGE = noise_pa(1), membrane_mv([30.0, 60.0])
TIMES_S = 7.0 + np.arange(N) / RATE_HZ


@pytest.fixture
def written(tmp_path):
    """Writes `a.nwb` with one pair, or with given series, and returns its path."""

    def write(stimulus=None, response=None, current=CURRENT, voltage=VOLTAGE, series=None, rows=()):
        pair = stimulus_and_response("0", current, voltage, stimulus=stimulus, response=response)
        return make_nwb2_of(tmp_path / "a.nwb", pair if series is None else series, rows)

    return write


def loaded(path, **choice):
    """Load without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_recording(path, **choice)


def first_train_ms(recording) -> list[float]:
    return np.round(np.asarray(recording.spike_times_s[0][0]) * 1e3, 2).tolist()


# Clocks


def test_regular_timestamps(written):
    recording = loaded(written({"timestamps": TIMES_S}, {"timestamps": TIMES_S}))
    assert recording.dt_ms == DT_MS and first_train_ms(recording) == [30.0, 60.0]
    np.testing.assert_allclose(recording.current_pa, [CURRENT], atol=1e-9)


def test_irregular_timestamps_are_refused(written):
    gap = TIMES_S + 1e-3 * (np.arange(N) > 4000)
    with pytest.raises(ValueError, match=r"a.nwb, sweep 0: timestamps: .* ms off$"):
        loaded(written({"timestamps": TIMES_S}, {"timestamps": gap}))
    path = written({"timestamps": TIMES_S}, {"timestamps": TIMES_S})
    with h5py.File(path, "r+") as file:  # which pynwb would not write
        series: Any = file["stimulus/presentation/in_0"]
        attributes = dict(series["timestamps"].attrs)
        del series["timestamps"]
        series.create_dataset("timestamps", data=TIMES_S[1:]).attrs.update(attributes)
    with pytest.raises(ValueError, match=r"one for each of 5000 samples of in_0, got 4999$"):
        loaded(path)


def test_a_response_that_is_shorter_ends_the_sweep(written):
    with pytest.warns(
        UserWarning, match=r"stimulus and response take 0.1 and 0.04 s; both are cut"
    ):
        recording = load_recording(written(voltage=VOLTAGE[:2000]))
    np.testing.assert_allclose(recording.current_pa, [CURRENT[:2000]], atol=1e-9)
    assert first_train_ms(recording) == [30.0]


def test_a_current_of_another_rate_keeps_its_charge(written):
    coarse = CURRENT.reshape(-1, 2).mean(1)
    recording = loaded(written(voltage=VOLTAGE[::2], response={"rate": RATE_HZ / 2}))
    assert recording.dt_ms == 2 * DT_MS and first_train_ms(recording)[0] == pytest.approx(
        30, abs=0.1
    )
    np.testing.assert_allclose(recording.current_pa, [coarse], atol=1e-9)
    recording = loaded(written(current=coarse, stimulus={"rate": RATE_HZ / 2}))
    np.testing.assert_allclose(recording.current_pa, [np.repeat(coarse, 2)], atol=1e-9)
    with pytest.raises(ValueError, match="sweep 0: expected rates .* got 50000 and 30000 Hz"):
        loaded(written(response={"rate": 30_000.0}))


def test_padding_by_nan_is_cut_off(written):
    padded = np.r_[CURRENT[:3000], np.full(2000, np.nan)]
    with pytest.warns(UserWarning, match="stimulus and response take 0.06 and 0.1 s"):
        recording = load_recording(written(current=padded))
    np.testing.assert_allclose(recording.current_pa, [CURRENT[:3000]], atol=1e-9)
    path = written(voltage=np.r_[VOLTAGE[:2500], np.full(2500, np.nan)])
    with pytest.warns(UserWarning, match="stimulus and response take 0.1 and 0.05 s"):
        recording = load_recording(path)
    assert recording.current_pa.shape == (1, 2500) and first_train_ms(recording) == [30.0]
    hole = np.where(np.arange(N) == 9, np.nan, padded)
    with pytest.raises(ValueError, match="sweep 0: current: .* got nan at sample 9"):
        loaded(written(current=hole))
    with pytest.raises(ValueError, match="sweep 0: voltage: .* NaN in .*, first in sample 9"):
        loaded(written(voltage=np.where(np.arange(N) == 9, np.nan, VOLTAGE)))
    with pytest.raises(ValueError, match="sweep 0: voltage: expected numbers, got none"):
        loaded(written(voltage=np.full(N, np.nan)))


def test_zeros_after_a_sweep_that_was_stopped_are_cut_off(written):
    path = written(voltage=np.where(np.arange(N) < 3000, VOLTAGE, 0.0))
    with pytest.warns(UserWarning, match="sweep 0: the voltage is exactly 0 from 0.06 s on"):
        recording = load_recording(path)
    np.testing.assert_allclose(recording.current_pa, [CURRENT[:3000]], atol=1e-9)
    over = np.where(np.arange(N) < 3000, CURRENT, 0.0)
    whole = loaded(written(current=over, voltage=np.where(np.arange(N) < 3000, VOLTAGE, 0.0)))
    np.testing.assert_allclose(whole.current_pa, [over], atol=1e-9)


def test_starting_times_are_honoured(written):
    path = written({"starting_time": 3.0}, {"starting_time": 3.01})
    with pytest.warns(UserWarning, match=r"begins \+10 ms after the stimulus"):
        recording = load_recording(path)
    np.testing.assert_allclose(recording.current_pa, [CURRENT[500:]], atol=1e-9)
    assert first_train_ms(recording) == [30.0, 60.0]
    with pytest.raises(ValueError, match="stimulus and a response at the same time"):
        loaded(written({"starting_time": 0.0}, {"starting_time": 50.0}))


def test_a_bias_current_is_reported_and_not_added(written):
    for unknown in (0.0, np.nan):
        loaded(written(response={"bias_current": unknown}))
    path = written(response={"bias_current": -5e-11})
    with pytest.warns(UserWarning, match=r"a.nwb: bias_current: -50 pA in sweep 0 is not added"):
        recording = load_recording(path)
    np.testing.assert_allclose(recording.current_pa, [CURRENT], atol=1e-9)


def test_warnings_of_spikes_reach_the_user(written):
    voltage = np.tile(membrane_mv([1.0], 75), 67)[:N]  # 670 Hz
    with pytest.warns(UserWarning, match="sweep 0: 66 spikes in 0.1 s"):
        load_recording(written(voltage=voltage))


# Electrodes and pairs

TWO = [
    *stimulus_and_response("0", CURRENT, VOLTAGE, "soma"),
    *stimulus_and_response("1", noise_pa(2), VOLTAGE, "soma"),
    *stimulus_and_response("dendrite_0", CURRENT, membrane_mv([40.0]), "dendrite"),
]
NUMBERS = (0, 0, 1, 1, 0, 0)
NUMBERED = [
    replace(one, options={"sweep_number": np.uint32(n)})
    for one, n in zip(TWO, NUMBERS, strict=True)
]
TABLE = [("in_0", "out_0"), ("in_dendrite_0", "out_dendrite_0"), ("in_1", "out_1")]


@pytest.mark.parametrize(
    ("series", "rows"), [(TWO, ()), (NUMBERED, ()), (NUMBERED, TABLE), (TWO, TABLE)]
)
def test_electrodes_are_cells_of_their_own(written, series, rows):
    path = written(series=series, rows=rows)
    with pytest.raises(SeveralElectrodesError) as caught:
        loaded(path)
    assert caught.value.electrodes == (["soma", "dendrite"] if rows else ["dendrite", "soma"])
    assert "'soma'" in str(caught.value) and str(caught.value).startswith(f"{path}: electrode: ")
    soma, dendrite = (loaded(path, electrode=name) for name in ("Soma", "dendrite"))
    assert (soma.name, dendrite.name) == ("a_soma", "a_dendrite")
    assert len(soma.stimuli) == 2 and len(soma.spike_times_s) == 1
    assert len(dendrite.stimuli) == 1 and first_train_ms(dendrite) == [40.0]
    number = caught.value.electrodes.index("dendrite")
    assert loaded(path, electrode=number).sha256() == dendrite.sha256()
    with pytest.raises(ValueError, match=r"electrode: expected '.*' \(0\) or .*, got 'axon'"):
        loaded(path, electrode="axon")


def test_an_electrode_in_voltage_clamp_is_no_choice(written):
    clamped = [
        MadeSeries("VoltageClampStimulusSeries", "in_v_0", VOLTAGE, "other"),
        MadeSeries("VoltageClampSeries", "out_v_0", CURRENT, "other"),
    ]
    path = written(series=[*stimulus_and_response("0", CURRENT, VOLTAGE), *clamped])
    assert loaded(path).name == "a" and loaded(path, electrode="electrode").name == "a"
    with pytest.raises(ValueError, match=r"electrode: expected 'electrode' \(0\), got 'other'"):
        loaded(path, electrode="other")


def test_other_files_have_no_electrodes(tmp_path):
    np.savez(tmp_path / "a.npz", current_pa=CURRENT, dt_ms=DT_MS, spike_times_s=[0.01])
    with pytest.raises(ValueError, match="electrode: expected none, as the file has one cell"):
        loaded(tmp_path / "a.npz", electrode=1)


def test_repeats_of_names_that_cannot_be_paired_are_refused(written):
    pair = stimulus_and_response("0", CURRENT, VOLTAGE)
    twin = replace(pair[1], name="again_0")
    with pytest.raises(ValueError, match=r"one stimulus and one response .* got in_0, .*again_0"):
        loaded(written(series=[*pair, twin]))
    numbered = [replace(one, options={"sweep_number": np.uint32(4)}) for one in (*pair, twin)]
    rows = [("in_0", "out_0"), ("in_0", "out_0")]
    with pytest.raises(ValueError, match=r"sweep 4: .* got in_0 and out_0 and in_0 and out_0"):
        loaded(written(series=numbered, rows=rows))
    with pytest.raises(ValueError, match="stimulus: expected .* for out_0, got none"):
        loaded(written(series=pair[1:]))
    with pytest.raises(ValueError, match="out_0: expected a row of intracellular_recordings or"):
        loaded(written({"sweep_number": np.uint32(1)}))


def test_rows_count_if_sweep_numbers_repeat(written):
    number = {"sweep_number": np.uint32(4)}
    pairs = [
        stimulus_and_response(str(i), (i + 1) * CURRENT, VOLTAGE, stimulus=number, response=number)
        for i in range(2)
    ]
    path = written(series=[*chain(*pairs)], rows=[("in_0", "out_0"), ("in_1", "out_1")])
    recording = loaded(path)
    np.testing.assert_allclose(recording.current_pa, [CURRENT, 2 * CURRENT], atol=1e-9)
    np.testing.assert_allclose(loaded(path, sweeps=[1]).current_pa, [2 * CURRENT], atol=1e-9)


@pytest.mark.parametrize("numbers", [("0", "1"), ("0", "0")])
@pytest.mark.parametrize("has_table", [True, False])
def test_voltage_clamp_does_not_hinder_current_clamp(written, numbers, has_table):
    """A seal test with the sweep's number, or with another, beside a sweep in current clamp."""
    options = [{"sweep_number": np.uint32(n)} for n in numbers]
    clamped = stimulus_and_response(
        "seal_0", CURRENT, VOLTAGE, stimulus=options[1], response=options[1]
    )
    clamped = [replace(x, kind=x.kind.replace("Current", "Voltage")) for x in clamped]
    pair = stimulus_and_response("1", CURRENT, VOLTAGE, stimulus=options[0], response=options[0])
    rows = [("in_seal_0", "out_seal_0"), ("in_1", "out_1")] if has_table else ()
    np.testing.assert_allclose(
        loaded(written(series=[*clamped, *pair], rows=rows)).current_pa, [CURRENT], atol=1e-9
    )


@pytest.mark.parametrize("noise_pa", [0.0, 0.1])
def test_a_step_of_0_pa_is_a_step(written, noise_pa):
    silent = noise_pa * np.random.default_rng(0).normal(size=N)
    pairs = [
        stimulus_and_response(str(i), current, VOLTAGE)
        for i, current in enumerate([silent, CURRENT])
    ]
    recording = loaded(written(series=[*chain(*pairs)]))
    np.testing.assert_allclose(recording.current_pa, [silent, CURRENT], atol=1e-9)
    with pytest.raises(ValueError, match=r"a.nwb, sweep 0: current_pa: expected a peak of 1 to"):
        loaded(written(current=1e-3 * CURRENT / np.abs(CURRENT).max()))
    with pytest.warns(UserWarning, match="sweep 0: current_pa: the peak is 3 pA, which is unusual"):
        load_recording(written(current=3 * CURRENT / np.abs(CURRENT).max()))


def test_parts_of_one_series_count_once_in_the_limit(tmp_path, monkeypatch):
    parts = [slice(k, k + 500) for k in range(0, N, 500)]
    pair = stimulus_and_response("0", CURRENT, VOLTAGE)
    path = make_nwb2_of(tmp_path / "a.nwb", pair, [("in_0", "out_0")] * len(parts), parts)
    limit = ReadLimit(path)
    monkeypatch.setattr(nwb2, "ReadLimit", lambda path: limit)
    limit.left = CURRENT.nbytes + VOLTAGE.nbytes
    np.testing.assert_allclose(loaded(path).current_pa, CURRENT.reshape(10, 500), atol=1e-9)
    limit.left = CURRENT.nbytes + VOLTAGE.nbytes - 1
    with pytest.raises(ValueError, match="out_0/data: expected at most .* more bytes"):
        loaded(path)


def test_a_stimulus_of_another_electrode_is_refused(written):
    path = written(series=NUMBERED, rows=TABLE)
    with h5py.File(path, "r+") as file:
        del file["stimulus/presentation/in_dendrite_0/electrode"]
        soma = h5py.SoftLink("/general/intracellular_ephys/soma")
        file["stimulus/presentation/in_dendrite_0/electrode"] = soma
    with pytest.raises(ValueError, match="of one electrode, got soma and dendrite"):
        loaded(path, electrode="dendrite")


@pytest.mark.parametrize("rows", [(), [("in_0", "out_0"), (None, "rest_1")]])
def test_a_sweep_without_a_current_is_skipped_unless_asked_for(written, rows):
    rest = MadeSeries("IZeroClampSeries", "rest_1", VOLTAGE)
    path = written(series=[*stimulus_and_response("0", CURRENT, VOLTAGE), rest], rows=rows)
    assert loaded(path).current_pa.shape == (1, N)
    with pytest.raises(ValueError, match="sweep 1: expected current clamp, got I = 0"):
        loaded(path, sweeps=[1])


def test_protocols_of_different_length(written):
    series = [
        *stimulus_and_response("0", CURRENT, VOLTAGE),
        *stimulus_and_response("1", noise_pa(2, 6000), membrane_mv([9.0], 6000)),
        *stimulus_and_response("2", noise_pa(3), VOLTAGE),
    ]
    path = written(series=series)
    recording = loaded(path)
    assert recording.current_pa.shape == (3, 6000)
    assert [recording.n_samples(s) for s in range(3)] == [N, 6000, N]
    assert loaded(path, sweeps=[0, 2]).current_pa.shape == (2, N)


# Groups within themselves


def _link(file: h5py.File) -> None:
    file["acquisition/out_0/own"] = file["acquisition"]


def _soft_link(file: h5py.File) -> None:
    file["general/devices/own"] = h5py.SoftLink("/general")


def _refer(file: h5py.File) -> None:
    file["acquisition/out_0"].attrs["own"] = file["acquisition"].ref


def _refer_by_a_value(file: h5py.File) -> None:
    file["acquisition/out_0/own"] = file["general"].ref
    file["general/own"] = file["acquisition"].ref


def _nest(file: h5py.File) -> None:
    file["/".join(["general", *"a" * 500])] = 1.0


@pytest.mark.parametrize("change", [_link, _soft_link, _refer, _refer_by_a_value, _nest])
def test_groups_within_themselves_are_refused_before_pynwb_descends(written, change):
    path = written()
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(ValueError, match="a.nwb: expected groups at most 50 deep, got deeper ones"):
        loaded(path)


def test_a_device_under_two_names_and_a_link_to_nowhere_are_no_groups_within_themselves(written):
    path = written()
    with h5py.File(path, "r+") as file:
        file["general/again"] = file["general/devices"]
        file["general/nowhere"] = h5py.SoftLink("/nowhere")
    check_tree(path)


def test_an_attribute_of_variable_length_that_is_no_text_is_refused(written):
    """Where its datatype was damaged, h5py crashes at it."""
    path = written()
    with h5py.File(path, "r+") as file:
        value = np.empty(1, object)
        value[0] = np.array([1, 2], np.uint8)
        file["acquisition"].attrs.create("own", value, dtype=h5py.vlen_dtype(np.uint8))
    with pytest.raises(ValueError, match="attribute 'own' of /acquisition: expected numbers, te"):
        loaded(path)
