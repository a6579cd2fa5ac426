"""Tests of the GPU kernels on a GPU, followed by times of the neuron dynamics.

    python -m blockspike.benchmark.gpu_check [--rounds 5]

Run it from a checkout, since it needs `tests/`. Exit code 2 without a GPU; 1 if a test fails, and
then no time is reported.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from blockspike.benchmark.dynamics import Size, make_inputs
from blockspike.benchmark.table import Row
from blockspike.benchmark.timing import all_turns, summary, take_turns, time_turn
from blockspike.neurons import Method, alif

ROOT = Path(__file__).parents[3]
TESTS = [f"tests/neurons/test_{name}.py" for name in ("fused_gpu", "events_gpu", "gpu_graphs")]
WORK = [
    Size(1024, 32, 128, 40),
    Size(1024, 32, 128, 40, recurrent=True),
    Size(600, 64, 256, 20, recurrent=True),
    Size(1024, 64, 512, 40, recurrent=True),
    Size(10_000, 3, 146, 20),
]
_WARM_UPS = 3  # calls; the first compiles, the second captures a graph


def measure(size: Size, device: torch.device, rounds: int, methods: Sequence[Method]) -> list[Row]:
    """Time `alif` forward and backward in float32; the methods take turns; one row per method."""
    leaves = [x.to(device).requires_grad_() for x in make_inputs(size)[0]]

    def forward(method: Method) -> Tensor:
        for leaf in leaves:
            leaf.grad = None  # otherwise backward would add to it
        weight = leaves[4] if size.recurrent else None
        arp = size.arp_steps
        return alif(*leaves[:4], arp=arp, recurrent_weight=weight, method=method).spikes

    contenders = {m: partial(time_turn, partial(forward, m), device) for m in methods}
    turns = all_turns(take_turns(contenders, rounds, warm_ups=_WARM_UPS))
    work = asdict(size)
    return [work | {"method": m} | summary(turns[m], turns.get("fused")) for m in methods]


def report(console: Console, rows: Sequence[Row], device: torch.device) -> None:
    """Print the rows as a table, then rows, device and version as one line of JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    table = Table(title=f"neuron dynamics on {name}, float32, median ms")
    for column in ("T", "B", "N", "ARP", "recurrent", "method"):
        table.add_column(column)
    for column in ("forward", "backward", "both / fused"):
        table.add_column(column, justify="right")
    for row in rows:
        work = ("n_steps", "batch_size", "n_units", "arp_steps", "recurrent", "method")
        times = (f"{row[f'{part}_ms_median']:.3f}" for part in ("forward", "backward"))
        by = f"{row['total_by_fused']:.3g}" if "total_by_fused" in row else ""
        table.add_row(*(str(row[key]) for key in work), *times, by)
    console.print(table)
    result = {"device": name, "torch": torch.__version__, "rows": list(rows)}
    console.out(json.dumps(result), highlight=False)


def run_tests() -> bool:
    """Run the kernels' tests on the GPU at full precision; returns whether they pass."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "NVIDIA_TF32_OVERRIDE": "0"}
    command = [sys.executable, "-m", "pytest", *TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Test, measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description="Test and time the GPU kernels.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error(f"--rounds: expected at least 2, got {options.rounds}")
    if not torch.cuda.is_available():
        print("gpu-check: expected a CUDA GPU, got none", file=sys.stderr)
        return 2
    if not run_tests():
        print("gpu-check: tests failed, so no time is reported", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    rows: list[Row] = []
    for size in WORK:
        rows += measure(size, device, options.rounds, get_args(Method))
    report(Console(), rows, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
