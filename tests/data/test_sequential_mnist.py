"""MNIST as sequences of events, from files in its format."""

from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from https_server import md5
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from made_data import idx_bytes, make_mnist
from omegaconf import OmegaConf

from blockspike.data import download
from blockspike.data.event_file import read_event_file
from blockspike.data.idx import read_idx
from blockspike.data.sequential_mnist import (
    SequentialMNISTDataModule,
    encode,
    pixel_order,
    prepare_mnist,
)
from blockspike.files import CONF, read_json


def opened(folder, path, **options) -> SequentialMNISTDataModule:
    module = SequentialMNISTDataModule(path, raw=folder, **options)
    module.prepare()
    module.setup()
    return module


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_file_is_read_as_declared(tmp_path, suffix):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4) + values.tobytes()
    path = tmp_path / f"a-idx3-ubyte{suffix}"
    path.write_bytes(gzip.compress(content, mtime=0) if suffix else content)
    assert np.array_equal(read_idx(path), values)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected an IDX file of bytes, starting with 00 00 08, got nothing"),
        (b"\0\0\x0d\1" + bytes(8), "starting with 00 00 08, got 00 00 0d"),
        (b"\0\0\x08", "starting with 00 00 08, got 00 00 08"),
        (b"\0\0\x08\0", "expected 1 to 8 dimensions and their sizes, got 0 in 4 bytes"),
        (b"\0\0\x08\2" + bytes(4), "expected 1 to 8 dimensions and their sizes, got 2 in 8"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 5) + bytes(4), "expected 5 numbers, for 5, got 4"),
        (struct.pack(">BBBBI", 0, 0, 8, 1, 5) + bytes(6), "expected 5 numbers, for 5, got 6"),
        (b"\0\0\x08\2" + b"\xff" * 8, "expected 18446744065119617025 numbers"),
        (gzip.compress(idx_bytes(np.zeros(999, np.uint8)), mtime=0)[:-9], "not a complete file"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, content, message):
    path = tmp_path / "a-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def naive_events(pixels: np.ndarray, n: int) -> list[tuple[int, int]]:
    found = []
    before = 0
    for t, pixel in enumerate(pixels.tolist()):
        for k in range(1, n + 1):
            was, now = (value * (n + 1) >= 255 * k for value in (before, pixel))
            if now and not was:
                found.append((t, k - 1))
            if was and not now:
                found.append((t, n + k - 1))
        before = pixel
    return sorted(found)


@given(arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(1, 30))), st.integers(1, 254))
def test_events_are_those_of_the_definition(pixels, n_thresholds):
    sequence, step, unit = encode(pixels, n_thresholds)
    for i, row in enumerate(pixels):
        own = sequence == i
        found = list(zip(step[own].tolist(), unit[own].tolist(), strict=True))
        assert found == naive_events(row, n_thresholds)


def test_events_tell_the_grey_value():
    """With 254 thresholds, upward less downward events up to a pixel are its value."""
    pixels = np.random.default_rng(0).integers(0, 255, (2, 50)).astype(np.uint8)
    sequence, step, unit = encode(pixels, 254)
    change = np.zeros((2, 50), int)
    np.add.at(change, (sequence, step), np.where(unit < 254, 1, -1))
    assert np.array_equal(change.cumsum(1), pixels)


@pytest.mark.parametrize("seed", [None, 3])
def test_the_prepared_file_holds_every_event(tmp_path, seed):
    raw = make_mnist(tmp_path / "raw", 30, 20)
    module = opened(raw, tmp_path / "a.h5", n_thresholds=7, permutation_seed=seed)
    order = "in order" if seed is None else "permutation 3"
    assert module.name == f"MNIST-layout data, 7 thresholds, {order}"
    images = read_idx(raw / "t10k-images-idx3-ubyte.gz").reshape(20, 784)[:, pixel_order(seed)]
    assert module.test.label.tolist() == read_idx(raw / "t10k-labels-idx1-ubyte.gz").tolist()
    batch, _ = next(iter(module.test_dataloader()))
    assert batch.shape == (784, 20, 14)
    dense = batch.dense().numpy()
    for i, image in enumerate(images):
        own = slice(module.test.offset[i], module.test.offset[i + 1])
        found = zip(module.test.time[own].tolist(), module.test.unit[own].tolist(), strict=True)
        expected = naive_events(image, 7)
        assert list(found) == expected
        assert dense[:, i].sum() == len(expected)
        assert all(dense[t, i, unit] == 1 for t, unit in expected)


def test_the_permutation_is_the_same_everywhere():
    order = pixel_order(0)
    assert sorted(order) == list(range(784))
    assert order[:6].tolist() == [693, 85, 647, 392, 765, 14]
    assert pixel_order(1).tolist() != order.tolist()
    assert pixel_order(None).tolist() == list(range(784))


