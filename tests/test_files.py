"""Atomic files, JSON that detects damage, and a full disk reported in one line."""

import errno
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from blockspike.files import read_json, scratch_folder, whole_file, write_json, write_text


def test_json_is_read_back_and_flipped_bits_are_detected_or_harmless(tmp_path):
    path, content = tmp_path / "a.json", {"x": 0.1, "n": 3, "nan": [float("inf")], "é": None}
    write_json(path, content)
    assert read_json(path) == content
    whole, refused = path.read_bytes(), 0
    for i in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[i // 8] ^= 1 << (i % 8)
        path.write_bytes(damaged)
        try:
            found = read_json(path)
        except ValueError:
            refused += 1
            continue
        # The flip hit white space or the key "sha256".
        assert {k: found[k] for k in content} == content
    assert refused > 7 * len(whole)


def test_json_without_a_checksum_is_accepted(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"x": 1}))
    assert read_json(path) == {"x": 1}
    assert read_json(tmp_path / "absent.json") == {}


def test_a_failed_write_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("blockspike.files.os.fsync", full_disk)
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_file_is_on_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls, path = [], tmp_path / "a.txt"
    real = os.fsync
    monkeypatch.setattr(
        "blockspike.files.os.fsync", lambda d: calls.append(path.exists()) or real(d)
    )
    with whole_file(path) as temporary:
        temporary.write_text("x")
    assert calls == [False, True]  # the file, then its folder


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    """As on some network drives."""
    sync = os.fsync

    def of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", of_files_alone)
    write_json(tmp_path / "a.json", {"x": 1})
    assert read_json(tmp_path / "a.json") == {"x": 1}


def test_a_scratch_folder_is_removed_and_that_of_a_dead_process_too(tmp_path):
    path = tmp_path / "new" / "a.h5"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = path.with_name(f".a.h5.{socket.gethostname()}.{dead.pid}.part")
    kept = path.with_name(f".a.h5.{socket.gethostname()}.{os.getppid()}.part")
    for folder in (left, kept):
        (folder / "inner").mkdir(parents=True)
    with scratch_folder(path) as folder:
        assert not left.exists() and list(folder.iterdir()) == []
        (folder / "x").write_text("x")
    assert list(path.parent.iterdir()) == [kept]
    with pytest.raises(OSError, match=r"No space left on device: '.*\.part'"), scratch_folder(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert list(path.parent.iterdir()) == [kept]


def check_error_is_one_line(code: str, path: Path, n_bytes: int) -> None:
    """Run code that writes to `path` in a new process with a size limit; check its error."""
    limited = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({n_bytes}, {n_bytes}))
path = Path(sys.argv[1])
try:
    {code}
except OSError as error:
    print(error)
"""
    command = [sys.executable, "-c", limited, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr
    assert done.stdout == f"[Errno 27] File too large: '{path}'\n"
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("n_bytes", [10, 900, 4_000, 12_000])
def test_a_full_disk_neither_crashes_hdf5_nor_leaves_a_file(tmp_path, n_bytes):
    code = """
    from blockspike.data.event_file import SplitContent, write_event_file
    zeros = [(np.zeros(1000, np.uint32), np.zeros(1000, np.uint16))]
    part = SplitContent(np.array([1000]), np.zeros(1), zeros, np.dtype(np.uint32), 1e-6)
    write_event_file(path, "n", "s", 7, 3, part, part)
"""
    check_error_is_one_line(code, tmp_path / "a.h5", n_bytes)


def test_a_disk_that_fills_while_writing_arrays_gives_one_line(tmp_path):
    code = """
    from blockspike.files import write_npz
    write_npz(path, {"x": np.random.default_rng(0).random(1000)})
"""
    check_error_is_one_line(code, tmp_path / "a.npz", 900)
