"""Recordings as one batch for a fit, and as test data."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytorch_lightning as pl
from torch import Tensor

from blockspike.data.datamodule import require, require_whole
from blockspike.data.electrode import Electrode, electrode_of, without_electrode
from blockspike.data.parts import Part, beside, n_steps_of, padded, stacked
from blockspike.data.progress import progress
from blockspike.data.recording_files import cell_names, find_recordings
from blockspike.data.recordings import Recording, load_recording, name_of
from blockspike.data.sweeps import SeveralElectrodesError

Segments = list[list[Any]]  # numbers; OmegaConf takes no int for a float inside a list
_TRAIN_SHARE = 0.6  # of a recording whose segments are not given
_LEAST_SPIKES = 2


class _Cut(NamedTuple):
    """A segment of a stimulus."""

    stimulus: int
    start_s: float
    stop_s: float

    def steps(self, dt_ms: float) -> slice:
        """Its steps."""
        first = round(self.start_s * 1000 / dt_ms)
        return slice(first, first + int((self.stop_s - self.start_s) * 1000 / dt_ms + 1e-6))

    def begun_earlier(self, by_s: float) -> _Cut:
        """The segment and some time before it."""
        return self._replace(start_s=self.start_s - by_s)


_Segments = tuple[np.ndarray, list[np.ndarray]]  # currents [T, B], as `beside`; trains [B][R, T]


@dataclass(frozen=True)
class _Cell:
    """One cell's parts, cut but not scaled."""

    name: str
    train: _Segments
    test: _Segments
    scale_pa: float
    test_scale_pa: float
    first_scored: list[int]
    titles: list[str]
    train_voltage_mv: np.ndarray | None
    test_mean_voltage_mv: np.ndarray | None
    voltage_mv: np.ndarray | None
    compensated: Electrode | None


