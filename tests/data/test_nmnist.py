from __future__ import annotations

import io
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_data import encode_events, make_nmnist

from blockspike.data.event_file import read_event_file
from blockspike.data.nmnist import NMNISTDataModule, parse_events, prepare_nmnist
from blockspike.files import SAMPLES

event = st.tuples(
    st.integers(0, 33), st.integers(0, 33), st.integers(0, 1), st.integers(0, 2**23 - 1)
)


@settings(deadline=None)
@given(st.lists(event, min_size=1, max_size=30))
def test_events_are_read_as_encoded(events):
    content = encode_events(*zip(*events, strict=True))
    ordered = sorted(events, key=lambda e: e[3])  # stable, as the reader's sort
    columns = parse_events(content, "a.bin")
    assert [tuple(map(int, e)) for e in zip(*columns, strict=True)] == ordered


def test_an_event_by_hand():
    x, y, polarity, t_us = parse_events(bytes([33, 7, 0b1000_0001, 0, 2]), "one.bin")
    assert (x[0], y[0], polarity[0], t_us[0]) == (33, 7, 1, 65538)
    assert (x.dtype, polarity.dtype, t_us.dtype) == (np.uint8, np.uint8, np.uint32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "got an empty file"),
        (bytes(7), "expected a multiple of 5 bytes, got 7"),
        (bytes(5) + bytes([34, 0, 0, 0, 0]), "event 1: .* of 0 to 33, got x=34, y=0"),
        (bytes([0, 255, 0, 0, 0]), "event 0: .* got x=0, y=255"),
    ],
)
def test_a_damaged_recording_is_named(content, message):
    with pytest.raises(ValueError, match=f"^a/bad.bin: .*{message}"):
        parse_events(content, "a/bad.bin")


def naive_content(folder: Path, split: str) -> tuple[list, list, list]:
    """Times, units and labels of a split, read file by file."""
    times, units, labels = [], [], []
    for path in sorted((folder / split).glob("*/*.bin")):
        x, y, _, t_us = parse_events(path.read_bytes(), path.name)
        times.append(t_us)
        units.append(y.astype(int) * 34 + x)
        labels.append(int(path.parent.name))
    return times, units, labels


def test_prepared_file_holds_every_event(nmnist_folder, tmp_path):
    prepare_nmnist(nmnist_folder, tmp_path / "a.h5")
    file = read_event_file(tmp_path / "a.h5")
    assert (file.name, file.n_units, file.n_classes) == (
        "N-MNIST sample (100 recordings)",
        1156,
        10,
    )
    for key, split in (("Train", file.train), ("Test", file.test)):
        times, units, labels = naive_content(nmnist_folder, key)
        assert np.array_equal(split.time, np.concatenate(times))
        assert np.array_equal(split.unit, np.concatenate(units))
        assert split.label.tolist() == labels
        assert np.array_equal(np.diff(split.offset), [len(t) for t in times])
        assert split.unit_s == 1e-6


