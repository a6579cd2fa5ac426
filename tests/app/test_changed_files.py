"""Files changed or damaged between two starts are refused in one line, or made again."""

import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from blockspike.data.event_file import read_event_file
from blockspike.files import read_json, write_json
from blockspike.runs.identity import content_of
from blockspike.runs.run import Run
from blockspike.runs.status import run_states
from blockspike.training.metrics_table import read_metrics

ARGS = (
    "train", "data=nmnist_sample", "data.n_steps=40", "data.dt_ms=10", "network.n_hidden=8",
    "trainer.max_epochs=2", "data.path=events.h5", "threads=1",
)  # fmt: skip
FIT = (
    "fit", "data.path=cell.npz", "trainer.max_epochs=5",
    "population.n_starts=4", "population.arp_ms=2", "threads=1",
)  # fmt: skip


@pytest.fixture
def run(copy_of_run, tmp_path) -> Path:
    """A finished run on a copy of the sample."""
    return copy_of_run(tmp_path, *ARGS, sample="events.h5")


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def other_labels(path: Path) -> None:
    """Replace the labels: a valid file of the same size."""
    with h5py.File(path, "r+") as file:
        label: Any = file["train/label"]
        label[:] = np.roll(label[()], 1)
        del file.attrs["sha256"]
    digest = read_event_file(path).sha256()
    with h5py.File(path, "r+") as file:
        file.attrs["sha256"] = digest


def test_changed_data_are_refused_with_both_hashes(blockspike, tmp_path, run):
    path, before = tmp_path / "events.h5", (tmp_path / "events.h5").read_bytes()
    row = read_json(run / "result.json")
    assert row["data_sha256"] == read_event_file(path).sha256()
    (run / "result.json").unlink()
    other_labels(path)
    now = read_event_file(path).sha256()
    for args in (ARGS, ("evaluate", str(run)), ("report", str(run))):
        done = blockspike(*args, check=False)
        assert done.returncode == 2 and "the data have changed" in done.stderr
        assert f"{row['data_sha256']} → {now}" in done.stderr
    assert not list(tmp_path.rglob("error.log"))
    path.write_bytes(before)
    blockspike(*ARGS)
    again = read_json(run / "result.json")
    assert again["test_accuracy"] == row["test_accuracy"]


def test_a_flipped_bit_in_a_prepared_file_is_refused(blockspike, tmp_path, run):
    (run / "result.json").unlink()
    flip(tmp_path / "events.h5", 0.3)
    for args in (ARGS, ("evaluate", str(run)), ("prepare", *ARGS[1:2], "data.path=events.h5")):
        done = blockspike(*args, check=False)
        assert done.returncode == 2
        assert (
            "events.h5: damaged, expected SHA-256" in done.stderr
            and "prepare it again" in done.stderr
        )