class RecordingsDataModule(pl.LightningDataModule):
    """Current-clamp recordings of C cells, split by time or by stimulus.

    Cells may have different numbers of segments, and segments different lengths. A cell that cannot
    be read, lacks a segment, or has fewer than two spikes to fit or none to score, is left out and
    named in ``failed``; the others are used. ``title`` names the data set. After `setup` there are
    ``names``, ``scale_pa``, ``train``, ``test`` and ``sha256``, the hash of the recordings as read
    (None if they are synthetic); and, for plots, of each cell's scored test segments,
    ``test_titles`` and ``test_voltage_mv`` (see `Recording.voltage`), float32 ``[B, T]`` with NaN
    where a segment has no voltage, or None. ``train_voltage_mv`` and ``test_mean_voltage_mv`` are
    means of the steps of all segments, with the time before them that is simulated.
    ``compensated`` are the electrodes whose voltage was subtracted, one per cell, or None.

    Currents are divided by a number per cell, ``scale_pa``, that is stored with its fit: the
    standard deviation of its training current, or, in the paper's recipe, 100 times its maximum.

    Args:
        path: one recording, or a folder with a recording of each cell. A folder of ``.ibw`` files
            is one recording.
        dt_ms: length of a step of the model, over which currents are averaged.
        train_stimulus, test_stimulus: name of the stimulus, or a pattern such as "*ramp*"; None =
            every stimulus.
        train_sweeps, test_sweeps: numbers of the sweeps, in an ``.npz`` of the stimuli; None = all.
        electrode: name or number of the electrode to read; None = each is a cell of its own, named
            after its file and electrode.
        train_s, test_s: segments [[start, stop], …] in seconds; None = the first 60 % of each sweep
            and the rest, or all of each if sweeps, folds or stimuli are given of which none is in
            both parts (a pattern may share one with the other stimulus).
        held_out: share of each training segment, at its end, that the gradient and selections do
            not see; the best epoch and start are chosen by the whole segment.
        warm_up_s: time before each test segment that is simulated but not scored, or less if the
            sweep begins later.
        train_warm_up_s: time before each segment of `train_s` that is simulated but not fitted, so
            that the neuron enters it adapted. Without it each segment begins at rest.
        first_trial_only: fit to the first trial, not to the mean of all; all are scored.
        scaling: "deviation" or, as published, "maximum".
        own_test_scale: divide the test current by a scale of its own, as published.
        name: name of the data set, for tables; None = the file's or folder's name.
        compensation: "aec" subtracts the electrode's share of the recorded voltage, estimated in
            the training segments (see `electrode_of`); None = nothing.
        n_folds, fold: cross-validation: every n-th stimulus, from number `fold` on, is for the test
            and the others are for training, each as a whole or in `train_s` and `test_s`.

    Raises:
        ValueError: an argument is out of range, or training and test segments overlap.

    Examples:
        >>> import numpy as np
        >>> import blockspike as bs
        >>> np.savez(
        ...     "cell.npz",
        ...     current_pa=np.random.default_rng(0).normal(0, 50, 50_000),
        ...     dt_ms=0.1,
        ...     spike_times_s=np.arange(0.1, 5, 0.1),
        ... )
        >>> data = bs.RecordingsDataModule("cell.npz", dt_ms=0.5)
        >>> data.setup()
        >>> data.names
        ['cell']
    """

    is_recorded = True  # synthetic cells have no file, and are fitted however few spikes they have

    def __init__(
        self,
        path: str | Path,
        dt_ms: float = 0.5,
        train_stimulus: str | None = None,
        test_stimulus: str | None = None,
        train_sweeps: list[int] | None = None,
        test_sweeps: list[int] | None = None,
        electrode: str | None = None,
        train_s: Segments | None = None,
        test_s: Segments | None = None,
        held_out: float = 0.2,
        warm_up_s: float = 1.0,
        train_warm_up_s: float = 0.0,
        first_trial_only: bool = False,
        scaling: Literal["deviation", "maximum"] = "deviation",
        own_test_scale: bool = False,
        name: str | None = None,
        n_folds: int | None = None,
        fold: int = 0,
        compensation: Literal["aec"] | None = None,
    ):
        super().__init__()
        require(compensation in (None, "aec"), "compensation", compensation, "aec or null")
        require(0 < dt_ms < float("inf"), "dt_ms", dt_ms, "a positive number of ms")
        require(0 <= held_out < 1, "held_out", held_out, "0 ≤ x < 1")
        require(warm_up_s >= 0, "warm_up_s", warm_up_s, "at least 0")
        _check_train_warm_up(train_warm_up_s, train_s)
        require(scaling in ("deviation", "maximum"), "scaling", scaling, "deviation or maximum")
        for key, sweeps in (("train_sweeps", train_sweeps), ("test_sweeps", test_sweeps)):
            _check_sweeps(key, sweeps)
        for key, name_of_one in (
            ("train_stimulus", train_stimulus),
            ("test_stimulus", test_stimulus),
        ):
            require(isinstance(name_of_one, str | None), key, name_of_one, "a name or None")
        require((train_sweeps is None) == (test_sweeps is None), "train_sweeps, test_sweeps",
                (train_sweeps, test_sweeps), "both or neither")  # fmt: skip
        _check_folds(n_folds, fold, train_sweeps, train_stimulus, test_stimulus)
        apart = (
            n_folds is not None
            or (train_sweeps is not None and not set(train_sweeps) & set(test_sweeps or ()))
            or not _may_be_same(train_stimulus, test_stimulus)
        )
        require((train_s is None) == (test_s is None), "train_s, test_s", (train_s, test_s),
                "both or neither")  # fmt: skip
        for key, segments in (("train_s", train_s), ("test_s", test_s)):
            _check_segments(key, segments)
        if train_s is not None and test_s is not None and not apart:
            _check_apart(train_s, test_s)
        self.path, self.dt_ms = Path(path), dt_ms
        self.train_stimulus, self.test_stimulus = train_stimulus, test_stimulus
        self.train_sweeps, self.test_sweeps, self._apart = train_sweeps, test_sweeps, apart
        self.electrode, self.train_s, self.test_s = electrode, train_s, test_s
        self.held_out, self.warm_up_s = held_out, warm_up_s
        self.train_warm_up_s = train_warm_up_s
        self.first_trial_only, self.scaling = first_trial_only, scaling
        self.own_test_scale = own_test_scale
        self.n_folds, self.fold = n_folds, fold
        self.compensation = compensation
        self.title: str = name or name_of(self.path)
        self.failed: dict[str, str] = {}
        self._not_there: dict[str, str] = {}

    def prepare(self) -> None:
        """Do nothing: recordings need no preparation."""

    def load(self) -> Iterable[tuple[Recording, Recording]]:
        """Read one cell after another, its training and test stimuli; failures go into ``failed``.

        Raises:
            FileNotFoundError: no recording at ``path``.
        """
        files = find_recordings(self.path)
        with progress(f"Reading {self.title}", len(files)) as advance:
            for name, file in zip(cell_names(files, self.path), files, strict=True):
                yield from self._pairs(file, name, self.electrode)
                advance(1)

    def _pairs(
        self, file: Path, name: str, electrode: str | None
    ) -> list[tuple[Recording, Recording]]:
        """Training and test stimuli of each cell in a file; those that fail go into ``failed``."""
        chosen = (electrode, self.train_stimulus, self.train_sweeps)
        tested = (electrode, self.test_stimulus, self.test_sweeps)
        try:
            train = _read(file, name, *chosen)
            if self.n_folds is not None:
                return [_fold(train, self.n_folds, self.fold)]
            if chosen == tested:
                return [(train, train)]
            return [(train, _read(file, name, *tested))]
        except SeveralElectrodesError as error:
            return [pair for own in error.electrodes for pair in self._pairs(file, name, own)]
        except (ValueError, OSError) as error:
            is_one_of_several = electrode is not None and self.electrode is None
            self.failed[f"{name}_{electrode}" if is_one_of_several else name] = str(error)
            return []

    def setup(self, stage: str | None = None) -> None:
        """Read, cut, bin and scale all cells; the same for every stage.

        Raises:
            FileNotFoundError: no recording at ``path``.
            ValueError: no cell could be used; names the first reason.
        """
        self.failed = dict(self._not_there)
        cells, digest = [], hashlib.sha256()
        for train, test in self.load():
            for recording in (train,) if train is test else (train, test):
                digest.update(recording.sha256().encode())
            try:
                cells.append(self._cut(train, test))
            except ValueError as error:
                text = str(error)
                own = text.startswith(train.name)
                self.failed[train.name] = text if own else f"{train.name}: {text}"
        self.sha256 = digest.hexdigest() if self.is_recorded else None
        if not cells:
            reasons = list(self.failed.values())
            raise ValueError(reasons[0] if len(reasons) == 1 else
                f"{self.path}: no recording could be used; the first reason of {len(reasons)}: "
                f"{reasons[0]}")  # fmt: skip
        self.names = [cell.name for cell in cells]
        self.scale_pa = np.array([cell.scale_pa for cell in cells])
        self.test_scale_pa = np.array([cell.test_scale_pa for cell in cells])
        self.test_titles = [cell.titles for cell in cells]
        self.train_voltage_mv = [cell.train_voltage_mv for cell in cells]
        self.test_voltage_mv = [cell.voltage_mv for cell in cells]
        self.test_mean_voltage_mv = [cell.test_mean_voltage_mv for cell in cells]
        self.compensated = [cell.compensated for cell in cells]
        first_fitted = [[self._train_warm_up_steps] * len(cell.train[1]) for cell in cells]
        first_scored = [cell.first_scored for cell in cells]
        self.train = _part([cell.train for cell in cells], self.scale_pa, first_fitted)
        self.test = _part([cell.test for cell in cells], self.test_scale_pa, first_scored)

    def _cut(self, train: Recording, test: Recording) -> _Cell:
        share = 1.0 if self._apart else _TRAIN_SHARE
        trained = _cuts(train, self.train_s, (0.0, share))
        tested = _cuts(test, self.test_s, (0.0 if self._apart else _TRAIN_SHARE, 1.0))
        warm_up_s = [min(self.warm_up_s, cut.start_s) for cut in tested]
        first_scored = [round(x * 1000 / self.dt_ms) for x in warm_up_s]
        titles = _titles(test, tested)
        fitted, scored = trained, tested
        trained = [cut.begun_earlier(self.train_warm_up_s) for cut in trained]
        tested = [cut.begun_earlier(x) for cut, x in zip(tested, warm_up_s, strict=True)]
        train_data, test_data = self._segments(train, trained), self._segments(test, tested)
        if self.is_recorded:
            own_s = [sum(x.stop_s - x.start_s for x in cuts) for cuts in (fitted, scored)]
            n_train = sum(int(x[:, self._train_warm_up_steps :].sum()) for x in train_data[1])
            own_test = zip(test_data[1], first_scored, strict=True)
            n_test = sum(int(x[:, first:].sum()) for x, first in own_test)
            _check_spikes(train.name, own_s, n_train, n_test)
        scale_pa = self._scale(train_data[0][self._train_warm_up_steps :])
        compensated = None
        if self.compensation is not None:
            own = [(cut.stimulus, cut.steps(train.dt_ms)) for cut in fitted]
            compensated = electrode_of(train, own)
            train, test = (without_electrode(x, compensated) for x in (train, test))
        return _Cell(
            train.name, train_data, test_data, scale_pa,
            self._scale(test_data[0]) if self.own_test_scale else scale_pa,
            first_scored, titles,
            self._voltage(train, trained, [0] * len(trained), "mean"),
            self._voltage(test, tested, [0] * len(tested), "mean"),
            self._voltage(test, tested, first_scored, "largest"),
            compensated,
        )  # fmt: skip

    @property
    def _train_warm_up_steps(self) -> int:
        return round(self.train_warm_up_s * 1000 / self.dt_ms)

    def _segments(self, recording: Recording, cuts: list[_Cut]) -> _Segments:
        currents, trains = [], []
        current = recording.current(self.dt_ms)
        for number, of_stimulus in groupby(cuts, lambda cut: cut.stimulus):
            spikes = recording.spike_trains(number, self.dt_ms)
            for cut in of_stimulus:
                steps = cut.steps(self.dt_ms)
                currents.append(current[number, steps])
                trains.append(spikes[:, steps])
        return beside(currents), trains

    def _voltage(
        self,
        recording: Recording,
        cuts: list[_Cut],
        first: list[int],
        of_step: Literal["largest", "mean"],
    ) -> np.ndarray | None:
        """Voltages [B, T] of all segments from step `first` on, NaN where there is none."""
        if recording.voltage_mv is None:
            return None
        rows: list[np.ndarray] = []
        for number, of_stimulus in groupby(cuts, lambda cut: cut.stimulus):
            voltage = recording.voltage(number, self.dt_ms, of_step)
            if voltage is None:
                n_steps = recording.spike_trains(number, self.dt_ms).shape[1]
                voltage = np.full(n_steps, np.nan, np.float32)
            for cut in of_stimulus:
                rows.append(voltage[cut.steps(self.dt_ms)][first[len(rows)] :])
        return beside(rows).T

    def _scale(self, current: np.ndarray) -> float:
        current = current[~np.isnan(current)]
        scale = current.std() if self.scaling == "deviation" else 100 * current.max()
        if not scale > 0:
            raise ValueError(f"current: expected one that varies, got {self.scaling} {scale:g} pA")
        return float(scale)

    def _wanted(self, trains: np.ndarray) -> np.ndarray:
        return trains[0] if self.first_trial_only else trains.mean(0)

    def batch(self):
        """Return (current, target, (first, split, last)) of the training part.

        The target is the mean of the trials, or the first.
        """
        targets = [[self._wanted(t) for t in trains] for trains in self.train.trains]
        first, last = self._train_warm_up_steps, n_steps_of(self.train.trains)
        n_steps = last - first
        if isinstance(n_steps, Tensor):
            n_steps = n_steps.clamp(min=0)  # where there is no segment
        held_out = self.held_out * n_steps
        split = last - (
            held_out.round().long() if isinstance(held_out, Tensor) else round(held_out)
        )
        return self.train.current, stacked([beside(own) for own in targets]), (first, split, last)

    def trials(self) -> tuple[Tensor, Tensor]:
        """Return the recorded spikes of the training part and which trials there are; see `padded`.

        They are those whose mean is the target of `batch`.
        """
        n_trials = 1 if self.first_trial_only else None
        return padded([[x[:n_trials] for x in trains] for trains in self.train.trains])