def zipped(folder: Path, path: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.bin"), reverse=True):
            archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path


def tarred(folder: Path, path: Path, mode: Literal["w", "w:xz"]) -> Path:
    with tarfile.open(path, mode) as archive:
        archive.add(folder, "N-MNIST")
    return path


@pytest.mark.parametrize("form", ["parent", "zip", "tar.xz", "tar", "two zips"])
def test_every_packing_gives_the_same_bytes(nmnist_folder, tmp_path, form):
    if form == "parent":
        raw = nmnist_folder.parent
    elif form == "zip":
        raw = zipped(nmnist_folder, tmp_path / "a.zip", "N-MNIST/")
    elif form == "two zips":
        raw = tmp_path / "raw"
        raw.mkdir()
        for part in ("Train", "Test"):
            zipped(nmnist_folder / part, raw / f"{part.lower()}.zip", f"{part}/")
    else:
        mode = "w:xz" if form == "tar.xz" else "w"
        raw = tarred(nmnist_folder, tmp_path / f"a.{form}", mode)
    prepare_nmnist(raw, tmp_path / "out" / "a.h5")
    prepare_nmnist(nmnist_folder, tmp_path / "out" / "b.h5", n_workers=1)
    assert (tmp_path / "out/a.h5").read_bytes() == (tmp_path / "out/b.h5").read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.h5", "b.h5"]


def test_an_archive_cannot_write_outside_its_folder(nmnist_folder, tmp_path):
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    path = tarred(nmnist_folder, inner / "a.tar", "w")
    with tarfile.open(path, "a") as archive:
        for name in ("../escaped/Train/3/evil.bin", "../../Train/3/evil.bin"):
            member = tarfile.TarInfo(name)
            member.size = 5
            archive.addfile(member, io.BytesIO(bytes(5)))
        link = tarfile.TarInfo("N-MNIST/Train/3/link.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    prepare_nmnist(path, inner / "a.h5")
    files = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert files == ["deep/inner/a.h5", "deep/inner/a.tar"]


def test_recordings_of_the_published_sizes_are_named_nmnist(nmnist_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("blockspike.data.nmnist.PUBLISHED_SIZES", (80, 20))
    prepare_nmnist(nmnist_folder, tmp_path / "a.h5")
    assert read_event_file(tmp_path / "a.h5").name == "N-MNIST"


def damage(folder: Path, change: str) -> None:
    if change == "no Test":
        shutil.rmtree(folder / "Test")
    elif change == "no digit":
        shutil.rmtree(folder / "Train" / "4")
    elif change == "unknown":
        (folder / "Train" / "4").rename(folder / "Train" / "ten")
    elif change == "cut":
        path = folder / "Test" / "5" / "00001.bin"
        path.write_bytes(path.read_bytes()[:-1])
    else:
        (folder / "Train" / "0" / "00000.bin").write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ("no Test", FileNotFoundError, "got no recordings under Test/"),
        ("no digit", ValueError, "digits 0 to 9 in Train/, got no recordings of 4"),
        ("unknown", ValueError, "got Train/ten"),
        ("cut", ValueError, "Test/5/00001.bin: expected a multiple of 5"),
        ("empty", ValueError, "Train/0/00000.bin: .* got an empty file"),
    ],
)
def test_a_damaged_folder_is_named(tmp_path, change, error, message):
    raw = make_nmnist(tmp_path / "raw", 1, 2)
    damage(raw, change)
    with pytest.raises(error, match=message) as caught:
        prepare_nmnist(raw, tmp_path / "out" / "a.h5")
    assert str(raw) in str(caught.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_missing_folder_says_what_was_expected(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"absent: expected Train/ and Test/.*, got nothing"
    ):
        prepare_nmnist(tmp_path / "absent", tmp_path / "a.h5")


@pytest.mark.parametrize("kind", ["zip", "tar.xz"])
def test_a_cut_off_archive_is_named(nmnist_folder, tmp_path, kind):
    if kind == "zip":
        path = zipped(nmnist_folder, tmp_path / "a.zip")
    else:
        path = tarred(nmnist_folder, tmp_path / "a.tar.xz", "w:xz")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="not a complete .zip or .tar archive") as caught:
        prepare_nmnist(path, tmp_path / "a.h5")
    assert str(path) in str(caught.value)


def test_a_damaged_zip_member_is_named(nmnist_folder, tmp_path):
    path = zipped(nmnist_folder, tmp_path / "a.zip")
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="a.zip: .*bin: cannot be read"):
        prepare_nmnist(path, tmp_path / "a.h5")


_PREPARE = (
    "import sys; from blockspike.data.nmnist import prepare_nmnist; prepare_nmnist(*sys.argv[1:])"
)


@pytest.mark.slow
def test_killed_and_run_again_gives_the_same_file(tmp_path):
    raw = make_nmnist(tmp_path / "raw", 60, 10, n_events=20)
    prepare_nmnist(raw, tmp_path / "reference.h5")
    out = tmp_path / "out"
    out.mkdir()
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-c", _PREPARE, str(raw), str(out / "a.h5")])
        while run.poll() is None and not list(out.glob(".*.part")):
            time.sleep(0.001)
        run.send_signal(signal.SIGKILL)
        run.wait()
        # A kill may come after the rename; then the file is whole.
        if (out / "a.h5").exists():
            assert (out / "a.h5").read_bytes() == (tmp_path / "reference.h5").read_bytes()
    prepare_nmnist(raw, out / "a.h5")
    assert [p.name for p in out.iterdir()] == ["a.h5"]
    assert (out / "a.h5").read_bytes() == (tmp_path / "reference.h5").read_bytes()


@pytest.mark.parametrize(
    ("dt_ms", "t_us", "step"),
    [
        (1.0, [0, 999, 1000, 335_999], [0, 0, 1, 335]),
        (0.1, [299, 300, 700], [2, 3, 7]),
        (0.3, [899, 900, 2_100], [2, 3, 7]),
        (1.1, [1_099, 1_100, 3_300], [0, 1, 3]),
        (0.0007, [7, 70], [10, 100]),
        (2, [3_999, 4_000], [1, 2]),
    ],
)
def test_times_on_the_grid_start_a_bin(dt_ms, t_us, step):
    module = NMNISTDataModule("a.h5", dt_ms=dt_ms)
    assert module._bin(np.array(t_us, np.uint32)).tolist() == step


def test_every_bin_edge_is_exact_at_a_tenth_of_a_millisecond():
    module = NMNISTDataModule("a.h5", dt_ms=0.1)
    edges = np.arange(0, 2**23, 100, dtype=np.uint32)
    assert np.array_equal(module._bin(edges), np.arange(len(edges)))


def test_the_shipped_sample(tmp_path):
    module = NMNISTDataModule(tmp_path / "a.h5", raw=SAMPLES / "nmnist" / "nmnist_1080.tar.xz")
    module.prepare_data()
    module.setup()
    assert module.name == "N-MNIST sample (1080 recordings)"
    assert (len(module.train_indices), len(module.val_indices), len(module.test)) == (900, 100, 80)
    events, labels = next(iter(module.test_dataloader()))
    assert events.shape == (400, 64, 1156)
    assert np.array_equal(labels, module.test.label[:64])
    n_events = module.test.offset[64]
    assert events.unit.numel() == n_events  # the last event is before 400 ms: none is dropped
