from __future__ import annotations

import gzip
import lzma
import re
import shutil
import time
import zipfile
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from made_data import make_shd

from blockspike.data.event_file import read_event_file
from blockspike.data.loader import EpochSampler, Gathered
from blockspike.data.shd import SHDDataModule, SpeechMap, speaker_subset
from blockspike.data.shd_file import describe, find_h5, open_h5, prepare_shd
from blockspike.files import SAMPLES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("shd")
    make_shd(root / "train.h5", n=80)
    make_shd(root / "test.h5", n=40, seed=1)
    return root


@pytest.fixture(scope="module")
def prepared(folder):
    prepare_shd([folder / "train.h5", folder / "test.h5"], folder / "a.h5", "some digits")
    return folder / "a.h5"


def opened(path, **changes) -> SHDDataModule:
    module = SHDDataModule(path, **changes)
    module.setup()
    return module


def packed(path, suffix):
    target = path.with_name(path.name + suffix)
    if suffix == ".gz":
        target.write_bytes(gzip.compress(path.read_bytes()))
    elif suffix == ".xz":
        target.write_bytes(lzma.compress(path.read_bytes()))
    elif suffix == ".zip":
        with zipfile.ZipFile(target, "w") as archive:
            archive.write(path, path.name)
    return target


def stored(file: h5py.File, key: str) -> np.ndarray:
    dataset = file[key]
    assert isinstance(dataset, h5py.Dataset)
    return dataset[()]


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zip"])
def test_a_file_is_read_from_any_packing(tmp_path, suffix):
    plain = make_shd(tmp_path / "a.h5")
    recordings = open_h5(packed(plain, suffix))
    assert len(recordings) == 80
    with h5py.File(plain) as file:
        for i in (0, 33, 79):
            times, units = recordings.sample(i)
            assert np.array_equal(times, stored(file, "spikes/times")[i])
            assert np.array_equal(units, stored(file, "spikes/units")[i])
        assert np.array_equal(recordings.label, stored(file, "labels"))
        assert recordings.speaker is not None
        assert np.array_equal(recordings.speaker, stored(file, "extra/speaker"))
    assert recordings.time_s.dtype == np.float16
    assert recordings.unit.dtype == np.uint16


def test_a_note_that_is_no_text_names_the_file(tmp_path):
    for part in ("train", "test"):
        make_shd(tmp_path / f"{part}.h5", 3)
    with h5py.File(tmp_path / "train.h5", "r+") as file:
        file.attrs["note"] = 1j
    with pytest.raises(ValueError, match=r"train\.h5: .*'note' of /: expected numbers or texts"):
        describe(find_h5(tmp_path))


def test_labels_need_no_names(tmp_path):
    without: dict[str, Any] = {"extra/keys": None}
    path = make_shd(tmp_path / "a.h5", **without)
    assert len(open_h5(path)) == 80


def times(*values: float, dtype: type = np.float32) -> list[np.ndarray]:
    good = [np.array([0.1, 0.2, 0.2, 0.3], dtype)] * 3
    return [*good, np.array(values, dtype)]


def units(*values: int, dtype: type = np.int32) -> list[np.ndarray]:
    return [*[np.array([0, 699, 5, 5], dtype)] * 3, np.array(values, dtype)]


