"""Atomic file writes, and JSON files with a checksum."""

import errno
import hashlib
import io
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

_NO_SYNC = (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EIO)
CONF = Path(__file__).parent / "conf"
"""The tree of Hydra configurations."""
SAMPLES = Path(__file__).parent / "data" / "samples"
"""Recordings shipped with blockspike; each folder states its source and licence."""


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file name beside `path`, and rename the file if the body succeeds.

    Missing folders are made. A killed process leaves either the old file or the new one, synced
    to disk. Its temporary file is removed by the next write on the same machine.

    Raises:
        OSError: the file cannot be written; the error names `path`.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_temporaries(path)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, removed at the end.

    That of a killed process is removed by the next call for the same `path` on the same machine.

    Raises:
        OSError: the folder or a file in it cannot be written; the error names one of them.
    """
    folder = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale_temporaries(path)
    folder.mkdir()
    try:
        yield folder
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(folder)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Replace the file's text atomically."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write compressed arrays atomically.

    The archive is built in memory: on a full disk, zipfile would raise a second error on closing.
    """
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)  # pyright: ignore[reportArgumentType]
    with whole_file(path) as temporary:
        temporary.write_bytes(content.getvalue())


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON object, with a `sha256` of the rest of its content."""
    write_text(path, json.dumps({**content, "sha256": _digest(content)}, indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object without its `sha256`; an empty one if there is no file.

    Raises:
        ValueError: the file holds no JSON object, or its checksum does not match. An object
            without a checksum is accepted.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got a damaged file ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}")
    expected = content.pop("sha256", None)
    if expected is not None and expected != _digest(content):
        raise ValueError(f"{path}: damaged or edited by hand, its sha256 does not match")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove_stale_temporaries(path: Path) -> None:
    """Remove temporary files and folders left by killed processes of this machine."""
    prefix = f".{path.name}.{socket.gethostname()}."
    for found in path.parent.iterdir():
        pid = found.name.removeprefix(prefix).removesuffix(".part")
        if found.name == f"{prefix}{pid}.part" and pid.isdecimal() and not _is_running(int(pid)):
            if found.is_dir():
                shutil.rmtree(found, ignore_errors=True)
            else:
                found.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's
    return True


def _sync_folder(path: Path) -> None:
    """Sync the renaming of a file; some shared folders and network drives cannot."""
    try:
        _sync(path)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
