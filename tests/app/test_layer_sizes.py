"""A network whose hidden layers differ in size, from training to its card."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from blockspike.app.pretrained import load_pretrained
from blockspike.networks.nir import from_nir, to_nir

SMALL = (
    "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "model.arp_ms=0",
    "model.tau_adaptation_ms=null", "trainer.max_epochs=1", "threads=1",
    "network.n_hidden=[12,7,9]", "network.n_layers=3",
)  # fmt: skip


@pytest.fixture
def run(copy_of_run, tmp_path) -> Path:
    return copy_of_run(tmp_path, "train", *SMALL).relative_to(tmp_path)


def test_it_is_tested_drawn_reported_and_collected(run, blockspike, tmp_path):
    blockspike("evaluate", str(run))
    blockspike("plot", "run", str(run))
    assert (tmp_path / run / "figures" / "raster.png").is_file()
    blockspike("report", str(run))
    assert (tmp_path / "outputs" / "report.html").is_file()
    blockspike("collect")
    table = pd.read_parquet(tmp_path / "outputs" / "tables" / "runs.parquet")
    assert list(table["network.n_hidden"]) == ["[12, 7, 9]"]


def test_it_is_published_and_exchanged(run, blockspike, tmp_path):
    blockspike("publish", str(run), "mine")
    network = load_pretrained(tmp_path / "outputs" / "published" / "mine.safetensors")
    assert [len(layer.bias) for layer in network.layers] == [12, 7, 9]  # pyright: ignore
    row = json.loads((tmp_path / run / "result.json").read_text())
    spikes = sum(n * row[f"rate_layer{i}_hz"] for i, n in ((1, 12), (2, 7), (3, 9))) * 0.4
    card = (tmp_path / "outputs" / "published" / "mine.md").read_text()
    assert f"spikes per validation recording | {round(spikes)} |" in card
    pytest.importorskip("nir")
    x = (torch.rand(40, 2, 1156) < 0.05).float()
    graph = to_nir(network, dt_ms=10.0)
    assert torch.equal(from_nir(graph, dt_ms=10.0)(x).spikes[2], network(x).spikes[2])
