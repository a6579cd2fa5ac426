"""Reader of wandb's offline runs: a `.wandb` file is a LevelDB log of protobuf records."""

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

_BLOCK, _HEADER = 32768, struct.Struct("<IHB")  # checksum, length, kind
_FULL, _LAST = 1, 4


@dataclass
class LoggedRun:
    """The log of one process of a run; `defined` is name → (x axis, summaries)."""

    folder: Path
    about: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    defined: dict[str, tuple[str, set[str]]] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    def epochs(self) -> dict[int, dict[str, float]]:
        """Metrics by epoch without those of wandb and Lightning; the last of a repeated epoch."""
        found: dict[int, dict[str, float]] = {}
        for row in self.history:
            own = {k: v for k, v in row.items() if k.startswith(("train/", "val/", "time/", "lr"))}
            if own:
                found.setdefault(row["epoch"], {}).update(own)
        return found

    def media(self, key: str) -> dict[str, Any]:
        """The only entry of that name."""
        (value,) = (row[key] for row in self.history if key in row)
        return value

    def file(self, key: str) -> Path:
        """The file of the only entry of that name."""
        return self.folder / "files" / self.media(key)["path"]


def logged_runs(folder: Path) -> list[LoggedRun]:
    """All `.wandb` files below the folder, in the order in which they were started."""
    return [_logged(path) for path in sorted(folder.rglob("*run-*/run-*.wandb"))]


def _logged(path: Path) -> LoggedRun:
    run = LoggedRun(path.parent)
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.about = record.run
            _put(run.config, record.run.config.update)
        elif kind == "config":
            _put(run.config, record.config.update)
        elif kind == "history":
            run.history.append({})
            _put(run.history[-1], record.history.item)
        elif kind == "summary":
            _put(run.summary, record.summary.update)
        elif kind == "metric":
            metric = record.metric
            name = metric.name or metric.glob_name
            run.defined[name] = (
                metric.step_metric,
                {f.name for f, _ in metric.summary.ListFields()},
            )
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _put(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = target
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[Any]:
    at, parts = 7, b""  # after the file's own header
    while at + _HEADER.size <= len(data):
        left = _BLOCK - at % _BLOCK
        if left < _HEADER.size:
            at += left
            continue
        _, length, kind = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        parts += data[at : at + length]
        at += length
        if kind in (_FULL, _LAST):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record
