"""Test the GPU kernels on a GPU, then time the neuron dynamics there.

    python -m blockspike.benchmark.gpu_check [--rounds 5]

From a checkout, as it runs files of `tests/`. Exit code 2 without a GPU, 1 if a test fails: no time
is reported then.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from blockspike.benchmark.dynamics import Size, make_inputs
from blockspike.benchmark.timing import time_turn
from blockspike.neurons import Method, alif

ROOT = Path(__file__).parents[3]
TESTS = [f"tests/neurons/test_{name}.py" for name in ("fused_gpu", "events_gpu", "gpu_graphs")]
WORK = [  # size, recurrent
    (Size(1024, 32, 128, 40), False),
    (Size(1024, 32, 128, 40), True),
    (Size(600, 64, 256, 20), True),
    (Size(1024, 64, 512, 40), True),
    (Size(10_000, 3, 146, 20), False),
]
_WARM_UP = 3  # calls: the first compiles, the second captures a graph


@dataclass(frozen=True)
class Row:
    """Median milliseconds of one method at one size.

    Attributes:
        n_steps, batch_size, n_neurons, arp, recurrent: the work.
        method: of `alif`.
        forward_ms, backward_ms: medians over the rounds.
    """

    n_steps: int
    batch_size: int
    n_neurons: int
    arp: int
    recurrent: bool
    method: str
    forward_ms: float
    backward_ms: float

    @property
    def total_ms(self) -> float:
        """Forward and backward."""
        return self.forward_ms + self.backward_ms


def measure(size: Size, recurrent: bool, method: Method, device: torch.device, rounds: int) -> Row:
    """Time forward and backward of `alif`, float32, after calls that are not counted."""
    leaves = [x.to(device).requires_grad_() for x in make_inputs(size)[0]]
    if recurrent:
        leaves.append((0.1 * torch.eye(size.n_neurons, device=device)).requires_grad_())

    def forward() -> Tensor:
        for leaf in leaves:
            leaf.grad = None  # else backward would add to it
        current, beta, p, b, *weight = leaves
        w = weight[0] if weight else None
        return alif(
            current, beta, p, b, arp=size.arp, recurrent_weight=w, method=method
        ).spikes  # fmt: skip

    turns = [time_turn(forward, device) for _ in range(_WARM_UP + rounds)][_WARM_UP:]
    medians = [
        round(1000 * statistics.median(seconds), 4)
        for seconds in ([t.forward for t in turns], [t.backward for t in turns])
    ]
    return Row(**asdict(size), recurrent=recurrent, method=method,
               forward_ms=medians[0], backward_ms=medians[1])  # fmt: skip


def report(console: Console, rows: Sequence[Row], device: torch.device) -> None:
    """Print the rows as a table, and with the device and versions as one line of JSON."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    table = Table(title=f"neuron dynamics on {name}, float32, ms")
    for column in ("T", "B", "N", "ARP", "recurrent", "method"):
        table.add_column(column)
    for column in ("forward", "backward", "both / fused"):
        table.add_column(column, justify="right")
    fused = {_work(row): row.total_ms for row in rows if row.method == "fused"}
    for row in rows:
        times = (f"{row.forward_ms:.3f}", f"{row.backward_ms:.3f}")
        by = f"{row.total_ms / fused[_work(row)]:.3g}" if _work(row) in fused else ""
        table.add_row(*map(str, _work(row)), row.method, *times, by)
    console.print(table)
    result = {"device": name, "torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    console.out(json.dumps(result), highlight=False)


def _work(row: Row) -> tuple[int, int, int, int, bool]:
    return row.n_steps, row.batch_size, row.n_neurons, row.arp, row.recurrent


def run_tests() -> bool:
    """Run the tests of the kernels on the GPU, with full precision; whether they pass."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "NVIDIA_TF32_OVERRIDE": "0"}
    command = [sys.executable, "-m", "pytest", *TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Test, measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(description="Test and time the GPU kernels.")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("gpu-check: expected a CUDA GPU, PyTorch finds none", file=sys.stderr)
        return 2
    if not run_tests():
        print("gpu-check: tests failed, so no time is reported", file=sys.stderr)
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    rows = [
        measure(size, recurrent, method, device, options.rounds)
        for size, recurrent in WORK
        for method in get_args(Method)
    ]
    report(Console(), rows, device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
