"""Tables that figures are drawn from, and a record of which table a picture shows."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from blockspike.files import write_text


@dataclass(frozen=True)
class Source:
    """Identity of a table that was read; two are equal if the files' bytes are.

    Attributes:
        path: path of the file.
        n_rows: number of rows.
        sha256: hash of the file's bytes.
        arguments: of `blockspike figures` for a picture of it, besides figure and table.
    """

    path: str = field(compare=False)
    n_rows: int = field(compare=False)
    sha256: str
    arguments: str = field(default="", compare=False)

    def write_beside(self, picture: Path) -> None:
        """Record in a .json file of the picture's name that it was drawn from this table."""
        write_text(picture.with_suffix(".json"), json.dumps(asdict(self), indent=1))


def source_beside(picture: Path) -> Source | None:
    """Read what `write_beside` recorded for a picture; None if there is no such record."""
    try:
        return Source(**json.loads(picture.with_suffix(".json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # no file, or one that is not ours
        return None


def read_table(path: Path) -> tuple[pd.DataFrame, Source]:
    """Read a table of runs or speeds from a .parquet or .csv file.

    Returns:
        The table, with today's column names, and its identity.

    Raises:
        ValueError: the file has another suffix.
        FileNotFoundError: there is no such file.
    """
    readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv}
    if path.suffix not in readers:
        raise ValueError(f"table: expected a file {' or '.join(readers)}, got {path}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a table, got no file; `blockspike collect` makes one of runs, "
            "`blockspike benchmark` one of speeds"
        )
    table = readers[path.suffix](path)
    return table, source_of(path, len(table))


def require_columns(
    table: pd.DataFrame, names: Iterable[str], command: str = "blockspike collect"
) -> None:
    """Refuse a table without the columns that a command writes.

    Raises:
        ValueError: columns are missing; it names them.
    """
    if missing := [name for name in names if name not in table]:
        raise ValueError(
            f"table: expected the columns that `{command}` writes, got a table without "
            f"{', '.join(missing)}"
        )


def source_of(path: Path, n_rows: int) -> Source:
    """Identity of a file with so many rows."""
    return Source(str(path), n_rows, hashlib.sha256(path.read_bytes()).hexdigest())
