"""Pruning: a trial of a search that falls behind the earlier ones stops early."""

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from blockspike.training.metrics_file import read_metrics


def higher_is_better(monitor: str) -> bool:
    """Whether a larger value of the monitored metric is better: of an accuracy, not of a loss."""
    return not monitor.endswith("loss")


def pruned_epoch(
    values: Sequence[float], thresholds: Sequence[float | None], higher: bool
) -> int | None:
    """First epoch at which a trial is pruned: its best value so far is worse than the threshold.

    Args:
        values: the monitored value of each epoch.
        thresholds: a value for each epoch; None = not pruned there. Later epochs have none.
        higher: whether larger values are better.

    Returns:
        The epoch, from 0, or None.
    """
    best_so_far = accumulate(values, max if higher else min)
    for epoch, (best, threshold) in enumerate(zip(best_so_far, thresholds, strict=False)):
        if threshold is not None and (best < threshold if higher else best > threshold):
            return epoch
    return None


class Pruner(Callback):
    """Stops training after the epoch at which the trial is pruned; see `pruned_epoch`.

    The values of epochs before an interruption come from `metrics.csv`, so a run that was killed
    after its last epoch trains no further.

    Args:
        metrics: path of the run's `metrics.csv`.
        monitor: name of the metric.
        thresholds: see `pruned_epoch`.
    """

    def __init__(self, metrics: Path, monitor: str, thresholds: Sequence[float | None]):
        self._metrics, self._monitor, self._thresholds = metrics, monitor, thresholds
        self._values: list[float] = []

    @property
    def has_pruned(self) -> bool:
        """Whether the trial is pruned at an epoch that it has finished."""
        higher = higher_is_better(self._monitor)
        return pruned_epoch(self._values, self._thresholds, higher) is not None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the epochs before an interruption."""
        if trainer.current_epoch > 0:
            before = read_metrics(self._metrics)[self._monitor].tolist()
            self._values = before[: trainer.current_epoch]
        trainer.should_stop = trainer.should_stop or self.has_pruned  # another callback may stop it

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop if the trial is pruned at this epoch.

        Raises:
            ValueError: the epoch was not validated.
        """
        value = trainer.callback_metrics.get(self._monitor)
        if value is None:
            raise ValueError(
                f"trainer: expected {self._monitor} after each epoch, got none; max_steps, "
                "limit_val_batches=0 and the like leave out validation"
            )
        self._values.append(float(value))
        if self.has_pruned:
            trainer.should_stop = True
