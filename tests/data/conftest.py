"""Fixtures of the data tests."""

from pathlib import Path

import pytest
from made_data import make_nmnist


@pytest.fixture(scope="session")
def nmnist_folder(tmp_path_factory) -> Path:
    """Random recordings in N-MNIST's folders."""
    return make_nmnist(tmp_path_factory.mktemp("nmnist") / "N-MNIST")