def test_a_file_without_a_checksum_is_accepted(blockspike, tmp_path, data_dir):
    """Earlier versions wrote none."""
    path = tmp_path / "events.h5"
    path.write_bytes((data_dir / "nmnist_sample.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file.attrs["sha256"]
    blockspike(*ARGS)
    (result,) = tmp_path.rglob("result.json")
    assert read_json(result)["data_sha256"] == read_event_file(path).sha256()


def test_another_file_of_other_data_is_not_the_finished_run(blockspike, tmp_path, run):
    for name in ("same.h5", "other.h5"):
        (tmp_path / name).write_bytes((tmp_path / "events.h5").read_bytes())
    other_labels(tmp_path / "other.h5")
    later = time.time() + 3600  # neither file is newer than the last check
    again = [x for x in ARGS if not x.startswith("data.path=")]
    os.utime(run / "content.json", (later, later))
    assert "finished, skipped" in blockspike(*again, "data.path=same.h5").stdout
    os.utime(run / "content.json", (later, later))
    done = blockspike(*again, "data.path=other.h5", check=False)
    assert done.returncode == 2 and "the data have changed" in done.stderr
    done = blockspike(*again, "data.path=none.h5", "data.raw=none", check=False)
    assert done.returncode == 2 and "none.h5: expected prepared data" in done.stderr
    assert "finished, skipped" in blockspike(*ARGS).stdout


def test_a_deleted_recording_is_noticed(tmp_path):
    run, cells = Run(tmp_path / "run"), tmp_path / "cells"
    run.folder.mkdir()
    cells.mkdir()
    for name in ("a.npz", "b.npz"):
        (cells / name).touch()
    (run.folder / "config.yaml").write_text(f"data:\n  path: {cells}\n")
    write_json(run.folder / "content.json", {"data_sha256": "0"})
    later = time.time() + 10
    os.utime(run.folder / "content.json", (later, later))
    assert not run.may_have_other_data(str(cells))
    (cells / "b.npz").unlink()
    os.utime(cells, (later + 10, later + 10))
    assert run.may_have_other_data(str(cells))


@pytest.mark.slow
def test_a_changed_recording_is_refused(blockspike, tmp_path):
    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        times = np.linspace(0.05, 2.95, 30) + rng.uniform(-0.04, 0.04, 30)
        np.savez(
            tmp_path / "cell.npz", current_pa=rng.normal(0, 50, 30_000), dt_ms=0.1,
            spike_times_s=times,
        )  # fmt: skip

    write(0)
    blockspike(*FIT)
    (result,) = tmp_path.rglob("result.json")
    row = read_json(result)
    write(1)
    done = blockspike(*FIT, check=False)  # a corrected file: the old result is not that of it
    assert done.returncode == 2 and "the data have changed" in done.stderr
    assert "skipped" not in done.stdout
    write(0)
    for _ in range(2):
        assert "finished, skipped" in blockspike(*FIT).stdout
    mode = (result.parent / "content.json").stat()
    run = Run(result.parent)
    run.check(content_of(run.config()), row["data_sha256"])  # as of another person's run
    assert (result.parent / "content.json").stat().st_mtime_ns == mode.st_mtime_ns
    result.unlink()
    write(1)
    done = blockspike(*FIT, check=False)
    assert done.returncode == 2 and "the data have changed" in done.stderr
    assert row["data_sha256"] in done.stderr
    write(0)
    blockspike(*FIT)
    assert read_json(result)["test_etv_15ms_median"] == row["test_etv_15ms_median"]


def test_a_damaged_best_model_stops_the_run_before_it_resumes(blockspike, run):
    (run / "result.json").unlink()
    best = run / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-1000])
    done = blockspike(*ARGS, check=False)
    assert done.returncode == 2
    assert "best.ckpt: not a readable checkpoint" in done.stderr
    assert "continued" not in done.stdout


def test_evaluate_refuses_an_edited_configuration(blockspike, run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("dt_ms: 10.0", "dt_ms: 20.0"))
    done = blockspike("evaluate", str(run), check=False)
    assert done.returncode == 2 and "holds a run with another configuration" in done.stderr
    assert "data.dt_ms: 10.0 → 20.0" in done.stderr


@pytest.mark.parametrize("end", ["", "\ndata:"])
def test_evaluate_refuses_a_truncated_configuration(blockspike, run, end):
    path = run / "config.yaml"
    text = path.read_text()
    path.write_text(text[: text.index(end) + len(end)])
    done = blockspike("evaluate", str(run), check=False)
    assert done.returncode == 2 and "config.yaml: damaged" in done.stderr


def test_damaged_results_are_named(blockspike, tmp_path, run):
    path = run / "result.json"
    text = path.read_text()
    accuracy = read_json(path)["test_accuracy"]
    path.write_text(text.replace(f'"test_accuracy": {accuracy}', '"test_accuracy": 0.99'))
    for args in (("collect",), ARGS):
        done = blockspike(*args, check=False)
        assert done.returncode == 2 and f"{path.name}: damaged or edited by hand" in done.stderr
    (row,) = run_states(tmp_path / "outputs").to_dict("records")
    assert row["state"] == "failed" and "damaged or edited by hand" in row["error"]


def test_durations_do_not_depend_on_the_clock(tmp_path, run):
    status = read_json(run / "status.json")
    write_json(run / "status.json", {**status, "started": "2999-01-01T00:00:00+0000"})
    (row,) = run_states(tmp_path / "outputs").to_dict("records")
    seconds = read_metrics(run / "metrics.csv")["time/epoch_s"].sum()
    assert row["state"] == "done" and row["seconds"] == pytest.approx(seconds)
