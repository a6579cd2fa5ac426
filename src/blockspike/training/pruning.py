"""Pruning: a trial of a search that falls behind the earlier ones stops early (`Pruner`)."""

from collections.abc import Sequence
from itertools import accumulate

MONITORS = {"val/accuracy": "max", "val/loss": "min"}
"""Metrics that may choose a model → what is best, the largest or the smallest."""


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
