"""Data sets of tonic, from archives in their layouts."""

from __future__ import annotations

import inspect
import multiprocessing
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tonic.datasets
from made_tonic import SETS, camera_events, dvs_gesture, place, publish, serve, tarred, zipped

from blockspike.data import tonic_sets
from blockspike.data.event_file import read_event_file
from blockspike.data.loader import Gathered
from blockspike.data.nmnist import prepare_nmnist
from blockspike.data.shd_file import SSC, prepare_shd
from blockspike.data.tonic_events import SensorPooling, TonicDataModule
from blockspike.data.tonic_sets import (
    _NOT_CLASSES,
    TonicSet,
    checked_events,
    find_set,
    prepare_tonic,
)
from blockspike.files import read_json

FIELDS = np.dtype([("x", int), ("y", int), ("p", int), ("t", int)])


def prepared(tmp_path, monkeypatch, dataset: str, **options) -> TonicDataModule:
    """A set prepared from local archives."""
    archives = SETS[dataset](tmp_path)
    publish(monkeypatch, dataset, archives)
    raw = place(tmp_path / "raw", archives)
    module = TonicDataModule(dataset, tmp_path / "a.h5", raw=raw, **options)
    module.prepare()
    module.setup()
    return module


@pytest.mark.parametrize(
    ("dataset", "sensor", "n_classes", "sizes"),
    [
        ("DVSGesture", (128, 128, 2), 11, (33, 11)),
        ("NCALTECH101", (240, 180, 2), 4, (36, 4)),
        ("NTIDIGITS18", (64, 1, 1), 11, (44, 22)),
        ("NMNIST", (34, 34, 2), 10, (20, 10)),
        ("SHD", (700, 1, 1), 20, (70, 70)),
        ("SSC", (700, 1, 1), 35, (70, 70)),
        ("ASLDVS", (240, 180, 2), 26, (78, 26)),
        ("DVSLip", (128, 128, 2), 100, (12, 4)),
    ],
)
def test_a_set_is_prepared_whole(tmp_path, monkeypatch, dataset, sensor, n_classes, sizes):
    module = prepared(tmp_path, monkeypatch, dataset)
    assert module.sensor == sensor
    assert (module.n_inputs, module.n_classes) == (np.prod(sensor), n_classes)
    assert (len(module.train), len(module.test)) == sizes
    assert str(module.name).startswith(dataset)
    assert sorted(path.name for path in tmp_path.glob(".*")) == []  # what was unpacked is removed
    if dataset not in ("NTIDIGITS18", "SHD", "SSC"):
        own = (split.time[split.offset[:-1]] for split in (module.train, module.test))
        assert all((first == 0).all() for first in own)


@pytest.mark.filterwarnings("ignore:Python 3.14 will, by default, filter")
def test_every_event_is_as_tonic_reads_it(tmp_path, monkeypatch):
    module = prepared(tmp_path, monkeypatch, "DVSGesture")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tonic.datasets.DVSGesture, "_check_exists", lambda _: False)
        folder = tmp_path / "tonic" / "DVSGesture"
        place(folder, {p.name: p.read_bytes() for p in (tmp_path / "raw").iterdir()})
        expected = tonic.datasets.DVSGesture(str(folder.parent), train=False)
    by_path = sorted(range(len(expected)), key=lambda i: Path(expected.data[i]).parts)
    for i, number in enumerate(by_path):
        events, label = expected[number]
        own = slice(module.test.offset[i], module.test.offset[i + 1])
        unit = (events["p"].astype(int) * 128 + events["y"]) * 128 + events["x"]
        assert module.test.label[i] == label
        assert module.test.unit[own].tolist() == unit.tolist()
        assert module.test.time[own].tolist() == (events["t"] - events["t"][0]).tolist()


def test_nmnist_has_the_events_of_our_reader(tmp_path, monkeypatch):
    module = prepared(tmp_path, monkeypatch, "NMNIST")
    prepare_nmnist(tmp_path / "N-MNIST", tmp_path / "own.h5")
    own = read_event_file(tmp_path / "own.h5").train
    train = module.train
    assert np.array_equal(train.label, own.label)
    assert np.array_equal(train.offset, own.offset)
    assert np.array_equal(train.unit % (34 * 34), own.unit)
    first = np.repeat(own.time[own.offset[:-1]], np.diff(own.offset))
    assert np.array_equal(train.time, own.time - first)


