"""The identity of a run: what its result depends on, and the hash that stands for it."""

import hashlib
import json
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

# What may differ between two starts of one run: where things are and how they are shown.
_NOT_CONTENT = ("output_dir", "data_dir", "run_dir", "logger", "progress", "threads", "replay")


def content_of(cfg: DictConfig) -> dict[str, Any]:
    """The resolved configuration less what does not change a result."""
    content = plain(cfg)
    for key in _NOT_CONTENT:
        content.pop(key, None)
    content["data"].pop("download", None)
    if content["trainer"].get("precision") == "32-true":  # as in runs that did not name it
        del content["trainer"]["precision"]
    if not is_fit(cfg):  # where a known data set lies; but a recording is known by its path alone
        for key in ("path", "raw"):
            content["data"].pop(key, None)
        content.pop("fit", None)
    return content


def is_fit(cfg: DictConfig) -> bool:
    """Whether the configuration fits neurons to recordings (else it trains a classifier)."""
    return cfg.get("fit") is not None


def content_hash(content: dict[str, Any]) -> str:
    """12 hexadecimal digits that stand for a configuration."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The resolved node as a dict."""
    return cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
