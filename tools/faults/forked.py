"""Runs commands in forks of this process, which has imported everything, with faults built in.

A fault costs a second then, not the seven that a new interpreter takes to import PyTorch. The
process itself starts no thread, so that a fork of it is whole.
"""

import builtins
import ctypes
import errno
import fcntl
import io
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blockspike.commands.benchmark
import blockspike.commands.collect
import blockspike.commands.evaluate
import blockspike.commands.figures
import blockspike.commands.fit
import blockspike.commands.prepare
import blockspike.commands.report
import blockspike.commands.status
import blockspike.commands.train  # noqa: F401
from blockspike.cli import main

_LONGEST_S = 120.0
_PIPE_BYTES = 1 << 20
_CAPABILITIES_VERSION, _DAC_OVERRIDE = 0x20080522, 1  # linux/capability.h


@dataclass(frozen=True)
class Done:
    """What a command left behind; a negative code is the signal that killed it."""

    code: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def is_clear(self) -> bool:
        """Whether it stopped as it should: exit code 2 and a line, not a traceback."""
        stated = [line for line in self.err.splitlines() if line.startswith("blockspike ")]
        return self.code == 2 and bool(stated) and "Traceback" not in self.err


class Forked:
    """`blockspike …` in a fork, in a group of its own.

    Args:
        args: of the command.
        folder: it works there.
        fault: called in the fork before the command.
    """

    def __init__(self, args: tuple[str, ...], folder: Path, fault: Callable[[], Any] | None = None):
        pipes = os.pipe(), os.pipe()
        for _, end in pipes:
            fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self.start = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            for number, (_, end) in enumerate(pipes, start=1):
                os.dup2(end, number)
            os.setsid()
            os._exit(_command(args, folder, fault))
        for _, end in pipes:
            os.close(end)
        self._ends = [end for end, _ in pipes]

    def wait(self) -> Done:
        """Its end; a process that takes longer than _LONGEST_S hangs, and gets SIGKILL."""
        ended = _ended(self.pid, self.start + _LONGEST_S)
        hung = ended is None
        if ended is None:
            os.killpg(self.pid, signal.SIGKILL)
            ended = os.waitpid(self.pid, 0)[1]
        out, err = (_read_all(end) for end in self._ends)
        code = 124 if hung else os.waitstatus_to_exitcode(ended)
        return Done(code, out, err, time.monotonic() - self.start)


def run(args: tuple[str, ...], folder: Path, fault: Callable[[], Any] | None = None) -> Done:
    """The command, from start to end."""
    return Forked(args, folder, fault).wait()


def in_fork(function: Callable[[], Any]) -> Any:
    """What the function returns, computed in a fork, since it may start threads."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            value: Any = function()
        except BaseException as error:
            traceback.print_exc()
            value = error
        with os.fdopen(write, "wb") as file:
            pickle.dump(value, file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        content = file.read()
    os.waitpid(pid, 0)
    value = pickle.loads(content)  # written by this program a moment ago
    if isinstance(value, BaseException):
        raise value
    return value


def _command(args: tuple[str, ...], folder: Path, fault: Callable[[], Any] | None) -> int:
    """The exit code, as the interpreter would have it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 0
    try:
        os.chdir(folder)
        sys.argv = ["blockspike", *args]
        if fault is not None:
            fault()
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code or 0


def _ended(pid: int, until: float) -> int | None:
    while time.monotonic() < until:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return status
        time.sleep(0.002)
    return None


def _read_all(end: int) -> str:
    with os.fdopen(end, "rb") as file:
        return file.read().decode(errors="replace")


# Faults, to be called within the fork.


def at_write(n: int, act: Callable[[], None], folder: Path) -> Callable[[], None]:
    """Act at the n-th time that something is opened for writing, synced or renamed in `folder`."""
    count = 0

    def counted() -> None:
        nonlocal count
        count += 1
        if count == n:
            act()

    return at_each_write(counted, folder)


def at_each_write(act: Callable[[], object], folder: Path) -> Callable[[], None]:
    """Act whenever something is opened for writing, synced or renamed in `folder`."""

    def install() -> None:
        def due(path: Any) -> None:
            if isinstance(path, int) or Path(path).absolute().is_relative_to(folder):
                act()

        def before(function: Callable[..., Any], is_one: Callable[..., bool]) -> Any:
            def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
                if is_one(*args, **kwargs):
                    due(path)
                return function(path, *args, **kwargs)

            return wrapped

        def writes(mode: str = "r", *_: Any, **__: Any) -> bool:
            return bool(set(mode) & set("wax+"))

        io.open = builtins.open = before(io.open, writes)
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, before(getattr(os, name), lambda *_, **__: True))

    return install


def full_disk() -> None:
    """What the kernel says of one."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def die() -> None:
    """As of a power cut or the kernel's want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def small_files(n_bytes: int) -> Callable[[], None]:
    """No file can grow beyond so many bytes: writes end in the middle."""

    def install() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    return install


def without_override() -> None:
    """Without root's right to write anywhere; all that it may read stays so."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        header = (ctypes.c_uint32 * 2)(_CAPABILITIES_VERSION, 0)
        data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable, and their upper halves
        assert libc.capget(header, data) == 0
        data[0] &= ~(1 << _DAC_OVERRIDE)
        assert libc.capset(header, data) == 0


def clock_off(seconds: float) -> Callable[[], None]:
    """The clock shows another time from now on."""

    def install() -> None:
        real = time.time
        time.time = lambda: real() + seconds

    return install
