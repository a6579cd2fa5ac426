"""The GPU kernels on a GPU: their tests, then times of the neuron dynamics."""

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from blockspike.benchmark.dynamics import Size, make_inputs
from blockspike.benchmark.table import Row
from blockspike.benchmark.timing import all_turns, summary, take_turns, time_turn
from blockspike.neurons import Method, alif

ROOT = Path(__file__).parents[3]
TESTS = [f"tests/neurons/test_{name}.py" for name in ("fused_gpu", "events_gpu", "gpu_graphs")]
SIZES = [
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
    return [{"contender": m} | summary(turns[m], turns.get("fused")) for m in methods]


def require_passing_tests() -> None:
    """Run the kernels' tests on the GPU at full precision; this needs a checkout.

    Raises:
        RuntimeError: a test failed.
    """
    environment = os.environ | {"TRITON_INTERPRET": "0", "NVIDIA_TF32_OVERRIDE": "0"}
    command = [sys.executable, "-m", "pytest", *TESTS]
    if subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode != 0:
        raise RuntimeError("the kernels' tests failed on the GPU: no time is reported")
