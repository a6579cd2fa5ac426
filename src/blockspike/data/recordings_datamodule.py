"""Recordings as one batch to fit neurons to, and as test data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from blockspike.data.datamodule import require
from blockspike.data.progress import progress
from blockspike.data.recordings import RECORDING_SUFFIXES, Recording, load_recording

Segments = list[list[Any]]  # numbers; OmegaConf takes no int for a float inside a list
_TRAIN_SHARE = 0.6  # of a recording whose segments are not given


@dataclass(frozen=True)
class Part:
    """The training or the test part of all cells.

    Attributes:
        current: float32 [T, B, C], segments B of cells C, divided by the cell's scale.
        trains: per cell and segment the recorded trains, float32 [R, T].
        first: the first step that counts; those before let the neuron settle.
    """

    current: Tensor
    trains: list[list[np.ndarray]]
    first: int


class RecordingsDataModule(pl.LightningDataModule):
    """Current-clamp recordings of C cells, split by time or by stimulus.

    Segments of a part have one length. A cell that cannot be read, or does not have the segments,
    is left out and named in ``failed``; the others go on. ``title`` names the data set; after
    `setup` there are ``names``, ``scale_pa``, ``train`` and ``test``.

    Currents are divided by a number per cell, ``scale_pa``, that is stored with its fit: the
    standard deviation of its training current, or, for the paper's recipe, 100 times its maximum.

    Args:
        path: one recording, or a folder of them, a cell each.
        dt_ms: length of a step of the model; currents are averaged over it.
        train_stimulus, test_stimulus: name of the stimulus; None = every stimulus.
        train_s, test_s: segments [[start, stop], …] in seconds; None = the first 60 % and the rest.
        held_out: share at the end of each training segment that chooses among starts.
        warm_up_s: of each test segment, simulated before it and not scored.
        first_trial_only: fit to the first trial and not to the mean of all.
        scaling: "deviation" or, as published, "maximum".
        own_test_scale: as published, the test current is divided by its own number.
        name: of the data set, for tables; None = the file's or folder's name.

    Raises:
        ValueError: an argument is out of range, or training and test overlap.
    """

    def __init__(
        self,
        path: str | Path,
        dt_ms: float = 0.5,
        train_stimulus: str | None = None,
        test_stimulus: str | None = None,
        train_s: Segments | None = None,
        test_s: Segments | None = None,
        held_out: float = 0.2,
        warm_up_s: float = 1.0,
        first_trial_only: bool = False,
        scaling: Literal["deviation", "maximum"] = "deviation",
        own_test_scale: bool = False,
        name: str | None = None,
    ):
        super().__init__()
        require(0 < dt_ms < float("inf"), "dt_ms", dt_ms, "a positive number of ms")
        require(0 <= held_out < 1, "held_out", held_out, "0 ≤ x < 1")
        require(warm_up_s >= 0, "warm_up_s", warm_up_s, "at least 0")
        require(scaling in ("deviation", "maximum"), "scaling", scaling, "deviation or maximum")
        require((train_s is None) == (test_s is None), "train_s, test_s", (train_s, test_s),
                "both or neither")  # fmt: skip
        for key, segments in (("train_s", train_s), ("test_s", test_s)):
            _check_segments(key, segments)
        if train_stimulus == test_stimulus and train_s is not None and test_s is not None:
            _check_apart(train_s, test_s)
        self.path, self.dt_ms = Path(path), dt_ms
        self.train_stimulus, self.test_stimulus = train_stimulus, test_stimulus
        self.train_s, self.test_s = train_s, test_s
        self.held_out, self.warm_up_s = held_out, warm_up_s
        self.first_trial_only, self.scaling = first_trial_only, scaling
        self.own_test_scale = own_test_scale
        self.title: str = name or self.path.stem
        self.failed: dict[str, str] = {}
        self._not_there: dict[str, str] = {}

    def prepare(self) -> None:
        """Recordings are read as they are."""

    def load(self) -> list[Recording]:
        """Read every cell; those that cannot be read are put into ``failed``.

        Raises:
            FileNotFoundError: nothing to read at ``path``.
        """
        stimuli = [s for s in (self.train_stimulus, self.test_stimulus) if s is not None] or None
        recordings = []
        files = find_recordings(self.path)
        with progress(f"Reading {self.title}", len(files)) as advance:
            for file in files:
                try:
                    recording = load_recording(file, stimuli=stimuli)
                    recordings.append(replace(recording, name=_cell_name(file)))
                except (ValueError, OSError) as error:
                    self.failed[_cell_name(file)] = str(error)
                advance(1)
        return recordings

    def setup(self, stage: str | None = None) -> None:
        """Read, cut, bin and scale all cells; the same for every stage.

        Raises:
            FileNotFoundError: no recording at ``path``.
            ValueError: no cell could be used; names the first reason.
        """
        self.failed = dict(self._not_there)
        cut = []
        for recording in self.load():
            try:
                train, test = self._cut(recording)
                self._scale(train[0])
                cut.append((recording, train, test))
            except ValueError as error:
                text = str(error)
                own = text.startswith(recording.name)
                self.failed[recording.name] = text if own else f"{recording.name}: {text}"
        cut = self._of_one_shape(cut)
        if not cut:
            reasons = list(self.failed.values())
            raise ValueError(reasons[0] if len(reasons) == 1 else
                f"{self.path}: no recording could be used; the first reason of {len(reasons)}: "
                f"{reasons[0]}")  # fmt: skip
        self.recordings = [recording for recording, _, _ in cut]
        self.names = [recording.name for recording in self.recordings]
        trains, tests = [c[1] for c in cut], [c[2] for c in cut]
        scale = np.array([self._scale(current) for current, _ in trains])
        test_scale = scale
        if self.own_test_scale:
            test_scale = np.array([self._scale(current) for current, _ in tests])
        self.scale_pa, self.test_scale_pa = scale, test_scale
        self.train = _part(trains, scale, 0)
        self.test = _part(tests, test_scale, self._warm_up_steps())

    def _warm_up_steps(self) -> int:
        return round(self._warm_up_s() * 1000 / self.dt_ms)

    def _warm_up_s(self) -> float:
        """As long as every test segment has it before it."""
        if self.test_s is None:
            return self.warm_up_s
        return min(self.warm_up_s, min(start for start, _ in self.test_s))

    def _cut(self, recording: Recording):
        """(currents [T, B], trains [B][R, T]) of the training and of the test part."""
        duration_s = recording.current_pa.shape[1] * recording.dt_ms / 1000
        middle = _TRAIN_SHARE * duration_s
        train_s = self.train_s or [[0.0, middle]]
        warm_up_s = self._warm_up_s()
        test_s = self.test_s or [[max(middle, warm_up_s), duration_s]]
        test_s = [[start - warm_up_s, stop] for start, stop in test_s]
        return (
            self._segments(recording, self.train_stimulus, train_s, duration_s),
            self._segments(recording, self.test_stimulus, test_s, duration_s),
        )

    def _segments(self, recording, stimulus, segments_s, duration_s):
        numbers = [
            i for i, name in enumerate(recording.stimuli)
            if stimulus is None or name.lower() == stimulus.lower()
        ]  # fmt: skip
        if not numbers:
            raise ValueError(f"{recording.name}: no stimulus {stimulus!r}, found "
                f"{', '.join(recording.stimuli)}")  # fmt: skip
        currents, trains = [], []
        current = recording.current(self.dt_ms)
        for number in numbers:
            spikes = recording.spike_trains(number, self.dt_ms)
            if self.first_trial_only:
                spikes = spikes[:1]
            for start, stop in segments_s:
                if stop > duration_s + 1e-9:
                    raise ValueError(
                        f"{recording.name}: lasts {duration_s:g} s, expected a segment "
                        f"{start:g}–{stop:g} s within it"
                    )
                first = round(start * 1000 / self.dt_ms)
                last = first + int((stop - start) * 1000 / self.dt_ms + 1e-6)
                currents.append(current[number, first:last])
                trains.append(spikes[:, first:last])
        return np.stack(currents, 1), trains

    def _of_one_shape(self, cut: list) -> list:
        """Cells of the most common lengths; the others are put into ``failed``."""
        shapes = [(train[0].shape, test[0].shape) for _, train, test in cut]
        if not shapes:
            return cut
        usual = max(set(shapes), key=shapes.count)
        for (recording, *_), shape in zip(cut, shapes, strict=True):
            if shape != usual:
                self.failed[recording.name] = (
                    f"{recording.name}: segments of {shape[0][0]} and {shape[1][0]} steps × "
                    f"{shape[0][1]} and {shape[1][1]}, expected {usual} as in most cells"
                )
        return [c for c, shape in zip(cut, shapes, strict=True) if shape == usual]

    def _scale(self, current: np.ndarray) -> float:
        scale = current.std() if self.scaling == "deviation" else 100 * current.max()
        if not scale > 0:
            raise ValueError(f"current: expected one that varies, got {self.scaling} {scale:g} pA")
        return float(scale)

    def batch(self):
        """Return (current, target, (first, split, last)) of the training part.

        The target is the mean of the trials, float32, or the counts of the first, uint8.
        """
        current = self.train.current
        target = np.stack(
            [np.stack([t.mean(0) for t in trains], 1) for trains in self.train.trains], 2
        )
        n_steps = len(current)
        split = n_steps - round(self.held_out * n_steps)
        if self.first_trial_only:
            target = target.astype(np.uint8)  # counts: a quarter of the memory to read
        return current, torch.from_numpy(target), (self.train.first, split, n_steps)

    def train_dataloader(self) -> DataLoader:
        """Return all training data as the one batch of an epoch."""
        return DataLoader([self.batch()], batch_size=None)  # pyright: ignore[reportArgumentType]


def find_recordings(path: Path) -> list[Path]:
    """Find the recordings of a folder, at any depth, or the one that is meant.

    Raises:
        FileNotFoundError: there is none.
    """
    if path.is_file():
        return [path]
    files = sorted(p for s in RECORDING_SUFFIXES for p in path.rglob(f"*{s}"))
    if not files:
        raise FileNotFoundError(
            f"{path}: no recording, expected a {' or '.join(RECORDING_SUFFIXES)} file or a folder "
            "of them"
        )
    return files


def _cell_name(file: Path) -> str:
    """AllenSDK names each cell's folder and not its file."""
    return file.parent.name if file.name == "ephys.nwb" else file.stem


def _check_segments(key: str, segments: Segments | None) -> None:
    if segments is None:
        return
    fine = len(segments) > 0 and all(len(s) == 2 and 0 <= s[0] < s[1] for s in segments)
    require(fine, key, segments, "[[start, stop], …] in seconds with 0 ≤ start < stop")
    lengths = {round(stop - start, 9) for start, stop in segments}
    require(len(lengths) == 1, key, segments, "segments of one length")


def _check_apart(train_s: Segments, test_s: Segments) -> None:
    for a, b in train_s:
        for c, d in test_s:
            require(b <= c or d <= a, "train_s, test_s", ([a, b], [c, d]),
                    "segments that do not overlap")  # fmt: skip


def _part(cut: Sequence, scale: np.ndarray, first: int) -> Part:
    current = np.stack([current for current, _ in cut], 2) / scale
    return Part(torch.from_numpy(current.astype(np.float32)), [t for _, t in cut], first)
