"""Sequential MNIST: the pixels of a digit one after another, as events where they change.

MNIST: LeCun, Bottou, Bengio and Haffner 1998, Proceedings of the IEEE 86(11). Pixel by pixel, in
order and permuted: Le, Jaitly and Hinton 2015, arXiv:1504.00941. As spikes where the grey value
crosses thresholds: Bellec, Salaj, Subramoney, Legenstein and Maass 2018, "Long short-term memory
and learning-to-learn in networks of spiking neurons", NeurIPS 31; they had 80 inputs, too, and
besides these a spike for each white pixel and a cue at the end, which are left out here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blockspike.data.datamodule import EventDataModule, require, require_whole
from blockspike.data.download import fetch, has_md5, mnist_files
from blockspike.data.event_file import EventFile, SplitContent, write_event_file
from blockspike.data.idx import read_idx
from blockspike.data.progress import progress

N_PIXELS = 28 * 28
N_CLASSES = 10
_CHUNK_IMAGES = 128


class SequentialMNISTDataModule(EventDataModule):
    """Sequential MNIST for Lightning: batches ``(EventBatch, labels)``; 10 classes.

    Step t shows pixel t, row by row. There are n thresholds ``θ_k = 255 · k / (n + 1)``, k = 1 … n.
    Input k − 1 has an event at t if pixel t is at θ_k or above and the one before was not, input
    n + k − 1 if it is below and the one before was not; before the first is black (0).

    Args:
        n_thresholds: number n of thresholds, 1 to 254; there are 2 n inputs.
        permutation_seed: seed of the one permutation of the pixels of all images (permuted
            sequential MNIST); None = in order.
        raw: folder of MNIST's four files, ``train-images-idx3-ubyte.gz`` and so on, or without
            ``.gz``; None = ``raw/sequential_mnist`` beside ``path``, where downloads go.
        path, dt_ms, n_steps, **options: see `EventDataModule`; a pixel lasts one step.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import blockspike as bs
        >>> bs.SequentialMNISTDataModule("mnist.h5", n_thresholds=40).n_inputs
        80
    """

    config_name = "sequential_mnist"
    unit_s = 1e-3
    download_gb = 0.01
    n_classes = N_CLASSES

    def __init__(
        self,
        path: str | Path,
        dt_ms: float = 1.0,
        n_steps: int = N_PIXELS,
        n_thresholds: int = 40,
        permutation_seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, dt_ms, n_steps, **options)
        require_whole(n_thresholds=n_thresholds, permutation_seed=permutation_seed)
        require(1 <= n_thresholds <= 254, "n_thresholds", n_thresholds, "1 to 254")
        require(
            permutation_seed is None or 0 <= permutation_seed < 2**32,
            "permutation_seed",
            permutation_seed,
            "None, or 0 to 2³² − 1",
        )
        self.n_thresholds = n_thresholds
        self.permutation_seed = permutation_seed
        self.n_inputs = 2 * n_thresholds

    def _overrides(self) -> list[str]:
        overrides = super()._overrides()
        if self.n_thresholds != 40:
            overrides.append(f"data.n_thresholds={self.n_thresholds}")
        if self.permutation_seed is not None:
            overrides.append(f"data.permutation_seed={self.permutation_seed}")
        return overrides

    def _fetch(self) -> None:
        for file in mnist_files():
            fetch(file, self.raw)

    def _convert(self) -> None:
        prepare_mnist(self.raw, self.path, self.n_thresholds, self.permutation_seed)

    def _check_content(self, file: EventFile) -> None:
        super()._check_content(file)
        encoding = encoding_name(self.n_thresholds, self.permutation_seed)
        if not file.name.endswith(f", {encoding}"):
            raise ValueError(
                f"{self.path}: expected {encoding}, got {file.name}; delete the file, or choose "
                "another with data.path"
            )

    def _bin(self, time: np.ndarray) -> np.ndarray:
        return time


def encoding_name(n_thresholds: int, permutation_seed: int | None) -> str:
    """Name the events that pixels are turned into."""
    order = "in order" if permutation_seed is None else f"permutation {permutation_seed}"
    return f"{n_thresholds} thresholds, {order}"


def pixel_order(permutation_seed: int | None) -> np.ndarray:
    """Indices of the pixels in the order in which they are shown, int ``[784]``."""
    if permutation_seed is None:
        return np.arange(N_PIXELS)
    # The legacy generator: its numbers are the same in every version of numpy.
    return np.random.RandomState(permutation_seed).permutation(N_PIXELS)


def _thresholds(n_thresholds: int) -> np.ndarray:
    return 255 * np.arange(1, n_thresholds + 1) / (n_thresholds + 1)


def encode(pixels: np.ndarray, n_thresholds: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn sequences of pixels into the events of `SequentialMNISTDataModule`.

    Args:
        pixels: uint8 ``[n, T]``.
        n_thresholds: number of thresholds.

    Returns:
        Sequence, time step and input of each event, int ``[n_events]``, sorted in this order.
    """
    n, n_steps = pixels.shape
    threshold = _thresholds(n_thresholds)
    above = np.zeros((n, n_steps + 1, n_thresholds), bool)
    above[:, 1:] = pixels[..., None] >= threshold
    before, now = above[:, :-1], above[:, 1:]
    sequence, step, unit = np.nonzero(np.concatenate([now & ~before, before & ~now], axis=2))
    return sequence, step, unit