def _check_folds(n_folds: int | None, fold: int, *choices: Any) -> None:
    require_whole(n_folds=n_folds, fold=fold)
    if n_folds is None:
        require(fold == 0, "fold", fold, "none without n_folds")
        return
    require(n_folds >= 2, "n_folds", n_folds, "at least 2")
    require(0 <= fold < n_folds, "fold", fold, f"0 to {n_folds - 1}")
    sweeps, train_stimulus, test_stimulus = choices
    require(sweeps is None and train_stimulus == test_stimulus, "n_folds", n_folds,
            "none beside train_sweeps, or stimuli that differ")  # fmt: skip


def _fold(recording: Recording, n_folds: int, fold: int) -> tuple[Recording, Recording]:
    """Training and test stimuli of a fold."""
    numbers = range(len(recording.stimuli))
    if len(numbers) < n_folds:
        raise ValueError(
            f"{recording.name}: expected at least {n_folds} stimuli, one a fold, got {len(numbers)}"
        )
    tested = [s for s in numbers if s % n_folds == fold]
    trained = [s for s in numbers if s not in tested]
    return _with_stimuli(recording, trained), _with_stimuli(recording, tested)


def _with_stimuli(recording: Recording, kept: list[int]) -> Recording:
    voltage_mv = recording.voltage_mv
    return replace(
        recording,
        current_pa=recording.current_pa[kept],
        spike_times_s=[[repeat[s] for s in kept] for repeat in recording.spike_times_s],
        stimuli=tuple(recording.stimuli[s] for s in kept),
        voltage_mv=None if voltage_mv is None else [voltage_mv[s] for s in kept],
    )


