"""Options of a group: those that can be chosen, and what a wrong key of one is told.

Schemas are options too, as far as Hydra knows; here they are hidden and refused.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from blockspike.files import CONF

_WRONG_KEY = re.compile(r"Could not override '(\w+)\.([^']+)'.*Key '\w+' not in '(\w+)'", re.DOTALL)


def hide_schemas() -> None:
    """Leave schemas out of Hydra's lists of options, in --help, in errors and for glob(*)."""
    options = ConfigRepository.get_group_options
    if options.__name__ == "without_schemas":
        return

    def without_schemas(self: ConfigRepository, *args: Any, **kwargs: Any) -> list[str]:
        return [name for name in options(self, *args, **kwargs) if not name.endswith("schema")]

    ConfigRepository.get_group_options = without_schemas


def check_choices(overrides: Iterable[str]) -> None:
    """Raise ValueError if an override chooses a schema."""
    for override in overrides:
        group, _, value = override.lstrip("+~").partition("=")
        for choice in value.strip("[]").split(",") if (CONF / group).is_dir() else ():
            if choice.endswith("schema"):
                known = ", ".join(sorted(path.stem for path in (CONF / group).glob("*.yaml")))
                raise ValueError(f"{group}: expected one of {known}, got {choice}")


def explained(error: Exception, overrides: Iterable[str]) -> Exception:
    """An error that names the option and its keys, if `error` is that of a key it lacks."""
    text = f"{error}: {error.__cause__}"
    found = _WRONG_KEY.search(text) if isinstance(error, ConfigCompositionException) else None
    if found is None:
        return error
    group, key, kind = found.groups()
    with_schema = {path.stem: _schema(group, path.stem) for path in (CONF / group).glob("*.yaml")}
    lacking = {name: keys for name, (of, keys) in with_schema.items() if of == kind}
    values = [x.partition("=")[2] for x in overrides if x.startswith(f"{group}=")]
    chosen = {name for value in values for name in value.split(",")} & lacking.keys()
    names = sorted(chosen or lacking)
    if not names:
        return error
    keys = ", ".join(key for key in lacking[names[0]] if not key.startswith("_"))
    options = " or ".join(f"{group}={name}" for name in names)
    return ValueError(f"{group}.{key}: expected a key of {options} ({keys}), got {key}")


def _schema(group: str, name: str) -> tuple[str, list[str]]:
    """Class and keys of the schema that an option is based on; empty if there is none."""
    if name.endswith("schema"):
        node = ConfigStore.instance().repo[group][f"{name}.yaml"].node
        return OmegaConf.get_type(node).__name__, [str(key) for key in node]  # pyright: ignore
    content = yaml.safe_load((CONF / group / f"{name}.yaml").read_text(encoding="utf-8")) or {}
    for default in content.get("defaults", []) if isinstance(content, dict) else []:
        if isinstance(default, str) and not default.startswith(("_", "/")):
            return _schema(group, default)
    return "", []
