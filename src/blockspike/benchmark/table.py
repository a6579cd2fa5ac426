"""File of the benchmark's rows, from which a killed benchmark can resume."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class RowFile:
    """Rows as JSON lines; those of one measurement are added all together or not at all.

    Args:
        path: the file; it and its folder are made by the first `add`.
    """

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[Row]:
        """All rows, without a last line cut short by a kill.

        Raises:
            ValueError: a line is damaged.
        """
        if not self.path.is_file():
            return []
        rows: list[Row] = []
        for number, line in enumerate(self.path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                rows += json.loads(line)
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"{self.path}: line {number} is damaged ({error}); delete it "
                    "to measure it again"
                ) from error
        return rows

    def find(self, wanted: Mapping[str, Any]) -> list[Row]:
        """The rows with these values."""
        return [row for row in self.rows() if wanted.items() <= row.items()]

    def add(self, rows: Sequence[Row]) -> None:
        """Append the rows of one measurement."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        whole = self.path.read_bytes() if self.path.is_file() else b""
        with self.path.open("r+b" if whole else "wb") as file:
            file.seek(whole.rfind(b"\n") + 1)  # overwrite a line cut short by a kill
            file.truncate()
            file.write(json.dumps(list(rows)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
