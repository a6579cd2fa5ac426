"""Recordings of the Allen Cell Types Database, downloaded by AllenSDK.

The cells are those of the paper (docs/paper.md, Fitting recordings): mouse, layer 4, no disease, at
least four sweeps of the stimulus "Noise 2"; 146 in the paper.

The recordings are © Allen Institute for Brain Science, Allen Cell Types Database, available from
https://celltypes.brain-map.org. The Allen Institute's terms of use
(https://alleninstitute.org/terms-of-use) allow non-commercial use and require this citation.

The cache folder is that of AllenSDK's ``CellTypesCache``, which can continue to use it::

    manifest.json
    cells.json
    specimen_<id>/ephys_sweeps.json
    specimen_<id>/ephys.nwb

AllenSDK takes a truncated file for a complete one, so each file is downloaded under another name
and renamed once it could be read.
"""

from __future__ import annotations

import json
import logging
import socket
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.error import HTTPError, URLError

from blockspike.data.progress import progress
from blockspike.data.recordings import Recording, load_recording
from blockspike.data.recordings_datamodule import RecordingsDataModule

STIMULI = ("Noise 1", "Noise 2")
_SPECIES, _LAYER, _NO_DISEASE = "mus musculus", "4", ("", "no disease", None)
_REPEATED, _MIN_REPEATS = "Noise 2", 4
_ADDRESS = "https://api.brain-map.org"  # AllenSDK's own default is http
_TIMEOUT_S = 60
_GIVE_UP_AFTER = 3  # cells in a row without a connection: the network is at fault

_T = TypeVar("_T")


@dataclass(frozen=True)
class Downloaded:
    """Complete recordings, and why others are missing, by specimen id."""

    paths: list[Path]
    failed: dict[int, str]


class AllenRecordings(RecordingsDataModule):
    """Cells of the Allen Cell Types Database in AllenSDK's cache folder ``path``.

    Args:
        n_cells: number of cells that `prepare` downloads, the first by id; None = all.
        download: whether `prepare` may download; otherwise the cells in ``path`` are used.
        path, **recordings: as for `RecordingsDataModule`.

    Examples:
        >>> import blockspike as bs
        >>> data = bs.AllenRecordings("data/allen", n_cells=2, dt_ms=0.5)  # reads in `setup`
        >>> data.n_cells
        2
    """

    def __init__(
        self,
        path: str | Path,
        n_cells: int | None = None,
        download: bool = False,
        **recordings: Any,
    ):
        super().__init__(path, **recordings)
        self.n_cells, self.download = n_cells, download

    def load(self) -> Iterable[tuple[Recording, Recording]]:
        """Read one cell after another, see `RecordingsDataModule.load`.

        Raises:
            FileNotFoundError: no recording at ``path``; names the command that downloads them.
        """
        try:
            yield from super().load()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; `blockspike prepare data=allen data.download=true` downloads them "
                "(146 cells; Python 3.11 and pip install 'blockspike[allen]')"
            ) from None

    def prepare(self) -> None:
        """Download what is missing, if allowed; cells that fail go into ``failed``.

        Raises:
            ValueError, OSError: as in `prepare_allen`.
        """
        if not self.download:
            return
        failed = prepare_allen(self.path, self.n_cells).failed
        self._not_there = {f"specimen_{cell}": reason for cell, reason in failed.items()}


def prepare_allen(
    cache_dir: Path | str, n_cells: int | None = None, base_uri: str | None = None
) -> Downloaded:
    """Select the paper's cells and download their recordings; the same call continues.

    Args:
        cache_dir: folder of AllenSDK's cache, created if it does not exist.
        n_cells: number of cells, the first by specimen id; None = all.
        base_uri: address of the server; None = the Allen Institute's.

    Returns:
        The recordings, and the cells whose sweeps or recording could not be downloaded.

    Raises:
        ValueError: AllenSDK is missing, n_cells < 1, or AllenSDK cannot use ``cache_dir``.
        OSError: no network, no list of cells, or the disk is full; what arrived is kept.
    """
    specimens, unknown = select_cells(cache_dir, n_cells, base_uri)
    downloaded = download_cells(cache_dir, specimens, base_uri)
    return Downloaded(downloaded.paths, unknown | downloaded.failed)