def test_ssc_keeps_its_validation_set_and_its_times(tmp_path, monkeypatch):
    module = prepared(tmp_path, monkeypatch, "SSC")
    assert module.val is not module.train and len(module.val_indices) == 70
    assert len(module.train_indices) == 70
    assert prepared(tmp_path, monkeypatch, "SSC", validation_fraction=0.0).validates
    files = [tmp_path / f"ssc_{part}.h5" for part in ("train", "valid", "test")]
    prepare_shd(files, tmp_path / "b.h5", "SSC", SSC)
    own = read_event_file(tmp_path / "b.h5").train
    assert np.array_equal(module.train.unit, own.unit)
    assert np.allclose(module.train.time, own.time.astype(float) * 1e6, atol=1)


def test_a_set_without_a_division_is_divided_by_seed(tmp_path, monkeypatch):
    module = prepared(tmp_path, monkeypatch, "NCALTECH101", test_fraction=0.3, split_seed=2)
    assert module.name == "NCALTECH101, 30 % test of seed 2"
    assert np.bincount(module.test.label).tolist() == [3, 3, 3, 3]
    assert np.bincount(module.train.label).tolist() == [7, 7, 7, 7]
    other = TonicDataModule("NCALTECH101", module.path, test_fraction=0.3, split_seed=3)
    with pytest.raises(ValueError, match=r"expected NCALTECH101 or '.*seed 3', got '.*seed 2'"):
        other.setup()
    again = tmp_path / "again.h5"
    prepare_tonic("NCALTECH101", module.raw, again, 0.3, 2)
    assert read_event_file(again).sha256() == module.sha256
    prepare_tonic("NCALTECH101", module.raw, again, 0.3, 3)
    assert read_event_file(again).sha256() != module.sha256

    opened = TonicSet._opened

    def in_another_order(*args):  # as another file system may list the files
        found = opened(*args)
        found.data.reverse()
        found.targets.reverse()
        return found

    monkeypatch.setattr(TonicSet, "_opened", in_another_order)
    prepare_tonic("NCALTECH101", module.raw, again, 0.3, 2)
    assert read_event_file(again).sha256() == module.sha256


@pytest.mark.parametrize(("pooling", "sides"), [(1, (128, 128)), (5, (26, 26)), (128, (1, 1))])
def test_batches_equal_a_naive_binning(tmp_path, monkeypatch, pooling, sides):
    module = prepared(tmp_path, monkeypatch, "DVSGesture", pooling=pooling, dt_ms=7.5, n_steps=40)
    width, height = sides
    assert module.n_inputs == 2 * width * height
    batch, _ = next(iter(module.test_dataloader()))
    for b in range(0, 11, 5):
        expected = np.zeros((40, 2, height, width), np.float32)
        own = slice(module.test.offset[b], module.test.offset[b + 1])
        for t, unit in zip(module.test.time[own], module.test.unit[own].tolist(), strict=True):
            p, pixel = divmod(unit, 128 * 128)
            y, x = divmod(pixel, 128)
            if t // 7500 < 40:
                expected[t // 7500, p, y // pooling, x // pooling] += 1
        assert np.array_equal(batch.dense().numpy()[:, b], expected.reshape(40, -1))


def test_pooling_of_a_rectangle_keeps_rows_and_polarities_apart():
    pool = SensorPooling((5, 3, 2), 2)
    unit = np.arange(30)
    gathered = Gathered(unit, unit, np.array([0, 30]), np.array([0]), 0)
    pooled = pool(gathered)[1].reshape(2, 3, 5)
    assert pool.n_inputs == 12
    assert pooled[0].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]
    assert (pooled[1] == pooled[0] + 6).all()


