"""Runs with NaN or Inf: they stop, lose nothing, and `replay=` reproduces the error."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train import SMALL, differences, results

from blockspike.fitting.module import NeuronFittingModule
from blockspike.fitting.synthetic_cells import SyntheticCells
from blockspike.training.classification import ClassificationModule
from printed_commands import ROOT
from tiers import mostly_slow

EPOCHS = ("trainer.max_epochs=4", "data.batch_size=300")
WEIGHT = "layers.1: recurrent_weight is nan at [3, 5] (1 of 256 values)"
GRADIENT = "layers.0: gradient of bias is inf at [2] (1 of 16 values)"
PLACE = "epoch 3, step 8, batch 2"  # epochs have three batches


def harm_weight(module) -> None:
    with torch.no_grad():
        module.network.layers[1].recurrent_weight[3, 5] = math.nan


def harm_gradient(module) -> None:
    def hook(gradient):
        gradient = gradient.clone()
        gradient[2] = math.inf
        return gradient

    module.network.layers[0].bias.register_hook(hook)


def harmed(monkeypatch, harm, epoch=2, batch=1, of: Any = ClassificationModule) -> dict[str, bytes]:
    """Do `harm` before one training batch; returns name → checkpoint at that moment."""
    before: dict[str, bytes] = {}

    def start(self, _, batch_idx):
        if (self.current_epoch, batch_idx) == (epoch, batch):
            folder = Path(self.trainer.checkpoint_callbacks[-1].dirpath)
            before.update({p.name: p.read_bytes() for p in folder.iterdir()})
            harm(self)

    monkeypatch.setattr(of, "on_train_batch_start", start)
    return before


def one_bad_batch(folder: Path) -> Path:
    (path,) = (folder / "outputs").rglob("bad_batch.ckpt")
    return path


def last_line(done) -> str:
    return done.stderr.splitlines()[-1]


def checkpoints(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (run / "checkpoints").iterdir()}


def test_the_page_shows_the_messages(blockspike):
    page = ROOT / "docs" / "howto" / "numbers_that_go_wrong.md"
    lines = page.read_text().splitlines()
    stop, replay = (x.split() for x in lines if x.startswith("blockspike train data=nmnist"))
    (shown,) = (x for x in lines if x.startswith("readout: "))
    _, place, file = shown.split("; ")  # the first bad number depends on the processor
    for command in (stop, replay):
        done = blockspike(*command[1:], check=False)
        assert done.returncode == 2 and f"; {place}; this batch: " in last_line(done)
        assert last_line(done).endswith(file.partition("…/")[2])


@pytest.mark.parametrize(
    "method", mostly_slow(["fused", "blocks", "standard"], lambda x: x == "fused")
)
def test_a_run_stops_replays_and_resumes(blockspike, tmp_path, method):
    args = ("train", *SMALL, *EPOCHS, f"model={method}", "scheduler=cosine")
    blockspike(*args, "output_dir=whole/outputs")
    with pytest.MonkeyPatch.context() as broken:
        before = harmed(broken, harm_weight)
        done = blockspike(*args, check=False)
    file = one_bad_batch(tmp_path)
    run = file.parent
    said = f"{WEIGHT}; {PLACE}; this batch: {file}"
    assert done.returncode == 2
    assert last_line(done) == f"blockspike train: {said}"
    assert set(before) == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert checkpoints(run) == before
    assert (run / "error.log").read_text().splitlines()[-1] == f"NotFiniteError: {said}"
    status = json.loads((run / "status.json").read_text())
    assert "replay" not in json.loads((run / "content.json").read_text())  # keeps hashes
    assert status["state"] == "failed" and status["error"] == said

    kept = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    again = blockspike(*args, f"replay={file}", check=False)
    assert again.returncode == 2 and last_line(again) == last_line(done)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == kept

    mended = blockspike(*args)
    assert "continued after epoch 2" in mended.stdout
    file.unlink()
    assert not differences(results(tmp_path), results(tmp_path / "whole"))


def test_a_replay_with_a_finite_gradient_says_so(blockspike, tmp_path, monkeypatch):
    args = ("train", *SMALL, *EPOCHS)
    with monkeypatch.context() as broken:
        before = harmed(broken, harm_gradient)
        done = blockspike(*args, check=False)
    file = one_bad_batch(tmp_path)
    assert f"{GRADIENT}; {PLACE}" in done.stderr
    assert checkpoints(file.parent) == before
    other = tmp_path / "elsewhere"
    again = blockspike(*args, f"replay={file}", f"output_dir={other}", "logger=wandb")
    assert again.stdout == f"{file}: every number is finite here; it was: {GRADIENT}; {PLACE}\n"
    assert not other.exists() or not list(other.iterdir())


def test_bad_replay_files_are_refused(blockspike, tmp_path):
    done = blockspike("train", *SMALL, "replay=nothing.ckpt", check=False)
    assert done.returncode == 2 and "nothing.ckpt: no such checkpoint" in done.stderr
    (tmp_path / "a=b.ckpt").write_bytes(b"nothing")
    done = blockspike("train", *SMALL, "replay=a=b.ckpt", check=False)
    assert done.returncode == 2 and "a=b.ckpt: not a readable checkpoint" in done.stderr


@pytest.mark.slow
def test_a_fit_stops_replays_and_resumes(blockspike, tmp_path, monkeypatch):
    (cell,) = SyntheticCells(n_cells=1, duration_s=5.0, trial_noise=0.0).cells()
    trial = np.asarray(cell.spike_times_s[0][0], float)
    np.savez(
        tmp_path / "my_cell.npz", current_pa=cell.current_pa[0], dt_ms=cell.dt_ms,
        spike_times_s=trial,
    )  # fmt: skip
    args = (
        "fit", "data.path=my_cell.npz", "trainer.max_epochs=30",
        "population.n_starts=8", "threads=1",
    )  # fmt: skip

    def harm(module):
        with torch.no_grad():
            module.population.rest[3] = math.nan

    with monkeypatch.context() as broken:
        before = harmed(broken, harm, 25, 0, NeuronFittingModule)
        done = blockspike(*args, check=False)
    file = one_bad_batch(tmp_path)
    words = "my_cell, start 4: rest is nan; epoch 26, step 26, batch 1; this batch: "
    assert done.returncode == 2 and last_line(done).startswith(f"blockspike fit: {words}")
    assert set(before) == {"last.ckpt"} and checkpoints(file.parent) == before
    again = blockspike(*args, f"replay={file}", check=False)
    assert again.returncode == 2 and last_line(again) == last_line(done)
    assert "continued after epoch 20" in blockspike(*args).stdout


# Lightning starts the second process itself, so each is harmed when Python starts.
_HARM = """
import time
import torch
from blockspike.training import guard
from blockspike.training.classification import ClassificationModule, F

