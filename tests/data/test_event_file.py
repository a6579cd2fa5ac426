from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from blockspike.data.event_file import SplitContent, read_event_file, write_event_file


def content(n: int, seed: int, **changes) -> SplitContent:
    rng = np.random.default_rng(seed)
    n_events = rng.integers(1, 9, n)
    chunks = [
        (rng.integers(0, 99, c).astype(np.uint32), rng.integers(0, 7, c).astype(np.uint16))
        for c in n_events
    ]
    values = {
        "n_events": n_events,
        "label": np.arange(n) % 3,
        "chunks": chunks,
        "time_dtype": np.dtype(np.uint32),
        "unit_s": 1e-6,
    }
    return SplitContent(**(values | changes))


def write(path, train=None, test=None, n_units=7, sensor=None):
    train, test = train or content(6, 0), test or content(4, 1)
    write_event_file(path, "name", "source", n_units, 3, train, test, sensor=sensor)
    return path


def test_a_file_is_read_as_written(tmp_path):
    train, test = content(6, 0), content(4, 1, speaker=np.array([3, 1, 4, 1]))
    file = read_event_file(write(tmp_path / "new" / "a.h5", train, test))
    assert (file.name, file.source, file.n_units, file.n_classes) == ("name", "source", 7, 3)
    for written, split in ((train, file.train), (test, file.test)):
        chunks = list(written.chunks)
        assert np.array_equal(split.time, np.concatenate([t for t, _ in chunks]))
        assert np.array_equal(split.unit, np.concatenate([u for _, u in chunks]))
        assert np.array_equal(np.diff(split.offset), written.n_events)
        assert np.array_equal(split.label, written.label)
        assert split.time.dtype == np.uint32
        assert split.unit_s == 1e-6
    assert file.train.speaker is None
    assert file.test.speaker is not None and file.test.speaker.tolist() == [3, 1, 4, 1]


def test_a_sensor_and_many_units_are_read_as_written(tmp_path):
    last = [(np.zeros(1, np.uint32), np.array([239 * 180 * 2], np.uint32))]
    train = content(1, 0, n_events=np.array([1]), label=np.zeros(1, int), chunks=last)
    path = write(tmp_path / "a.h5", train, None, 240 * 180 * 2, (240, 180, 2))
    file = read_event_file(path)
    assert file.sensor == (240, 180, 2) and file.train.unit.tolist() == [239 * 180 * 2]
    assert file.train.unit.dtype == np.uint32 and file.test.unit.dtype == np.uint32
    assert file.verified_sha256() == file.stored_sha256
    edit(path, attribute("/", "sensor", [180, 240, 2]))
    with pytest.raises(ValueError, match="damaged, expected SHA-256"):
        read_event_file(path).verified_sha256()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"n_events": [1, 2], "label": [1, 1], "time": [0, 1, 2], "unit": [0, 1, 7]},
            r"a.h5, train: unit: .* from 0 to 6, got 7 \(event 1 of recording 1\)$",
        ),
        ({"unit": [0, -1]}, "train: unit: .* got -1 "),
        ({"unit": [0.0, 1.5]}, "train: unit: .* got 1.5 "),
        (
            {"unit": [[0, 1]]},
            r"train: unit: expected numbers \[n\], got \(1, 2\)|as many times as units",
        ),
        (
            {"time": [0.0, np.nan]},
            "train: time: expected a number from 0 to 4,294,967,295, got nan",
        ),
        ({"time": [-1, 1]}, "train: time: .* got -1 "),
        ({"time": [0, 2**33]}, "train: time: .* got 8589934592 "),
        ({"label": [1.7]}, "train: label: expected a whole number from 0 to 2, got 1.7 "),
        ({"label": [3]}, "train: label: .* got 3 "),
        ({"n_events": [2.5]}, "train: n_events: .* got 2.5 "),
    ],
)
def test_numbers_are_written_as_they_are_or_not_at_all(tmp_path, changes, message):
    given = {"time": [0, 1], "unit": [0, 1], "label": [1], "n_events": [2]} | changes
    arrays = {name: np.array(x) for name, x in given.items()}
    train = content(
        1, 0, n_events=arrays["n_events"], label=arrays["label"],
        chunks=[(arrays["time"], arrays["unit"])],
    )  # fmt: skip
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "a.h5", train)
    assert not list(tmp_path.iterdir())