def test_prepared_data_need_neither_tonic_nor_archives(tmp_path, monkeypatch):
    module = prepared(tmp_path, monkeypatch, "NTIDIGITS18")
    for path in module.raw.iterdir():
        path.unlink()
    monkeypatch.setitem(sys.modules, "tonic", None)
    monkeypatch.delitem(sys.modules, "tonic.datasets")
    again = TonicDataModule("NTIDIGITS18", module.path, raw=module.raw)
    again.prepare()
    again.prepare_data()
    again.setup()
    assert again.sha256 == module.sha256


def test_without_tonic_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tonic", None)
    monkeypatch.delitem(sys.modules, "tonic.datasets", raising=False)
    module = TonicDataModule("DVSGesture", tmp_path / "a.h5", raw=tmp_path)
    with pytest.raises(ValueError, match=r"dataset: .* tonic.*pip install 'blockspike\[data\]'"):
        module.prepare()


@pytest.mark.parametrize("name", _NOT_CLASSES)
def test_a_set_without_classes_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"belong to a class, got {name}, whose recordings come"):
        find_set(name)


def test_every_set_of_tonic_is_known():
    """A new one is found here, and its layout can be tested."""
    names = {name for name, value in vars(tonic.datasets).items() if inspect.isclass(value)}
    assert names == {*SETS, "CIFAR10DVS", "POKERDVS", "SMNIST", *_NOT_CLASSES}


def test_an_unknown_set_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of ASLDVS, .*NMNIST.*, got 'DVSGestures'"):
        find_set("DVSGestures")
    with pytest.raises(ValueError, match="data=sequential_mnist"):
        find_set("SMNIST")


def test_a_wrong_sensor_size_is_refused(monkeypatch):
    monkeypatch.setattr("tonic.datasets.DVSGesture.sensor_size", (128, 0, 2))
    with pytest.raises(
        ValueError, match=r"DVSGesture: expected a sensor_size .* got \(128, 0, 2\)"
    ):
        find_set("DVSGesture")


def structured(**changes) -> np.ndarray:
    events = np.empty(60, FIELDS)
    for name, column in zip("xypt", camera_events(128, 128), strict=True):
        events[name] = changes.get(name, column)
    return events


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (structured(x=128), "rec 1: x: expected 0 to 127 on the sensor of 128 x 128, got 128"),
        (structured(y=-1), "rec 1: y: expected 0 to 127 .* got -1"),
        (structured(p=2), "rec 1: p: expected 0 to 1 .* got 2"),
        (structured(t=-5), "rec 1: t: expected microseconds ≥ 0, got -5"),
        (structured(t=np.linspace(0, 2**33, 60)), "rec 1: t: expected at most 4294967295 µs"),
        (structured()[["x", "y", "t"]], "rec 1: expected events with t, x, y, p, got x, y, t"),
        (np.zeros((5, 4)), "rec 1: expected events with t, x, y, p, got ndarray"),
        ([1, 2], "rec 1: expected events with t, x, y, p, got list"),
    ],
)
def test_a_wrong_event_is_named(events, message):
    checked_events("rec 1", structured(), (128, 128, 2))
    with pytest.raises(ValueError, match=message):
        checked_events("rec 1", events, (128, 128, 2))


def test_events_are_sorted_and_count_from_the_first():
    events = structured()
    shuffled = events[np.random.default_rng(0).permutation(60)]
    events["t"] += 10**15  # a clock that started in 1970
    time_us, unit = checked_events("", events, (128, 128, 2))
    assert time_us[0] == 0 and (np.diff(time_us) >= 0).all()
    again, same = checked_events("", shuffled, (128, 128, 2))
    assert np.array_equal(again, time_us) and sorted(same) == sorted(unit)
    of_cochlea = events[["t", "x"]].copy()
    of_cochlea["t"] -= 10**15
    assert checked_events("", of_cochlea, (128, 1, 1))[0][0] == of_cochlea["t"].min()


