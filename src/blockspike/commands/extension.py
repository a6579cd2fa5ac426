"""`extend`: a run that takes its first epochs from a finished run of fewer epochs."""

import shutil
from pathlib import Path

from omegaconf import DictConfig
from torch import nn

from blockspike.commands.checks import checked_code
from blockspike.commands.trainer import last_checkpoint
from blockspike.files import read_json, whole_file
from blockspike.networks.delays import Delays
from blockspike.runs.identity import content_of
from blockspike.runs.rank import is_first_process
from blockspike.runs.run import Run, changed_keys, flatten

_EPOCHS = "trainer.max_epochs"
_MAY_DIFFER = (_EPOCHS, "experiment_name")


def check_source(cfg: DictConfig, network: nn.Module, data_sha256: str | None) -> None:
    """Check that the run of `cfg.extend` is the first part of the run of `cfg`.

    Raises:
        ValueError: it is not finished, has as many epochs, or its configuration differs in another
            key; or the training depends on when it ends. The message names the key.
        RunRefusedError: it has read other data.
    """
    source = Run(Path(cfg.extend))
    source.check_finished("extend")
    before, now = flatten(read_json(source.folder / "content.json")), flatten(content_of(cfg))
    if not now[_EPOCHS] > before[_EPOCHS]:
        raise ValueError(
            f"{_EPOCHS}: expected more than the {before[_EPOCHS]} of {source.folder}, "
            f"got {now[_EPOCHS]}"
        )
    changed = [key for key in changed_keys(before, now) if key not in _MAY_DIFFER]
    if changed:
        changes = ", ".join(f"{k}: {before.get(k)!r} → {now.get(k)!r}" for k in changed[:4])
        hint = ""
        if any(key.startswith("scheduler.") for key in changed):
            hint = "; a schedule for the whole training cannot be extended, so train without extend"
        raise ValueError(
            f"extend: expected the configuration of {source.folder} in all but {_EPOCHS}, "
            f"got {changes}{hint}"
        )
    _check_end(cfg, network)
    source.check_data(data_sha256)
    checked_code(cfg, source)


def _check_end(cfg: DictConfig, network: nn.Module) -> None:
    """Refuse learned delays: they sharpen with the share of the epochs that is done."""
    if any(isinstance(module, Delays) for module in network.modules()):
        names = [x for x in ("max_delay", "recurrent_max_delay") if cfg.model.get(x)]
        got = ", ".join(f"model.{x}={cfg.model[x]}" for x in names)
        raise ValueError(
            "extend: expected a network without learned delays, which sharpen up to half of "
            f"{_EPOCHS}, got {got}; train without extend"
        )


def first_epochs(source: Run, run: Run) -> Path:
    """Copy the model that `source` chose and its metrics to `run`.

    Returns:
        The checkpoint of the last epoch of `source`, from which `run` continues.

    Raises:
        ValueError: `source` has no readable checkpoint.
    """
    checkpoint = last_checkpoint(source, is_own=False)
    if checkpoint is None:
        raise ValueError(f"extend: expected {source.last_checkpoint}, got no such file")
    if is_first_process():
        for path in (source.best_checkpoint, source.folder / "metrics.csv"):
            with whole_file(run.folder / path.relative_to(source.folder)) as copy:
                shutil.copyfile(path, copy)
    return checkpoint