def test_events_are_mapped_not_loaded(tmp_path):
    split = read_event_file(write(tmp_path / "a.h5")).train
    assert isinstance(split.time.base, np.memmap)
    assert not split.time.flags.writeable


def test_gather_copies_samples_in_the_given_order(tmp_path):
    train = content(6, 0)
    split = read_event_file(write(tmp_path / "a.h5", train)).train
    time_, unit, offset = split.gather(np.array([4, 0, 4]))
    for k, sample in enumerate((4, 0, 4)):
        assert np.array_equal(time_[offset[k] : offset[k + 1]], list(train.chunks)[sample][0])
        assert np.array_equal(unit[offset[k] : offset[k + 1]], list(train.chunks)[sample][1])


def test_a_split_without_events_is_read(tmp_path):
    empty = content(2, 0, n_events=np.zeros(2, int), chunks=[])
    split = read_event_file(write(tmp_path / "a.h5", empty)).train
    assert len(split) == 2
    assert split.gather(np.array([0, 1]))[2].tolist() == [0, 0, 0]


def _sum_units(split, queue):
    queue.put(int(split.unit.sum()))


def test_reading_in_a_forked_child(tmp_path):
    split = read_event_file(write(tmp_path / "a.h5")).train
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_sum_units, args=(split, queue))
    child.start()
    assert queue.get(timeout=20) == int(split.unit.sum())
    child.join()


def test_equal_content_gives_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("change", ["fewer", "more", "ragged"])
def test_chunks_with_a_wrong_number_of_events_leave_nothing(tmp_path, change):
    good = content(6, 0)
    chunks = list(good.chunks)
    one = np.zeros(1, np.uint32)
    bad = {
        "fewer": chunks[:-1],
        "more": [*chunks, (one, one.astype(np.uint16))],
        "ragged": [(np.zeros(2, np.uint32), np.zeros(1, np.uint16)), *chunks],
    }[change]
    with pytest.raises(ValueError, match="chunks: expected"):
        write(tmp_path / "a.h5", content(6, 0, chunks=bad))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_earlier_file(tmp_path):
    path = write(tmp_path / "a.h5")
    before = path.read_bytes()
    with pytest.raises(ValueError, match="chunks"):
        write(path, content(6, 0, chunks=[]))
    assert path.read_bytes() == before


def test_a_file_in_use_is_replaced_not_overwritten(tmp_path):
    path = write(tmp_path / "a.h5")
    before = path.stat().st_ino
    split = read_event_file(path).train
    units = split.unit.copy()
    write(path, content(6, 7))
    assert np.array_equal(split.unit, units)
    assert path.stat().st_ino != before
    assert not np.array_equal(read_event_file(path).train.unit, units)


def test_leftovers_of_dead_processes_are_removed_and_those_of_live_ones_kept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stem = f".a.h5.{socket.gethostname()}."
    gone, kept = tmp_path / f"{stem}{dead.pid}.part", tmp_path / f"{stem}{os.getppid()}.part"
    other = tmp_path / f".a.h5.elsewhere.{dead.pid}.part"
    for path in (gone, kept, other):
        path.write_bytes(b"half")
    write(tmp_path / "a.h5")
    assert not gone.exists()
    assert kept.exists() and other.exists()


