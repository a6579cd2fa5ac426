"""A few of the faults that `make faults` injects, and what the harness itself can see."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parents[2] / "tools" / "faults" / "faults.py"


def test_a_few_faults_of_each_kind_lose_nothing(tmp_path):
    command = [sys.executable, str(PROGRAM), "--short", "--csv", str(tmp_path / "table.csv")]
    environment = os.environ | {"FAULT_SEED": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "table.csv")
    assert len(table) >= 10
    kinds = set(table["kind"])
    assert {"killed at a write", "full disk at a write", "two processes", "data changed"} <= kinds
    assert set(table["outcome"]) <= {"unharmed", "recovered", "refused"}