def _read(
    file: Path, name: str, electrode: str | None, stimulus: str | None, sweeps: list[int] | None
) -> Recording:
    stimuli = None if stimulus is None else [stimulus]
    recording = load_recording(file, stimuli, sweeps, electrode)
    ending = recording.name.removeprefix(name_of(file))  # of the electrode
    return replace(recording, name=name + ending)


def _cuts(
    recording: Recording, segments_s: Segments | None, shares: tuple[float, float]
) -> list[_Cut]:
    """Segments of each stimulus in turn: those given, or one between two shares of its duration."""
    cuts = []
    for number, stimulus in enumerate(recording.stimuli):
        duration_s = recording.duration_s(number)
        for start, stop in segments_s or [[share * duration_s for share in shares]]:
            if stop > duration_s + 1e-9:
                raise ValueError(
                    f"{recording.name}: expected a recording that holds the segment "
                    f"{start:g}–{stop:g} s, got one of {duration_s:g} s ({stimulus})"
                )
            cuts.append(_Cut(number, start, stop))
    return cuts


def _titles(recording: Recording, cuts: list[_Cut]) -> list[str]:
    """Stimulus of each segment, and its time if it is not the whole."""
    titles = []
    for number, start_s, stop_s in cuts:
        stimulus = recording.stimuli[number]
        is_shared = recording.stimuli.count(stimulus) > 1
        name = f"{stimulus} ({number})" if is_shared else stimulus
        is_whole = start_s == 0 and stop_s == recording.duration_s(number)
        titles.append(name if is_whole else f"{name}, {start_s:g}–{stop_s:g} s")
    return titles


