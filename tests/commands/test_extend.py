"""A finished run that is continued to more epochs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import SMALL, differences, results
from wandb_file import logged_runs

from blockspike.files import read_json
from blockspike.runs.run import Run
from blockspike.training import checkpoint_io
from blockspike.training.checkpoint_io import load_plain, save_plain

TINY = ("train", *SMALL, "network.n_hidden=4", "trainer.limit_train_batches=2")
EVERYTHING = (
    *TINY, "scheduler=step", "scheduler.step_size=2", "network.dropout=0.2", "data.pixel_shift=1",
    "callbacks=[reload_best,early_stopping]", "callbacks.reload_best.milestone=3",
)  # fmt: skip


@pytest.fixture
def source(copy_of_run, tmp_path) -> Path:
    """A finished run of two epochs."""
    return copy_of_run(tmp_path, *EVERYTHING, "trainer.max_epochs=2")


def run_of(folder: Path, n_epochs: int, seed: int = 0) -> Path:
    """The run of so many epochs and that seed in `folder/outputs`."""
    (path,) = (
        file.parent
        for file in (folder / "outputs").rglob("content.json")
        if (content := read_json(file))["trainer"]["max_epochs"] == n_epochs
        and content["seed"] == seed
    )
    return path


def is_equal(one: Any, other: Any) -> bool:
    """Whether nested values are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_equal(x, other[k]) for k, x in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_equal, one, other))
    return one == other


def check_equal(run: Path, whole: Path) -> None:
    """Check that rows, curves and states of two runs of four epochs are equal."""
    found = [
        results(path.parents[3])[f"default/{path.parent.name}/seed=0"] for path in (run, whole)
    ]
    assert not differences(*found)
    assert found[0]["row"]["n_epochs"] == 4
    for name in ("last", "previous", "best"):
        states = [load_plain(path / "checkpoints" / f"{name}.ckpt") for path in (run, whole)]
        for key in ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers"):
            assert is_equal(states[0][key], states[1][key]), (name, key)


def test_an_extended_run_has_the_bits_of_an_undisturbed_one(source, blockspike, tmp_path):
    args = (*EVERYTHING, "trainer.max_epochs=4")
    before = (source / "checkpoints" / "last.ckpt").read_bytes()
    done = blockspike(*args, f"extend={source}", "logger=wandb")
    assert f"{source}: extended after epoch 2" in done.stdout
    blockspike(*args, "output_dir=whole/outputs")
    run, whole = run_of(tmp_path, 4), run_of(tmp_path / "whole", 4)
    check_equal(run, whole)
    assert "extend" not in (run / "content.json").read_text() + " ".join(Run(run).arguments())
    assert (source / "checkpoints" / "last.ckpt").read_bytes() == before
    (logged,) = logged_runs(run)
    assert sorted(logged.epochs()) == [0, 1, 2, 3]

    shutil.rmtree(source)  # a finished run does not need it
    assert "finished, skipped" in blockspike(*args, f"extend={source}").stdout


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [2, 3])
def test_an_extension_that_ends_early_continues(source, blockspike, tmp_path, monkeypatch, epoch):
    def crash(content, path):
        if path.name == "last.ckpt" and content["epoch"] == epoch:
            raise OSError("no space left")
        save_plain(content, path)

    args = (*EVERYTHING, "trainer.max_epochs=4")
    with monkeypatch.context() as broken:
        broken.setattr(checkpoint_io, "save_plain", crash)
        crashed = blockspike(*args, f"extend={source}", check=False)
    assert crashed.returncode == 2 and "no space left" in crashed.stderr
    if epoch == 3:
        shutil.rmtree(source)  # no longer needed
    again = blockspike(*args, f"extend={source}")
    how = "extended" if epoch == 2 else "continued"  # it has no checkpoint of its own yet
    assert f"{how} after epoch {epoch}" in again.stdout
    blockspike(*args, "output_dir=whole/outputs")
    check_equal(run_of(tmp_path, 4), run_of(tmp_path / "whole", 4))


