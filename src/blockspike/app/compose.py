"""A command's configuration, composed in Python."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import hydra
from hydra._internal.config_repository import ConfigRepository
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer

from blockspike.app.choices import check_choices, explained, hide_schemas
from blockspike.app.overrides import (
    COMMANDS,
    OF_OVERRIDES,
    RUNS,
    as_override,
    check_has_key,
    quoted,
)
from blockspike.files import CONF
from blockspike.runs.run import one_line


def compose(
    command: str, overrides: Sequence[str] = (), config_dir: Path | str | None = None
) -> DictConfig:
    """Compose the configuration that `blockspike COMMAND OVERRIDES` would run with.

    Nothing is run or written, and Hydra's own state stays as it is, so it also works in a program
    that uses Hydra itself.

    Args:
        command: such as "train" or "fit".
        overrides: as on the command line, such as "model=se_adlif" or "optimizer.lr=1e-2".
        config_dir: folder of further configurations, as `--config-dir` of the command.

    Returns:
        The configuration with every interpolation resolved. For `train` and `fit`, `run_dir` is the
        absolute path of the folder that a new run would have.

    Raises:
        ValueError: the command is unknown, or an override is wrong; names it.
        FileNotFoundError: there is no folder `config_dir`.

    Examples:
        >>> import blockspike as bs
        >>> config = bs.compose("train", ["data=nmnist_sample", "network.n_hidden=64"])
        >>> config.network.n_hidden, config.optimizer.lr
        (64, 0.001)
    """
    if not (CONF / f"{command}.yaml").is_file():
        raise ValueError(f"command: expected one of {', '.join(COMMANDS)}, got {command!r}")
    if isinstance(overrides, str):
        raise ValueError(f"overrides: expected a list of key=value, got {overrides!r}")
    given = [as_override(command, override) for override in overrides]
    for override in given:
        check_has_key(command, override)
    check_choices(given)
    if config_dir is not None:
        if not Path(config_dir).is_dir():
            raise FileNotFoundError(f"config_dir: expected a folder, got {str(config_dir)!r}")
        place = quoted(f"file://{Path(config_dir).absolute()}")
        given = [*given, f"hydra.searchpath=[{place}]"]
    with _own_hydra(command):
        try:
            return _composed(command, given)
        except OF_OVERRIDES as error:
            raise ValueError(one_line(explained(error, given))) from error


def _composed(command: str, overrides: list[str]) -> DictConfig:
    with hydra.initialize_config_dir(str(CONF.resolve()), "blockspike", version_base="1.3"):
        cfg = hydra.compose(command, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)  # what ${hydra:…} refers to
    if command in RUNS:
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.runtime.output_dir = os.path.abspath(cfg.hydra.run.dir)
        HydraConfig.instance().set_config(cfg)
    with open_dict(cfg):
        del cfg["hydra"]
    OmegaConf.resolve(cfg)
    return cfg


@contextmanager
def _own_hydra(command: str) -> Iterator[None]:
    """Give the block a Hydra with our schemas; afterwards put back what was there before."""
    Plugins.instance()  # whose import stores configurations that stay
    apart = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
    others = {cls: Singleton._instances.pop(cls, None) for cls in apart}
    store, resolvers = ConfigStore.instance(), dict(BaseContainer._resolvers)
    repo, options = store.repo, ConfigRepository.get_group_options
    store.repo = copy.deepcopy(repo)
    try:
        hide_schemas()
        import_module("blockspike.app.top_level").register_for(command)
        yield
    finally:
        store.repo, ConfigRepository.get_group_options = repo, options
        BaseContainer._resolvers = resolvers
        for cls, instance in others.items():
            Singleton._instances.pop(cls, None)
            if instance is not None:
                Singleton._instances[cls] = instance
