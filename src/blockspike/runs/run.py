"""A run and its folder: locked while it runs, closed to other configurations, resumable."""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
import tomllib
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from blockspike.files import read_json, write_json, write_text
from blockspike.runs.identity import is_fit
from blockspike.runs.log import logged_to
from blockspike.runs.plain_yaml import read_plain_yaml
from blockspike.runs.rank import is_first_process
from blockspike.runs.slurm import own_job_id

_PACKAGES = ("blockspike", "torch", "pytorch-lightning", "numpy", "numba")
_LOCK_TRIES, _LOCK_PAUSE_S = 20, 0.1  # a check of the lock holds it for a moment
_FIRST_TRIES = 600  # a minute, for the run's first process to start


class RunRefusedError(ValueError):
    """The folder belongs to a run of another configuration or of another process."""


class Run:
    """The folder of one run.

    It holds `config.yaml`, `content.json` (what the result depends on), `data.json` (the hashes of
    the data and of the user's own code), `status.json`, `checkpoints/{last,previous,best}.ckpt`,
    `metrics.csv` and, when finished, `result.json` and, of a classifier, `confusion.csv`;
    `train.log` or `fit.log`; `error.log` if the last attempt failed, with `bad_batch.ckpt` if a
    number was not finite. If several processes share a run, only the first writes.
    """

    def __init__(self, folder: Path):
        self.folder = folder

    def logged(self) -> AbstractContextManager[None]:
        """Append what the first process logs and warns of to `train.log`, or `fit.log`."""
        if not is_first_process():
            return nullcontext()
        kind = "fit" if is_fit(self.config()) else "train"
        title = f"blockspike {version('blockspike')}: {' '.join(sys.argv[1:])}"
        return logged_to(self.folder / f"{kind}.log", title)

    @property
    def last_checkpoint(self) -> Path:
        """State after the last complete epoch."""
        return self.folder / "checkpoints" / "last.ckpt"

    @property
    def previous_checkpoint(self) -> Path:
        """State one epoch earlier, in case `last.ckpt` is damaged."""
        return self.folder / "checkpoints" / "previous.ckpt"

    @property
    def best_checkpoint(self) -> Path:
        """Model chosen on the validation data."""
        return self.folder / "checkpoints" / "best.ckpt"

    @property
    def confusion(self) -> Path:
        """Confusion matrix of a classifier's test, one row per true class."""
        return self.folder / "confusion.csv"

    def result(self) -> dict[str, Any] | None:
        """Row of the finished or pruned run, or None; that of a pruned one has `pruned`.

        Raises:
            ValueError: the file is damaged.
        """
        return read_json(self.folder / "result.json") or None

    def check_finished(self, option: str) -> None:
        """Raise ValueError if the run, which the key `option` names, is not finished."""
        row = self.result()
        if row is None or row.get("pruned"):
            found = "none" if row is None else "one that a search pruned"
            raise ValueError(f"{option}: expected a finished run in {self.folder}, got {found}")

    def config(self) -> DictConfig:
        """Configuration of the run; plain values only, as it may be another person's.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: the file is no configuration as a run writes it.
        """
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder}: no run here (expected {path.name})")
        return read_plain_yaml(path)

    def check_content(self, content: dict[str, Any], is_read: bool = False) -> None:
        """Raise RunRefusedError if the folder belongs to a run with another configuration.

        Args:
            content: what the result depends on.
            is_read: whether it is that of the folder's own `config.yaml`.
        """
        path = self.folder / "content.json"
        if not path.is_file():
            return
        before, now = flatten(read_json(path)), flatten(content)
        changed = changed_keys(before, now)
        if changed:
            changes = ", ".join(f"{k}: {before.get(k)!r} → {now.get(k)!r}" for k in changed[:4])
            if is_read:
                raise RunRefusedError(
                    f"{self.folder}: config.yaml is not as the run wrote it ({changes}); undo that"
                )
            hint = "choose another experiment_name, or delete the folder"
            is_finished = "fit" not in content and self.result() is not None
            key = "trainer.max_epochs"
            if is_finished and changed == [key] and now[key] > before[key]:
                hint = f"with another experiment_name, extend={self.folder} continues it"
            raise RunRefusedError(
                f"{self.folder}: holds a run with another configuration ({changes}); {hint}"
            )

    def may_have_other_data(self, path: str | None) -> bool:
        """Whether `path` differs from that of the run, or has files newer than the last check."""
        last = self.folder / "data.json"
        if path is None or not last.is_file():
            return False
        if path != self.config().data.get("path"):
            return True
        place, checked = Path(path), last.stat().st_mtime
        found = (x.stat() for x in (place, *place.rglob("*")) if x.exists())  # a folder: deletions
        return any(max(x.st_mtime, x.st_ctime) > checked for x in found)

    def check_data(self, sha256: str | None) -> None:
        """Raise RunRefusedError if the run has read data with another hash; None matches all."""
        before = read_json(self.folder / "data.json").get("data_sha256")
        if None not in (before, sha256) and before != sha256:
            raise RunRefusedError(
                f"{self.folder}: the data have changed since the run started (SHA-256 {before} → "
                f"{sha256}); restore them, or delete the folder"
            )

    def mark_data_checked(self) -> None:
        """Note the time, after which `may_have_other_data` need not look at older files again."""
        os.utime(self.folder / "data.json")

    def has_other_code(self, sha256: str | None) -> bool:
        """Whether the user's own code had another hash when the run was started."""
        if sha256 is None:
            return False
        before = read_json(self.folder / "data.json").get("code_sha256")
        return before is not None and before != sha256

    @contextmanager
    def recorded(
        self,
        cfg: DictConfig,
        content: dict[str, Any],
        digest: str,
        data_sha256: str | None = None,
        code_sha256: str | None = None,
    ) -> Iterator[None]:
        """Lock the folder for this process and keep `status.json` up to date during the run.

        Args:
            cfg: configuration.
            content: what the result depends on.
            digest: hash of `content`.
            data_sha256: hash of the data.
            code_sha256: hash of the user's own code.

        Raises:
            RunRefusedError: another process runs here or has finished the run, or the configuration
                or the data differ.
            ValueError: the file system has no locks.
            KeyboardInterrupt: the run was interrupted.
        """
        if not is_first_process():
            self._wait_for_first(content)
            yield
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+") as lock:
            try:
                held = _locked(lock)
            except OSError as error:
                raise cannot_lock(self.folder, error) from error
            if not held:
                raise RunRefusedError(f"{self.folder}: already running as process {self._pid()}")
            self.check_content(content)  # another process may have run since
            self.check_data(data_sha256)
            row = self.result()
            if row is not None and not row.get("pruned"):
                raise RunRefusedError(f"{self.folder}: another process has finished it meanwhile")
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            write_json(self.folder / "content.json", content)
            hashes = {"data_sha256": data_sha256, "code_sha256": code_sha256}
            if known := {name: value for name, value in hashes.items() if value is not None}:
                write_json(self.folder / "data.json", known | read_json(self.folder / "data.json"))
            status = self._first_status(digest)
            self._write_status(status)
            try:
                yield
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
                self._write_status({**status, "state": "interrupted", "ended": now()})
                raise KeyboardInterrupt from None
            except Exception as error:
                self.write_error(error)
                ended = {"state": "failed", "ended": now(), "error": str(error)}
                self._write_status({**status, **ended})
                raise
            self._write_status({**status, "state": "done", "ended": now()})

    def _first_status(self, digest: str) -> dict[str, Any]:
        """Status of an attempt that starts now."""
        had_attempt = (self.folder / "status.json").is_file()
        return {
            "state": "running",
            "pid": os.getpid(),
            "started": now(),
            **provenance(),
            "config_hash": digest,
            "arguments": sys.argv[1:],
            "slurm_job": own_job_id(),
            "earlier_s": self.seconds(runs=False) if had_attempt else 0.0,
        }

    def _wait_for_first(self, content: dict[str, Any]) -> None:
        """Raise RunRefusedError unless the first process of this run runs here, too.

        Tasks of a Slurm step with as many devices count as one run; with `seed=$SLURM_PROCID`, they
        would be several.
        """
        for _ in range(_FIRST_TRIES):
            if self.is_held() and flatten(read_json(self.folder / "content.json")) == flatten(
                content
            ):
                return
            time.sleep(_LOCK_PAUSE_S)
        raise RunRefusedError(
            f"{self.folder}: expected the first process of this run here, got none; tasks of one "
            "step share one run, so separate runs need one device each (trainer.devices=1)"
        )

    def arguments(self) -> list[str]:
        """Command and overrides of the last start, without those that only name places.

        Of the user's folder of configurations, the name is kept: the command cannot do without.
        """
        given = read_json(self.folder / "status.json").get("arguments", [])
        of_place = (
            "run_dir",
            "output_dir",
            "data_dir",
            "progress",
            "threads",
            "hydra.",
            "logger",
            "tags",
            "extend",
        )
        of_place += ("data.path", "data.raw", "data.download", "sweep", "/", "-")
        of_place += ("search", "pruning")
        kept = [argument for argument in given if not argument.lstrip("+~").startswith(of_place)]
        if "--config-dir" in given:
            folder = Path(given[given.index("--config-dir") + 1])
            kept.insert(1, f"--config-dir={folder.name}")
        return kept

    def seconds(self, runs: bool) -> float | None:
        """Seconds of all attempts together; None if a file is damaged or there was no attempt.

        An attempt that was killed ended with its last epoch; before its first one, it counts as 0.

        Args:
            runs: whether the last attempt still runs.
        """
        metrics = self.folder / "metrics.csv"
        try:
            status = read_json(self.folder / "status.json")
            began = datetime.fromisoformat(status["started"])
            last_epoch = (
                time_text(metrics.stat().st_mtime) if metrics.is_file() else status["started"]
            )
            end = datetime.fromisoformat(now() if runs else status.get("ended", last_epoch))
            return max((end - began).total_seconds(), 0.0) + status.get("earlier_s", 0.0)
        except (KeyError, ValueError, TypeError):
            return None

    def mark_done(self) -> None:
        """Correct the status of a process that was killed right after it wrote its result."""
        status = read_json(self.folder / "status.json")
        if is_first_process() and status.get("state") == "running":
            self._write_status({**status, "state": "done"})

    def _write_status(self, status: dict[str, Any]) -> None:
        write_json(self.folder / "status.json", status)

    def _pid(self) -> int | str:
        try:
            return read_json(self.folder / "status.json").get("pid", "unknown")
        except ValueError:  # damaged
            return "unknown"

    def write_result(self, row: dict[str, Any]) -> None:
        """Write the finished run's row."""
        if is_first_process():
            write_json(self.folder / "result.json", row)

    @property
    def error_log(self) -> Path:
        """Log of a failed last attempt; its last line is the error."""
        return self.folder / "error.log"

    def write_error(self, error: BaseException) -> None:
        """Write an exception and its traceback; only an attempt's first one, the cause, is kept."""
        if self.error_log.is_file():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        trace = "".join(traceback.format_exception(error))
        write_text(self.error_log, f"{trace}\n{type(error).__name__}: {one_line(error)}\n")

    def clear_error(self) -> None:
        """Delete the log of an earlier attempt."""
        if is_first_process():
            self.error_log.unlink(missing_ok=True)

    def is_held(self) -> bool:
        """Whether a process is running here."""
        try:
            with (self.folder / ".lock").open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # no lock file, or a file system without locks
            return False
        return False


