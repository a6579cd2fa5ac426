"""YAML as a run writes it: plain values in a small file, of which nothing is evaluated."""

import io
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

# A run's configuration has some 3000 bytes, 250 nodes and a depth of 4.
_MOST_BYTES, _MOST_NODES, _MOST_LEVELS = 1 << 16, 2000, 20


def read_plain_yaml(path: Path) -> DictConfig:
    """Read the configuration in a file without evaluating anything.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold keys and values, is too large or deep, or has an alias, a
            tag or an interpolation.
    """
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    try:
        config = OmegaConf.load(io.StringIO(_checked(content)))
    except Exception as error:  # PyYAML raises whatever the conversion of a scalar raises
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: not a run's configuration ({text})") from error
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path}: not a run's configuration (expected keys and values)")
    return config


def _checked(content: bytes) -> str:
    if len(content) > _MOST_BYTES:
        raise ValueError(f"expected at most {_MOST_BYTES} bytes")
    text = content.decode()
    n_nodes = n_levels = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        n_levels += isinstance(event, yaml.CollectionStartEvent)
        n_levels -= isinstance(event, yaml.CollectionEndEvent)
        n_nodes += isinstance(event, yaml.NodeEvent)
        if n_nodes > _MOST_NODES or n_levels > _MOST_LEVELS:
            raise ValueError(f"expected at most {_MOST_NODES} values in {_MOST_LEVELS} levels")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"expected no aliases, got *{event.anchor}")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"expected no tags, got {tag}")
        if isinstance(event, yaml.ScalarEvent) and "${" in event.value:
            raise ValueError(f"expected no interpolations, got {event.value:.80}")
    return text
