"""A command's configuration, composed in Python."""

import copy
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict

from blockspike.files import CONF


def compose(
    command: str, overrides: Sequence[str] = (), config_dir: Path | str | None = None
) -> DictConfig:
    """Compose the configuration that `blockspike COMMAND OVERRIDES` would run with.

    Nothing is run or written, and Hydra's state stays as it is, so a program that uses Hydra can
    call it, too.

    Args:
        command: "train", "fit" or "prepare".
        overrides: as on the command line, such as "model=se_adlif" or "optimizer.lr=1e-2".
        config_dir: folder of further configurations, as `--config-dir` of the command.

    Returns:
        The configuration with every interpolation resolved. For `train` and `fit`, `run_dir` is the
        absolute path of the folder that a new run would have.

    Raises:
        HydraException, OmegaConfBaseException: an override is wrong.
        ValueError: there is no such top-level key.

    Examples:
        >>> import blockspike as bs
        >>> config = bs.compose("train", ["data=nmnist_sample", "network.n_hidden=64"])
        >>> config.network.n_hidden, config.optimizer.lr
        (64, 0.001)
    """
    from blockspike.app.schemas import check_keys, register_schemas

    with _state_kept():
        register_schemas()
        with hydra.initialize_config_dir(str(CONF.resolve()), "blockspike", version_base="1.3"):
            places = [] if config_dir is None else [f"file://{Path(config_dir).absolute()}"]
            given = [*map(with_quoted_path, overrides), f"hydra.searchpath={places}"]
            cfg = hydra.compose(command, given, return_hydra_config=True)
        check_keys(command, cfg)
        HydraConfig.instance().set_config(cfg)  # what ${hydra:…} refers to
        OmegaConf.set_readonly(cfg.hydra, False)
        cfg.hydra.runtime.output_dir = os.path.abspath(cfg.hydra.run.dir)
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
    return cfg


def with_quoted_path(override: str) -> str:
    """Quote the path of a run's folder, whose "=" and "," would mean something to Hydra."""
    key, _, value = override.partition("=")
    is_path = key in ("init_from", "resume_from", "data.path") and value[:1] not in ("'", '"', "[")
    if not is_path or "=" not in value:
        return override
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


@contextmanager
def _state_kept() -> Iterator[None]:
    """Put Hydra's singletons and OmegaConf's resolvers back after the block."""
    Plugins.instance()  # registers Hydra's configurations, which stay
    before = Singleton.get_state()
    apart = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
    instances = {cls: x for cls, x in before["instances"].items() if cls not in apart}
    instances[ConfigStore] = copy.deepcopy(ConfigStore.instance())
    Singleton.set_state({**before, "instances": instances})
    try:
        yield
    finally:
        Singleton.set_state(before)
