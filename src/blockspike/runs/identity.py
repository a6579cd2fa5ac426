"""The identity of a run: the content that its result depends on, and a hash of it."""

import hashlib
import json
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

# Keys that may differ between two starts of one run: places and display.
_NOT_CONTENT = (
    "output_dir", "data_dir", "run_dir", "logger", "progress", "threads", "replay", "search",
    "pruning",  # a run with it is a part of the run without it
)  # fmt: skip


def content_of(cfg: DictConfig) -> dict[str, Any]:
    """Resolved configuration without the keys that do not change a result."""
    content = plain(cfg)
    for key in _NOT_CONTENT:
        content.pop(key, None)
    content["data"].pop("download", None)
    if content["trainer"].get("precision") == "32-true":  # the default, not in older configurations
        del content["trainer"]["precision"]
    # Options that are off are not in older configurations either.
    if content.get("optimizer") and content["optimizer"].get("fused") is None:
        content["optimizer"].pop("fused", None)
    if not content.get("n_bootstrap"):
        content.pop("n_bootstrap", None)
    if content["data"].get("electrode") is None:
        content["data"].pop("electrode", None)
    if content["data"].get("noise") == "membrane":  # of synthetic cells
        del content["data"]["noise"]
    if is_fit(cfg) and cfg.fit.get("loss") != "likelihood":
        content["population"].pop("escape_width", None)
    if content["data"].get("neuron") == "alif":  # of synthetic cells
        del content["data"]["neuron"]
    if content["data"].get("n_folds") is None:
        for key in ("n_folds", "fold"):
            content["data"].pop(key, None)
    training = {key: value for key, value in content.pop("training", {}).items() if value}
    if training:
        content["training"] = training
    if not is_fit(cfg):  # a data set may be anywhere; a recording is known by its path alone
        for key in ("path", "raw"):
            content["data"].pop(key, None)
        content.pop("fit", None)
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