_SLOW_WRITE = """
import sys, time
import numpy as np
from blockspike.data.event_file import SplitContent, write_event_file
def chunks():
    yield np.zeros(10, np.uint32), np.zeros(10, np.uint16)
    print("half", flush=True)
    time.sleep(60)
part = SplitContent(np.array([10, 10]), np.zeros(2), chunks(), np.dtype(np.uint32), 1e-6)
write_event_file(sys.argv[1], "n", "s", 7, 3, part, part)
"""


@pytest.mark.slow
def test_a_killed_write_leaves_nothing_that_is_used(tmp_path):
    path = tmp_path / "a.h5"
    run = subprocess.Popen(
        [sys.executable, "-c", _SLOW_WRITE, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "half\n"
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    assert [p.suffix for p in tmp_path.iterdir()] == [".part"]
    with pytest.raises(FileNotFoundError):
        read_event_file(path)
    write(path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == write(tmp_path / "b.h5").read_bytes()


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)


def replace(key, values):
    def change(file):
        file.pop(key, None)
        file[key] = values

    return change


def widen(key):
    def change(file):
        values = file[key][()].astype(np.int64)
        del file[key]
        file[key] = values

    return change


def drop(key):
    def change(file):
        del file[key]

    return change


def attribute(group, key, value):
    def change(file):
        if value is None:
            del file[group].attrs[key]
        else:
            file[group].attrs[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("test"), "expected groups train and test, got no 'test'"),
        (drop("train/time"), "expected a vector 'time' in /train, got none"),
        (drop("train/label"), "expected a vector 'label' in /train, got none"),
        (attribute("/", "format", "other"), "expected format and version"),
        (attribute("/", "version", 99), "prepare it again"),
        (attribute("/", "n_units", None), "expected attribute 'n_units' of /, got none"),
        (attribute("train", "unit_s", None), "expected attribute 'unit_s' of /train, got none"),
        (replace("train/offset", [0, 5, 3, 5, 6, 7, 8]), "expected offsets that rise"),
        (replace("train/offset", [0, 1]), "offset more than .* labels, got 2"),
        (replace("train/label", [0, 1, 2, 3, 0, 0]), "expected labels 0 to 2, got others"),
        (replace("train/speaker", [1]), "a speaker per label, 6, got 1"),
        (replace("train/time", np.zeros(3, np.uint32)), "as many times as units, got 3"),
        (widen("train/unit"), "unit: expected uint16, got int64"),
        (replace("train/time", np.zeros((2, 2))), "expected a vector 'time'"),
        *(
            (attribute("/", "sensor", sensor), "sensor: expected width, height and polarities of 7")
            for sensor in ([7, 1, 2], [7, 1], [-7, -1, 1], [7.0, 1, 1], "7 1 1", np.inf)
        ),
        (attribute("/", "n_units", 70_000), "unit: expected uint32, got uint16"),
    ],
)
def test_damage_is_named(tmp_path, change, message):
    path = write(tmp_path / "a.h5")
    edit(path, change)
    with pytest.raises(ValueError, match=message) as caught:
        read_event_file(path)
    assert str(path) in str(caught.value)


def test_a_compressed_array_is_refused(tmp_path):
    path = write(tmp_path / "a.h5")

    def compress(file):
        values = file["train/time"][()]
        del file["train/time"]
        file.create_dataset("train/time", data=values, compression="gzip")

    edit(path, compress)
    with pytest.raises(ValueError, match="not contiguous"):
        read_event_file(path)


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_cut_off_file_is_named(tmp_path, keep):
    path = write(tmp_path / "a.h5")
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(ValueError, match="not a complete HDF5 file"):
        read_event_file(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.h5"):
        read_event_file(tmp_path / "absent.h5")


def test_opening_is_fast_for_any_size(tmp_path):
    n = 20_000_000
    big = SplitContent(
        np.array([n]),
        np.zeros(1),
        [(np.zeros(n, np.uint32), np.zeros(n, np.uint16))],
        np.dtype(np.uint32),
        1e-6,
    )
    path = write(tmp_path / "a.h5", big)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        read_event_file(path)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.2
