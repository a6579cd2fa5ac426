"""Compile the GPU kernels for an A100, without a GPU, and print a line of JSON for each kernel.

    python tools/compile_kernels.py FOLDER      # FOLDER for Triton's cache

`test_fused_gpu.py` runs it as a separate process without TRITON_INTERPRET.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

os.environ["TRITON_CACHE_DIR"] = sys.argv[1]

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "neurons"))

import triton
from neuron_cases import LEAST, VARIED
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from blockspike.neurons.adlif import ADLIF
from blockspike.neurons.alif import ALIF, ALIF_WITHOUT_ARP
from blockspike.neurons.c_silif import C_SILIF
from blockspike.neurons.derivative import derived, slope_text
from blockspike.neurons.euler_adlif import EF_ADLIF, SE_ADLIF
from blockspike.neurons.glif import GLIF
from blockspike.neurons.gpu import events as events_gpu
from blockspike.neurons.gpu import fused as fused_gpu
from blockspike.neurons.gpu import kernels as kernels_gpu
from blockspike.neurons.gpu.kernels import in_triton
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.surrogates import MultiGaussian

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
TYPES = {"sums": "*fp64", "row_ptr": "*i64"}
INTEGERS = ("first", "last", "n_columns", "n_neurons", "n_table", "start_stride")
TYPES |= dict.fromkeys(INTEGERS, "i32")
PASSED = ("current", "spikes", "grad_spikes", "grad_current")  # in the current's dtype

AS_RUN = {"tile": fused_gpu.TILE, "chunk": fused_gpu.CHUNK}
SHORT = {"tile": fused_gpu.TILE, "chunk": 2}  # compiles fast, for checks of types only
EVENTS = {"tile": events_gpu.TILE, "group": events_gpu.GROUP}


def compile_one(
    kernel: Any, real: str, passed: str, constants: dict, index: str = "*i32", **options: Any
) -> dict[str, Any]:
    """Facts about the machine code of a kernel; `real` and `passed` are types such as "fp32"."""
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
    """Output of cuobjdump about a binary."""
    return subprocess.run(
        [CUOBJDUMP, what, binary], check=True, capture_output=True, text=True
    ).stdout


def compile_model(
    model: NeuronModel, n_constants: int, real: str, passed: str, size: dict, chained: bool
) -> None:
    """Compile forward and backward of a model."""
    own = derived(model, n_constants)
    shared = {"step": in_triton(own.step), **fused_gpu.sizes(own, n_constants)}
    simulate = {"has_recurrent": chained, "keep_membrane": True, "keep_drives": chained}
    simulate |= {"keep_states": True} | shared | size
    differentiate = {"has_feedback": chained, "reset_has_grad": float(chained)}
    differentiate |= {"n_carried": len(model.states)} | shared | size
    differentiate |= {"has_level": False, "reverse_step": in_triton(own.reverse)}
    slope = in_triton(slope_text(MultiGaussian.formula, 4))
    differentiate |= {"slope": slope, "n_slope_constants": 4}
    of_level = {"has_level": True, "reverse_step": in_triton(own.reverse_all)}
    for kernel, constants in (
        (kernels_gpu.forward, simulate),
        (kernels_gpu.backward, differentiate),
        (kernels_gpu.backward, differentiate | of_level),
    ):
        done = compile_one(kernel, real, passed, constants, **fused_gpu.OPTIONS)
        print(json.dumps({"model": model.name, "real": real, **done}))


def main() -> None:
    """Compile the kernels that `simulate`, `alif` and `synaptic_current` launch."""
    compile_model(ALIF, 3, "fp32", "fp32", AS_RUN, True)
    compile_model(ALIF, 3, "fp32", "bf16", SHORT, False)
    compile_model(ALIF_WITHOUT_ARP, 2, "fp32", "fp32", AS_RUN, True)
    compile_model(ALIF, 3, "fp64", "fp64", SHORT, True)
    compile_model(SE_ADLIF, 3, "fp32", "fp32", AS_RUN, True)
    compile_model(EF_ADLIF, 3, "fp32", "fp32", AS_RUN, True)
    for model in (ADLIF, C_SILIF, GLIF):
        compile_model(model, 2, "fp32", "fp32", AS_RUN, True)
    compile_model(LEAST, 2, "fp32", "fp32", SHORT, False)
    compile_model(VARIED, 2, "fp32", "fp32", SHORT, True)
    for index in ("*i32", "*i64"):
        print(json.dumps(compile_one(
            events_gpu.sum_rows, "fp32", "fp32", EVENTS, index, **events_gpu.OPTIONS
        )))  # fmt: skip


if __name__ == "__main__":
    main()
