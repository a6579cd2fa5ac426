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
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

from lightning_utilities.core.rank_zero import rank_zero_only  # whose `rank` Lightning sets
from omegaconf import DictConfig, OmegaConf

from blockspike.files import read_json, write_json, write_text
from blockspike.runs.identity import content_hash, content_of, is_fit
from blockspike.runs.log import logged_to

_PACKAGES = ("blockspike", "torch", "pytorch-lightning", "numpy", "numba")
_LOCK_TRIES, _LOCK_PAUSE_S = 20, 0.1  # a check of the lock holds it for a moment
# Overrides that only name places, and flags: `Run.arguments` leaves them out.
_PLACES = (
    "run_dir", "output_dir", "data_dir", "progress", "threads", "hydra.", "logger", "tags",
    "data.path", "data.raw", "data.download", "sweep", "resume_from", "/", "-",
)  # fmt: skip


class RunRefusedError(ValueError):
    """The folder belongs to a run of another configuration or of another process."""


class Run:
    """The folder of one run.

    It holds `config.yaml`, `content.json` (what the result depends on), `status.json`,
    `checkpoints/{last,best}.ckpt`, `metrics.csv`, `train.log` or `fit.log` and, when the run is
    finished, `result.json`. `error.log` and `bad_batch.ckpt` tell why the last attempt failed.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self.last_checkpoint = self.folder / "checkpoints" / "last.ckpt"  # after the last epoch
        self.best_checkpoint = self.folder / "checkpoints" / "best.ckpt"  # chosen on validation
        self.error_log = self.folder / "error.log"

    def result(self) -> dict[str, Any] | None:
        """Row of the finished run, or None.

        Raises:
            ValueError: the file is damaged.
        """
        return read_json(self.folder / "result.json") or None

    def finished(self, option: str = "run") -> dict[str, Any]:
        """Row of the run; raise ValueError if it, which `option` names, is not finished."""
        row = self.result()
        if row is None:
            raise ValueError(f"{option}: expected a finished run in {self.folder}, got none")
        return row

    def status(self) -> dict[str, Any]:
        """Content of `status.json`; empty before the first attempt."""
        return read_json(self.folder / "status.json")

    def config(self) -> DictConfig:
        """Configuration of the run; plain values only, as it may be another person's.

        Raises:
            FileNotFoundError: the folder holds no run.
            ValueError: the file is no configuration as a run writes it.
        """
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise FileNotFoundError(f"{self.folder}: no run here (expected {path.name})")
        try:
            found = OmegaConf.load(path)
        except Exception as error:  # whatever PyYAML's conversion of a value raises
            raise ValueError(f"{path}: not a run's configuration ({error})") from error
        if not isinstance(found, DictConfig) or "${" in OmegaConf.to_yaml(found):
            raise ValueError(f"{path}: not a run's configuration (expected keys and plain values)")
        return found

    def check(self, content: dict[str, Any], data_sha256: str | None = None) -> None:
        """Raise RunRefusedError if the folder's run has other content, or read other data.

        Args:
            content: what the result depends on (`content_of`).
            data_sha256: hash of the data; None matches all.
        """
        before = read_json(self.folder / "content.json")
        if not before:
            return
        old_data = before.pop("data_sha256", None)
        if changes := differences(before, content):
            raise RunRefusedError(
                f"{self.folder}: holds a run with another configuration ({changes}); choose "
                "another experiment_name, or delete the folder"
            )
        if None not in (old_data, data_sha256) and old_data != data_sha256:
            raise RunRefusedError(
                f"{self.folder}: the data have changed since the run started (SHA-256 {old_data} → "
                f"{data_sha256}); restore them, or delete the folder"
            )

    def may_have_other_data(self, path: str | None) -> bool:
        """Whether `path` differs from that of the run, or has files newer than the last check."""
        last = self.folder / "content.json"
        if path is None or "data_sha256" not in read_json(last):
            return False
        if path != self.config().data.get("path"):
            return True
        place, checked = Path(path), last.stat().st_mtime
        found = (x.stat() for x in (place, *place.rglob("*")) if x.exists())  # a folder: deletions
        return any(max(x.st_mtime, x.st_ctime) > checked for x in found)

    def mark_data_checked(self) -> None:
        """Note the time, after which `may_have_other_data` need not look at older files again."""
        os.utime(self.folder / "content.json")

    @contextmanager
    def recorded(self, cfg: DictConfig, data_sha256: str | None = None) -> Iterator[None]:
        """Lock the folder for this process; keep its status and log during the block.

        In a run of several processes, only the first one writes.

        Raises:
            RunRefusedError: another process runs here or has finished the run, or the configuration
                or the data differ.
            ValueError: the file system has no locks.
            KeyboardInterrupt: the run was interrupted.
        """
        if not is_first_process():
            yield
            return
        content = content_of(cfg)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+") as lock:
            if not _locked(lock, self.folder):
                pid = self.status().get("pid")
                raise RunRefusedError(f"{self.folder}: already running as process {pid}")
            self.check(content, data_sha256)  # another process may have run since
            if self.result() is not None:
                raise RunRefusedError(f"{self.folder}: another process has finished it meanwhile")
            self.error_log.unlink(missing_ok=True)
            write_text(self.folder / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
            known = {} if data_sha256 is None else {"data_sha256": data_sha256}
            write_json(self.folder / "content.json", content | known)
            status = {"state": "running", "pid": os.getpid(), "started": now(), **provenance()}
            status |= {"config_hash": content_hash(content), "arguments": sys.argv[1:]}
            status_file = self.folder / "status.json"
            write_json(status_file, status)
            log = self.folder / f"{'fit' if is_fit(cfg) else 'train'}.log"
            try:
                with logged_to(
                    log, f"blockspike {version('blockspike')}: {' '.join(sys.argv[1:])}"
                ):
                    yield
            except (KeyboardInterrupt, SystemExit):  # Lightning turns the first into the second
                write_json(status_file, status | {"state": "interrupted", "ended": now()})
                raise KeyboardInterrupt from None
            except Exception as error:
                state = "pruned" if type(error).__name__ == "TrialPruned" else "failed"
                if state == "failed":
                    self._write_error(error)
                write_json(status_file, status | {"state": state, "ended": now()})
                raise
            write_json(status_file, status | {"state": "done", "ended": now()})

    def write_result(self, row: dict[str, Any]) -> None:
        """Write the finished run's row."""
        if is_first_process():
            write_json(self.folder / "result.json", row)

    def _write_error(self, error: BaseException) -> None:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"{self.folder}: moved or deleted during the run") from error
        trace = "".join(traceback.format_exception(error))
        write_text(self.error_log, f"{trace}\n{type(error).__name__}: {one_line(error)}\n")

    def arguments(self) -> list[str]:
        """Command and overrides of the last start, without those that only name places."""
        given = self.status().get("arguments", [])
        kept = [argument for argument in given if not argument.lstrip("+~").startswith(_PLACES)]
        if "--config-dir" in given:  # the command cannot do without
            folder = Path(given[given.index("--config-dir") + 1])
            kept = [x for x in kept if x != str(folder)]
            kept.insert(1, f"--config-dir={folder.name}")
        return kept

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


