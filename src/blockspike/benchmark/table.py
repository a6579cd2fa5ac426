"""The benchmark's rows in a file that a killed run leaves whole, so that the next one goes on."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowFile:
    """Rows as JSON lines. Those of one measurement are added together or not at all.

    Args:
        path: the file; made with its folder when first added to.
    """

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[Row]:
        """All rows; a last line that a kill cut short is left out."""
        if not self.path.is_file():
            return []
        rows: list[Row] = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                rows += json.loads(line)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.path}: line {number} is damaged ({error}); delete the line, "
                    "and it is measured again"
                ) from error
        return rows

    def find(self, wanted: Mapping[str, Any]) -> list[Row]:
        """The rows that hold these values."""
        return [row for row in self.rows() if wanted.items() <= row.items()]

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows of one measurement."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.read_bytes() if self.path.is_file() else b""
        with self.path.open("r+b" if whole else "wb") as file:
            file.seek(whole.rfind(b"\n") + 1)  # over what a kill left of a line
            file.truncate()
            file.write(json.dumps(list(rows)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
