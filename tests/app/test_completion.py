"""Tab completion: words as Bash splits them, at spaces and "="."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prep", {"prepare"}),
        ("train model = ad", {"adlif"}),
        ("train network.n_h", {"network.n_hidden="}),
        ("train -m data =", {"nmnist_sample", "shd"}),
        ("train model=se_adlif model.eu", {"model.euler="}),
        ("fit ", {"population=", "fit="}),
        ("train model=nothing model.", set()),
        ("status --exp", {"--experiment"}),
        ("plot sw", {"sweep"}),
    ],
)
def test_bash(line, expected, tmp_path):
    words = f"blockspike {line}"
    asked = {
        "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_BLOCKSPIKE_COMPLETE": "complete_bash",
    }  # fmt: skip
    done = subprocess.run(
        [BIN / "blockspike"], env=os.environ | asked, cwd=tmp_path, capture_output=True, text=True
    )
    found = set(done.stdout.split())
    assert expected <= found and (expected or not found)
    assert not list(tmp_path.iterdir())
