"""N-MNIST: reading, preparing and serving the recordings of Orchard et al. 2015.

"Converting static image datasets to spiking neuromorphic datasets using saccades", Frontiers in
Neuroscience 9:437. A 34 x 34 event camera; 60 000 training and 10 000 test recordings.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockspike.data.datamodule import EventDataModule, require, require_whole
from blockspike.data.download import fetch, nmnist_files
from blockspike.data.event_file import SplitContent, write_event_file
from blockspike.data.loader import EventMap, Gathered
from blockspike.data.microseconds import exact_us, whole_steps
from blockspike.data.nmnist_raw import RawRecording, open_raw
from blockspike.data.progress import progress
from blockspike.neurons.cpu.kernels import kernel

WIDTH = 34
N_CLASSES = 10
PUBLISHED_SIZES = (60_000, 10_000)
_EVENT_BYTES = 5
_CHUNK_RECORDINGS = 128


@dataclass(frozen=True)
class CameraEvents:
    """Events of one recording, in time order; unpacks as ``x, y, polarity, t_us``.

    ``x``, ``y`` uint8 0 to 33; ``polarity`` uint8, 1 = ON; ``t_us`` uint32, microseconds.
    """

    x: np.ndarray
    y: np.ndarray
    polarity: np.ndarray
    t_us: np.ndarray

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter((self.x, self.y, self.polarity, self.t_us))


def parse_events(content: bytes, name: str) -> CameraEvents:
    """Decode one N-MNIST recording, the content of a ``.bin`` file; errors begin with `name`.

    Five bytes an event: x, y, then one bit of polarity and 23 bits of microseconds, big-endian.

    Raises:
        ValueError: it is empty or ends within an event, or an event is outside the 34 x 34 pixels;
            says what was expected and what was found.
    """
    if not content:
        raise ValueError(f"{name}: expected events of {_EVENT_BYTES} bytes, got an empty file")
    if len(content) % _EVENT_BYTES:
        raise ValueError(
            f"{name}: expected a multiple of {_EVENT_BYTES} bytes, got {len(content)}; "
            "the file is cut off or not an N-MNIST recording"
        )
    n_events = len(content) // _EVENT_BYTES
    x, y, polarity = (np.empty(n_events, np.uint8) for _ in range(3))
    t_us = np.empty(n_events, np.uint32)
    outside, ordered = _decode_bytes(np.frombuffer(content, np.uint8), x, y, polarity, t_us)
    if outside >= 0:
        raise ValueError(
            f"{name}: event {outside}: expected x and y of 0 to {WIDTH - 1}, "
            f"got x={x[outside]}, y={y[outside]}"
        )
    events = CameraEvents(x, y, polarity, t_us)
    if ordered:
        return events
    order = np.argsort(t_us, kind="stable")
    return CameraEvents(*(column[order] for column in events))


# Compiled, and without the GIL, so that threads decode on all cores.
@kernel
def _decode_bytes(raw, x, y, polarity, t_us):  # pragma: no cover
    """Fill the columns; return the first event off the camera, or -1, and if times are in order."""
    outside = -1
    ordered = True
    for i in range(len(x)):
        k = 5 * i
        x[i] = raw[k]
        y[i] = raw[k + 1]
        polarity[i] = raw[k + 2] >> 7
        t_us[i] = (np.uint32(raw[k + 2] & 0x7F) << 16) | (np.uint32(raw[k + 3]) << 8) | raw[k + 4]
        if outside < 0 and (x[i] >= WIDTH or y[i] >= WIDTH):
            outside = i
        if i > 0 and t_us[i] < t_us[i - 1]:
            ordered = False
    return outside, ordered


def prepare_nmnist(raw: Path | str, out: Path | str, n_workers: int | None = None) -> None:
    """Convert N-MNIST recordings to a prepared file (`blockspike.data.event_file`).

    Inputs are ``y * 34 + x``, ON and OFF events summed: 1156 units. The data are named "N-MNIST"
    only if there are as many recordings as in the published set.

    Args:
        raw: a folder that holds ``Train/`` and ``Test/`` (or ``N-MNIST/Train`` ...), a ``.zip``
            or ``.tar``/``.tar.xz``/``.tar.gz`` archive of that layout, or a folder that holds
            ``train.zip`` and ``test.zip``. Archives are not extracted.
        out: the file to write; it appears only when complete.
        n_workers: threads; None = one for each CPU. Decoding and decompression release the GIL.

    Raises:
        FileNotFoundError: ``raw`` or one of its parts is missing.
        ValueError: a digit folder is unknown or missing, or a recording is damaged.
    """
    with (
        open_raw(Path(raw), Path(out).parent) as splits,
        ThreadPoolExecutor(n_workers or os.cpu_count()) as pool,
    ):
        sizes = tuple(len(recordings) for recordings in splits)
        name = _name(sizes)
        with progress(f"Preparing {name}", sum(sizes)) as advance:
            train, test = (_content(recordings, pool, advance) for recordings in splits)
            write_event_file(
                out,
                name=name,
                source="N-MNIST, Orchard et al. 2015, CC BY-SA 4.0; ON and OFF events summed",
                n_units=WIDTH * WIDTH,
                n_classes=N_CLASSES,
                train=train,
                test=test,
            )


def _name(sizes: tuple[int, ...]) -> str:
    if sizes == PUBLISHED_SIZES:
        return "N-MNIST"
    return f"N-MNIST sample ({sum(sizes)} recordings)"


def _content(
    recordings: list[RawRecording], pool: ThreadPoolExecutor, advance: Callable[[int], None]
) -> SplitContent:
    return SplitContent(
        n_events=np.array([r.n_bytes // _EVENT_BYTES for r in recordings], np.int64),
        label=np.array([r.label for r in recordings], np.int64),
        chunks=_decoded_chunks(recordings, pool, advance),
        time_dtype=np.dtype(np.uint32),
        unit_s=1e-6,
    )


def _decoded_chunks(
    recordings: list[RawRecording], pool: ThreadPoolExecutor, advance: Callable[[int], None]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode on all threads, in order, with a bounded number of chunks in memory."""
    chunks = [
        recordings[i : i + _CHUNK_RECORDINGS] for i in range(0, len(recordings), _CHUNK_RECORDINGS)
    ]
    depth = 2 * (os.cpu_count() or 1)
    running = deque(pool.submit(_decode, chunk) for chunk in chunks[:depth])
    for i, chunk in enumerate(chunks):
        decoded = running.popleft().result()
        if i + depth < len(chunks):
            running.append(pool.submit(_decode, chunks[i + depth]))
        yield decoded
        advance(len(chunk))


