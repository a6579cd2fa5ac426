"""A finished run of `blockspike train`, opened in Python."""

from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from blockspike.app.build import build_data, build_network, check_targets, open_data
from blockspike.app.pretrained import load_weights, weights_dtype
from blockspike.app.trainer import read_checkpoint
from blockspike.data.datamodule import EventDataModule
from blockspike.networks.classifier import SpikingClassifier
from blockspike.runs.identity import content_of, is_fit
from blockspike.runs.run import Run


class LoadedRun(NamedTuple):
    """A finished run of `blockspike train`.

    Attributes:
        network: in evaluation mode, with the weights of the chosen epoch.
        data: its data set, ready for loaders.
        config: its configuration.
        row: the content of `result.json`; empty without that file, as in a model from wandb.

    Examples:
        >>> import blockspike as bs
        >>> bs.LoadedRun._fields
        ('network', 'data', 'config', 'row')
    """

    network: SpikingClassifier
    data: EventDataModule
    config: DictConfig
    row: dict[str, Any]


def load_run(folder: Path | str, trust: bool = False) -> LoadedRun:
    """Open a finished run of `blockspike train`: its network, data and configuration.

    Args:
        folder: of the run, such as `outputs/default/default/seed=0`.
        trust: run code that its configuration names and blockspike's does not, and prepare its
            data if they are missing. Do so only if you know who made the folder.

    Raises:
        FileNotFoundError: the folder holds no run or no checkpoint, or its data are missing.
        ValueError: a file of the run is damaged, its data have changed, it is a fit, or it would
            run other code and is not trusted.

    Examples:
        >>> import blockspike as bs
        >>> def first_predictions(folder):
        ...     network, data, _, _ = bs.load_run(folder)
        ...     events, labels = next(iter(data.test_dataloader()))
        ...     return network(events).scores.argmax(1), labels
    """
    run = Run(Path(folder))
    config = _checked_config(run)
    if not trust:
        check_targets(config, str(folder))
    data = open_data(config, recordings=False) if trust else build_data(config, recordings=False)
    if not trust:
        data.setup()
    run.check(content_of(config), data.sha256)
    network = build_network(config, data)
    weights = chosen_weights(run)
    network.to(weights_dtype(weights))
    load_weights(network, weights, str(folder))
    return LoadedRun(network.eval(), data, config, run.result() or {})


def chosen_weights(run: Run) -> dict[str, Any]:
    """Weights of the network at the epoch that a run chose.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is damaged.
    """
    state = read_checkpoint(run.best_checkpoint)["state_dict"]
    return {k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")}


def _checked_config(run: Run) -> DictConfig:
    """The configuration of a finished run of a classifier, as it was."""
    config = run.config()
    OmegaConf.set_struct(config, True)
    try:
        content = content_of(config)
    except (KeyError, AttributeError) as error:  # its `data` are missing or empty
        raise ValueError(f"{run.folder / 'config.yaml'}: damaged, lacks {error}") from error
    run.check(content)  # the file may have been edited
    if is_fit(config):
        raise ValueError(
            f"{run.folder}: expected a classifier, got fitted neurons; their scores are in fits.csv"
        )
    return config
