"""`blockspike inspect`: list the sweeps of recordings, and what a fit would use."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from blockspike.data.abf import open_abf
from blockspike.data.recording_files import find_recordings
from blockspike.data.recordings import Recording, load_recording, sweeps_of
from blockspike.data.recordings_datamodule import RecordingsDataModule
from blockspike.data.spikes import detect_spikes
from blockspike.data.sweeps import SeveralElectrodesError

_HOLDING_MS = 5.0  # at the start of a sweep, whose median current is the holding current


class _Row(NamedTuple):
    """A sweep, or a stimulus with all its repeats.

    Attributes:
        number, stimulus: of the sweep.
        dt_ms, current_pa: time between samples, and the current [T].
        voltage_mv: [T], None if there is none.
        n_spikes: of each repeat; None where they would have to be found in a missing voltage.
    """

    number: int
    stimulus: str
    dt_ms: float
    current_pa: np.ndarray
    voltage_mv: np.ndarray | None
    n_spikes: list[int] | None


def inspect(paths: Sequence[Path], sweeps: list[int] | None = None) -> None:
    """Print the sweeps of each recording: stimulus, holding current, sampling, rest and spikes.

    A recording that would be refused is named with the reason.

    Raises:
        FileNotFoundError: there is no recording at a path.
        ValueError: the only recording cannot be used.
    """
    files = [file for path in paths for file in find_recordings(path)]
    console = Console(width=None if sys.stdout.isatty() else 120)
    for file in files:
        try:
            _show(console, file, sweeps)
        except (ValueError, OSError) as error:
            if len(files) == 1:
                raise
            console.print(f"{escape(str(error))}", soft_wrap=True)


def _show(
    console: Console, file: Path, sweeps: list[int] | None, electrode: str | None = None
) -> None:
    """Print a recording, or every electrode of a file of several."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            rows = list(_rows(file, sweeps, electrode))
        except SeveralElectrodesError as error:
            for name in error.electrodes:
                _show(console, file, sweeps, name)
            return
        use = _use(file, sweeps, electrode)
    console.print(_table(file, rows, electrode))
    for text in dict.fromkeys(str(x.message) for x in caught if x.category is UserWarning):
        console.print(f"warning: {escape(text)}", soft_wrap=True)
    console.print(f"{escape(use)}\n", soft_wrap=True)


def _rows(file: Path, sweeps: list[int] | None, electrode: str | None) -> Iterator[_Row]:
    if file.suffix.lower() == ".npz":
        recording = load_recording(file, sweeps=sweeps)
        numbers = range(len(recording.stimuli)) if sweeps is None else sorted(set(sweeps))
        yield from _of_recording(recording, numbers)
        return
    for x in sweeps_of(file, sweeps=sweeps, electrode=electrode):
        times_s = x.spike_times_s
        if times_s is None and x.voltage_mv is not None:
            times_s = detect_spikes(x.voltage_mv, x.dt_ms)
        n_spikes = None if times_s is None else [len(times_s)]
        yield _Row(x.number, x.stimulus, x.dt_ms, x.current_pa, x.voltage_mv, n_spikes)


def _of_recording(recording: Recording, numbers: Sequence[int]) -> Iterator[_Row]:
    for s, (number, name) in enumerate(zip(numbers, recording.stimuli, strict=True)):
        counts = [len(times) for r in recording.spike_times_s if (times := r[s]) is not None]
        current_pa = recording.current_pa[s, : recording.n_samples(s)]
        voltage_mv = None if recording.voltage_mv is None else recording.voltage_mv[s]
        yield _Row(number, name, recording.dt_ms, current_pa, voltage_mv, counts)


def _table(file: Path, rows: list[_Row], electrode: str | None) -> Table:
    title = str(file) if electrode is None else f"{file}: electrode {electrode!r}"
    if file.suffix.lower() == ".abf":
        content = open_abf(file)
        title += f": voltage in {content.voltage.name}, stimulus from the {content.source}"
    table = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("sweep", justify="right")
    table.add_column("stimulus", overflow="fold")
    for name in ("s", "dt ms", "holding pA", "current pA", "rest mV", "spikes", "Hz"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, _cells(row)))
    return table


def _cells(row: _Row) -> tuple[str, ...]:
    duration_s = len(row.current_pa) * row.dt_ms / 1000
    start = row.current_pa[: max(1, round(_HOLDING_MS / row.dt_ms))]
    low, high = row.current_pa.min(), row.current_pa.max()
    counts, rest = row.n_spikes, row.voltage_mv
    return (
        str(row.number),
        row.stimulus,
        f"{duration_s:g}",
        f"{row.dt_ms:g}",
        f"{np.median(start) + 0:.0f}",
        f"{low + 0:.0f} to {high + 0:.0f}",
        "" if rest is None or np.isnan(rest).all() else f"{np.nanmedian(rest):.0f}",
        "?" if counts is None else ", ".join(map(str, counts)),
        "?" if counts is None else f"{np.mean(counts) / duration_s:.1f}",
    )


def _use(file: Path, sweeps: list[int] | None, electrode: str | None) -> str:
    """Describe what a fit of the file would use, or say why there would be none."""
    data = RecordingsDataModule(file, train_sweeps=sweeps, test_sweeps=sweeps, electrode=electrode)
    try:
        data.setup()
    except ValueError as error:
        return f"a fit would be refused: {error}"
    trains, tested = data.train.trains[0], data.test.scored(0)
    n_train, n_test = (sum(int(x.sum()) for x in part) for part in (trains, tested))
    n_repeats = ", ".join(dict.fromkeys(str(len(x)) for x in trains))
    seconds = _seconds([x.shape[1] for x in trains], data.dt_ms)
    test_seconds = _seconds([x.shape[1] for x in tested], data.dt_ms)
    stimuli = "1 stimulus" if len(trains) == 1 else f"{len(trains)} stimuli"
    return (
        f"a fit would use {stimuli} (repeats: {n_repeats}), {n_train} spikes in "
        f"{seconds} s of each to fit, {n_test} in {test_seconds} s to score; train_s, test_s, "
        "train_sweeps and test_sweeps choose others"
    )


def _seconds(n_steps: list[int], dt_ms: float) -> str:
    low, high = (f"{n * dt_ms / 1000:g}" for n in (min(n_steps), max(n_steps)))
    return low if low == high else f"{low} to {high}"
