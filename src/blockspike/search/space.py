"""The space of a search: its keys are names of the configuration, its values are ranges."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from blockspike.runs.identity import NOT_CONTENT, plain

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

_FORM = "[low, high], [low, high, log] or [choice, option, option, …]"
_SIGNIFICANT_DIGITS = 4
_NOT_SEARCHED = (  # places, display, and what trials must share to be compared
    *NOT_CONTENT, "experiment_name", "data_config", "hydra", "seed", "monitor",
    "trainer.max_epochs", "test_each_epoch",
)  # fmt: skip


def read_space(cfg: DictConfig) -> dict[str, BaseDistribution]:
    """Read `search.space`: key of the configuration → Optuna's distribution, sorted by key.

    A range is of whole numbers if its bounds are and the configured value is not a float. Null
    takes a key out of the space. Options may also be those of a group (`scheduler`).

    Raises:
        ValueError: there is no range, the configuration has no such key, a range is malformed, or
            the key also has a value on the command line; names the key.
    """
    ranges = dict(sorted(_ranges(plain(cfg.search.space))))
    if not ranges:
        raise ValueError(f"search.space: expected KEY={_FORM}, got nothing")
    given = {override.lstrip("+~").partition("=")[0] for override in cfg.hydra.overrides.task}
    for key in ranges:
        _check_key(key, cfg)
        if key in given:
            raise ValueError(
                f"{key}: expected no value next to search.space.{key}, which "
                f"search.space.{key}=null removes, got one"
            )
    return {key: _distribution(key, spec, cfg) for key, spec in ranges.items()}


def _ranges(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and range of everything below a node."""
    for name, item in node.items():
        key = f"{prefix}{name}"
        if isinstance(item, dict):
            yield from _ranges(item, f"{key}.")
        elif item is not None:
            yield key, item


def _check_key(key: str, cfg: DictConfig) -> None:
    if any(key == name or key.startswith(f"{name}.") for name in _NOT_SEARCHED):
        raise ValueError(f"search.space.{key}: expected a key that trials may differ in, got {key}")
    parent_key, _, name = key.rpartition(".")
    parent = OmegaConf.select(cfg, parent_key) if parent_key else cfg
    known = sorted(map(str, parent.keys())) if isinstance(parent, DictConfig) else []
    if name not in known:
        there = f"{parent_key} has {', '.join(known)}" if known else f"it has no {parent_key}"
        raise ValueError(
            f"search.space.{key}: expected a key of the configuration ({there}), got {key}"
        )


def _distribution(key: str, spec: Any, cfg: DictConfig) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    wrong = ValueError(f"search.space.{key}: expected {_FORM}, got {spec}")
    if not isinstance(spec, list):
        raise wrong
    if spec[:1] == ["choice"]:
        scalars = (bool, int, float, str, type(None))
        if len(spec) < 3 or not all(isinstance(option, scalars) for option in spec):
            raise wrong
        return CategoricalDistribution(spec[1:])
    if spec[2:] not in ([], ["log"]):
        raise wrong
    bounds = spec[:2]
    if len(bounds) < 2 or not all(type(x) in (int, float) and math.isfinite(x) for x in bounds):
        raise wrong
    low, high = bounds
    is_log = len(spec) == 3
    if not (0 if is_log else -math.inf) < low < high:
        expected = "0 < low < high" if is_log else "low < high"
        raise ValueError(f"search.space.{key}: expected {expected}, got {spec}")
    if all(type(x) is int for x in bounds) and not _is_float(key, cfg):
        return IntDistribution(low, high, log=is_log)
    if type(OmegaConf.select(cfg, key)) is int:
        raise ValueError(f"search.space.{key}: expected whole numbers, got {spec}")
    return FloatDistribution(float(low), float(high), log=is_log)


def _is_float(key: str, cfg: DictConfig) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    values: Any = OmegaConf.to_container(node, resolve=False)
    return isinstance(values[name], float)


def rounded(value: Any, distribution: BaseDistribution) -> Any:
    """A drawn value as it is used: floats have four significant digits, and stay in their range."""
    from optuna.distributions import FloatDistribution

    if not isinstance(distribution, FloatDistribution):
        return value
    short = float(f"{value:.{_SIGNIFICANT_DIGITS}g}")
    return min(max(short, distribution.low), distribution.high)


def as_override(key: str, value: Any) -> str:
    """A parameter as an override of Hydra."""
    if value is None or isinstance(value, bool):
        return f"{key}={'null' if value is None else str(value).lower()}"
    if isinstance(value, str):
        quoted = value.replace("'", "\\'")
        return f"{key}={value}" if value.isidentifier() else f"{key}='{quoted}'"
    return f"{key}={value!r}"


def extremes(space: dict[str, BaseDistribution]) -> list[dict[str, Any]]:
    """Few parameter sets that together have both ends of every range and all options."""
    from optuna.distributions import CategoricalDistribution

    ends = {
        key: list(x.choices) if isinstance(x, CategoricalDistribution) else [x.low, x.high]  # pyright: ignore
        for key, x in space.items()
    }
    longest = max(map(len, ends.values()))
    return [
        {k: values[min(i, len(values) - 1)] for k, values in ends.items()} for i in range(longest)
    ]