def select_cells(
    cache_dir: Path | str, n_cells: int | None = None, base_uri: str | None = None
) -> tuple[list[int], dict[int, str]]:
    """Select the paper's cells: mouse, layer 4, no disease, four or more sweeps of "Noise 2".

    Requests the sweeps cell by cell, until ``n_cells`` are found. Arguments and errors as in
    `prepare_allen`.

    Returns:
        Specimen ids in ascending order, and the reason for each cell whose sweeps are unknown.
    """
    if n_cells is not None and n_cells < 1:
        raise ValueError(f"n_cells: expected at least 1, got {n_cells}")
    folder = _Folder(cache_dir, base_uri)
    candidates = sorted(cell["specimen__id"] for cell in folder.cells() if _is_candidate(cell))
    selected: list[int] = []
    failed: dict[int, str] = {}
    with closing(_tried("Selecting cells", candidates, folder.sweeps, failed)) as tried:
        for specimen, sweeps in tried:
            if sum(sweep["stimulus_name"] == _REPEATED for sweep in sweeps) >= _MIN_REPEATS:
                selected.append(specimen)
            if len(selected) == n_cells:
                break
    return selected, failed


def download_cells(
    cache_dir: Path | str, specimens: Sequence[int], base_uri: str | None = None
) -> Downloaded:
    """Download the recordings of cells, except those that exist and can be read.

    A file that cannot be read is deleted and downloaded again. A cell that fails does not stop the
    others, and nothing of it is kept. Otherwise arguments and errors as in `prepare_allen`.
    """
    folder = _Folder(cache_dir, base_uri)
    print(
        f"Downloading {len(specimens)} recordings from {base_uri or _ADDRESS} to {cache_dir}, "
        "except those already there; the server does not give their size",
        file=sys.stderr,
        flush=True,
    )
    failed: dict[int, str] = {}
    done = dict(_tried("Downloading cells", specimens, folder.recording, failed))
    return Downloaded(list(done.values()), failed)


def _is_candidate(cell: dict[str, Any]) -> bool:
    return (
        str(cell["donor__species"]).lower() == _SPECIES
        and cell["structure__layer"] == _LAYER
        and cell["donor__disease_state"] in _NO_DISEASE
    )


def _tried(
    description: str,
    specimens: Sequence[int],
    work: Callable[[int], _T],
    failed: dict[int, str],
) -> Generator[tuple[int, _T], None, None]:
    """Yield (specimen, result) of those that succeed; put the others' errors into ``failed``.

    Raises:
        OSError: the network or this machine's disk fails, so that all others would fail, too.
    """
    unreached = 0
    with progress(description, len(specimens)) as advance:
        for specimen in specimens:
            try:
                result = work(specimen)
            except (OSError, ValueError) as error:
                unreached = unreached + 1 if isinstance(error, ConnectionError) else 0
                if unreached == _GIVE_UP_AFTER or getattr(error, "errno", None):
                    raise
                failed[specimen] = str(error)
            else:
                unreached = 0
                yield specimen, result
            advance(1)


class _Folder:
    """A cache folder and the AllenSDK cache that fills it."""

    def __init__(self, cache_dir: Path | str, base_uri: str | None) -> None:
        self.path = Path(cache_dir)
        self.cache = _cell_types_cache(self.path / "manifest.json", base_uri)

    def cells(self) -> list[dict[str, Any]]:
        """Get all cells of the database, as rows of ``ApiCellTypesSpecimenDetail``."""
        keys = {"specimen__id", "donor__species", "structure__layer", "donor__disease_state"}
        return _fetched(
            self.path / "cells.json",
            lambda partial: self.cache.get_cells(partial, simple=False),
            lambda path: _rows(path, keys),
        )

    def sweeps(self, specimen: int) -> list[dict[str, Any]]:
        """Get the sweeps of a cell, as rows of ``EphysSweep``."""
        return _fetched(
            self._of(specimen) / "ephys_sweeps.json",
            lambda partial: self.cache.get_ephys_sweeps(specimen, partial),
            lambda path: _rows(path, {"stimulus_name"}),
        )

    def recording(self, specimen: int) -> Path:
        """Get the file of a cell's recording."""
        path = self._of(specimen) / "ephys.nwb"
        _fetched(
            path,
            lambda partial: self.cache.api.save_ephys_data(specimen, partial),
            _check_recording,
        )
        return path

    def _of(self, specimen: int) -> Path:
        return self.path / f"specimen_{specimen}"


