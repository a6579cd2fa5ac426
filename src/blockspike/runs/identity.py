"""The identity of a run: the content that its result depends on, and a hash of it."""

import hashlib
import json
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

# Keys that may differ between two starts of one run: places and display.
_NOT_CONTENT = (
    "output_dir", "data_dir", "run_dir", "logger", "progress", "threads", "tags", "choices",
)  # fmt: skip


def content_of(cfg: DictConfig) -> dict[str, Any]:
    """Resolved configuration without the keys that do not change a run's result."""
    content = {key: value for key, value in plain(cfg).items() if key not in _NOT_CONTENT}
    # A data set may be anywhere; a recording is known by its path alone.
    places = ("download",) if is_fit(cfg) else ("download", "path", "raw")
    data = content["data"]
    content["data"] = {key: value for key, value in data.items() if key not in places}
    return content


def is_fit(cfg: DictConfig) -> bool:
    """Whether the configuration fits neurons to recordings (else it trains a classifier)."""
    return cfg.get("fit") is not None


def content_hash(content: dict[str, Any]) -> str:
    """Hash of a configuration, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """Convert a node to a resolved dict."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