GOOD = {
    "n": 4,
    "spikes/times": times(0.1, 0.2, 0.3, 0.4),
    "spikes/units": units(1, 2, 3, 4),
    "labels": np.array([0, 19, 3, 4]),
    "extra/speaker": np.zeros(4, int),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spikes/units": units(1, 700, 3, 4)}, "sample 3: unit: expected .* 0 to 699, got 700"),
        ({"spikes/units": units(1, -2, 3, 4)}, "sample 3: unit: expected .* got -2"),
        ({"spikes/units": units(1, 2, 3, 4, dtype=np.float32)}, "sample 0: unit: .* got 0.0"),
        ({"spikes/times": times(0.1, 0.3, 0.2, 0.4)}, "sample 3: time: .* got 0.2.* after 0.3"),
        ({"spikes/times": times(-0.1, 0.2, 0.3, 0.4)}, "sample 3: time: .* got -0.1"),
        ({"spikes/times": times(0.1, np.nan, 0.3, 0.4)}, "sample 3: time: .* got nan"),
        ({"spikes/times": times(0.1, 0.2, 0.3, np.inf)}, "sample 3: time: .* got inf"),
        ({"spikes/times": times(1, 2, 3, 4, dtype=np.int32)}, "times: .* got int32"),
        ({"spikes/times": times(0.1, 0.2)}, "sample 3: .* times as units, got 2 and 4"),
        ({"labels": np.array([0, 20, 3, 4])}, "sample 1: label: expected .* 0 to 19, got 20"),
        ({"labels": np.array([0, -1, 3, 4])}, "sample 1: label: .* got -1"),
        ({"labels": np.array([0.0, 1.0, 3.0, 4.0])}, "sample 0: label: .* got 0.0"),
        ({"labels": np.array([0, 1, 2])}, "spikes/times: expected one per label, 3, got 4"),
        ({"labels": None}, "labels: expected a one-dimensional array, got none"),
        ({"spikes/times": None}, "spikes/times: expected .* got none"),
        ({"spikes/units": None}, "spikes/units: expected .* got none"),
        ({"extra/speaker": None}, "extra/speaker: expected .* got none"),
        ({"extra/speaker": np.zeros(3, int)}, "extra/speaker: expected .* got 3"),
        ({"extra/speaker": np.array([0, 0.1, 1, 1])}, "sample 1: extra/speaker: .* got 0.1"),
        ({"extra/speaker": np.array([0, np.nan, 1, 1])}, "sample 1: extra/speaker: .* got nan"),
        ({"extra/speaker": np.array([b"a"] * 4)}, "sample 0: extra/speaker: expected an integer"),
        ({"spikes/times": np.zeros((4, 2), np.float32)}, "spikes/times: expected a one-dimension"),
        ({"spikes/times": np.zeros(4, np.float32)}, "expected a variable-length array"),
    ],
)
def test_damage_is_named(tmp_path, changes, message):
    path = tmp_path / "a.h5"
    open_h5(make_shd(path, **GOOD))
    make_shd(path, **(GOOD | changes))
    with pytest.raises(ValueError, match=message) as caught:
        open_h5(path)
    assert str(path) in str(caught.value)


def test_a_split_without_recordings_is_named(tmp_path):
    file = make_shd(tmp_path / "a.h5", **GOOD)  # one speaker
    prepare_shd([file, file], tmp_path / "all.h5", "digits")
    with pytest.raises(ValueError, match="all.h5: expected recordings for training, got none of 4"):
        opened(tmp_path / "all.h5", validation="speaker", fold=0)
    with pytest.raises(ValueError, match="expected recordings for validation, got none of 4"):
        opened(tmp_path / "all.h5")  # one recording of each class
    assert len(opened(tmp_path / "all.h5", validation_fraction=0.0).train_indices) == 4


def test_times_in_another_unit_are_reported(tmp_path):
    in_ms = [1000 * x for x in times(0.1, 0.2, 0.3, 0.4)]
    columns: dict[str, Any] = GOOD | {"spikes/times": in_ms}
    file = make_shd(tmp_path / "a.h5", **columns)
    prepare_shd([file, file], tmp_path / "all.h5", "digits")
    with pytest.warns(UserWarning, match="0.00% of the events are within 100 steps of 10 ms"):
        opened(tmp_path / "all.h5", validation_fraction=0.0, dt_ms=10.0, n_steps=100)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zip"])
