"""The tables that figures are drawn from, and which of them a picture shows."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from blockspike.files import write_text
from blockspike.runs.renamed import with_new_names


@dataclass(frozen=True)
class Source:
    """A table as it was when it was read; equal where the bytes are.

    Attributes:
        path: its file, as it was named.
        n_rows: how many rows it had.
        sha256: of the file's bytes.
    """

    path: str = field(compare=False)
    n_rows: int = field(compare=False)
    sha256: str

    def write_beside(self, picture: Path) -> None:
        """Say in a .json file of the picture's name that it was drawn from this table."""
        write_text(picture.with_suffix(".json"), json.dumps(asdict(self), indent=1))


def source_beside(picture: Path) -> Source | None:
    """What `write_beside` wrote, or None if nobody did."""
    path = picture.with_suffix(".json")
    return Source(**json.loads(path.read_text())) if path.is_file() else None


def read_table(path: Path) -> tuple[pd.DataFrame, Source]:
    """The table of runs, or of speed, in a .parquet or .csv file.

    Raises:
        ValueError: another kind of file.
        FileNotFoundError: there is none.
    """
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv}
    if path.suffix not in readers:
        raise ValueError(f"table: expected a file {' or '.join(readers)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no table here; `blockspike collect` makes one of all runs, "
            "`blockspike benchmark` one of speed"
        )
    table = with_new_names(readers[path.suffix](path))
    return table, Source(str(path), len(table), hashlib.sha256(path.read_bytes()).hexdigest())
