"""Parts of the GPU check that can be tested without a GPU."""

import json
import re
import subprocess
from dataclasses import asdict, replace

import pytest
import torch
from rich.console import Console

from blockspike.benchmark import gpu_check
from blockspike.benchmark.dynamics import Size
from blockspike.benchmark.gpu_check import measure, report
from blockspike.benchmark.timing import Turn, summary

CPU = torch.device("cpu")
SIZE = Size(n_steps=32, batch_size=2, n_units=4, arp_steps=5)


@pytest.fixture
def cuda(monkeypatch):
    """Let PyTorch report a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"made-up {device}")


def test_a_missing_gpu_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "run_tests", pytest.fail)
    assert gpu_check.main([]) == 2
    printed = capsys.readouterr()
    assert "expected a CUDA GPU" in printed.err
    assert printed.out == ""


@pytest.mark.usefixtures("cuda")
def test_no_time_is_reported_if_a_test_fails(monkeypatch, capsys):
    calls = []

    def run(command, **options):
        calls.append((command, options))
        return subprocess.CompletedProcess(command, returncode=1)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(gpu_check, "measure", pytest.fail)
    assert gpu_check.main([]) == 1
    assert "no time is reported" in capsys.readouterr().err
    ((command, options),) = calls
    assert command[-3:] == gpu_check.TESTS
    assert all((options["cwd"] / file).is_file() for file in gpu_check.TESTS)
    assert options["env"]["TRITON_INTERPRET"] == "0"
    assert options["env"]["NVIDIA_TF32_OVERRIDE"] == "0"


@pytest.mark.usefixtures("cuda")
def test_every_method_is_timed_at_every_size(monkeypatch, capsys):
    seconds = {"fused": (0.5, 1.5), "blocks": (4.0, 6.0), "standard": (10.0, 30.0)}

    def made_up(size, device, rounds, methods):
        assert device == torch.device("cuda", 0) and rounds == 3
        turns = {m: [Turn(*(ms / 1000 for ms in seconds[m]))] * rounds for m in methods}
        work = asdict(size)
        return [work | {"method": m} | summary(turns[m], turns["fused"]) for m in methods]

    monkeypatch.setattr(gpu_check, "run_tests", lambda: True)
    monkeypatch.setattr(gpu_check, "measure", made_up)
    assert gpu_check.main(["--rounds", "3"]) == 0
    *table, line = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert result["device"] == "made-up cuda:0" and result["torch"] == torch.__version__
    assert len(result["rows"]) == 3 * len(gpu_check.WORK)
    assert result["rows"][0]["method"] == "standard"
    printed = "\n".join(table)
    assert "made-up cuda:0" in printed and "30.000" in printed
    for method, slower in (("standard", 20), ("blocks", 5), ("fused", 1)):
        assert re.search(rf"{method} .* {slower} │\n", printed)


@pytest.mark.slow
@pytest.mark.parametrize("recurrent", [True, False])
def test_rows_have_times_and_ratios(monkeypatch, recurrent):
    calls = []

    def alif(*args, **options):
        calls.append(options)
        return original(*args, **options)

    original = gpu_check.alif
    monkeypatch.setattr(gpu_check, "alif", alif)
    rows = measure(replace(SIZE, recurrent=recurrent), CPU, 2, ["standard", "blocks", "fused"])
    assert [row["method"] for row in rows] == ["standard", "blocks", "fused"]
    for row in rows:
        assert row["recurrent"] == recurrent and row["n_units"] == 4 and row["rounds"] == 2
        assert row["forward_ms_median"] > 0 and row["backward_ms_median"] > 0
        own = [c for c in calls if c["method"] == row["method"]]
        assert len(own) == gpu_check._WARM_UPS + 2
        assert all((c["recurrent_weight"] is not None) == recurrent and c["arp"] == 5 for c in own)
    assert rows[2]["total_by_fused"] == 1


@pytest.mark.slow
def test_a_report_without_fused_has_no_ratio(capsys):
    report(Console(), measure(SIZE, CPU, 2, ["standard"]), CPU)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["device"] == "cpu"


@pytest.mark.usefixtures("cuda")
def test_too_few_rounds_are_refused(capsys):
    with pytest.raises(SystemExit):
        gpu_check.main(["--rounds", "1"])
    assert "--rounds: expected at least 2, got 1" in capsys.readouterr().err
