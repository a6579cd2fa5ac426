"""The identity of a run: the content that its result depends on, and a hash of it."""

import hashlib
import json
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from blockspike.runs.renamed import OFF, former_target

# Keys that may differ between two starts of one run: places and display.
NOT_CONTENT = (
    "output_dir",
    "data_dir",
    "run_dir",
    "logger",
    "progress",
    "threads",
    "replay",
    "extend",  # the result is that of all epochs in one run
    "tags",
    "choices",
    "search",
    "pruning",  # a run with it is a part of the run without it
)


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Resolved configuration without the keys that do not change a result."""
    settings = plain(cfg)
    for key in NOT_CONTENT:
        settings.pop(key, None)
    settings["data"].pop("download", None)
    if not is_fit(cfg):  # a data set may be anywhere; a recording is known by its path alone
        for key in ("path", "raw"):
            settings["data"].pop(key, None)
        settings.pop("fit", None)
    return settings


def content_of(cfg: DictConfig) -> dict[str, Any]:
    """Settings without options that are off: what a run's result depends on."""
    content = settings_of(cfg)
    for name, off in OFF.items():
        node, key = name.split(".")
        part = content.get(node) or {}
        if key in part and part[key] == off:
            del part[key]
    if target := (content.get("model") or {}).get("_target_"):
        content["model"]["_target_"] = former_target(str(target))
    if not is_fit(cfg) and (content.get("optimizer") or {}).get("weight_decay"):
        content["decays"] = "weights"  # in earlier versions, all parameters
    if (content.get("model") or {}).get("max_delay"):
        content["delays"] = "drawn"  # in earlier versions, weights were spread over all delays
    for key in ("n_bootstrap", "init_from"):
        if not content.get(key):
            content.pop(key, None)
    if is_fit(cfg) and cfg.fit.get("loss") != "likelihood":
        content["population"].pop("escape_width", None)
    data = content["data"]
    if is_fit(cfg) and data.get("n_folds") is None:
        data.pop("fold", None)
    for key in ("n_folds", "fold"):
        if data.get(key) is None:
            data.pop(key, None)
    training = {key: value for key, value in content.pop("training", {}).items() if value}
    if training:
        content["training"] = training
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
