"""Runs commands; each job of a sweep in its own process, so that its death ends no other job."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from blockspike.runs.rank import is_first_process, take_rank
from blockspike.runs.run import Run, RunRefusedError, one_line

_FAILED, _INTERRUPTED = 2, 130  # exit codes
_FIRST = "BLOCKSPIKE_FIRST_PROCESS"  # its pid, for the processes that Lightning starts
_TO_STOP_S = 5.0


def run_here(name: str, cfg: DictConfig) -> None:
    """Run the command `name` in this process; raises what the command raises."""
    _call(name, cfg, _command_line(name, cfg))


def run_in_subprocess(name: str, cfg: DictConfig, full: bool, sweep: int) -> None:
    """Run a job of a sweep in a process of its own; print why if it does not finish.

    A failure, including a killed process, is written to the run's `error.log`, unless the folder is
    another run's.

    Args:
        name: the command.
        cfg: the job's configuration.
        full: whether to print tracebacks.
        sweep: pid of the sweep's process.

    Raises:
        KeyboardInterrupt: this process was interrupted.
    """
    if multiprocessing.current_process().name.startswith("LokyProcess"):  # joblib's
        _end_with(sweep)
    # Never a fork of this process: it may have threads, which a fork does not survive. On macOS,
    # not even a fork server that has loaded PyTorch; nor in a job of submitit, which has only one
    # run, and whose signals would end the server. Forced: joblib's workers set their own method.
    alone = sys.platform == "darwin" or "SUBMITIT_EXECUTOR" in os.environ
    method = "spawn" if alone else "forkserver"
    multiprocessing.set_start_method(method, force=True)
    multiprocessing.set_forkserver_preload([f"blockspike.commands.{name}"])
    plain = OmegaConf.to_container(cfg, resolve=True)
    # The present environment is passed on, because the fork server may have an older one.
    arguments = (name, plain, _command_line(name, cfg), full, dict(os.environ))
    process = multiprocessing.Process(target=_job, args=arguments)
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join(_TO_STOP_S)  # the terminal interrupts it too; it records its state
        if process.is_alive():
            os.kill(process.pid or 0, signal.SIGINT)
            process.join()
        raise
    code = process.exitcode or 0
    if code in (_INTERRUPTED, -signal.SIGTERM):
        print(f"blockspike {name}: interrupted, the sweep continues", file=sys.stderr)
    elif code not in (0, _FAILED):
        _report(name, cfg, ChildProcessError(_end_of(code)), full)


def _end_of(code: int) -> str:
    if code >= 0:
        return f"the run's process ended with exit code {code}"
    name = signal.Signals(-code).name
    hint = "; out of memory?" if name == "SIGKILL" else ""
    return f"the run's process was killed ({name}{hint})"


def _job(
    name: str,
    plain: dict[str, Any],
    command_line: list[str],
    full: bool,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    # Submitit warns all processes of a job when its time is nearly up. The job itself handles the
    # warning, and is queued again or not.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sweep = multiprocessing.parent_process()
    assert sweep is not None
    _watch(sweep.join)
    cfg = OmegaConf.create(plain)
    try:
        _call(name, cfg, command_line)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except Exception as error:
        _report(name, cfg, error, full)
        sys.exit(_FAILED)


def _call(name: str, cfg: DictConfig, command_line: list[str]) -> None:
    take_rank(cfg.get("trainer"))
    if is_first_process():
        os.environ[_FIRST] = str(os.getpid())
    else:
        _watch(_wait_for_end_of, int(os.environ.get(_FIRST, os.getppid())))
    # Lightning starts the other processes of a run with these, whatever program this one is.
    sys.argv = command_line
    sys.modules["__main__"].__spec__ = find_spec("blockspike.__main__")
    python_lines = warnings.formatwarning
    warnings.formatwarning = partial(_warning_line, python_lines)
    try:
        getattr(import_module(f"blockspike.commands.{name}"), name)(cfg)
    finally:
        warnings.formatwarning = python_lines
        os.environ.pop(_FIRST, None)


def _warning_line(
    python_lines: Callable[..., str], message: Any, category: Any, file: str, *place: Any
) -> str:
    """Our own warnings without the line of code that gave them; others as Python prints them."""
    ours = Path(file).is_relative_to(Path(__file__).parents[1])
    return f"warning: {message}\n" if ours else python_lines(message, category, file, *place)


def _command_line(name: str, cfg: DictConfig) -> list[str]:
    """Command line for this job alone, even if it is part of a sweep."""
    hydra = HydraConfig.get()
    arguments = [name]
    for source in hydra.runtime.config_sources:
        if source.provider == "command-line":
            arguments += ["--config-dir", source.path]
    arguments += [o for o in hydra.overrides.hydra if not o.startswith("hydra.mode=")]
    arguments += list(hydra.overrides.task)
    if "run_dir" in cfg:
        folder = str(cfg.run_dir).replace("'", "\\'")
        arguments.append(f"run_dir='{folder}'")
    return [sys.argv[0], *arguments]


def _report(name: str, cfg: DictConfig, error: Exception, full: bool) -> None:
    report(name, error, full)
    if "run_dir" in cfg and not isinstance(error, RunRefusedError):
        with suppress(OSError):  # that the folder cannot be written may be the error
            Run(Path(cfg.run_dir)).write_error(error)


def report(name: str, error: Exception, full: bool) -> None:
    """Print a command's error on one line; if `full`, after its traceback."""
    if full:
        traceback.print_exception(error)
    print(f"blockspike {name}: {one_line(error)}", file=sys.stderr)


def _watch(wait: Callable[..., None], *arguments: Any) -> None:
    """Kill this process when `wait` returns: it would only keep its run's folder locked."""

    def watch() -> None:
        wait(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


@cache
def _end_with(sweep: int) -> None:
    """Kill this worker of a sweep when the sweep ends, and with it the run that it waits for."""
    _watch(_wait_for_end_of, sweep)


def _wait_for_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
