"""Spiking Heidelberg Digits (SHD) and Spiking Speech Commands (SSC) for Lightning."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from blockspike.data.datamodule import EventDataModule, require, require_whole
from blockspike.data.download import fetch
from blockspike.data.event_file import EventFile, EventSplit
from blockspike.data.loader import EventDataset, EventMap, Gathered
from blockspike.data.shd_file import N_CHANNELS, SHD, SSC, describe, find_h5, prepare_shd


class SHDDataModule(EventDataModule):
    """SHD, or data in its layout, for Lightning: batches ``(EventBatch, labels)``; 20 classes.

    Time bins are ``rint(t / dt)`` in float64; several events in one bin add up.

    Args:
        raw: folder of the files to prepare it from, one ``*train.h5`` and one ``*test.h5``, each
            possibly ``.gz``, ``.xz`` or ``.zip``; None = ``raw/shd`` beside ``path``, where
            downloads go; "sample" = 660 recordings of HD-Lauscher that come with blockspike.
        channel_pooling: number of neighbouring channels that are summed into one input.
        channel_jitter: largest shift of all channels of a training sample, drawn anew each epoch
            from (seed, epoch, sample); events shifted off the ends are dropped.
        time_stretch: a training sample is up to ``exp(time_stretch)`` times slower or faster; the
            logarithm of the factor is uniform, drawn in the same way.
        channel_time_jitter_ms: standard deviation of a delay of each channel of a training sample,
            normal, drawn in the same way; events before the beginning are dropped.
        replaced: share of the events of a training sample that are replaced by as many at random
            channels and times, drawn in the same way.
        unchanged: share of the training samples that none of these changes, drawn in the same way;
            1/(n + 1) is as if n changed copies of each sample were added to it.
        test_shifts: channel shifts for test-time augmentation. The scores of these views of a test
            recording are averaged; figures show the first.
        validation: how the validation split is held out: "stratified" by class, whole "speaker"s
            until `validation_fraction` is reached, or the data set's "own", such as SSC's.
        fold: with validation="speaker", the one speaker that is held out, as an index into the
            sorted speakers of the training data (leave-one-speaker-out); None = by
            `validation_fraction`.
        path, dt_ms, n_steps, **options: see `EventDataModule`; `seed` also seeds the jitter and the
            stretch, and `download=True` downloads the published SHD.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import blockspike as bs
        >>> data = bs.SHDDataModule("digits.h5", raw="sample", dt_ms=10.0, n_steps=120)
        >>> data.prepare_data()
        >>> data.setup()
        >>> events, labels = next(iter(data.test_dataloader()))
        >>> data.name, events.shape[2]
        ('HD-Lauscher sample (660 recordings)', 700)
    """

    config_name = "shd"
    unit_s = 1.0
    download_gb = 0.2
    sample = "hd_lauscher"
    layout = SHD
    n_classes = SHD.n_classes

    def __init__(
        self,
        path: str | Path,
        dt_ms: float = 2.0,
        n_steps: int = 600,
        channel_pooling: int = 1,
        channel_jitter: int = 0,
        time_stretch: float = 0.0,
        channel_time_jitter_ms: float = 0.0,
        replaced: float = 0.0,
        unchanged: float = 0.0,
        test_shifts: tuple[int, ...] = (0,),
        validation: Literal["stratified", "speaker", "own"] = "stratified",
        fold: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(path, dt_ms, n_steps, **options)
        require_whole(channel_pooling=channel_pooling, channel_jitter=channel_jitter, fold=fold)
        require(1 <= channel_pooling <= N_CHANNELS, "channel_pooling", channel_pooling, "1 to 700")
        require(0 <= channel_jitter < N_CHANNELS, "channel_jitter", channel_jitter, "0 to 699")
        require(0 <= time_stretch < 1, "time_stretch", time_stretch, "0 ≤ x < 1")
        require(
            0 <= channel_time_jitter_ms < math.inf,
            "channel_time_jitter_ms",
            channel_time_jitter_ms,
            "a value ≥ 0",
        )
        require(0 <= replaced <= 1, "replaced", replaced, "0 ≤ x ≤ 1")
        require(0 <= unchanged <= 1, "unchanged", unchanged, "0 ≤ x ≤ 1")
        require(
            validation in ("stratified", "speaker", "own"),
            "validation",
            validation,
            "stratified, speaker or own",
        )
        require(
            fold is None or (validation == "speaker" and fold >= 0),
            "fold",
            fold,
            "None, or with validation=speaker an index of a speaker",
        )
        require(
            isinstance(test_shifts, Collection)
            and len(test_shifts) > 0
            and all(isinstance(s, Integral) and abs(s) < N_CHANNELS for s in test_shifts),
            "test_shifts",
            test_shifts,
            "a list of at least one shift, each an integer from −699 to 699 (channels)",
        )
        self.channel_pooling = channel_pooling
        self.channel_jitter = channel_jitter
        self.time_stretch = time_stretch
        self.channel_time_jitter_ms = channel_time_jitter_ms
        self.replaced = replaced
        self.unchanged = unchanged
        self.test_shifts = tuple(test_shifts)
        self.validation = validation
        self.fold = fold
        self.n_inputs = -(-N_CHANNELS // channel_pooling)

    def _fetch(self) -> None:
        for file in self.layout.published():
            fetch(file, self.raw)

    def _convert(self) -> None:
        files = find_h5(self.raw, self.layout)
        prepare_shd(files, self.path, describe(files, self.layout), self.layout)

    def _bin(self, time: np.ndarray) -> np.ndarray:
        return np.rint(time.astype(np.float64) / (1e-3 * self.dt_ms))

    def _stored_sizes(self) -> tuple[int, int]:
        return N_CHANNELS, self.n_classes

    @property
    def validates(self) -> bool:
        """Whether a part of the training set is held out."""
        return self.fold is not None or self.validation == "own" or super().validates

    def _validation(self, file: EventFile) -> tuple[EventSplit, np.ndarray]:
        if self.validation != "own":
            return super()._validation(file)
        if file.validation is None:
            raise ValueError(
                f"{self.path}: expected a validation set, for validation=own, got none"
            )
        return file.validation, np.arange(len(file.validation))

    def _validation_indices(self, train: EventSplit) -> np.ndarray:
        if self.validation == "stratified":
            return super()._validation_indices(train)
        if train.speaker is None:
            raise ValueError(f"{self.path}: expected speakers, for validation=speaker, got none")
        if self.fold is None:
            return speaker_subset(train.speaker, self.validation_fraction, self.seed)
        speakers = np.unique(train.speaker)
        require(self.fold < len(speakers), "fold", self.fold, f"0 to {len(speakers) - 1}")
        return np.flatnonzero(train.speaker == speakers[self.fold])

    def _event_map(self, training: bool) -> EventMap:
        if not training:
            return SpeechMap(self.channel_pooling)
        return SpeechMap(
            self.channel_pooling,
            self.channel_jitter,
            self.time_stretch,
            self.channel_time_jitter_ms / 1000,
            self.replaced,
            self.unchanged,
            self.seed,
        )

    @property
    def n_views(self) -> int:
        """Number of `test_shifts`."""
        return len(self.test_shifts)

    def _add_views(self, dataset: EventDataset) -> None:
        dataset.event_map = ShiftedViews(self.channel_pooling, self.test_shifts)
        dataset.n_views = self.n_views


class SSCDataModule(SHDDataModule):
    """SSC, or data in its layout, for Lightning: 35 spoken commands through 700 channels.

    SSC has a validation set of its own: ``validation="own"``. Its speakers are not read.

    Args:
        raw: folder of ``*train.h5``, ``*valid.h5`` and ``*test.h5``, each possibly ``.gz``, ``.xz``
            or ``.zip``; None = ``raw/ssc`` beside ``path``, where downloads go.
        path, **options: see `SHDDataModule`; `download=True` downloads the published SSC.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import blockspike as bs
        >>> bs.SSCDataModule("ssc.h5", validation="own").n_classes
        35
    """

    config_name = "ssc"
    sample = None
    layout = SSC
    n_classes = SSC.n_classes


@dataclass(frozen=True)
class ShiftedViews:
    """Shifts the channels of each view of a batch, then pools neighbouring channels.

    Args:
        pooling: channel_pooling of `SHDDataModule`.
        shifts: shift of each view, in channels.
    """

    pooling: int
    shifts: tuple[int, ...]

    def __call__(self, events: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times, pooled channels int ``[n]`` and which events stay on the 700 channels."""
        shift = np.repeat(self.shifts, len(events.samples) // len(self.shifts))
        channel = events.unit.astype(np.int32) + np.repeat(shift, np.diff(events.offset))
        return events.time, channel // self.pooling, (channel >= 0) & (channel < N_CHANNELS)


@dataclass(frozen=True)
class SpeechMap:
    """Changes each sample at random, then pools neighbouring channels.

    Args: see `SHDDataModule`; `time_jitter_s` is its `channel_time_jitter_ms`.
    """

    pooling: int
    jitter: int = 0
    stretch: float = 0.0
    time_jitter_s: float = 0.0
    replaced: float = 0.0
    unchanged: float = 0.0
    seed: int = 0

    def __call__(self, events: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return times, pooled channels int ``[n]`` and which events stay on the 700 channels."""
        time, channel = events.time, events.unit.astype(np.int32)
        if self.jitter or self.stretch or self.time_jitter_s or self.replaced:
            time = time.astype(np.float64)
            for i, sample in enumerate(events.samples):
                own = slice(events.offset[i], events.offset[i + 1])
                rng = np.random.default_rng([self.seed, events.epoch, int(sample)])
                time[own], channel[own] = self.changed(time[own], channel[own], rng)
        keep = (channel >= 0) & (channel < N_CHANNELS) & (time >= 0)
        return time, channel // self.pooling, keep

    def changed(
        self, time_s: np.ndarray, channel: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return other times float64 ``[n]`` and channels int32 ``[n]`` of a sample's events."""
        shift = rng.integers(-self.jitter, self.jitter, endpoint=True)
        factor = math.exp(rng.uniform(-self.stretch, self.stretch))
        if self.unchanged and rng.random() < self.unchanged:
            return time_s, channel
        end_s = time_s.max(initial=0.0) * factor
        time_s = time_s * factor
        if self.time_jitter_s:
            time_s += rng.normal(0.0, self.time_jitter_s, N_CHANNELS)[channel]
        channel = channel + shift
        if self.replaced:
            chosen = rng.random(len(time_s)) < self.replaced
            time_s[chosen] = rng.uniform(0.0, end_s, chosen.sum())
            channel[chosen] = rng.integers(0, N_CHANNELS, chosen.sum())
        return time_s, channel


def speaker_subset(speaker: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose whole speakers at random until they hold ``fraction`` of the samples.

    Returns:
        Sorted indices into ``speaker``.

    Raises:
        ValueError: no speaker would be left for training.
    """
    order = np.random.default_rng(seed).permutation(np.unique(speaker))
    n_samples = np.cumsum([(speaker == s).sum() for s in order])
    n_wished = round(fraction * len(speaker), 6)  # a rounding error would add a speaker
    chosen = order[: int(np.searchsorted(n_samples, n_wished)) + 1]
    if len(chosen) >= len(order):
        raise ValueError(
            f"validation_fraction: expected a fraction that leaves one of {len(order)} speakers "
            f"for training, got {fraction}"
        )
    return np.flatnonzero(np.isin(speaker, chosen))
