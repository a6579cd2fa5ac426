"""The base class of Lightning data modules for event data sets."""

from __future__ import annotations

import shlex
import warnings
from numbers import Integral
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from blockspike.data.event_file import EventFile, EventSplit, read_event_file
from blockspike.data.loader import EpochSampler, EventDataset, EventMap, PrefetchLoader, identity
from blockspike.files import SAMPLES

_COUNT_CHUNK = 256
_CHECKED_EVENTS, _LEAST_KEPT = 1_000_000, 0.002


class EventDataModule(pl.LightningDataModule):
    """Prepared events as Lightning loaders of ``(EventBatch (T, B, K), labels int64 [B])``.

    A subclass sets ``config_name``, ``n_inputs`` and ``n_classes`` and implements `_fetch`,
    `_convert` and `_bin`. It sets ``download_gb`` if `_fetch` downloads something, and ``sample``,
    a path below `SAMPLES`, if recordings come with blockspike, which ``raw="sample"`` chooses, and
    ``unit_s``, the unit of the times that `_bin` takes, to refuse prepared files of another.
    After `setup` there are ``name`` (of what the prepared file holds), its ``sha256``, the splits
    ``train`` and ``test``, and ``train_indices`` and ``val_indices``, which divide ``train``.

    The training order depends only on ``seed`` and the epoch. The test split is never part of
    training or validation. If several processes train, they share the batches that one process
    would have, and ``batch_size`` counts the samples of all of them. A process without a share of
    the last batch gets a sample labelled `NO_LABEL`, which does not count.

    Args:
        path: the prepared file.
        dt_ms: length of a time step.
        n_steps: steps T of a sample; later events are dropped.
        raw: the files to prepare it from; None = ``raw/<config_name>`` beside ``path``, where
            downloads go; "sample" = recordings that come with blockspike.
        download: whether `prepare` may download the published files.
        batch_size: samples of a batch, in all processes together.
        validation_fraction: part of the training set held out, stratified by label; 0 = none, to
            train on everything for a number of epochs chosen before.
        seed: seed of the validation split and the training order.

    Raises:
        ValueError: an argument is out of range.

    Examples:
        >>> import blockspike as bs
        >>> class Clicks(bs.EventDataModule):
        ...     config_name, n_inputs, n_classes = "clicks", 20, 2
        ...
        ...     def _bin(self, time):
        ...         return time // self.dt_ms
        >>> issubclass(Clicks, bs.EventDataModule), issubclass(bs.SHDDataModule, bs.EventDataModule)
        (True, True)
    """

    config_name: str
    n_inputs: int
    n_classes: int
    download_gb: float | None = None
    sample: str | None = None
    unit_s: float | None = None
    sha256: str
    train: EventSplit
    val: EventSplit
    test: EventSplit
    train_indices: np.ndarray
    val_indices: np.ndarray

    def __init__(
        self,
        path: str | Path,
        dt_ms: float,
        n_steps: int,
        raw: str | Path | None = None,
        download: bool = False,
        batch_size: int = 64,
        validation_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        require(0 < dt_ms < float("inf"), "dt_ms", dt_ms, "a positive number of ms")
        require_whole(n_steps=n_steps, batch_size=batch_size, seed=seed)
        require(n_steps >= 1, "n_steps", n_steps, "at least 1")
        require(batch_size >= 1, "batch_size", batch_size, "at least 1")
        require(
            0 <= validation_fraction < 1, "validation_fraction", validation_fraction, "0 ≤ x < 1"
        )
        require(seed >= 0, "seed", seed, "at least 0")
        self.path = Path(path)
        self.raw = self._raw(raw)
        if download and raw == "sample":
            whole = Path(str(self.sample)).parts[0]
            raise ValueError(
                f"download: expected False for the sample (data={whole} is the whole data set), "
                "got True"
            )
        self.download = download
        self.dt_ms = dt_ms
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.validation_fraction = validation_fraction
        self.seed = seed
        self._is_open = False

    def _raw(self, raw: str | Path | None) -> Path:
        if raw == "sample":
            require(
                self.sample is not None, "raw", raw, "a folder, as no sample comes with blockspike"
            )
            return SAMPLES / str(self.sample)
        return Path(raw) if raw else self.path.parent / "raw" / self.config_name

    def _fetch(self) -> None:
        """Download the published files into the folder ``raw``."""
        raise NotImplementedError

    def _convert(self) -> None:
        """Write the prepared file ``path`` from ``raw``."""
        raise NotImplementedError

    def _bin(self, time: np.ndarray) -> np.ndarray:
        """Turn stored times ``[n]`` into time steps, int ``[n]``."""
        raise NotImplementedError

    def _event_map(self, training: bool) -> EventMap | None:
        """Return the map that moves or drops events of a batch, if there is one."""
        return None

    def _validation(self, file: EventFile) -> tuple[EventSplit, np.ndarray]:
        """Return the split that validation data are in, and their indices there."""
        return file.train, self._validation_indices(file.train)

    def _validation_indices(self, train: EventSplit) -> np.ndarray:
        return stratified_subset(train.label, self.validation_fraction, self.seed)

    def prepare(self) -> Path:
        """Make the prepared file if it is missing: download if allowed, then convert.

        Raises:
            FileNotFoundError: there are no recordings, and ``download`` is False.
        """
        if self.download and not self.path.exists():
            self._fetch()  # an earlier download may be incomplete: this verifies what is there
        self.prepare_data()
        return self.path

    def prepare_data(self) -> None:
        """Convert local recordings if the prepared file is missing; never downloads.

        Raises:
            FileNotFoundError: there is neither a prepared file nor recordings.
        """
        if self.path.exists():
            return
        if not self.raw.exists():
            raise self._missing()
        self._convert()

    def _overrides(self) -> list[str]:
        """Return the words of a command that choose this data set."""
        return [f"data={self.config_name}"]

    def _missing(self) -> FileNotFoundError:
        """Error that names where data were expected and how to get them."""
        advice = []
        can_download = type(self)._fetch is not EventDataModule._fetch
        if can_download and self.raw.parts[-2:] == ("raw", self.config_name):
            command = ["blockspike", "prepare", *self._overrides(), "data.download=true"]
            if self.path.name != f"{self.config_name}.h5":
                command.append(f"data.path={self.path}")
            elif self.path.parent != Path("data"):
                command.append(f"data_dir={self.path.parent}")
            size = f" ({self.download_gb} GB)" if self.download_gb else ""
            advice.append(f"`{shlex.join(command)}` downloads them{size}")
        else:
            advice.append("put recordings there")
        if self.sample:
            advice.append(f"data={Path(self.sample).parts[0]}_sample comes with blockspike")
        return FileNotFoundError(
            f"{self.path}: expected prepared data, or recordings in {self.raw}, got neither; "
            + ", or ".join(advice)
        )

    def setup(self, stage: str | None = None) -> None:
        """Open the prepared file and split the training data; the same for every stage.

        Raises:
            FileNotFoundError: no prepared file.
            ValueError: the prepared file is damaged or holds another data set, or no recording is
                left for training or validation.
        """
        file = read_event_file(self.path)
        self._check_content(file)
        for split in (file.train, file.test):
            if self.unit_s not in (None, split.unit_s):
                raise ValueError(
                    f"{self.path}: expected times in units of {self.unit_s} s, got {split.unit_s}"
                )
        self.name, self.sha256 = file.name, file.verified_sha256()
        self.train, self.test = file.train, file.test
        self.train_indices, self.val_indices = np.arange(len(file.train)), np.empty(0, int)
        self.val = file.train
        if self.validates:
            self.val, self.val_indices = self._validation(file)
        if self.val is file.train:
            self.train_indices = np.setdiff1d(self.train_indices, self.val_indices)
        for part, size in (("training", self.train_indices), ("validation", self.val_indices)):
            if not len(size) and (self.validates or part == "training"):
                raise ValueError(
                    f"{self.path}: expected recordings for {part}, got none of {len(file.train)}"
                )
        self._warn_of_times()
        self._is_open = True

    def _warn_of_times(self) -> None:
        """Warn if hardly any event is within the steps; then the times may have another unit."""
        first = np.asarray(self.train.time[:_CHECKED_EVENTS])
        step = self._bin(first)
        kept = float(((step >= 0) & (step < self.n_steps)).mean()) if len(first) else 1.0
        if kept < _LEAST_KEPT:
            warnings.warn(
                f"{self.path}: {kept:.2%} of the events are within {self.n_steps} steps of "
                f"{self.dt_ms:g} ms, and the rest is left out; is the unit of their times right?",
                stacklevel=3,
            )

    @property
    def validates(self) -> bool:
        """Whether a part of the training set is held out."""
        return self.validation_fraction > 0

    def _check_content(self, file: EventFile) -> None:
        """Raise ValueError if the prepared file holds another data set."""
        if (file.n_units, file.n_classes) != self._stored_sizes():
            raise ValueError(
                f"{self.path}: expected {self._stored_sizes()} units and classes, got {file.name} "
                f"with {file.n_units} and {file.n_classes}"
            )

    def _stored_sizes(self) -> tuple[int, int]:
        """Units and classes that the prepared file must have."""
        return self.n_inputs, self.n_classes

    def _dataset(self, split: str, training: bool = False) -> EventDataset:
        if not self._is_open:
            raise RuntimeError("the data are not open: call setup() first")
        parts = {
            "train": (self.train, self.train_indices),
            "val": (self.val, self.val_indices),
            "test": (self.test, np.arange(len(self.test))),
        }
        require(split in parts, "split", split, "train, val or test")
        events, indices = parts[split]
        return EventDataset(
            events, indices, self._bin, self.n_steps, self.n_inputs, self._event_map(training)
        )

    def _processes(self) -> tuple[int, int]:
        """Number of processes that share the batches, and the index of this one."""
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)

    def _loader(self, dataset: EventDataset, shuffle: bool = False) -> PrefetchLoader:
        n_processes, process = self._processes()
        require(
            self.batch_size % n_processes == 0,
            "batch_size",
            self.batch_size,
            f"a multiple of the {n_processes} processes that share each batch",
        )
        return PrefetchLoader(
            dataset,
            batch_size=self.batch_size // n_processes,
            sampler=EpochSampler(dataset, n_processes, process, shuffle, self.seed),
            collate_fn=identity,
            # Its own generator: a DataLoader draws a number from the global one at each pass.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> PrefetchLoader:
        """Return shuffled training batches; the incomplete last batch is kept."""
        dataset = self._dataset("train", training=True)
        if getattr(self.trainer, "overfit_batches", 0):  # whose order Lightning keeps: by class
            dataset.indices = np.random.default_rng(self.seed).permutation(dataset.indices)
        return self._loader(dataset, shuffle=True)

    @property
    def n_views(self) -> int:
        """Copies of each test recording, changed in some way, whose scores are averaged."""
        return 1

    def _add_views(self, dataset: EventDataset) -> None:
        """Make a data set serve `n_views` copies of each recording."""

    def val_dataloader(self) -> PrefetchLoader:
        """Return the held-out part of the training data, in order."""
        return self.scored_dataloader("val", with_views=False)

    def test_dataloader(self) -> PrefetchLoader:
        """Return the test data, in order."""
        return self.scored_dataloader("test", with_views=True)

    def scored_dataloader(self, split: str, with_views: bool) -> PrefetchLoader:
        """Return a split in order and without the changes of training.

        Args:
            split: train, val or test.
            with_views: whether batches have `n_views` of each recording, as those of the test do:
                events ``(T, n_views · B, K)``, one whole set after another, and labels ``[B]``.

        Raises:
            ValueError: there is no such split.
        """
        dataset = self._dataset(split)
        if with_views:
            self._add_views(dataset)
        return self._loader(dataset)

    def spike_counts(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        """Count the spikes of each input within the T steps: features for a linear baseline.

        Args:
            split: ``train``, ``val`` or ``test``.

        Returns:
            Counts float32 ``[n, n_inputs]`` and labels int64 ``[n]``.
        """
        dataset = self._dataset(split)
        counts = np.zeros((len(dataset), self.n_inputs), np.float32)
        for start in range(0, len(dataset), _COUNT_CHUNK):
            positions = list(range(start, min(start + _COUNT_CHUNK, len(dataset))))
            batch, _ = dataset.__getitems__(positions)
            row = np.repeat(np.arange(len(batch.row_ptr) - 1), batch.row_ptr.diff().numpy())
            sample = row % batch.batch_size
            cell = sample * self.n_inputs + batch.unit.numpy()
            size = batch.batch_size * self.n_inputs
            counts[positions] = np.bincount(cell, minlength=size).reshape(-1, self.n_inputs)
        return counts, dataset.split.label[dataset.indices]


def stratified_subset(label: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Choose about ``fraction`` of each class, by ``seed`` alone.

    A class of two or more samples has at least one on both sides.

    Args:
        label: int ``[n]``.
        fraction: share of each class that is chosen.
        seed: seed of the choice.

    Returns:
        Sorted indices into ``label``.
    """
    rng = np.random.default_rng(seed)
    chosen = [np.empty(0, np.int64)]
    for value in np.unique(label):
        members = rng.permutation(np.flatnonzero(label == value))
        most = len(members) - 1
        chosen.append(members[: min(max(round(fraction * len(members)), 1), most)])
    return np.sort(np.concatenate(chosen))


def require_whole(**given: object) -> None:
    """Raise ValueError naming the first argument that is not an integer; None is allowed."""
    for name, value in given.items():
        require(value is None or isinstance(value, Integral), name, value, "an integer")


def require(valid: bool, name: str, given: object, expected: str) -> None:
    """Raise ValueError naming the argument, what was expected and what was given."""
    if not valid:
        raise ValueError(f"{name}: expected {expected}, got {given!r}")