def _locked(lock: IO[str]) -> bool:
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
    return False


def cannot_lock(folder: Path, error: OSError) -> ValueError:
    """Make the error of a folder whose file system has no locks."""
    return ValueError(f"{folder}: cannot be locked; does its file system have flock? ({error})")


def one_line(error: BaseException) -> str:
    """Join an error and its causes on one line."""
    parts: list[str] = []
    # Hydra's instantiation error only repeats its cause.
    cause = error.__cause__ if isinstance(error, InstantiationException) else error
    while cause is not None:
        text = " ".join(str(cause).split())
        if text and not any(text in part for part in parts):
            parts.append(text)
        cause = cause.__cause__
    return ": ".join(parts) or type(error).__name__


def provenance() -> dict[str, Any]:
    """Package versions and machine; in a checkout of blockspike, also its commit and state.

    A copy that is installed or inside another project has no commit: that project's is not its own.
    """
    own = _is_checkout()
    return {
        "git_sha": (own and _git("rev-parse", "HEAD")) or None,
        "git_dirty": own and bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {name: version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "machine": f"{platform.node()} {platform.machine()} {os.cpu_count()} cores",
    }


def _is_checkout() -> bool:
    root = Path(__file__).resolve().parents[3]
    if _git("rev-parse", "--show-toplevel") != str(root) or not (root / "pyproject.toml").is_file():
        return False
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    return project.get("project", {}).get("name") == "blockspike"


def _git(*args: str) -> str:
    """Output of git in the folder of this package; empty without git."""
    command = ["git", "-C", str(Path(__file__).parent), *args]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def run_folders(output_dir: Path) -> dict[str, Path]:
    """Folders of all runs below `output_dir`, by the hash of their configuration.

    Overrides spelt differently make several folders with one hash; of these, the first that is
    finished, else the first.
    """
    found: dict[str, Path] = {}
    for file in sorted(output_dir.rglob("status.json"), key=_unfinished_last):
        with suppress(ValueError, OSError):  # damaged, or another user's; `status` names it
            digest = read_json(file).get("config_hash")
            if isinstance(digest, str):
                found.setdefault(digest, file.parent)
    return found


def _unfinished_last(status: Path) -> tuple[bool, Path]:
    return not (status.parent / "result.json").is_file(), status


def remove_if_empty(folder: Path, root: Path) -> None:
    """Remove `folder` and its parents up to `root`, as far as they are empty.

    The working folder and the folders above it stay.
    """
    folder, root, here = folder.absolute(), root.absolute(), Path.cwd()
    for path in (folder, *folder.parents):
        if path == here or path in here.parents:
            return
        try:
            path.rmdir()
        except OSError:
            return
        if not {root, here} & set(path.parents):
            return


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts: {"model": {"b": 1}} → {"model.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    pairs: dict[str, Any] = {}
    for key, item in value.items():
        pairs.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return pairs


def changed_keys(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Keys, sorted, whose JSON values differ: to Lightning 1 is one batch, and 1.0 are all."""
    old, new = (
        {key: json.dumps(value, sort_keys=True) for key, value in of.items() if value is not None}
        for of in (before, now)
    )
    return sorted(key for key in old | new if old.get(key) != new.get(key))


def now() -> str:
    """Present time, ISO 8601 with the zone."""
    return time_text(time.time())


def time_text(seconds: float) -> str:
    """Format seconds since the epoch as ISO 8601 with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))
