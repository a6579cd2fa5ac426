"""Small data sets in the real layouts, made by the tests."""

from __future__ import annotations

import gzip
from pathlib import Path

import h5py
import numpy as np


def encode_events(x, y, polarity, t_us) -> bytes:
    """Encode N-MNIST events, independently of the reader that it tests."""
    return b"".join(
        bytes([int(a), int(b)]) + (int(p) << 23 | int(t)).to_bytes(3, "big")
        for a, b, p, t in zip(x, y, polarity, t_us, strict=True)
    )


def make_nmnist(root: Path, n_train: int = 8, n_test: int = 2, n_events: int = 50) -> Path:
    """Write N-MNIST's folders with random recordings; returns the folder of Train and Test."""
    rng = np.random.default_rng(3)
    for split, count in (("Train", n_train), ("Test", n_test)):
        for digit in range(10):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for i in range(count):
                n = n_events + int(rng.integers(20))
                x, y = rng.integers(0, 34, (2, n))
                t_us = np.sort(rng.integers(0, 336_000, n))
                content = encode_events(x, y, rng.integers(0, 2, n), t_us)
                (folder / f"{i:05d}.bin").write_bytes(content)
    return root


def make_shd(path: Path, n: int = 80, n_speakers: int = 4, seed: int = 0, **changes) -> Path:
    """Write a file in SHD's layout; ``changes`` replaces columns or, with None, omits them."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(30, 60, n)
    columns = {
        "spikes/times": [np.sort(rng.random(c) * 1.3).astype(np.float16) for c in counts],
        "spikes/units": [rng.integers(0, 700, c).astype(np.uint16) for c in counts],
        "labels": (np.arange(n) % 20).astype(np.uint16),
        "extra/speaker": (np.arange(n) // 20 % n_speakers).astype(np.uint16),
        "extra/keys": np.array([b"key"] * 20),
    }
    columns.update(changes)
    with h5py.File(path, "w") as file:
        for key, column in columns.items():
            if isinstance(column, list):
                dtype = h5py.vlen_dtype(column[0].dtype)
                dataset = file.create_dataset(key, (len(column),), dtype)
                for i, values in enumerate(column):
                    dataset[i] = values
            elif column is not None:
                file[key] = column
    return path


def idx_bytes(array: np.ndarray) -> bytes:
    """Encode bytes in MNIST's format, independently of the reader that it tests."""
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def make_mnist(folder: Path, n_train: int, n_test: int) -> Path:
    """Write MNIST's four files; digit k differs in columns and grey value."""
    rng = np.random.default_rng(4)
    folder.mkdir(parents=True)
    for part, n in (("train", n_train), ("t10k", n_test)):
        labels = (np.arange(n) % 10).astype(np.uint8)
        images = np.zeros((n, 28, 28), np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[:, : 6 + 12 * (label % 2) : 2] = 30 + 50 * (label // 2)
            image[image > 0] += rng.integers(0, 20, (image > 0).sum()).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(idx_bytes(array), mtime=0))
    return folder