def test_a_run_that_stopped_early_stays_as_it_is(blockspike, tmp_path):
    args = (*TINY, "optimizer=adamw", "optimizer.lr=1e-12")
    args += ("callbacks=early_stopping", "callbacks.early_stopping.patience=1")
    blockspike(*args, "trainer.max_epochs=3")
    source = run_of(tmp_path, 3)
    assert Run(source).result()["n_epochs"] == 2  # pyright: ignore[reportOptionalSubscript]
    blockspike(*args, "trainer.max_epochs=4", f"extend={source}")
    assert Run(run_of(tmp_path, 4)).result()["n_epochs"] == 2  # pyright: ignore[reportOptionalSubscript]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ("optimizer.lr=0.5", "in all but trainer.max_epochs, got optimizer.lr: 0.001 → 0.5"),
        ("network.n_hidden=9 seed=3", "got data.seed: 0 → 3, network.n_hidden: 4 → 9, seed: 0 → 3"),
        ("trainer.max_epochs=2 experiment_name=other", "expected more than the 2 of"),
        ("extend=nowhere", "extend: expected a finished run in nowhere, got none"),
    ],
)
def test_another_configuration_is_refused_and_nothing_written(
    source, blockspike, tmp_path, overrides, words
):
    before = sorted(tmp_path.rglob("*"))
    given = ("trainer.max_epochs=4", f"extend={source}", *overrides.split())
    done = blockspike(*EVERYTHING, *given, check=False)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and words in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("scheduler=cosine", ("got scheduler.T_max: 1 → 2; a schedule for the whole",)),
        (
            "model.max_delay=3",
            ("extend: expected a network without learned delays", "got model.max_delay=3"),
        ),
        ("model.recurrent_max_delay=3", ("learned delays", "got model.recurrent_max_delay=3")),
    ],
)
def test_what_follows_the_share_of_the_training_is_refused(blockspike, tmp_path, option, words):
    args = (*TINY, option)
    blockspike(*args, "trainer.max_epochs=1")
    source = run_of(tmp_path, 1)
    done = blockspike(*args, "trainer.max_epochs=2", f"extend={source}", check=False)
    assert all(word in done.stderr for word in words)


def test_a_source_without_checkpoints_or_of_other_data_is_refused(source, blockspike):
    args = (*EVERYTHING, "trainer.max_epochs=4", f"extend={source}")
    data = (source / "data.json").read_text()
    (source / "data.json").write_text('{"data_sha256": "0"}')
    assert f"{source}: the data have changed" in blockspike(*args, check=False).stderr
    (source / "data.json").write_text(data)
    for name in ("last", "previous"):
        (source / "checkpoints" / f"{name}.ckpt").unlink()
    done = blockspike(*args, check=False)
    assert f"extend: expected {source / 'checkpoints' / 'last.ckpt'}, got no such" in done.stderr


def test_more_epochs_in_the_same_folder_are_refused_with_the_option(source, blockspike):
    same = (*EVERYTHING, "trainer.max_epochs=4", f"hydra.run.dir='{source}'")
    done = blockspike(*same, check=False)
    assert (
        f"(trainer.max_epochs: 2 → 4); with another experiment_name, extend={source} continues it"
        in done.stderr
    )


@pytest.mark.slow
def test_a_sweep_extends_each_of_its_runs(blockspike, tmp_path):
    args = (*TINY, "-m", "seed=0,1")
    blockspike(*args, "trainer.max_epochs=1")
    folder = run_of(tmp_path, 1).with_name("seed=${seed}")
    assert folder.with_name("seed=1").is_dir()
    done = blockspike(*args, "trainer.max_epochs=2", f"extend={folder}")
    assert "runs: 2 done" in done.stdout
    for seed in (0, 1):
        log = run_of(tmp_path, 2, seed) / "train.log"
        assert "extended after epoch 1" in log.read_text()
