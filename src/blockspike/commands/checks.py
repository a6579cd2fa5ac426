"""Checks of settings that would fail or mislead only hours into a run."""

from pathlib import Path

from omegaconf import DictConfig

from blockspike.commands.mlflow_run import check_installed
from blockspike.config.targets import own_code_sha256
from blockspike.runs.identity import is_fit, plain
from blockspike.runs.run import Run
from blockspike.training.guard import warn
from blockspike.training.pruning import MONITORS

PRECISIONS = ("32-true", "64-true", "bf16-mixed")
_FOLDERS = ("published", "sweeps", "tables")  # in `output_dir`, beside the experiments
_SET_RATES = ("OneCycleLR", "CyclicLR", "LambdaLR", "CosineAnnealingWarmRestarts")
_LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches", "overfit_batches")
_LONGEST_TAG = 64  # letters that wandb takes
_LARGEST_SEED = 2**32 - 1  # NumPy's


def check_training(cfg: DictConfig) -> None:
    """Check the settings of a run before it starts.

    Raises:
        ValueError: the logger is not installed; the seed, the number of epochs, a tag or an option
            of the gradient is out of range; the precision is not supported everywhere; or test data
            would choose the model or stop training. The message names the key.
    """
    if not 0 <= cfg.seed <= _LARGEST_SEED:
        raise ValueError(f"seed: expected an integer from 0 to {_LARGEST_SEED}, got {cfg.seed}")
    for logger in ("mlflow", "tensorboard"):
        if logger in (cfg.logger or {}):
            check_installed(logger)
    for tag in cfg.get("tags") or ():
        if not 1 <= len(tag) <= _LONGEST_TAG:
            raise ValueError(f"tags: expected words of 1 to {_LONGEST_TAG} letters, got {tag!r}")
    epochs = cfg.trainer.max_epochs
    if not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"trainer.max_epochs: expected an integer ≥ 1, got {epochs}")
    if is_fit(cfg) and cfg.n_bootstrap < 0:
        raise ValueError(f"n_bootstrap: expected an integer ≥ 0, got {cfg.n_bootstrap}")
    _check_name(cfg.experiment_name)
    _check_counts(cfg)
    _check_each_epoch(cfg)
    _check_precision(cfg)
    _check_gradient(cfg)
    if not is_fit(cfg) and cfg.monitor not in MONITORS:
        raise ValueError(
            f"monitor: expected {' or '.join(MONITORS)}, since models are chosen on validation "
            f"data, got {cfg.monitor!r}"
        )
    _check_validation(cfg)
    _check_callbacks(cfg)
    if is_fit(cfg) and "early_stopping" in (cfg.callbacks or {}):
        raise ValueError("callbacks: expected fit.patience=… for a fit, got early_stopping")
    for name, callback in (cfg.callbacks or {}).items():
        monitor = callback.get("monitor") if isinstance(callback, DictConfig) else None
        if str(monitor).startswith("test"):
            raise ValueError(
                f"callbacks.{name}.monitor: expected a training or validation metric, "
                f"got {monitor!r}"
            )


def checked_code(cfg: DictConfig, run: Run) -> str | None:
    """Warn if `run` was started with other code of the classes that the user has written.

    Returns:
        SHA-256 of that code; None if all classes are ours.
    """
    sha256 = own_code_sha256(plain(cfg))
    if run.has_other_code(sha256):
        warn(
            f"{run.folder}: the code of your classes has changed since the run started, so its "
            "result is not that of the new code; delete the folder to start over with it"
        )
    return sha256


