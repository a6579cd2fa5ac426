"""Recordings cut into training and test parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_ibw import write_sweep
from made_nwb import make_nwb2_of, membrane_mv, noise_pa, stimulus_and_response
from omegaconf import OmegaConf
from torch import Tensor

from blockspike.data.recording_files import cell_names
from blockspike.data.recordings_datamodule import RecordingsDataModule, find_recordings


def write(path, seconds=2.0, dt_ms=0.1, seed=0, stimuli=1, repeats=2, scale=50.0):
    rng = np.random.default_rng(seed)
    n = round(seconds * 1000 / dt_ms)
    current = scale * rng.standard_normal((stimuli, n))
    times, repeat, stimulus = [], [], []
    for r in range(repeats):
        for s in range(stimuli):
            own = np.sort(rng.choice(n, 20, replace=False)) * dt_ms / 1000
            times.append(own)
            repeat.append(np.full(20, r))
            stimulus.append(np.full(20, s))
    np.savez(
        path, current_pa=current, dt_ms=dt_ms, spike_times_s=np.concatenate(times),
        spike_repeat=np.concatenate(repeat), spike_stimulus=np.concatenate(stimulus),
    )  # fmt: skip
    return current, times


def test_by_time_with_warm_up_and_held_out(tmp_path):
    current, times = write(tmp_path / "a.npz")
    data = RecordingsDataModule(
        tmp_path / "a.npz", dt_ms=1.0, train_s=[[0, 1]], test_s=[[1, 2]], warm_up_s=0.25
    )
    data.setup()
    mean = current[0].reshape(-1, 10).mean(1)
    scale = mean[:1000].std()
    assert data.names == ["a"] and data.scale_pa[0] == pytest.approx(scale)
    x, target, (first, split, last) = data.batch()
    assert x.shape == target.shape == (1000, 1, 1) and (first, split, last) == (0, 800, 1000)
    np.testing.assert_allclose(x[:, 0, 0], mean[:1000] / scale, rtol=1e-5)
    trial = np.bincount(np.floor(times[0] * 1000 + 1e-6).astype(int), minlength=2000)
    other = np.bincount(np.floor(times[1] * 1000 + 1e-6).astype(int), minlength=2000)
    np.testing.assert_allclose(target[:, 0, 0], (trial + other)[:1000] / 2)
    assert data.test.first == [[250]] and data.test.current.shape == (1250, 1, 1)
    np.testing.assert_allclose(data.test.current[:, 0, 0], mean[750:] / scale, rtol=1e-5)
    np.testing.assert_array_equal(data.test.trains[0][0][0], trial[750:])


def test_a_segment_has_the_warm_up_that_its_own_start_allows(tmp_path):
    write(tmp_path / "a.npz")
    early, late = [0.1, 0.4], [1.5, 2.0]
    data = RecordingsDataModule(
        tmp_path / "a.npz", dt_ms=1.0, train_s=[[0.5, 1.5]], test_s=[early, late], warm_up_s=1.0
    )
    data.setup()
    assert data.test.first == [[100, 1000]]
    assert [x.shape[1] for x in data.test.scored(0)] == [300, 500]
    for segment, own in enumerate((early, late)):
        alone = RecordingsDataModule(
            tmp_path / "a.npz", dt_ms=1.0, train_s=[[0.5, 1.5]], test_s=[own], warm_up_s=1.0
        )
        alone.setup()
        for ours, theirs in zip(
            data.test.segments(0)[segment], *alone.test.segments(0), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_segments_are_the_first_part_and_the_rest_if_none_are_given(tmp_path):
    write(tmp_path / "a.npz")
    data = RecordingsDataModule(tmp_path, dt_ms=1.0, warm_up_s=0.5)
    data.setup()
    assert data.train.current.shape == (1200, 1, 1)
    assert data.test.current.shape[0] - data.test.first[0][0] == 800


def test_by_stimulus_as_published(tmp_path):
    current, _ = write(tmp_path / "a.npz", stimuli=2)
    segments = [[0, 0.5], [1, 1.5]]
    data = RecordingsDataModule(
        tmp_path, dt_ms=0.1, train_stimulus="stimulus 0", test_stimulus="stimulus 1",
        train_s=segments, test_s=segments, held_out=0.0, warm_up_s=0.0, first_trial_only=True,
        scaling="maximum", own_test_scale=True,
    )  # fmt: skip
    data.setup()
    assert data.train.current.shape == (5000, 2, 1)
    own = current[:, [*range(5000), *range(10000, 15000)]]
    assert data.scale_pa[0] == pytest.approx(100 * own[0].max())
    assert data.test_scale_pa[0] == pytest.approx(100 * own[1].max())
    np.testing.assert_allclose(
        data.test.current[:, 1, 0], own[1, 5000:] / (100 * own[1].max()), rtol=1e-5
    )
    assert data.batch()[2] == (0, 5000, 5000)
    # fitted to the first trial, scored on all
    assert [len(t) for t in data.test.trains[0]] == [2, 2]
    np.testing.assert_array_equal(data.batch()[1][:, 1, 0], data.train.trains[0][1][0])


def test_by_sweep(tmp_path):
    current, times = write(tmp_path / "a.npz", stimuli=3)
    data = RecordingsDataModule(tmp_path / "a.npz", dt_ms=1.0, train_sweeps=[0, 2], test_sweeps=[1])
    data.setup()
    assert data.train.current.shape == (2000, 2, 1) and data.test.current.shape == (2000, 1, 1)
    assert data.test.first == [[0]]  # there is nothing before a sweep
    tested = current[1].reshape(-1, 10).mean(1) / data.scale_pa[0]
    np.testing.assert_allclose(data.test.current[:, 0, 0], tested, rtol=1e-5)
    trained = current[2].reshape(-1, 10).mean(1) / data.scale_pa[0]
    np.testing.assert_allclose(data.train.current[:, 1, 0], trained, rtol=1e-5)
    assert data.test.trains[0][0].sum() == len(times[1]) + len(times[4])


def test_two_stimuli_are_used_whole_and_those_that_may_be_one_in_parts(tmp_path):
    write(tmp_path / "a.npz", stimuli=2)
    for names, steps in (
        (("stimulus 0", "stimulus 1"), (2000, 2000)),
        (("stimulus 0", "*1"), (1200, 800)),
        (("stimulus 0", "Stimulus 0 "), (1200, 800)),
    ):
        data = RecordingsDataModule(tmp_path / "a.npz", 1.0, *names, warm_up_s=0.0)
        data.setup()
        assert (len(data.train.current), len(data.test.current)) == steps


def test_folds_test_each_stimulus_once(tmp_path):
    current, times = write(tmp_path / "a.npz", stimuli=5)
    tested = []
    for fold in range(2):
        data = RecordingsDataModule(tmp_path / "a.npz", dt_ms=1.0, n_folds=2, fold=fold)
        data.setup()
        own, others = range(fold, 5, 2), range(1 - fold, 5, 2)
        for part, numbers in ((data.test, own), (data.train, others)):
            assert part.current.shape == (2000, len(numbers), 1)
            assert part.first == [[0] * len(numbers)]
            wanted = current[list(numbers)].reshape(len(numbers), -1, 10).mean(2).T
            np.testing.assert_allclose(
                part.current[:, :, 0], wanted / data.scale_pa[0], rtol=1e-4, atol=1e-6
            )
            spikes = [sum(len(times[r * 5 + s]) for r in range(2)) for s in numbers]
            assert [int(x.sum()) for x in part.trains[0]] == spikes
        tested += own
    assert sorted(tested) == [0, 1, 2, 3, 4]


def test_a_file_of_allensdk_has_its_folders_name(tmp_path, monkeypatch):
    (tmp_path / "specimen_7").mkdir()
    monkeypatch.chdir(tmp_path / "specimen_7")
    Path("ephys.nwb").symlink_to("elsewhere/object")  # as of a shared store
    assert cell_names([Path("ephys.nwb")], Path("ephys.nwb")) == ["specimen_7"]


def test_folds_that_cannot_be_are_refused(tmp_path):
    write(tmp_path / "a.npz", stimuli=2)
    with pytest.raises(ValueError, match="a: expected at least 3 stimuli, one a fold, got 2"):
        RecordingsDataModule(tmp_path / "a.npz", n_folds=3).setup()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"n_folds": 1}, "n_folds: expected at least 2, got 1"),
        ({"train_sweeps": 0, "test_sweeps": 1}, "train_sweeps: expected at least one .*, got 0"),
        (
            {"train_sweeps": "12", "test_sweeps": [1]},
            "train_sweeps: expected at least one .*, got '12'",
        ),
        ({"train_sweeps": [[1]], "test_sweeps": [1]}, "train_sweeps: expected at least one"),
        ({"train_s": 5, "test_s": [[3, 4]]}, r"train_s: expected \[\[start, stop\], …\]"),
        ({"train_s": [[0, "a"]], "test_s": [[3, 4]]}, r"train_s: expected \[\[start, stop\], …\]"),
        ({"train_s": [[0, None]], "test_s": [[3, 4]]}, r"train_s: expected \[\[start, stop\], …\]"),
        ({"train_s": [[0, 1]], "test_s": [[3, float("inf")]]}, "test_s: expected .* in seconds"),
        ({"train_s": [0, 1], "test_s": [[3, 4]]}, r"train_s: expected \[\[start, stop\], …\]"),
        ({"train_stimulus": ["a"]}, "train_stimulus: expected a name or None, got"),
        ({"train_sweeps": [], "test_sweeps": [1]}, "train_sweeps: expected at least one sweep"),
        ({"train_sweeps": [0], "test_sweeps": [1, 1]}, "test_sweeps: expected at least one sweep"),
        (
            {"train_s": [[0, 3], [1, 2]], "test_s": [[3, 4]]},
            "train_s: expected segments that do not overlap",
        ),
        ({"n_folds": 2.5}, "n_folds: expected an integer, got 2.5"),
        ({"n_folds": 3, "fold": 3}, "fold: expected 0 to 2, got 3"),
        ({"fold": 1}, "fold: expected none without n_folds, got 1"),
        ({"n_folds": 2, "train_sweeps": [0], "test_sweeps": [1]}, "n_folds: expected none beside"),
        ({"n_folds": 2, "test_stimulus": "b"}, "n_folds: expected none beside train_sweeps"),
    ]
    for arguments, message in cases:
        with pytest.raises(ValueError, match=message):
            RecordingsDataModule(tmp_path, **arguments)


def test_segments_may_come_from_a_configuration(tmp_path):
    segments = OmegaConf.create({"train_s": [[2, 3], [0, 1]], "test_s": [[4, 5], [6, 7]]})
    data = RecordingsDataModule(tmp_path, train_s=segments.train_s, test_s=segments.test_s)
    assert data.train_s is not None and [list(s) for s in data.train_s] == [[2, 3], [0, 1]]


def test_a_sweep_in_both_parts_is_split_by_time(tmp_path):
    write(tmp_path / "a.npz", stimuli=2)
    same: dict[str, Any] = {"train_sweeps": [1], "test_sweeps": [1]}
    data = RecordingsDataModule(tmp_path / "a.npz", dt_ms=1.0, warm_up_s=0, **same)
    data.setup()
    assert data.train.current.shape == (1200, 1, 1) and data.test.current.shape == (800, 1, 1)
    with pytest.raises(ValueError, match="expected segments that do not overlap"):
        RecordingsDataModule(tmp_path, train_s=[[0, 1]], test_s=[[0.5, 1.5]], **same)
    apart: dict[str, Any] = {"train_sweeps": [0], "test_sweeps": [1]}
    RecordingsDataModule(tmp_path, train_s=[[0, 1]], test_s=[[0.5, 1.5]], **apart)
    with pytest.raises(ValueError, match="train_sweeps, test_sweeps: expected both or neither"):
        RecordingsDataModule(tmp_path, train_sweeps=[0])


def test_stimuli_are_chosen_by_a_pattern(tmp_path):
    write(tmp_path / "a.npz", stimuli=3)
    data = RecordingsDataModule(
        tmp_path / "a.npz", dt_ms=1.0, train_stimulus="STIM*", test_stimulus="* [12]"
    )
    data.setup()
    assert data.train.current.shape[1] == 3 and data.test.current.shape[1] == 2
    with pytest.raises(ValueError, match="expected segments that do not overlap"):
        RecordingsDataModule(
            tmp_path, train_stimulus="stim*", test_stimulus="stimulus 1", train_s=[[0, 1]],
            test_s=[[0.5, 1.5]],
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"expected a stimulus of .*, got 'ramp\*'"):
        RecordingsDataModule(tmp_path, train_stimulus="ramp*").setup()


def test_unusable_cells_are_named_and_the_others_used(tmp_path):
    for name in "abc":
        write(tmp_path / f"{name}.npz", seed=ord(name))
    write(tmp_path / "short.npz", seconds=1.0)
    write(tmp_path / "silent_current.npz", scale=0.0)
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    data = RecordingsDataModule(tmp_path, dt_ms=1.0, train_s=[[0, 1]], test_s=[[1, 2]])
    data.setup()
    assert data.names == ["a", "b", "c"]
    assert set(data.failed) == {"short", "silent_current", "broken"}
    assert "got one of 1 s" in data.failed["short"]
    assert "varies" in data.failed["silent_current"]
    assert all(len(reason.splitlines()) == 1 for reason in data.failed.values())
    data.setup()
    assert len(data.failed) == 3


def test_cells_and_sweeps_of_different_size_share_a_batch(tmp_path):
    write(tmp_path / "a.npz", seconds=2.0, stimuli=3)
    write(tmp_path / "b.npz", seconds=1.2, repeats=3, seed=4)
    current, times = write(tmp_path / "c.npz", seconds=2.0, stimuli=2, repeats=1, seed=2)
    current[1, 15_000:] = np.nan
    kept = [times[0], times[1][times[1] < 1.5]]
    np.savez(
        tmp_path / "c.npz", current_pa=current, dt_ms=0.1, spike_times_s=np.concatenate(kept),
        spike_stimulus=np.repeat([0, 1], [len(x) for x in kept]),
    )  # fmt: skip
    data = RecordingsDataModule(tmp_path, dt_ms=1.0)
    data.setup()
    assert data.names == ["a", "b", "c"] and not data.failed
    x, target, (first, split, last) = data.batch()
    assert x.shape == target.shape == (1200, 3, 3) and first == 0
    assert isinstance(split, Tensor) and isinstance(last, Tensor)
    assert last.T.tolist() == [[1200] * 3, [720, 0, 0], [1200, 900, 0]]
    assert split.T.tolist() == [[960] * 3, [576, 0, 0], [960, 720, 0]]
    assert data.test.first == [[1000] * 3, [720], [1000, 900]]
    spikes, is_there = data.trials()
    for cell, name in enumerate("abc"):
        alone = RecordingsDataModule(tmp_path / f"{name}.npz", dt_ms=1.0)
        alone.setup()
        assert data.scale_pa[cell] == alone.scale_pa[0]
        own, wanted, (_, _, own_last) = alone.batch()
        n_steps, n_segments, _ = own.shape
        for ours, theirs in ((x, own), (target, wanted)):
            np.testing.assert_array_equal(ours[:n_steps, :n_segments, cell], theirs[..., 0])
            assert not ours[n_steps:, :, cell].any() and not ours[:, n_segments:, cell].any()
        np.testing.assert_array_equal(last[:n_segments, cell], np.broadcast_to(own_last, n_segments)
                                      if isinstance(own_last, int) else own_last[:, 0])  # fmt: skip
        assert alone.test.first == [data.test.first[cell]]
        for ours, theirs in zip(data.test.segments(cell), alone.test.segments(0), strict=True):
            np.testing.assert_array_equal(ours[0], theirs[0])
            np.testing.assert_array_equal(ours[1], theirs[1])
        there = is_there[:, :, cell]
        assert there.sum() == sum(len(trains) for trains in data.train.trains[cell])
        summed = sum(float(trains.sum()) for trains in data.train.trains[cell])
        assert spikes[..., cell].sum() == summed > 0
    cut = RecordingsDataModule(tmp_path / "c.npz", train_s=[[0, 1], [1.2, 1.4]], test_s=[[1, 1.2]])
    cut.setup()
    lengths = [[trains.shape[1] for trains in part.trains[0]] for part in (cut.train, cut.test)]
    assert lengths == [[2000, 400, 2000, 400], [2400, 2400]]  # with 1 s to settle
    with pytest.raises(ValueError, match=r"holds the segment 1.5–1.6 s, got one of 1.5 s \(stim"):
        RecordingsDataModule(tmp_path / "c.npz", train_s=[[0, 1]], test_s=[[1.5, 1.6]]).setup()


def test_allensdks_cells_are_named_by_their_folder(tmp_path):
    (tmp_path / "specimen_7").mkdir()
    (tmp_path / "specimen_7" / "ephys.nwb").write_bytes(b"no")
    data = RecordingsDataModule(tmp_path)
    with pytest.raises(ValueError, match=r"ephys\.nwb"):
        data.setup()
    assert list(data.failed) == ["specimen_7"]


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a recording"):
        find_recordings(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dt_ms": 0.0}, "dt_ms"),
        ({"held_out": 1.0}, "held_out"),
        ({"warm_up_s": -1.0}, "warm_up_s"),
        ({"scaling": "best"}, "scaling"),
        ({"train_s": [[0, 1]]}, "both or neither"),
        ({"train_s": [[0, 1]], "test_s": [[0.5, 1.5]]}, "do not overlap"),
        (
            {"train_s": [[2, 3]], "test_s": [[2, 3]], "train_stimulus": "Noise 1"},
            "do not overlap",
        ),
        ({"train_s": [[1, 0]], "test_s": [[2, 3]]}, "train_s"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecordingsDataModule("nowhere", **arguments)


def test_a_recording_shorter_than_the_warm_up(tmp_path):
    write(tmp_path / "a.npz", seconds=0.9)
    data = RecordingsDataModule(tmp_path, dt_ms=1.0, warm_up_s=1.0)
    data.setup()
    assert data.test.first == [[540]] and data.test.current.shape[0] == 900


def test_cells_with_equal_stems_get_distinct_names(tmp_path):
    for mouse in ("m1", "m2"):
        (tmp_path / mouse).mkdir()
        write(tmp_path / mouse / "cell.npz")
    data = RecordingsDataModule(tmp_path, dt_ms=1.0)
    data.setup()
    assert data.names == ["m1_cell.npz", "m2_cell.npz"]


@pytest.mark.parametrize(
    ("times_s", "words"),
    [
        ([], "expected at least 2 spikes in the training part .*got 0 and 0"),
        ([0.5, 4.5], "expected at least 2 spikes in the training part .*got 1 and 1"),
        ([0.5, 1.5], "expected spikes in the training and in the test part, got 2 and 0"),
        (
            [3.5, 4.0, 4.5],
            "expected at least 2 .*got 0 and 3 in 3 and 2 s; choose parts by train_s and test_s",
        ),
    ],
)
def test_a_neuron_is_not_fitted_to_fewer_than_two_spikes(tmp_path, times_s, words):
    np.savez(
        tmp_path / "cell.npz", current_pa=np.random.default_rng(0).normal(0, 50, 50_000),
        dt_ms=0.1, spike_times_s=np.array(times_s),
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"^cell: {words}"):
        RecordingsDataModule(tmp_path / "cell.npz").setup()


def electrodes_of(path, silent: bool = False):
    """An NWB 2 file of two electrodes with 50 ms; one may be silent."""
    pytest.importorskip("pynwb")
    spikes = [5.0, 12.0, 20.0, 33.0, 41.0]
    others = [] if silent else [x + 4 for x in spikes]
    series = [
        *stimulus_and_response("0", noise_pa(1, 2500), membrane_mv(spikes, 2500), "soma"),
        *stimulus_and_response("d_0", noise_pa(2, 2500), membrane_mv(others, 2500), "dend"),
    ]
    return make_nwb2_of(path, series)


def test_electrodes_of_one_file_are_cells_not_repeats(tmp_path):
    path = electrodes_of(tmp_path / "a.nwb")
    data = RecordingsDataModule(path)
    data.setup()
    assert data.names == ["a_dend", "a_soma"] and not data.failed
    assert [len(trains[0]) for trains in data.test.trains] == [1, 1]
    for electrode in ("soma", "1"):
        one = RecordingsDataModule(path, electrode=electrode)
        one.setup()
        assert one.names == ["a_soma"]
        np.testing.assert_array_equal(one.train.current[..., 0], data.train.current[..., 1])


def test_an_electrode_that_fails_is_named_and_the_other_is_fitted(tmp_path):
    data = RecordingsDataModule(electrodes_of(tmp_path / "a.nwb", silent=True))
    data.setup()
    assert data.names == ["a_soma"]
    assert data.failed["a_dend"].startswith("a_dend: expected at least 2 spikes")
    missing = RecordingsDataModule(tmp_path, electrode="axon")
    with pytest.raises(ValueError, match=r"a.nwb: electrode: expected .* got 'axon'"):
        missing.setup()


def test_suffixes_in_capitals_are_recordings(tmp_path):
    write(tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(tmp_path / "A.NPZ")
    for path in (tmp_path, tmp_path / "A.NPZ"):
        data = RecordingsDataModule(path)
        data.setup()
        assert data.names == ["A"]


def test_folders_of_igor_waves_are_cells(tmp_path):
    pytest.importorskip("igor2")
    voltage = membrane_mv([50.0, 90.0, 150.0, 190.0], 2000, 0.1)
    for cell in ("cell_1", "cell_2"):
        write_sweep(tmp_path / cell, 3, voltage, noise_pa(1, 2000))
    write(tmp_path / "arrays.npz", 0.2)
    files = [tmp_path / "arrays.npz", tmp_path / "cell_1", tmp_path / "cell_2"]
    assert find_recordings(tmp_path) == files and find_recordings(files[1]) == files[1:2]
    files[0].unlink()
    data = RecordingsDataModule(tmp_path)
    data.setup()
    assert data.names == ["cell_1", "cell_2"] and data.title == tmp_path.name


@pytest.mark.filterwarnings("ignore:.*not high at the stored spikes")
def test_scored_segments_have_a_title_and_a_voltage(tmp_path):
    write(tmp_path / "a.npz", stimuli=2)
    with np.load(tmp_path / "a.npz") as stored:
        arrays = dict(stored)
    voltage = np.random.default_rng(1).normal(-60, 2, (2, 2, 20_000))
    np.savez(tmp_path / "a.npz", **arrays, voltage_mv=voltage)
    cut = RecordingsDataModule(
        tmp_path / "a.npz", dt_ms=1.0, train_s=[[0, 1]], test_s=[[1, 1.5], [1.5, 2]], warm_up_s=0.25
    )
    cut.setup()
    assert cut.test_titles == [
        [f"stimulus {k}, {part} s" for k in (0, 1) for part in ("1–1.5", "1.5–2")]
    ]
    largest = voltage[0].reshape(2, -1, 10).max(2)  # of the first repeat, in steps of 1 ms
    expected = np.concatenate([largest[:, 1000:1500], largest[:, 1500:]], 1).reshape(4, -1)
    (shown,) = cut.test_voltage_mv
    assert shown is not None
    np.testing.assert_allclose(shown, expected, rtol=1e-6)

    whole = RecordingsDataModule(tmp_path / "a.npz", dt_ms=1.0, train_sweeps=[0], test_sweeps=[1])
    whole.setup()
    assert whole.test_titles == [["stimulus 1"]]
    write(tmp_path / "b.npz")
    spikes = RecordingsDataModule(tmp_path / "b.npz", dt_ms=1.0)
    spikes.setup()
    assert spikes.test_voltage_mv == [None]
