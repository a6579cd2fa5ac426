"""Grids of which `make test` runs a part; `make test-slow` runs the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def mostly_slow(values: Iterable[Any], is_quick: Callable[[Any], bool]) -> list[Any]:
    """Values of one argument of `pytest.mark.parametrize`, slow but for those that are quick."""
    return [v if is_quick(v) else pytest.param(v, marks=pytest.mark.slow) for v in values]
