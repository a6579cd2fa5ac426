"""Options of a group, and the errors for a wrong option, key or type.

Schemas are options too, as far as Hydra knows; here they are hidden and refused.
"""

import re
from collections.abc import Iterable
from typing import Any

import yaml
from hydra._internal.config_repository import ConfigRepository
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    OmegaConfBaseException,
    ValidationError,
)

from blockspike.files import CONF

_NO_GROUP = re.compile(r"Could not override '([^']+)'\. No match in the defaults list")
_MISSING = re.compile(r"Missing mandatory value: (\S+)")
_VALUE = re.compile(r"Error merging override \+*([^=]+)=(.*)", re.DOTALL)
_IN_FILE = re.compile(r"In '([^']+)': \w+ raised while composing config")
_TYPES = {
    "Integer": ("an integer", "integers"),
    "Float": ("a number", "numbers"),
    "Boolean": ("true or false", "true or false"),
    "ListConfig": ("a list", "lists"),
}


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
    """The error in our words if a value is missing or a key, option or type is wrong."""
    if isinstance(error, OmegaConfBaseException) and (found := _MISSING.search(str(error))):
        key = found[1]
        return ValueError(f"{key}: expected a value, got nothing; set it with {key}=…")
    if isinstance(error, MissingConfigException) and error.options:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        known = ", ".join(error.options)
        return ValueError(f"{group}: expected one of {known}, got {option}")
    if not isinstance(error, ConfigCompositionException):
        return error
    cause = error.__cause__ or error.__context__
    if found := _NO_GROUP.search(str(error)):
        return ValueError(f"{found[1]}: expected a group or a key of this command, got {found[1]}")
    if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None:
        return _unknown_key(cause, overrides)
    if isinstance(cause, ValidationError) and (found := _VALUE.match(str(error))):
        return _wrong_type(cause, *found.groups())
    if isinstance(cause, OmegaConfBaseException) and (found := _IN_FILE.match(str(error))):
        file = f"{found[1]}.yaml"
        return _wrong_type(cause, str(cause.full_key) or file, f"another value in {file}")
    return error


def _unknown_key(cause: OmegaConfBaseException, overrides: Iterable[str]) -> ValueError:
    full_key = str(cause.full_key)
    group, _, key = full_key.rpartition(".")
    known = [str(x) for x in cause.parent_node or () if x != "hydra" and not str(x).startswith("_")]
    chosen = [x.partition("=")[2] for x in overrides if x.startswith(f"{group}=")]
    names = chosen[-1].split(",") if chosen else []
    if len(names) > 1:  # of a sweep: the one whose configuration it is, if that can be told
        target = (cause.parent_node or {}).get("_target_")
        names = [x for x in names if _target(group, x) == target] or names
    of = f"{group}={','.join(names)}" if names else group or "the configuration"
    text = f"{full_key}: expected a key of {of} ({', '.join(known)}), got {key}"
    # Groups without a schema take any key.
    return ValueError(f"{text}; +{full_key}=… adds one" if cause.object_type is dict else text)


def _target(group: str, name: str) -> str | None:
    """Class that an option of its own makes; None if a schema says it."""
    path = CONF / group / f"{name}.yaml"
    content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return (content or {}).get("_target_")


def _wrong_type(cause: OmegaConfBaseException, key: str, value: str) -> ValueError:
    text = str(cause).splitlines()[0]
    for name, (one, several) in _TYPES.items():
        if re.search(rf"converted to {name}$|not a {name}\b", text):
            expected = one if cause.full_key == key else f"a list of {several}"
            return ValueError(f"{key}: expected {expected}, got {value}")
    return ValueError(f"{key}: {text}")
