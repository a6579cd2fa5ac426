"""`blockspike benchmark`: one table that resumes, its errors, and the guard's exit code."""

import re
from functools import partial

import pandas as pd
import pytest

from blockspike.benchmark import dynamics, fitting, guard, roofline, training_step
from blockspike.benchmark.layers import Size

QUICK = (
    "study=length,layers", "n_steps=20", "arp_steps=2,3", "batch_size=2", "n_units=8", "n_layers=1",
    "contenders=fused,standard,sinabs", "rounds=2", "memory=false", "longest_turn_s=60",
)  # fmt: skip


@pytest.fixture(autouse=True)
def short_layers(monkeypatch):
    from blockspike.benchmark import studies

    sizes = studies.Size
    monkeypatch.setattr(
        studies, "Size", lambda *a, **k: sizes(min(a[0], 20), min(a[1], 2), *a[2:], **k)
    )


@pytest.mark.slow
def test_a_killed_benchmark_resumes_its_table(blockspike, tmp_path):
    done = blockspike("benchmark", *QUICK)
    file = tmp_path / "outputs" / "benchmark" / "rows.jsonl"
    assert "times as long as fused" in done.stdout and "tables/speed.csv" in done.stdout
    lines = file.read_text().splitlines()
    assert len(lines) == 3  # two refractory periods, one stack
    table = pd.read_csv(tmp_path / "outputs" / "tables" / "speed.csv")
    assert table["study"].tolist() == ["length"] * 6 + ["layers"] * 2
    assert {"cpu", "threads", "torch", "git_sha", "load", "differs"} <= set(table)
    file.write_text("\n".join(lines[:1]) + "\n" + lines[1][:50])  # as after a kill
    blockspike("benchmark", *QUICK)
    again = file.read_text().splitlines()
    assert again[0] == lines[0] and len(again) == 3 and again[1] != lines[1]
    assert not blockspike("benchmark", *QUICK).stdout.startswith("length")
    assert file.read_text().splitlines() == again


@pytest.mark.slow
def test_a_library_installed_later_is_measured(blockspike, tmp_path, monkeypatch):
    from dataclasses import replace

    from blockspike.benchmark.layers import CONTENDERS

    file = tmp_path / "outputs" / "benchmark" / "rows.jsonl"
    blockspike("benchmark", *QUICK, "study=length", "arp_steps=2")
    installed = replace(CONTENDERS["sinabs"], version="9.9")
    monkeypatch.setitem(CONTENDERS, "sinabs", installed)
    blockspike("benchmark", *QUICK, "study=length", "arp_steps=2")
    assert len(file.read_text().splitlines()) == 2
    table = pd.read_csv(tmp_path / "outputs" / "tables" / "speed.csv")
    assert table["contender"].tolist() == ["fused", "standard", "sinabs"]
    assert table["version"].tolist()[2] == 9.9


@pytest.mark.slow
def test_names_with_brackets_can_be_chosen(blockspike):
    chosen = "contenders=fused,SpikingJelly (LIFNode),SpikingJelly (FlexSN)"
    done = blockspike("benchmark", *QUICK, "study=length", "arp_steps=2", chosen)
    assert "SpikingJelly" in done.stdout


@pytest.mark.slow
def test_another_number_of_rounds_is_measured_again(blockspike, tmp_path):
    blockspike("benchmark", *QUICK, "study=length")
    blockspike("benchmark", *QUICK, "study=length", "rounds=3")
    lines = (tmp_path / "outputs" / "benchmark" / "rows.jsonl").read_text().splitlines()
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("study=speed", "study: expected some of roofline"),
        ("contenders=fusd", "contenders: expected some of fused"),
        ("rounds=1", "rounds: expected at least 2"),
        ("device=cuda", "device: expected cpu, since PyTorch finds no CUDA GPU"),
        ("n_stepz=3", "n_stepz"),
    ],
)
def test_bad_input_is_named(blockspike, override, message):
    done = blockspike("benchmark", override, check=False)
    assert done.returncode == 2 and message in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("floor", "code"), [(1e-9, 0), (1e9, 1)])
def test_the_guard_has_an_exit_code(blockspike, monkeypatch, floor, code):
    monkeypatch.setattr(guard, "_SHAPE", (6, 2, 20))
    monkeypatch.setattr(guard, "_TRIES", 1)
    monkeypatch.setattr(guard.dynamics, "GUARD", guard.dynamics.Size(64, 2, 8, 5))
    for pair in guard.FLOORS:
        monkeypatch.setitem(guard.FLOORS, pair, floor)
    done = blockspike("benchmark", "--check", "rounds=2", check=False)
    assert done.returncode == code and ("below the floor" in done.stderr) == bool(code)


@pytest.mark.slow
def test_the_roofline_is_printed(blockspike, monkeypatch):
    monkeypatch.setattr(roofline, "LAYER", Size(64, 2, 50, 8, arp_steps=3, recurrent=False))
    monkeypatch.setattr(roofline, "COPIED_BYTES", 2**16)
    monkeypatch.setattr(roofline, "_COPY", [])
    monkeypatch.setenv("COLUMNS", "120")
    printed = blockspike("benchmark", "study=roofline", "rounds=2").stdout
    assert re.search(r"bandwidth of a copy, [\d.]+ GB/s \(the fastest [\d.]+\)", printed)
    assert re.search(r"fused, FastSigmoid .* [\d.]+ .* \d+% \(\d+%\)", printed)
    assert "nan" not in printed


@pytest.mark.slow
def test_dynamics_step_and_fit_are_studies(blockspike, monkeypatch, data_dir):
    monkeypatch.setattr(dynamics, "SIZES", (dynamics.Size(40, 2, 8, 5),))
    monkeypatch.setattr(fitting, "Size", partial(fitting.Size, 2, 200, 2))
    monkeypatch.setattr(training_step, "PAPER", training_step.Size(8, 30, 16))
    data = f"data_path={data_dir / 'hd_lauscher_sample.h5'}"
    shown = blockspike("benchmark", "study=dynamics,step,fit", "rounds=2", "memory=false", data)
    lines = (line for line in shown.stdout.splitlines() if line.startswith("step: part"))
    assert [line.split(",")[0] for line in lines] == [
        "step: part contenders", "step: part lengths", "step: part refractory periods",
    ]  # fmt: skip
    assert re.search(r"step +│ floor", shown.stdout)


def test_a_missing_recording_is_named(blockspike):
    done = blockspike("benchmark", "study=step", "rounds=2", check=False)
    assert done.returncode == 2 and "blockspike prepare data=hd_lauscher_sample" in done.stderr