def test_a_cut_off_file_is_named(tmp_path, suffix):
    path = packed(make_shd(tmp_path / "a.h5"), suffix)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=r"a\.h5.*not a complete file"):
        open_h5(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.h5"):
        open_h5(tmp_path / "absent.h5")


def test_silent_recordings_are_read(tmp_path):
    silent = [np.empty(0, np.float16), np.array([0.5], np.float16), np.empty(0, np.float16)]
    channels = [np.empty(0, np.uint16), np.array([3], np.uint16), np.empty(0, np.uint16)]
    changes = {"n": 3, "spikes/times": silent, "spikes/units": channels}
    recordings = open_h5(make_shd(tmp_path / "a.h5", **changes))
    assert recordings.offset.tolist() == [0, 0, 1, 1]


def test_the_prepared_file_holds_every_event(folder, prepared):
    file = read_event_file(prepared)
    assert (file.name, file.n_units, file.n_classes) == ("some digits", 700, 20)
    for split, name in ((file.train, "train.h5"), (file.test, "test.h5")):
        recordings = open_h5(folder / name)
        assert np.array_equal(split.time, recordings.time_s)
        assert np.array_equal(split.unit, recordings.unit)
        assert np.array_equal(split.offset, recordings.offset)
        assert np.array_equal(split.label, recordings.label)
        assert split.speaker is not None and recordings.speaker is not None
        assert np.array_equal(split.speaker, recordings.speaker)
        assert split.time.dtype == np.float16
        assert split.unit_s == 1.0


@pytest.mark.parametrize("pooling", [1, 3, 700])
def test_batches_equal_a_naive_binning(folder, prepared, pooling):
    module = opened(prepared, dt_ms=20.0, n_steps=50, channel_pooling=pooling, channel_jitter=9)
    assert module.n_inputs == -(-700 // pooling)
    recordings = open_h5(folder / "test.h5")
    batch, labels = next(iter(module.test_dataloader()))
    dense = batch.dense().numpy()
    assert dense.max() > 1 or pooling == 1  # several events in a bin add up
    for b in range(len(labels)):
        time_s, unit = recordings.sample(b)
        expected = np.zeros((50, module.n_inputs), np.float32)
        for t, u in zip(time_s, unit, strict=True):
            step = round(float(t) / 0.02)  # rounds halves to even, as rint
            if step < 50:
                expected[step, u // pooling] += 1
        assert (dense[:, b] == expected).all()


def change_of(speech, epoch, sample):
    """Shift in channels and factor of the times of a sample, read from one event."""
    one = np.array([1.0], np.float16), np.array([350], np.uint16)
    gathered = Gathered(*one, np.array([0, 1]), np.array([sample]), epoch)
    time, channel, _ = speech(gathered)
    return int(channel[0]) - 350, float(time[0])


def test_draws_depend_only_on_seed_epoch_and_sample():
    speech = SpeechMap(pooling=1, jitter=3, stretch=0.2, seed=5)
    draws = np.array([[change_of(speech, e, i) for i in range(200)] for e in range(5)])
    np.random.seed(0)
    again = SpeechMap(pooling=1, jitter=3, stretch=0.2, seed=5)
    assert draws[3, 7].tolist() == list(change_of(again, 3, 7))
    shifts, factors = draws[..., 0], draws[..., 1]
    assert set(shifts.ravel()) == {-3, -2, -1, 0, 1, 2, 3}
    assert abs(shifts.mean()) < 0.25
    assert abs(np.log(factors)).max() <= 0.2 and abs(np.log(factors).mean()) < 0.02
    assert np.log(factors).max() > 0.19 and np.log(factors).min() < -0.19
    assert len({tuple(row.ravel()) for row in draws}) == 5
    other = SpeechMap(pooling=1, jitter=3, stretch=0.2, seed=6)
    assert [change_of(other, 0, i)[0] for i in range(200)] != shifts[0].tolist()


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_a_share_of_the_samples_is_left_unchanged(share):
    options = {"jitter": 40, "stretch": 0.2, "time_jitter_s": 0.01, "replaced": 0.5, "seed": 5}
    changed = SpeechMap(pooling=1, **options)
    speech = SpeechMap(pooling=1, unchanged=share, **options)
    draws = [
        (change_of(speech, e, i), change_of(changed, e, i)) for i in range(200) for e in range(5)
    ]
    left = [own == (0, 1.0) for own, _ in draws]
    assert np.mean(left) == pytest.approx(share, abs=0.04)
    assert not any(other == (0, 1.0) for _, other in draws)
    if share < 1:
        assert max(np.reshape(left, (200, 5)).sum(1)) < 5  # drawn anew each epoch


def random_events(n):
    rng = np.random.default_rng(1)
    return rng.uniform(0, 1, n), rng.integers(0, 700, n).astype(np.uint16)


def test_each_channel_is_delayed_by_itself():
    time, unit = random_events(20_000)
    twice = Gathered(
        np.r_[time, time], np.r_[unit, unit], np.array([0, 20_000, 40_000]), np.array([3, 8]), 2
    )
    speech = SpeechMap(pooling=1, time_jitter_s=0.02, seed=0)
    delayed, channel, keep = speech(twice)
    delays = np.stack([
        [np.unique((delayed - twice.time)[own][unit == k].round(9)).item() for k in range(700)]
        for own in (slice(0, 20_000), slice(20_000, None))
    ])  # one of each channel  # fmt: skip
    assert np.array_equal(channel, twice.unit)
    assert delays.std() == pytest.approx(0.02, rel=0.1) and abs(delays.mean()) < 0.002
    assert (
        abs(np.corrcoef(delays)[0, 1]) < 0.15
        and abs(np.corrcoef(delays[0, 1:], delays[0, :-1])[0, 1]) < 0.15
    )
    assert np.array_equal(keep, delayed >= 0) and not keep.all()
    alone = speech(Gathered(time, unit, np.array([0, 20_000]), np.array([8]), 2))
    assert np.array_equal(alone[0], delayed[20_000:])


def test_a_share_of_the_events_is_replaced_at_random():
    time, unit = random_events(20_000)
    speech = SpeechMap(pooling=1, replaced=0.1, seed=0)
    found, channel, keep = speech(Gathered(time, unit, np.array([0, 20_000]), np.array([8]), 2))
    replaced = found != time
    assert replaced.mean() == pytest.approx(0.1, abs=0.01) and keep.all()
    assert np.array_equal(channel[~replaced], unit[~replaced])
    assert found.min() >= 0 and found.max() <= time.max()
    assert channel[replaced].min() < 20 and channel[replaced].max() > 680
    assert found[replaced].mean() == pytest.approx(0.5, abs=0.05)
    empty = speech(Gathered(time[:0], unit[:0], np.array([0, 0]), np.array([8]), 2))
    assert [len(x) for x in empty] == [0, 0, 0]


def test_a_sample_is_shifted_and_stretched_as_a_whole():
    speech = SpeechMap(pooling=2, jitter=50, stretch=0.3, seed=0)
    unit = np.tile(np.array([0, 350, 699], np.uint16), 6)
    time = np.tile(np.array([0, 0.25, 0.5], np.float16), 6)
    offset, samples = np.arange(7) * 3, np.array([4, 9, 2, 4, 30, 31])
    stretched, pooled, keep = speech(Gathered(time, unit, offset, samples, epoch=1))
    for b, sample in enumerate(samples):
        shift, factor = change_of(SpeechMap(pooling=1, jitter=50, stretch=0.3, seed=0), 1, sample)
        shifted = np.array([0, 350, 699]) + shift
        inside = (shifted >= 0) & (shifted < 700)
        own = slice(3 * b, 3 * b + 3)
        assert keep[own].tolist() == inside.tolist()
        assert pooled[own][inside].tolist() == (shifted // 2)[inside].tolist()
        assert np.allclose(stretched[own], np.array([0, 0.25, 0.5]) * factor)


def test_augmentation_is_for_training_only_and_new_each_epoch(prepared):
    plain, jittered = opened(prepared), opened(prepared, channel_jitter=30, time_stretch=0.2)
    for part in ("val", "test"):
        first, second = (next(iter(getattr(m, f"{part}_dataloader")())) for m in (plain, jittered))
        assert np.array_equal(first[0].unit, second[0].unit)
    loader = jittered.train_dataloader()
    spikes = []
    for epoch in (0, 1, 0):
        sampler = loader.sampler
        assert isinstance(sampler, EpochSampler)
        sampler.set_epoch(epoch)
        order = jittered.train_indices[list(sampler)]
        batches = [b.dense().sum(0) for b, _ in loader]
        counts = np.concatenate([b.numpy() for b in batches])
        spikes.append(counts[np.argsort(order)])
    assert np.array_equal(spikes[0], spikes[2])
    assert not np.array_equal(spikes[0], spikes[1])
    # Features for the linear baseline are never jittered.
    assert np.array_equal(jittered.spike_counts("train")[0], plain.spike_counts("train")[0])


def test_validation_on_speakers_holds_out_whole_speakers(prepared):
    module = opened(prepared, validation="speaker", validation_fraction=0.3)
    speaker = module.train.speaker
    assert speaker is not None
    held_out = set(speaker[module.val_indices])
    assert len(held_out) == 2
    assert not held_out & set(speaker[module.train_indices])
    assert len(module.train_indices) + len(module.val_indices) == 80
    again = opened(prepared, validation="speaker", validation_fraction=0.3)
    assert np.array_equal(module.val_indices, again.val_indices)


def test_each_fold_holds_out_another_speaker(prepared):
    modules = [opened(prepared, validation="speaker", fold=fold) for fold in range(4)]
    speaker = modules[0].train.speaker
    assert speaker is not None
    held_out = [set(speaker[module.val_indices]) for module in modules]
    assert held_out == [{0}, {1}, {2}, {3}]
    for module, own in zip(modules, held_out, strict=True):
        assert not own & set(speaker[module.train_indices])
        assert len(module.train_indices) + len(module.val_indices) == 80
    with pytest.raises(ValueError, match="fold: expected 0 to 3, got 4"):
        opened(prepared, validation="speaker", fold=4)


def test_nothing_is_held_out_where_the_fraction_is_0(prepared):
    module = opened(prepared, validation_fraction=0.0)
    assert len(module.val_indices) == 0
    assert len(module.train_indices) == len(module.train) == 80


@pytest.mark.parametrize(("fraction", "n_speakers"), [(0.45, 9), (0.5, 10), (0.55, 11)])
def test_a_fraction_is_held_out_without_a_speaker_too_many(fraction, n_speakers):
    speaker = np.repeat(np.arange(20), 10)
    for seed in range(3):
        chosen = speaker_subset(speaker, fraction, seed)
        assert len(set(speaker[chosen])) == n_speakers


def test_validation_must_leave_a_speaker_for_training():
    with pytest.raises(ValueError, match="leaves one of 2 speakers for training"):
        speaker_subset(np.array([1, 1, 2]), 0.99, 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channel_pooling", 0),
        ("channel_pooling", 701),
        ("channel_pooling", 2.5),
        ("channel_jitter", -1),
        ("channel_jitter", 700),
        ("validation", "other"),
        ("test_shifts", 3),
        ("test_shifts", (0, 1.5)),
        ("fold", 3),  # without validation="speaker"
    ],
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=re.escape(f", got {value!r}")) as error:
        SHDDataModule("a.h5", **{name: value})
    assert str(error.value).startswith(f"{name}: expected ")


def test_files_are_found_by_their_endings(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected \*train\.h5"):
        find_h5(tmp_path)
    train, test = tmp_path / "my_train.h5", tmp_path / "my_test.h5.xz"
    shutil.copy(folder / "train.h5", train)
    test.write_bytes(lzma.compress((folder / "test.h5").read_bytes()))
    assert find_h5(tmp_path) == [train, test]
    shutil.copy(train, tmp_path / "other_train.h5")
    with pytest.raises(ValueError, match=r"expected one \*train.h5, got my_train.h5, other_"):
        find_h5(tmp_path)


@pytest.mark.parametrize(
    ("attributes", "name"),
    [
        ({}, "SHD-layout data"),
        ({"name": "SHD"}, "SHD-layout data"),
        ({"name": "My digits"}, "My digits"),
        ({"note": "HD-Lauscher: NOT the published SHD."}, "HD-Lauscher"),
        ({"note": "shd: the real one"}, "SHD-layout data"),
        ({"note": "no colon"}, "SHD-layout data"),
    ],
)
def test_only_published_files_are_named_shd(tmp_path, attributes, name):
    for part in ("train", "test"):
        with h5py.File(make_shd(tmp_path / f"shd_{part}.h5"), "r+") as file:
            file.attrs.update(attributes)
    assert describe(find_h5(tmp_path)) == name


def test_the_shipped_sample(tmp_path):
    raw = SAMPLES / "hd_lauscher"
    assert sum(p.stat().st_size for p in raw.iterdir()) < 6e6
    module = SHDDataModule(tmp_path / "a.h5", raw=raw)
    module.prepare_data()
    module.setup()
    assert module.name == "HD-Lauscher sample (660 recordings)"
    assert len(module.train_indices) + len(module.val_indices) == 500
    train, test = module.train, module.test
    assert (np.bincount(train.label) == 25).all() and (np.bincount(test.label) == 8).all()
    assert train.speaker is not None and test.speaker is not None
    assert not {4, 5} & set(train.speaker)
    assert {4, 5} <= set(test.speaker)
    events, _ = next(iter(module.train_dataloader()))
    assert events.shape == (600, 64, 700)


def test_checking_ten_million_events_is_fast(tmp_path):
    n, count = 1000, 10_000
    time_s = [np.linspace(0, 1, count, dtype=np.float16)] * n
    channels = [np.zeros(count, np.uint16)] * n
    path = make_shd(tmp_path / "a.h5", n=n, **{"spikes/times": time_s, "spikes/units": channels})
    start = time.perf_counter()
    open_h5(path)
    assert time.perf_counter() - start < 5  # a Python loop over the events takes minutes


def test_only_test_recordings_have_shifted_views(prepared):
    plain, shifted = (
        opened(prepared, batch_size=4),
        opened(prepared, batch_size=4, test_shifts=(0, 7)),
    )
    events, labels = next(iter(plain.test_dataloader()))
    views, same_labels = next(iter(shifted.test_dataloader()))
    assert torch.equal(labels, same_labels) and views.batch_size == 2 * events.batch_size
    first, second = views.dense().split(events.batch_size, dim=1)
    assert torch.equal(first, events.dense())
    assert torch.equal(second[..., 7:], events.dense()[..., :-7])
    assert not second[..., :7].any()
    for loader in ("train_dataloader", "val_dataloader"):
        one, other = (next(iter(getattr(data, loader)()))[0] for data in (plain, shifted))
        assert torch.equal(one.dense(), other.dense())


@pytest.mark.parametrize("shifts", [(), (0, 700)])
def test_shifts_off_the_channels_are_refused(shifts):
    with pytest.raises(ValueError, match="test_shifts"):
        SHDDataModule("x.h5", test_shifts=shifts)