def test_a_wrong_event_in_an_archive_leaves_nothing(tmp_path, monkeypatch):
    archives = SETS["DVSGesture"](tmp_path)
    archives["ibmGestureTest.tar.gz"] = dvs_gesture((24,), "ibmGestureTest", x=200)
    publish(monkeypatch, "DVSGesture", archives)
    module = TonicDataModule("DVSGesture", tmp_path / "a.h5", raw=place(tmp_path / "r", archives))
    with pytest.raises(ValueError, match="DVSGesture, test recording 0: x: .* got 200"):
        module.prepare()
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_another_archive_than_the_published_is_refused(tmp_path, monkeypatch):
    archives = SETS["DVSGesture"](tmp_path)
    raw = place(tmp_path / "r", archives)
    module = TonicDataModule("DVSGesture", tmp_path / "a.h5", raw=raw)
    with pytest.raises(ValueError, match=r"Train\.tar\.gz: expected the published archive of DVSG"):
        module.prepare()
    publish(monkeypatch, "DVSGesture", archives)
    (raw / "ibmGestureTest.tar.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"Test\.tar\.gz: expected an archive of DVSGest"):
        module.prepare()


def test_what_is_no_archive_is_refused(tmp_path, monkeypatch):
    archives = SETS["DVSGesture"](tmp_path) | {"ibmGestureTest.tar.gz": b"not a tar"}
    publish(monkeypatch, "DVSGesture", archives)
    module = TonicDataModule("DVSGesture", tmp_path / "a.h5", raw=place(tmp_path / "r", archives))
    with pytest.raises(ValueError, match="DVSGesture: tonic cannot unpack the archives"):
        module.prepare()


def test_a_tar_that_leaves_its_folder_is_refused(tmp_path, monkeypatch):
    archives = SETS["DVSGesture"](tmp_path)
    archives["ibmGestureTest.tar.gz"] = tarred({"../../../outside.npy": b"x"})
    publish(monkeypatch, "DVSGesture", archives)
    module = TonicDataModule("DVSGesture", tmp_path / "a.h5", raw=place(tmp_path / "r", archives))
    with pytest.raises(ValueError, match=r"cannot unpack .*outside.npy.* outside the destination"):
        module.prepare()
    assert not list(tmp_path.rglob("outside.npy"))


def test_a_missing_set_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = TonicDataModule("DVSGesture", "data/tonic_DVSGesture.h5")
    command = "`blockspike prepare data=tonic data.dataset=DVSGesture data.download=true`"
    with pytest.raises(FileNotFoundError, match=command):
        module.prepare_data()
    module = TonicDataModule("NCALTECH101", "data/tonic_NCALTECH101.h5", split_seed=2)
    with pytest.raises(FileNotFoundError, match=r"data.split_seed=2 data.download=true`"):
        module.prepare_data()


def test_a_download_by_hand_is_asked_for(tmp_path):
    module = TonicDataModule("DVSLip", tmp_path / "a.h5", download=True)
    with pytest.raises(ValueError, match=r"DVS-Lip\.zip, got no file; DVSLip has to be downloaded"):
        module.prepare()


def test_a_reader_that_tonic_leaves_out_is_named(tmp_path, monkeypatch):
    names = tonic.datasets.CIFAR10DVS.data_filename
    inner = {
        name: zipped({f"{name[:-4]}/cifar10_{name[:-4]}_0.aedat4": b"#!AER-DAT4.0\r\n"})
        for name in names
    }
    archives = {"CIFAR10DVS.zip": zipped(inner)}
    publish(monkeypatch, "CIFAR10DVS", archives)
    monkeypatch.setitem(sys.modules, "aedat", None)
    module = TonicDataModule("CIFAR10DVS", tmp_path / "a.h5", raw=place(tmp_path / "r", archives))
    with pytest.raises(ValueError, match="recording 0: expected the package aedat.*pip install ae"):
        module.prepare()


@pytest.mark.parametrize(
    ("name", "value"),
    [("pooling", 0), ("test_fraction", 0.0), ("test_fraction", 1.0), ("split_seed", -1)],
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {value!r}"):
        TonicDataModule("DVSGesture", "a.h5", **{name: value})


def test_a_pooling_beyond_the_sensor_is_named(tmp_path, monkeypatch):
    module = prepared(tmp_path, monkeypatch, "NMNIST")
    module.pooling = 35
    with pytest.raises(ValueError, match="pooling: expected at most 34, .* got 35"):
        module.setup()


def test_a_killed_preparation_leaves_no_half_file(tmp_path, monkeypatch):
    archives = SETS["DVSGesture"](tmp_path)
    publish(monkeypatch, "DVSGesture", archives)
    raw = place(tmp_path / "raw", archives)
    module = TonicDataModule("DVSGesture", tmp_path / "a.h5", raw=raw)
    context = multiprocessing.get_context("fork")
    reached = context.Event()

    def wait_at_20(where: str, *rest):
        if where.endswith("train recording 20"):
            reached.set()
            time.sleep(60)
        return checked_events(where, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tonic_sets, "checked_events", wait_at_20)
        child = context.Process(target=module.prepare)
        child.start()
        assert reached.wait(20)
        child.kill()
        child.join()
    (left,) = (path.name for path in tmp_path.iterdir() if path != raw)
    assert left.startswith(".a.h5.unpacked.")
    module.prepare()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "raw"]
    assert len(read_event_file(module.path).train) == 33


def test_the_five_lines_of_the_page(tmp_path, monkeypatch, blockspike):
    page = Path(__file__).parents[2] / "docs" / "howto" / "event_data.md"
    (lines,) = re.findall(r"^```yaml\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    assert len(lines.splitlines()) == 5
    config = tmp_path / "my_conf" / "data" / "gestures.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(lines)
    archives = SETS["DVSGesture"](tmp_path)
    publish(monkeypatch, "DVSGesture", archives)
    place(tmp_path / "raw", archives)
    prepare = ("prepare", "--config-dir", "my_conf", "data=gestures", "data.path=a.h5")
    counts = "DVSGesture: 33 training and 11 test recordings in a.h5\n"
    done = blockspike(*prepare, "data.raw=raw")
    assert done.stdout == counts and "already" not in done.stderr
    again = blockspike(*prepare, "data.raw=raw")
    advice = "a.h5 was there already; to prepare raw, delete that file or name another data.path\n"
    assert (again.stdout, again.stderr) == (counts, advice)


def test_a_set_must_be_chosen(blockspike):
    refused = blockspike("prepare", "data=tonic", check=False)
    assert refused.returncode != 0 and "data.dataset: expected a value" in refused.stderr


END_TO_END = {
    "DVSGesture": ("data.pooling=16", "data.dt_ms=20", "data.n_steps=20"),
    "NCALTECH101": ("data.pooling=20", "data.dt_ms=20", "data.n_steps=20"),
    "NTIDIGITS18": ("data.dt_ms=20", "data.n_steps=50"),
}


@pytest.mark.slow
@pytest.mark.parametrize("dataset", END_TO_END)
def test_from_the_address_to_the_score(tmp_path, monkeypatch, server, blockspike, dataset):
    archives = SETS[dataset](tmp_path)
    serve(monkeypatch, server, dataset, archives)
    places = (f"data.dataset={dataset}", "data.path=data/a.h5", "data.raw=data/raw")
    data = ("data=tonic", *places)
    done = blockspike("prepare", *data, "data.download=true")
    assert done.stdout.startswith(dataset) and "test recordings in data/a.h5" in done.stdout
    assert sorted(name for name, _ in server.requests) == sorted(archives)
    before = time.time()
    assert blockspike("prepare", *data, "data.download=true").stdout == done.stdout
    assert (tmp_path / "data/a.h5").stat().st_mtime < before
    assert len(server.requests) == len(archives)
    small = ("network.n_hidden=32", "trainer.max_epochs=20", "threads=1", "data.batch_size=11")
    learning = ("optimizer.lr=0.01", "hydra.run.dir=run")
    blockspike("train", *data, *END_TO_END[dataset], *small, *learning)
    scored = blockspike("evaluate", "run")
    assert scored.stdout.startswith(f"{dataset}") and "test accuracy" in scored.stdout
    scores = read_json(tmp_path / "run/evaluation.json")
    assert scores["test_accuracy"] > 0.5 and scores["linear_model_test_accuracy"] > 0.5
