"""Any data set of tonic that has classes, for Lightning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from blockspike.data.datamodule import EventDataModule, require, require_whole
from blockspike.data.download import fetch
from blockspike.data.event_file import EventFile, EventSplit
from blockspike.data.loader import EventMap, Gathered
from blockspike.data.microseconds import exact_us, whole_steps
from blockspike.data.tonic_sets import content_name, find_set, prepare_tonic


class TonicDataModule(EventDataModule):
    """A data set of tonic for Lightning: batches ``(EventBatch, labels)``.

    Input ``(p · H + y // pooling) · W + x // pooling`` has the events of polarity p at the pixel
    (x, y); H and W are height and width of the sensor divided by ``pooling``, rounded up. Time bins
    are ``floor(t / dt)``; several events in one bin add up. After `setup` there are ``sensor``
    (width, height, polarities), ``n_inputs`` and ``n_classes``.

    Sets that their authors divide keep that division, a validation set included. Of others,
    ``test_fraction`` of each class is for the test, and the name of the data says so.

    Args:
        dataset: name of a class of `tonic.datasets` whose recordings each belong to a class, such
            as "DVSGesture" or "CIFAR10DVS".
        raw: folder of the published archives; None = ``raw/tonic_<dataset>`` beside ``path``, where
            downloads go.
        pooling: side of the square of pixels (of a cochlea: neighbouring channels) that are summed
            into one input.
        test_fraction, split_seed: share of each class that is for the test, and the seed that
            chooses it, in sets that their authors do not divide; 0 < x < 1.
        path, dt_ms, n_steps, **options: see `EventDataModule`.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import blockspike as bs
        >>> data = bs.TonicDataModule("DVSGesture", "gestures.h5", pooling=4)
        >>> data.raw.as_posix()
        'raw/tonic_DVSGesture'
    """

    sensor: tuple[int, int, int]
    unit_s = 1e-6

    def __init__(
        self,
        dataset: str,
        path: str | Path,
        dt_ms: float = 10.0,
        n_steps: int = 150,
        pooling: int = 1,
        test_fraction: float = 0.1,
        split_seed: int = 0,
        **options: Any,
    ) -> None:
        require(dataset.isidentifier(), "dataset", dataset, "the name of a set of tonic")
        self.dataset = dataset
        self.config_name = f"tonic_{dataset}"
        super().__init__(path, dt_ms, n_steps, **options)
        require_whole(pooling=pooling, split_seed=split_seed)
        require(pooling >= 1, "pooling", pooling, "at least 1")
        require(0 < test_fraction < 1, "test_fraction", test_fraction, "0 < x < 1")
        require(split_seed >= 0, "split_seed", split_seed, "at least 0")
        self.pooling = pooling
        self.test_fraction = test_fraction
        self.split_seed = split_seed
        self._dt_us = exact_us(dt_ms)
        self._has_validation = False  # until the prepared file is opened

    def _overrides(self) -> list[str]:
        overrides = ["data=tonic", f"data.dataset={self.dataset}"]
        if self.test_fraction != 0.1:
            overrides.append(f"data.test_fraction={self.test_fraction:g}")
        if self.split_seed != 0:
            overrides.append(f"data.split_seed={self.split_seed}")
        return overrides

    def _fetch(self) -> None:
        for file in find_set(self.dataset).archives():
            if file.url:
                fetch(file, self.raw)
            elif not (self.raw / file.filename).is_file():
                raise ValueError(
                    f"download: expected {self.raw / file.filename}, got no file; {self.dataset} "
                    "has to be downloaded by hand (see its page in tonic's documentation)"
                )

    def _convert(self) -> None:
        prepare_tonic(self.dataset, self.raw, self.path, self.test_fraction, self.split_seed)

    def _check_content(self, file: EventFile) -> None:
        divided_here = content_name(self.dataset, self.test_fraction, self.split_seed)
        if file.name not in (self.dataset, divided_here) or file.sensor is None:
            raise ValueError(
                f"{self.path}: expected {self.dataset} or {divided_here!r}, got {file.name!r}; "
                "delete the file, or choose another with data.path"
            )
        require(
            self.pooling <= max(file.sensor[:2]),
            "pooling",
            self.pooling,
            f"at most {max(file.sensor[:2])}, the longer side of the sensor",
        )
        self.sensor, self.n_classes = file.sensor, file.n_classes
        self._has_validation = file.validation is not None
        self.n_inputs = SensorPooling(file.sensor, self.pooling).n_inputs

    @property
    def validates(self) -> bool:
        """Whether a part of the training set is held out, or the set has one for validation."""
        return self._has_validation or super().validates

    def _validation(self, file: EventFile) -> tuple[EventSplit, np.ndarray]:
        if file.validation is None:
            return super()._validation(file)
        return file.validation, np.arange(len(file.validation))

    def _bin(self, time: np.ndarray) -> np.ndarray:
        return whole_steps(time, self._dt_us)

    def _event_map(self, training: bool) -> EventMap | None:
        return None if self.pooling == 1 else SensorPooling(self.sensor, self.pooling)


@dataclass(frozen=True)
class SensorPooling:
    """Sums squares of pixels into inputs (see `TonicDataModule`)."""

    sensor: tuple[int, int, int]
    pooling: int

    @property
    def n_inputs(self) -> int:
        """Number of inputs."""
        width, height, n_polarities = self.sensor
        return -(-width // self.pooling) * -(-height // self.pooling) * n_polarities

    def __call__(self, events: Gathered) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the times, pooled units int64 ``[n]``, and that all events are kept."""
        width, height, _ = self.sensor
        row, x = np.divmod(events.unit.astype(np.int64), width)
        polarity, y = np.divmod(row, height)
        row = polarity * -(-height // self.pooling) + y // self.pooling
        unit = row * -(-width // self.pooling) + x // self.pooling
        return events.time, unit, np.ones(len(unit), bool)