def start(self, _, batch_idx):
    if (self.current_epoch, batch_idx, self.global_rank) == (1, 1, 1):
        with torch.no_grad():
            {harm}

def slow(*args):  # the first process must not end this one meanwhile
    time.sleep(10)
    save_plain(*args)

ClassificationModule.on_train_batch_start = start
save_plain, guard.save_plain = guard.save_plain, slow
cross_entropy = F.cross_entropy
wrong = lambda *args, **options: cross_entropy(*args, **options) + float('inf')
"""
_HARMS = {
    # noticed by the neurons of one process, which must inform the other
    "forward": (
        "self.network.layers[1].bias[3] = float('nan')",
        "layers.1: bias is nan at [3] (1 of 8 values)",
    ),
    # noticed by the check in one process: all gradients are finite
    "check": ("F.cross_entropy = wrong", "loss: is inf"),
}


@pytest.mark.slow
@pytest.mark.parametrize("harm", _HARMS)
def test_all_processes_of_a_run_stop(tmp_path, data_dir, harm):
    code, words = _HARMS[harm]
    (tmp_path / "sitecustomize.py").write_text(_HARM.format(harm=code))
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    args = (
        "train", "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "network.n_hidden=8",
        "trainer=ddp_cpu", "trainer.max_epochs=3", "data.batch_size=400", "threads=1",
        f"data_dir={data_dir}",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "blockspike", *args], cwd=tmp_path, capture_output=True,
        text=True, timeout=120, check=False, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    file = one_bad_batch(tmp_path)
    assert done.returncode == 2
    (line,) = {x for x in done.stderr.splitlines() if x.startswith("blockspike train: ")}
    assert words in line and "; epoch 2, step 5, batch 2 of process 1; this batch: " in line
    assert words in (file.parent / "error.log").read_text().splitlines()[-1]