def test_only_the_published_files_are_named_mnist(tmp_path, monkeypatch):
    raw = make_mnist(tmp_path / "raw", 20, 10)
    sums = {path.name: md5(path.read_bytes()) for path in raw.iterdir()}
    published = {name: sums[name] for name in download._MNIST_MD5}
    monkeypatch.setattr(download, "_MNIST_MD5", published)
    prepare_mnist(raw, tmp_path / "a.h5", 3)
    assert read_event_file(tmp_path / "a.h5").name == "MNIST, 3 thresholds, in order"
    packed = raw / "train-labels-idx1-ubyte.gz"
    packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    prepare_mnist(raw, tmp_path / "b.h5", 3)
    name = "MNIST-layout data, 3 thresholds, in order"
    assert read_event_file(tmp_path / "b.h5").name == name


def test_events_of_another_encoding_are_refused(tmp_path):
    raw = make_mnist(tmp_path / "raw", 20, 10)
    opened(raw, tmp_path / "a.h5", n_thresholds=3)
    with pytest.raises(ValueError, match="3 thresholds, permutation 0, got MNIST-layout data, 3 t"):
        opened(raw, tmp_path / "a.h5", n_thresholds=3, permutation_seed=0)
    with pytest.raises(ValueError, match=r"expected \(8, 10\) units and classes, got MNIST"):
        opened(raw, tmp_path / "a.h5", n_thresholds=4)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("train-images-idx3-ubyte.gz", np.zeros((20, 28, 27), np.uint8), "of 28 x 28, got shape"),
        ("train-images-idx3-ubyte.gz", np.zeros((0, 28, 28), np.uint8), "of 28 x 28, got shape"),
        ("t10k-labels-idx1-ubyte.gz", np.zeros(9, np.uint8), "each of 10 images, got shape .9,."),
        ("t10k-labels-idx1-ubyte.gz", np.full(10, 10, np.uint8), "image 0: label: .* got 10"),
    ],
)
def test_files_that_do_not_fit_are_named(tmp_path, name, array, message):
    raw = make_mnist(tmp_path / "raw", 20, 10)
    (raw / name).write_bytes(gzip.compress(idx_bytes(array), mtime=0))
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        prepare_mnist(raw, tmp_path / "a.h5")
    assert not (tmp_path / "a.h5").exists()


def test_the_advised_command_prepares_these_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = SequentialMNISTDataModule(
        "data/permuted_mnist.h5",
        n_thresholds=9,
        permutation_seed=3,
        raw="data/raw/sequential_mnist",
    )
    command = (
        "`blockspike prepare data=sequential_mnist data.n_thresholds=9 data.permutation_seed=3 "
        "data.download=true data.path=data/permuted_mnist.h5`"
    )
    with pytest.raises(FileNotFoundError, match=command):
        module.prepare_data()


@pytest.mark.parametrize("name", ["sequential_mnist", "permuted_mnist", "tonic", "ssc", "shd"])
def test_a_configuration_of_events_says_where_they_are(name):
    """`evaluate pretrained=` reads these places without the defaults of the file."""
    own = OmegaConf.load(CONF / "data" / f"{name}.yaml")
    assert {"path", "raw"} <= set(own)


def test_a_missing_file_is_named(tmp_path):
    raw = make_mnist(tmp_path / "raw", 20, 10)
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected t10k-labels-idx1-ubyte\.gz, or without"):
        prepare_mnist(raw, tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("name", "value"),
    [("n_thresholds", 0), ("n_thresholds", 255), ("permutation_seed", -1)],
)
def test_a_value_out_of_range_is_named(name, value):
    with pytest.raises(ValueError, match=f"{name}: expected .*, got {value}"):
        SequentialMNISTDataModule("a.h5", **{name: value})


def test_the_published_checksums_are_those_of_torchvision():
    files = download.mnist_files()
    assert [file.md5[:8] for file in files] == ["f68b3c2d", "d53e105e", "9fb629c4", "ec29112d"]
    assert all(file.url.startswith("https://") for file in files)
    assert all(file.url.endswith(f"/{file.filename}") for file in files)


@pytest.mark.slow
@pytest.mark.parametrize("data", ["sequential_mnist", "permuted_mnist"])
def test_from_the_address_to_the_score(tmp_path, monkeypatch, server, blockspike, data):
    raw = make_mnist(tmp_path / "made", 100, 40)
    server.files |= {path.name: path.read_bytes() for path in raw.iterdir()}
    monkeypatch.setattr(download, "_MNIST_URL", server.url(""))
    sums = {name: md5(server.files[name]) for name in download._MNIST_MD5}
    monkeypatch.setattr(download, "_MNIST_MD5", sums)
    places = (f"data={data}", "data.path=data/a.h5", "data.raw=data/raw", "data.n_thresholds=9")
    done = blockspike("prepare", *places, "data.download=true")
    order = "in order" if data == "sequential_mnist" else "permutation 0"
    assert done.stdout.startswith(f"MNIST, 9 thresholds, {order}: 100 training and 40 test")
    assert len(server.requests) == 4
    small = ("network.n_hidden=16", "trainer.max_epochs=1", "threads=1", "hydra.run.dir=run")
    blockspike("train", *places, *small)
    assert blockspike("evaluate", "run").stdout.startswith("MNIST, 9 thresholds")
    assert read_json(tmp_path / "run/evaluation.json")["linear_model_test_accuracy"] > 0.5
