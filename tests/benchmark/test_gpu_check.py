"""Parts of the study `gpu` that can be tested without a GPU."""

import subprocess
from dataclasses import replace

import pytest
import torch

from blockspike.benchmark import gpu_check
from blockspike.benchmark.dynamics import Size
from blockspike.benchmark.gpu_check import measure
from blockspike.benchmark.studies import Options, pieces

CPU = torch.device("cpu")
SIZE = Size(n_steps=32, batch_size=2, n_units=4, arp_steps=5)


@pytest.fixture
def cuda(monkeypatch):
    """Let PyTorch report a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)


@pytest.fixture
def calls(monkeypatch):
    """Commands that are run instead of the tests; they exit with the fixture's first element."""
    made: list = [0]

    def run(command, **options):
        made.append((command, options))
        return subprocess.CompletedProcess(command, returncode=made[0])

    monkeypatch.setattr(subprocess, "run", run)
    return made


def test_a_gpu_is_asked_for(calls):
    with pytest.raises(ValueError, match="device: expected cuda for the study 'gpu', got 'cpu'"):
        next(pieces("gpu", Options()))
    assert calls == [0]


@pytest.mark.usefixtures("cuda")
def test_no_time_is_reported_if_a_test_fails(calls):
    calls[0] = 1
    with pytest.raises(RuntimeError, match="no time is reported"):
        next(pieces("gpu", Options(device="cuda")))
    _, (command, options) = calls
    assert command[-3:] == gpu_check.TESTS
    assert all((options["cwd"] / file).is_file() for file in gpu_check.TESTS)
    assert options["env"]["TRITON_INTERPRET"] == "0"
    assert options["env"]["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.usefixtures("cuda")
def test_every_method_is_timed_at_every_size_after_one_run_of_the_tests(calls):
    found = list(pieces("gpu", Options(device="cuda")))
    assert len(found) == len(gpu_check.SIZES) and len(calls) == 2
    for piece in found:
        assert piece.contenders == ("standard", "blocks", "fused")
        assert piece.device == torch.device("cuda", 0)
    (chosen, *_) = pieces("gpu", Options(device="cuda", contenders=("fused",)))
    assert chosen.contenders == ("fused",)


@pytest.mark.slow
@pytest.mark.parametrize("recurrent", [True, False])
def test_rows_have_times_and_ratios(monkeypatch, recurrent):
    calls = []

    def alif(*args, **options):
        calls.append(options)
        return original(*args, **options)

    original = gpu_check.alif
    monkeypatch.setattr(gpu_check, "alif", alif)
    size = replace(SIZE, recurrent=recurrent)
    rows = measure(size, CPU, 2, ["standard", "blocks", "fused"])
    assert [row["contender"] for row in rows] == ["standard", "blocks", "fused"]
    for row in rows:
        assert row["rounds"] == 2
        assert row["forward_ms_median"] > 0 and row["backward_ms_median"] > 0
        own = [c for c in calls if c["method"] == row["contender"]]
        assert len(own) == gpu_check._WARM_UPS + 2
        assert all((c["recurrent_weight"] is not None) == recurrent and c["arp"] == 5 for c in own)
    assert rows[2]["total_by_fused"] == 1


@pytest.mark.slow
def test_a_row_without_fused_has_no_ratio():
    (row,) = measure(SIZE, CPU, 2, ["standard"])
    assert "total_by_fused" not in row