def _decode(recordings: list[RawRecording]) -> tuple[np.ndarray, np.ndarray]:
    times, units = [], []
    for recording in recordings:
        events = parse_events(recording.read(), recording.name)
        times.append(events.t_us)
        units.append(events.y.astype(np.uint16) * WIDTH + events.x)
    return np.concatenate(times), np.concatenate(units)


class NMNISTDataModule(EventDataModule):
    """N-MNIST for Lightning: batches ``(EventBatch, labels)``; 1156 inputs, 10 classes.

    Time bins are ``floor(t / dt)``, in exact integer arithmetic.

    Args:
        raw: recordings to prepare it from, see `prepare_nmnist`; None = the folder ``raw/nmnist``
            beside ``path``, where downloads go; "sample" = 1080 recordings that come with
            blockspike.
        pixel_shift: largest shift of a training recording in x and in y, in pixels, drawn anew each
            epoch from (seed, epoch, sample); events moved off the camera are dropped.
        path, dt_ms, n_steps, **options: see `EventDataModule`; `seed` also seeds the shifts.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import blockspike as bs
        >>> data = bs.NMNISTDataModule("nmnist.h5", raw="sample", dt_ms=4.0, n_steps=90)
        >>> data.prepare_data()
        >>> data.setup()
        >>> events, labels = next(iter(data.train_dataloader()))
        >>> events.shape, labels.shape
        ((90, 64, 1156), torch.Size([64]))
    """

    config_name = "nmnist"
    unit_s = 1e-6
    download_gb = 1.2
    sample = "nmnist/nmnist_1080.tar.xz"
    n_inputs = WIDTH * WIDTH
    n_classes = N_CLASSES

    def __init__(
        self,
        path: str | Path,
        dt_ms: float = 1.0,
        n_steps: int = 400,
        pixel_shift: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(path, dt_ms, n_steps, **options)
        require_whole(pixel_shift=pixel_shift)
        require(0 <= pixel_shift < WIDTH, "pixel_shift", pixel_shift, f"0 to {WIDTH - 1}")
        self.pixel_shift = pixel_shift
        self._dt_us = exact_us(dt_ms)

    def _fetch(self) -> None:
        for file in nmnist_files():
            fetch(file, self.raw)

    def _convert(self) -> None:
        prepare_nmnist(self.raw, self.path)

    def _bin(self, time: np.ndarray) -> np.ndarray:
        return whole_steps(time, self._dt_us)

    def _event_map(self, training: bool) -> EventMap | None:
        return PixelShift(self.pixel_shift, self.seed) if training and self.pixel_shift else None


@dataclass(frozen=True)
class PixelShift:
    """Moves each recording on the camera (see `NMNISTDataModule`)."""

    largest: int
    seed: int

    def __call__(self, events: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the times, moved units int ``[n]`` and which events stay on the camera."""
        n_events = np.diff(events.offset)
        dx, dy = np.array([self.shift(events.epoch, i) for i in events.samples], np.int32).T
        y, x = np.divmod(events.unit.astype(np.int32), WIDTH)
        x += np.repeat(dx, n_events)
        y += np.repeat(dy, n_events)
        return events.time, y * WIDTH + x, (x >= 0) & (x < WIDTH) & (y >= 0) & (y < WIDTH)

    def shift(self, epoch: int, sample: int) -> tuple[int, int]:
        """Return the shift (x, y) of a recording, each uniform on -largest ... largest."""
        rng = np.random.default_rng([self.seed, epoch, int(sample)])
        dx, dy = rng.integers(-self.largest, self.largest, 2, endpoint=True)
        return int(dx), int(dy)
