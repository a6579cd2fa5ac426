"""Downloads of public data sets over https, most with addresses and checksums from tonic.

tonic's own downloader leaves an unverified file under the final name, cannot resume and falls
back from https to http, so it is not used.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from blockspike.data.progress import progress

_TIMEOUT_S = 60
_MNIST_URL = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # PyTorch's copy
_MNIST_MD5 = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
_BLOCK_BYTES = 1 << 16  # an interruption loses at most this much


@dataclass(frozen=True)
class RemoteFile:
    """A file to download: its address, its local name and its MD5 checksum."""

    url: str
    filename: str
    md5: str


def nmnist_files() -> list[RemoteFile]:
    """Return N-MNIST's ``train.zip`` and ``test.zip``.

    Raises:
        ValueError: tonic is not installed.
    """
    known = tonic_datasets().NMNIST
    return [
        RemoteFile(known.train_url, known.train_filename, known.train_md5),
        RemoteFile(known.test_url, known.test_filename, known.test_md5),
    ]


def shd_files() -> list[RemoteFile]:
    """Return the published SHD's ``shd_train.h5.zip`` and ``shd_test.h5.zip``.

    Raises:
        ValueError: tonic is not installed.
    """
    return _heidelberg_files("SHD", ("train", "test"))


def ssc_files() -> list[RemoteFile]:
    """Return the published SSC's training, validation and test ``.h5.zip``.

    Raises:
        ValueError: tonic is not installed.
    """
    return _heidelberg_files("SSC", ("train", "valid", "test"))


def mnist_files() -> list[RemoteFile]:
    """Return the four files of MNIST, with the checksums that torchvision has."""
    return [RemoteFile(_MNIST_URL + name, name, md5) for name, md5 in _MNIST_MD5.items()]


def _heidelberg_files(name: str, parts: tuple[str, ...]) -> list[RemoteFile]:
    known = getattr(tonic_datasets(), name)
    files = []
    for part in parts:
        filename = getattr(known, f"{part}_zip")
        files.append(RemoteFile(known.base_url + filename, filename, getattr(known, f"{part}_md5")))
    return files


def tonic_datasets(argument: str = "download") -> Any:
    """Return the module of tonic's data sets.

    Raises:
        ValueError: tonic is not installed; names the `argument` that needs it.
    """
    try:
        return import_module("tonic.datasets")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{argument}: expected the package {error.name}, got none; "
            "pip install 'blockspike[data]'"
        ) from None


def fetch(file: RemoteFile, folder: Path | str) -> Path:
    """Download a file unless a good copy is there; continue an interrupted download.

    Before the transfer starts, a line on stderr gives the address, the size and the destination.
    The file appears under its name only after its checksum was verified.

    Returns:
        The path of the verified file in ``folder``.

    Raises:
        ConnectionError: the transfer failed; what arrived is kept and the next call continues it.
        ValueError: the checksum is wrong, and nothing is kept; or the address is not https or
            redirects to another scheme, which gets no request.
    """
    if not file.url.startswith("https://"):
        raise ValueError(f"{file.url}: expected an address that starts with https://")
    path = Path(folder) / file.filename
    if path.is_file() and has_md5(path, file.md5):
        return path
    partial = path.with_name(f"{path.name}.part")
    _Download(partial).continue_from(file.url)
    found = _md5(partial)
    if found != file.md5:
        partial.unlink()
        raise ValueError(
            f"{path}: expected the published MD5 {file.md5}, got {found}; nothing is kept"
        )
    partial.replace(path)
    return path


def has_md5(path: Path, md5: str) -> bool:
    """Whether the file has this checksum."""
    return _md5(path) == md5


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


@dataclass(frozen=True)
class _Download:
    """Keeps what has arrived in ``partial`` and requests only the rest."""

    partial: Path

    def continue_from(self, url: str) -> None:
        """Fetch what is missing."""
        import requests  # slow to import

        try:
            with requests.Session() as session:
                session.adapters.pop("http://")  # the server must not redirect there
                self._transfer(url, requests, session)
        except requests.exceptions.InvalidSchema as error:
            raise ValueError(f"{url}: expected https, got another scheme ({error})") from error
        except (requests.RequestException, OSError) as error:
            raise ConnectionError(
                f"{url}: download failed ({error}); the same command continues it"
            ) from error

    def _transfer(self, url: str, requests: Any, session: Any) -> None:
        start = self.partial.stat().st_size if self.partial.exists() else 0
        # "identity": a compressed transfer would make byte ranges meaningless.
        headers = {"Accept-Encoding": "identity", "User-Agent": "blockspike"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with session.get(url, headers=headers, stream=True, timeout=_TIMEOUT_S) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # everything had arrived; the checksum decides
            response.raise_for_status()
            resumed = response.status_code == requests.codes.partial_content
            expected = int(response.headers.get("Content-Length", 0))
            received = 0
            self._announce(url, expected, start if resumed else 0)
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            with (
                self.partial.open("ab" if resumed else "wb") as out,
                progress(f"Downloading {self.partial.stem}", expected) as advance,
            ):
                for block in response.iter_content(_BLOCK_BYTES):
                    out.write(block)
                    received += len(block)
                    advance(len(block))
        if received < expected:
            raise OSError(f"expected {expected} bytes, got {received}")

    def _announce(self, url: str, n_bytes: int, n_before: int) -> None:
        size = _size(n_before + n_bytes) if n_bytes else "size unknown"
        kept = f", {_size(n_before)} already here" if n_before else ""
        path = self.partial.with_suffix("")
        print(f"Downloading {url} ({size}{kept}) to {path}", file=sys.stderr, flush=True)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"
