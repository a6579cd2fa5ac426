"""Pieces of studies, and the file of their rows, from which a killed benchmark resumes."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.timing import Row
from blockspike.files import whole_file


@dataclass(frozen=True)
class Options:
    """What is measured, and how: the options of `python -m benchmarks.run`.

    Attributes:
        contenders: names; None = all.
        rounds: turns of each contender, at least 2.
        longest_turn_s: slower contenders are left out, with a row that says so.
        memory: whether to measure peak memory, each contender in a new process.
        device: of the studies of layers and of `gpu`; the others run on the CPU.
        n_steps, arp_steps, batch_size: grid of the study `length`.
        n_units, n_layers: grid of the study `layers`.
        data: prepared HD-Lauscher file for the study `step`.
    """

    contenders: Sequence[str] | None = None
    rounds: int = 5
    longest_turn_s: float = 10.0
    memory: bool = True
    device: str = "cpu"
    n_steps: Sequence[int] = (512, 1024, 2048)
    arp_steps: Sequence[int] = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    batch_size: Sequence[int] = (32,)
    n_units: Sequence[int] = (128, 256, 512)
    n_layers: Sequence[int] = (1, 2, 3, 4, 5)
    data: Path = Path("data/hd_lauscher_sample.h5")

    def choose(self, names: Sequence[str]) -> list[str]:
        """The chosen ones of these contenders."""
        return [name for name in names if self.contenders is None or name in self.contenders]


@dataclass(frozen=True)
class Piece:
    """The smallest part of a study: contenders measured side by side.

    Attributes:
        key: column → value, shared by all its rows and by no other piece's.
        contenders: their names; empty if none can be chosen.
        measure: returns the rows, without the key.
        device: where it is measured.
    """

    key: Row
    contenders: Sequence[str]
    measure: Callable[[], list[Row]]
    device: str = "cpu"


class Table:
    """A CSV file of rows, each a dictionary of text; a kill leaves it as it was or complete.

    Args:
        path: the file; it and its folder are made when rows are first written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict[str, str]] = []
        if path.is_file():
            with path.open(newline="", encoding="utf-8") as file:
                self.rows = list(csv.DictReader(file))

    def find(self, about: Mapping[str, Any]) -> list[dict[str, str]]:
        """The rows with these values."""
        return [row for row in self.rows if _agrees(row, about)]

    def replace(self, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
        """Append the rows of a piece in place of earlier ones with the same values of `about`."""
        kept = [row for row in self.rows if not _agrees(row, about)]
        self.rows = kept + [{k: _text(x) for k, x in row.items()} for row in rows]
        names = dict.fromkeys(name for row in self.rows for name in row)
        with whole_file(self.path) as path, path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(names), restval="")
            writer.writeheader()
            writer.writerows(self.rows)


def _agrees(row: Mapping[str, str], about: Mapping[str, Any]) -> bool:
    return all(row.get(name, "") == _text(value) for name, value in about.items())


def _text(value: Any) -> str:
    return "" if value is None else str(value)
