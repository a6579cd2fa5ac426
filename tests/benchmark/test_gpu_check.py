"""What of the check on a GPU can be tested without one."""

import json
import re
import subprocess

import pytest
import torch
from rich.console import Console

from blockspike.benchmark import gpu_check
from blockspike.benchmark.dynamics import Size
from blockspike.benchmark.gpu_check import Row, measure, report

CPU = torch.device("cpu")
SIZE = Size(n_steps=32, batch_size=2, n_neurons=4, arp=5)


@pytest.fixture
def cuda(monkeypatch):
    """PyTorch says that there is a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"made-up {device}")


def test_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu_check, "run_tests", pytest.fail)
    assert gpu_check.main([]) == 2
    printed = capsys.readouterr()
    assert printed.err == "gpu-check: expected a CUDA GPU, PyTorch finds none\n"
    assert printed.out == ""


@pytest.mark.usefixtures("cuda")
def test_no_time_while_a_test_fails(monkeypatch, capsys):
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
def test_every_method_at_every_size(monkeypatch, capsys):
    def made_up(size, recurrent, method, device, rounds):
        assert device == torch.device("cuda", 0) and rounds == 3
        times = {"fused": (0.5, 1.5), "blocks": (4.0, 6.0), "standard": (10.0, 30.0)}[method]
        return Row(1024, size.batch_size, size.n_neurons, size.arp, recurrent, method, *times)

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


@pytest.mark.parametrize("method", ["standard", "blocks"])
@pytest.mark.parametrize("recurrent", [True, False])
def test_measure(monkeypatch, method, recurrent):
    calls = []

    def alif(*args, **options):
        calls.append(options)
        return original(*args, **options)

    original = gpu_check.alif
    monkeypatch.setattr(gpu_check, "alif", alif)
    row = measure(SIZE, recurrent, method, CPU, rounds=2)
    assert row.method == method and row.recurrent == recurrent and row.n_neurons == 4
    assert row.forward_ms > 0 and row.backward_ms > 0
    assert row.total_ms == row.forward_ms + row.backward_ms
    assert len(calls) == gpu_check._WARM_UP + 2
    assert all((c["recurrent_weight"] is not None) == recurrent for c in calls)
    assert all(c["method"] == method and c["arp"] == 5 for c in calls)


def test_report_without_fused(capsys):
    report(Console(), [measure(SIZE, False, "standard", CPU, rounds=2)], CPU)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["device"] == "cpu"
