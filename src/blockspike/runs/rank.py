"""Which process of its run this one is; Lightning is loaded only for runs that may have several."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_only  # whose `rank` Lightning reads


def take_rank(trainer: Mapping[str, Any] | None) -> None:
    """Set which process of its run this one is, for code that only the first one runs.

    Args:
        trainer: the run's trainer configuration; None for a command that trains nothing.
    """
    rank = 0
    if trainer is not None:
        rank = import_module("blockspike.runs.processes").rank_of(trainer)
    rank_zero_only.rank = rank  # pyright: ignore[reportFunctionMemberAccess]


def is_first_process() -> bool:
    """Whether this is the only process of its run, or the first of those that share it."""
    return not getattr(rank_zero_only, "rank", 0)
