"""Fixtures of the data tests."""

import importlib.util
from pathlib import Path

import pytest
from https_server import CERTIFICATE, serving
from made_data import make_nmnist
from made_nwb import share_types

if importlib.util.find_spec("pynwb"):
    share_types()


@pytest.fixture(scope="session")
def nmnist_folder(tmp_path_factory) -> Path:
    """Random recordings in N-MNIST's folders."""
    return make_nmnist(tmp_path_factory.mktemp("nmnist") / "N-MNIST")


@pytest.fixture(params=[True])
def server(request, monkeypatch):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(ranges=request.param) as running:
        yield running