def _check_sweeps(key: str, sweeps: Sequence[int] | None) -> None:
    if sweeps is not None:
        fine = isinstance(sweeps, Iterable) and all(isinstance(x, Integral) for x in sweeps)
        fine = fine and 0 < len(set(sweeps)) == len(sweeps)
        require(fine, key, sweeps, "at least one sweep, each once")


def _is_nested(values: object) -> bool:
    return isinstance(values, Iterable) and all(isinstance(x, Iterable) for x in values)


def _check_segments(key: str, segments: Segments | None) -> None:
    if segments is None:
        return
    pairs = [s for s in segments if len(s) == 2] if _is_nested(segments) else []
    fine = 0 < len(pairs) == len(segments)
    fine = fine and all(isinstance(x, Real) for pair in pairs for x in pair)
    fine = fine and all(0 <= start < stop < float("inf") for start, stop in pairs)
    require(fine, key, segments, "[[start, stop], …] in seconds with 0 ≤ start < stop")
    for (_, stop), (start, _) in pairwise(sorted(tuple(s) for s in segments)):
        require(stop <= start, key, segments, "segments that do not overlap")


def _check_train_warm_up(train_warm_up_s: float, train_s: Segments | None) -> None:
    key = "train_warm_up_s"
    require(0 <= train_warm_up_s < float("inf"), key, train_warm_up_s, "a time of at least 0 s")
    if train_warm_up_s > 0:
        before_s = min(start for start, _ in train_s or [[0.0, 0.0]])
        expected = f"no more than the {before_s:g} s before the first segment of train_s"
        require(train_warm_up_s <= before_s, key, train_warm_up_s, expected)


def _may_be_same(train_stimulus: str | None, test_stimulus: str | None) -> bool:
    if train_stimulus is None or test_stimulus is None:
        return True
    if any(sign in train_stimulus + test_stimulus for sign in "*?["):  # patterns may overlap
        return True
    return train_stimulus.strip().casefold() == test_stimulus.strip().casefold()


def _check_apart(train_s: Segments, test_s: Segments) -> None:
    for a, b in train_s:
        for c, d in test_s:
            require(b <= c or d <= a, "train_s, test_s", ([a, b], [c, d]),
                    "segments that do not overlap")  # fmt: skip


def _check_spikes(
    name: str,
    durations_s: Sequence[float],
    n_train: int,
    n_test: int,
) -> None:
    """Raise ValueError if there are too few spikes to fit a neuron to, or none to score it by."""
    parts = " and ".join(f"{x:.6g}" for x in durations_s)
    found = f"got {n_train} and {n_test} in {parts} s; choose parts by train_s and test_s"
    if n_train < _LEAST_SPIKES:
        raise ValueError(
            f"{name}: expected at least {_LEAST_SPIKES} spikes in the training part (parameters "
            f"would be invented), and one in the test part, {found}"
        )
    if n_test < 1:
        raise ValueError(f"{name}: expected spikes in the training and in the test part, {found}")


def _part(cut: Sequence[_Segments], scale: np.ndarray, first: list[list[int]]) -> Part:
    currents = [current / own for (current, _), own in zip(cut, scale, strict=True)]
    return Part(stacked(currents), [trains for _, trains in cut], first)
