"""Compile the GPU kernels for an A100, which need not be there; one line of JSON for each.

    python compile_kernels.py FOLDER      # for Triton's cache

In a process of its own, without TRITON_INTERPRET: see test_fused_gpu.py.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from blockspike.neurons import events_gpu
from blockspike.neurons.alif import fused_gpu, kernels_gpu

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {"silent": "*i32", "saved_silent": "*i32", "sums": "*fp64", "row_ptr": "*i64"}
INTEGERS = ("arp", "first", "last", "n_columns", "n_neurons", "n_table", "start_stride")
TYPES |= dict.fromkeys(INTEGERS, "i32")
PASSED = ("current", "spikes", "grad_spikes", "grad_current")  # in the type of the current

AS_RUN = {"tile": fused_gpu.TILE, "chunk": fused_gpu.CHUNK}
SHORT = {"tile": fused_gpu.TILE, "chunk": 2}  # quick, where only the types are new
EVENTS = {"tile": events_gpu.TILE, "group": events_gpu.GROUP}


def compile_one(
    kernel: Any, real: str, passed: str, constants: dict, index: str = "*i32", **options: Any
) -> dict[str, Any]:
    """What is in the machine code of a kernel; `real` and `passed` are types such as "fp32"."""
    types = TYPES | {"index": index} | dict.fromkeys(PASSED, f"*{passed}")
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, f"*{real}") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    binary = Path(sys.argv[1]) / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    return {
        "name": kernel.__name__,
        "stack_bytes": int(re.findall(r"STACK:(\d+)", dump("--dump-resource-usage", binary))[0]),
        "fused_multiply_adds": len(re.findall(r"\b[FD]FMA\b", dump("-sass", binary))),
    }


def dump(what: str, binary: Path) -> str:
    """Text about a binary."""
    return subprocess.run(
        [CUOBJDUMP, what, binary], check=True, capture_output=True, text=True
    ).stdout


def main() -> None:
    """Compile what `alif` and `synaptic_current` launch."""
    forward, backward = kernels_gpu.forward, kernels_gpu.backward
    for real, passed, size, chained in [
        ("fp32", "fp32", AS_RUN, True),
        ("fp32", "bf16", SHORT, False),
        ("fp64", "fp64", SHORT, True),
    ]:
        simulate = {"has_recurrent": chained, "keep_margin": True} | SHORT
        print(json.dumps(compile_one(
            forward, real, passed, simulate, **fused_gpu.FORWARD_OPTIONS
        )))  # fmt: skip
        differentiate = {"has_feedback": chained, "attached": chained, "surrogate": 2} | size
        print(json.dumps(compile_one(
            backward, real, passed, differentiate, **fused_gpu.BACKWARD_OPTIONS
        )))  # fmt: skip
    for index in ("*i32", "*i64"):
        print(json.dumps(compile_one(
            events_gpu.sum_rows, "fp32", "fp32", EVENTS, index, **events_gpu.OPTIONS
        )))  # fmt: skip


if __name__ == "__main__":
    main()