def is_first_process() -> bool:
    """Whether this is the only process of its run, or the first of those that share it."""
    return not getattr(rank_zero_only, "rank", 0)


def _locked(lock: IO[str], folder: Path) -> bool:
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
        except OSError as error:
            raise cannot_lock(folder, error) from error
    return False


def cannot_lock(folder: Path, error: OSError) -> ValueError:
    """Make the error of a folder whose file system has no locks."""
    return ValueError(f"{folder}: cannot be locked; does its file system have flock? ({error})")


def one_line(error: BaseException) -> str:
    """Join an error and its causes on one line."""
    parts: list[str] = []
    cause: BaseException | None = error
    if type(error).__name__ == "InstantiationException":  # Hydra's, which only repeats its cause
        cause = error.__cause__ or error
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


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten nested dicts: {"model": {"b": 1}} → {"model.b": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    pairs: dict[str, Any] = {}
    for key, item in value.items():
        pairs.update(flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return pairs


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first four values that differ, as text: to Lightning 1 is one batch, and 1.0 are all."""
    old, new = flatten(before), flatten(now)
    changed = [
        key
        for key in sorted(old | new)
        if json.dumps(old.get(key), sort_keys=True) != json.dumps(new.get(key), sort_keys=True)
    ]
    return ", ".join(f"{key}: {old.get(key)!r} → {new.get(key)!r}" for key in changed[:4])


def now() -> str:
    """Present time, ISO 8601 with the zone."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
