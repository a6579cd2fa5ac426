"""How long a run has taken, over all of its attempts."""

import os
import time

import pytest
from omegaconf import OmegaConf

from blockspike.files import read_json, write_json
from blockspike.runs.run import Run, time_text
from blockspike.runs.sweeps import run_states


def test_attempts_add_up(tmp_path):
    run, start = Run(tmp_path / "seed=0"), time.time() - 100
    run.folder.mkdir()
    metrics = run.folder / "metrics.csv"
    metrics.write_text("epoch\n0\n")
    os.utime(metrics, (start + 30, start + 30))  # killed after its last epoch
    write_json(run.folder / "status.json", {"state": "running", "started": time_text(start)})
    with run.recorded(OmegaConf.create(), {}, ""):
        assert read_json(run.folder / "status.json")["earlier_s"] == pytest.approx(30, abs=2)
        (seconds,) = run_states(tmp_path)["seconds"]
        assert seconds == pytest.approx(30, abs=10)
    assert run.seconds(runs=False) == pytest.approx(30, abs=10)


def test_an_attempt_that_was_killed_before_its_first_epoch_counts_as_none(tmp_path):
    run, before = Run(tmp_path), time_text(time.time() - 100)
    write_json(run.folder / "status.json", {"state": "running", "started": before})
    assert run.seconds(runs=False) == 0
    with run.recorded(OmegaConf.create(), {}, ""):
        pass
    assert run.seconds(runs=False) == pytest.approx(0, abs=10)


@pytest.mark.parametrize(
    "status", [{}, {"started": "yesterday"}, {"started": 3}, {"earlier_s": None}]
)
def test_unknown_is_not_zero(tmp_path, status):
    now = time_text(time.time())
    write_json(tmp_path / "status.json", {"started": now, "ended": now} | status if status else {})
    run = Run(tmp_path)
    assert run.seconds(runs=False) is None
    with run.recorded(OmegaConf.create(), {}, ""):
        assert run.seconds(runs=True) is None