def _cell_types_cache(manifest: Path, base_uri: str | None) -> Any:
    """Make AllenSDK's `CellTypesCache`, which writes the manifest if it is missing."""
    with _quiet_allensdk():
        try:
            module = import_module("allensdk.core.cell_types_cache")
        except Exception as error:  # its mismatched dependencies raise more than ImportError
            raise ValueError(
                f"recordings of the Allen Cell Types Database need AllenSDK ({error}): "
                "pip install 'blockspike[allen]', which needs Python 3.11"
            ) from error
        try:
            return module.CellTypesCache(manifest_file=str(manifest), base_uri=base_uri or _ADDRESS)
        except Exception as error:  # AllenSDK has no error class for it
            raise ValueError(f"{manifest}: AllenSDK cannot use it ({_one_line(error)})") from error


def _fetched(path: Path, save: Callable[[str], object], check: Callable[[Path], _T]) -> _T:
    """Return ``check(path)``, after a call of ``save`` if there is no good file.

    Raises:
        ValueError: ``check`` refuses what arrived, which is not kept.
        OSError: the download failed.
    """
    if path.exists():
        with suppress(ValueError):
            return check(path)
        path.unlink()  # AllenSDK leaves truncated files under the final name
    partial = path.with_stem(f"{path.stem}.part")
    partial.unlink(missing_ok=True)  # AllenSDK would not replace it
    try:
        _download(path, lambda: save(str(partial)))
        result = check(partial)
        partial.replace(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(partial), str(path))) from error
    finally:
        partial.unlink(missing_ok=True)
    return result


def _rows(path: Path, keys: set[str]) -> list[dict[str, Any]]:
    """Read rows of a table of the database, each of which must have ``keys``."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({_one_line(error)})") from error
    # The server answers a failed query with text in place of rows.
    are_rows = isinstance(rows, list) and all(
        isinstance(r, dict) and keys <= r.keys() for r in rows
    )
    if not are_rows or not rows:
        raise ValueError(f"{path}: expected rows with {', '.join(sorted(keys))}, got {rows!r:.60}")
    return rows


def _check_recording(path: Path) -> None:
    for stimulus in STIMULI:  # one by one: their lengths differ
        load_recording(path, stimuli=(stimulus,))


def _download(path: Path, save: Callable[[], object]) -> None:
    """Let AllenSDK download a file; whatever it raises becomes an `OSError`.

    Raises:
        ConnectionError: no connection to the server.
        OSError: the server refused or answered nonsense (``errno`` is None), or the disk is full.
    """
    from requests import exceptions  # a dependency of AllenSDK, slow to import

    lost = (ConnectionError, TimeoutError, URLError, exceptions.ConnectionError, exceptions.Timeout)
    try:
        with _quiet_allensdk():
            save()
    except (HTTPError, exceptions.HTTPError) as error:
        raise OSError(f"{path}: the server refused ({_one_line(error)})") from error
    except lost as error:
        raise ConnectionError(
            f"{path}: no connection to the server ({_one_line(error)}); the same command continues"
        ) from error
    except Exception as error:  # AllenSDK raises it for a cell without a file, say
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise OSError(f"{path}: download failed ({_one_line(error)})") from error


@contextmanager
def _quiet_allensdk() -> Iterator[None]:
    """Silence AllenSDK's warnings and log, and set a timeout, of which it has none."""
    log = logging.getLogger("allensdk.api.api.retrieve_file_over_http")
    was_disabled, timeout_s = log.disabled, socket.getdefaulttimeout()
    log.disabled = True
    socket.setdefaulttimeout(_TIMEOUT_S)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled
        socket.setdefaulttimeout(timeout_s)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