def prepare_mnist(
    raw: Path, out: Path, n_thresholds: int = 40, permutation_seed: int | None = None
) -> None:
    """Convert MNIST's files to a prepared file (`blockspike.data.event_file`).

    The name starts with "MNIST" only if the files are the published ones; others, such as Fashion
    MNIST, are "MNIST-layout data".

    Args:
        raw: folder of the four files, each with ``.gz`` or without.
        out: the file to write; it appears only when complete.
        n_thresholds, permutation_seed: see `SequentialMNISTDataModule`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or not 28 x 28 images with as many labels of 0 to 9.
    """
    files = [_find(raw, file.filename) for file in mnist_files()]
    (train, train_label), (test, test_label) = _images(*files[:2]), _images(*files[2:])
    is_published = all(
        path.name == file.filename and has_md5(path, file.md5)
        for path, file in zip(files, mnist_files(), strict=True)
    )
    base = "MNIST" if is_published else "MNIST-layout data"
    order = pixel_order(permutation_seed)
    with progress(f"Preparing {base}", len(train) + len(test)) as advance:
        write_event_file(
            out,
            name=f"{base}, {encoding_name(n_thresholds, permutation_seed)}",
            source=f"{', '.join(path.name for path in files)}; LeCun et al. 1998; events of pixels",
            n_units=2 * n_thresholds,
            n_classes=N_CLASSES,
            train=_content(train[:, order], train_label, n_thresholds, advance),
            test=_content(test[:, order], test_label, n_thresholds, advance),
        )


def _find(raw: Path, filename: str) -> Path:
    for path in (raw / filename, raw / filename.removesuffix(".gz")):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{raw}: expected {filename}, or without .gz, got neither")


def _images(images_file: Path, labels_file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 ``[n, 784]`` and labels ``[n]``."""
    images, labels = read_idx(images_file), read_idx(labels_file)
    if images.shape[1:] != (28, 28) or len(images) == 0:
        raise ValueError(f"{images_file}: expected images of 28 x 28, got shape {images.shape}")
    if labels.shape != (len(images),):
        raise ValueError(
            f"{labels_file}: expected a label for each of {len(images)} images, got shape "
            f"{labels.shape}"
        )
    for i in np.flatnonzero(labels >= N_CLASSES)[:1]:
        raise ValueError(f"{labels_file}, image {i}: label: expected 0 to 9, got {labels[i]}")
    return images.reshape(len(images), N_PIXELS), labels


def _content(
    pixels: np.ndarray, label: np.ndarray, n_thresholds: int, advance: Callable[[int], None]
) -> SplitContent:
    level = np.searchsorted(_thresholds(n_thresholds), np.arange(256), side="right").astype(
        np.int16
    )
    n_events = [
        int(np.abs(np.diff(level[image], prepend=np.int16(0))).sum(dtype=np.int64))
        for image in pixels
    ]

    def chunks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(pixels), _CHUNK_IMAGES):
            some = pixels[start : start + _CHUNK_IMAGES]
            _, step, unit = encode(some, n_thresholds)
            yield step.astype(np.uint16), unit.astype(np.uint16)
            advance(len(some))

    # Times are the numbers of pixels; a reader of the file who needs a unit gets 1 ms for each.
    return SplitContent(np.array(n_events), label, chunks(), np.dtype(np.uint16), unit_s=1e-3)