def _check_name(name: str) -> None:
    """Refuse a name whose runs would not lie in a folder of their own below `output_dir`."""
    path = Path(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or path.parts[0] in _FOLDERS:
        raise ValueError(
            "experiment_name: expected a folder in output_dir other than "
            f"{', '.join(_FOLDERS)}, got {name!r}"
        )


def _check_counts(cfg: DictConfig) -> None:
    """Check counts of batches and epochs that PyTorch and Lightning take as they are."""
    for name in _LIMITS:
        value = cfg.trainer.get(name)
        if value is None or (type(value) is int and value >= 0):
            continue
        if type(value) is not float or not 0 <= value <= 1:
            raise ValueError(
                f"trainer.{name}: expected an integer ≥ 0, or a share from 0.0 to 1.0, "
                f"got {value!r}"
            )
    for name in ("step_size", "T_max"):
        value = (cfg.get("scheduler") or {}).get(name, 1)
        if type(value) is not int or value < 1:
            raise ValueError(f"scheduler.{name}: expected an integer ≥ 1, got {value!r}")


def _check_each_epoch(cfg: DictConfig) -> None:
    """Refuse options of Lightning after which an epoch has no scores, or there is none."""
    usual = {"check_val_every_n_epoch": 1, "val_check_interval": 1.0, "fast_dev_run": 0}
    for name, as_it_is in usual.items():
        value = cfg.trainer.get(name)
        is_one_batch = name == "val_check_interval" and isinstance(value, int)
        if value is not None and (value != as_it_is or is_one_batch):
            raise ValueError(
                f"trainer.{name}: expected none, since each epoch is whole and validated; "
                f"trainer.max_epochs and trainer.limit_train_batches shorten a run, got {value}"
            )
    if cfg.trainer.get("limit_test_batches") == 0:
        raise ValueError("trainer.limit_test_batches: expected some, since a run is tested, got 0")


def _check_callbacks(cfg: DictConfig) -> None:
    """Refuse callbacks of Lightning without effect here, or whose effect the scheduler undoes."""
    scheduler = str((cfg.get("scheduler") or {}).get("_target_")).rpartition(".")[2]
    for name, callback in (cfg.get("callbacks") or {}).items():
        target = callback.get("_target_") if isinstance(callback, DictConfig) else None
        kind = str(target).rpartition(".")[2]
        if kind == "StochasticWeightAveraging":
            raise ValueError(
                f"callbacks.{name}: expected an average that is validated, such as Lightning's "
                f"EMAWeightAveraging, got {kind}, whose average no checkpoint has"
            )
        if kind == "ReloadBestAtMilestone" and scheduler in _SET_RATES:
            raise ValueError(
                f"callbacks.{name}: expected a scheduler that continues from the lowered learning "
                f"rate, got {scheduler}, which sets it anew"
            )


def _check_validation(cfg: DictConfig) -> None:
    """Refuse what needs a validation split where there is none."""
    own = cfg.data.get("fold") is not None or cfg.data.get("validation") == "own"
    if cfg.data.get("validation_fraction") != 0 or own:
        return
    plateau = "ReduceLROnPlateau" in str((cfg.get("scheduler") or {}).get("_target_"))
    needing = {
        "callbacks": "early_stopping" in (cfg.callbacks or {}),
        "scheduler": plateau,
        "search": cfg.get("search") is not None or bool(cfg.get("pruning")),
        "test_each_epoch": bool(cfg.get("test_each_epoch")),
    }
    for name in (name for name, needs in needing.items() if needs):
        found = "a search" if name == "search" else cfg.get(name)
        raise ValueError(
            f"{name}: expected nothing that follows validation, since "
            f"data.validation_fraction is 0, got {found}"
        )


def _check_precision(cfg: DictConfig) -> None:
    precision = cfg.trainer.get("precision", "32-true")
    supported = PRECISIONS[:2] if is_fit(cfg) else PRECISIONS
    if precision not in supported:
        kind = "a fit" if is_fit(cfg) else "a classifier"
        raise ValueError(
            f"trainer.precision: expected {', '.join(supported)} for {kind}, got {precision!r}"
        )
    if precision == "64-true" and cfg.trainer.accelerator == "mps":
        raise ValueError("trainer.precision: expected 32-true or bf16-mixed on mps, got '64-true'")


def _check_gradient(cfg: DictConfig) -> None:
    """Check options for which Lightning is silent, or refuses only when the trainer is made."""
    value = cfg.trainer.get("gradient_clip_val")
    if value is not None and (not isinstance(value, int | float) or not value > 0):
        raise ValueError(f"trainer.gradient_clip_val: expected a number > 0 or null, got {value!r}")
    algorithm = cfg.trainer.get("gradient_clip_algorithm")
    if algorithm not in (None, "norm", "value"):
        raise ValueError(
            f"trainer.gradient_clip_algorithm: expected norm, value or null, got {algorithm!r}"
        )
    if algorithm is not None and value is None:
        raise ValueError(
            "trainer.gradient_clip_algorithm: expected null without trainer.gradient_clip_val, "
            f"which is null, got {algorithm}"
        )
    n_batches = cfg.trainer.get("accumulate_grad_batches", 1)
    if type(n_batches) is not int or n_batches < 1:
        raise ValueError(
            f"trainer.accumulate_grad_batches: expected an integer ≥ 1, got {n_batches!r}"
        )
    if is_fit(cfg) and value is not None:
        raise ValueError(
            "trainer.gradient_clip_val: expected null for a fit, whose fit.gradient_clip clips the "
            f"gradient of each start, got {value}"
        )
    if is_fit(cfg) and n_batches > 1:
        raise ValueError(
            "trainer.accumulate_grad_batches: expected 1 for a fit, whose data are one batch, "
            f"got {n_batches}"
        )
