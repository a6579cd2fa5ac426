"""Devices for Triton kernels, and chains of launches that are replayed as one CUDA graph.

Unproven: tested in Triton's interpreter and compiled, never run on a GPU.

A launch costs the CPU microseconds, often more than the GPU needs to run it. A recurrent simulation
has a launch and a matrix product for each step of the delay. A CUDA graph records such a chain and
replays it as one launch, on the same memory each time:

    first call     run the chain
    second call    record it, on copies of the inputs; then as later
    later          copy the inputs into the graph's memory, replay, copy the outputs out
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from threading import Lock

import torch
from torch import Tensor

TRITON_DEVICES = ("cuda", "xpu")  # "cuda" also stands for AMD's GPUs

KEPT = 8
"""Number of graphs that are kept."""

_LEAST_TRITON = (3, 3)

Chain = Callable[..., tuple[Tensor, ...]]


def has_triton(device: torch.device) -> bool:
    """Whether the Triton kernels can run on `device`."""
    return device.type in TRITON_DEVICES and _triton_is_new_enough()


@cache
def _triton_is_new_enough() -> bool:
    try:
        import triton  # by its own word: for AMD and Intel its distribution has another name
    except ImportError:
        return False
    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= _LEAST_TRITON


def require_triton(what: str, given: str, device: torch.device) -> None:
    """Raise ValueError if Triton kernels cannot run on `device`.

    The message begins with `what` and names `given`, the argument that is on this device.
    """
    if not has_triton(device):
        places = ", ".join(("cpu", *TRITON_DEVICES))
        raise ValueError(
            f"{what}: expected {given} on one of {places} (a GPU needs "
            f"Triton ≥ {'.'.join(map(str, _LEAST_TRITON))}: pip install 'blockspike[gpu]'), "
            f"got {device}"
        )


@contextmanager
def launching_on(device: torch.device) -> Iterator[None]:
    """Make `device` current for launches and switch autocast off."""
    # Triton launches on the current device, whichever one holds the tensors.
    on_cpu = device.type == "cpu"  # in Triton's interpreter
    guard = nullcontext() if on_cpu else torch.get_device_module(device).device(device)
    with guard, torch.autocast(device.type, enabled=False):
        yield


@dataclass(frozen=True)
class Graph:
    """Captured chain: `replay` reads `inputs` and writes `outputs`, always in the same memory."""

    inputs: Sequence[Tensor]
    replay: Callable[[], None]
    outputs: Sequence[Tensor]

    def __call__(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Results of the chain for `tensors`, as copies that later calls do not overwrite."""
        for fixed, tensor in zip(self.inputs, tensors, strict=True):
            fixed.copy_(tensor)
        self.replay()
        return tuple(output.clone() for output in self.outputs)


def capture(chain: Chain, tensors: Sequence[Tensor]) -> Graph:
    """Capture `chain` as a CUDA graph, on copies of `tensors`."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as a data loader's that pins memory, may continue meanwhile.
    stream = torch.cuda.Stream(tensors[0].device)
    with torch.inference_mode(False), torch.no_grad():  # later calls may be in another mode
        inputs = [x.clone(memory_format=torch.contiguous_format) for x in tensors]
        chain(*inputs)  # compiles and loads kernels, which a capture may not do
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            outputs = chain(*inputs)
    return Graph(inputs, graph.replay, outputs)


def may_capture(tensor: Tensor) -> bool:
    """Whether the device of a tensor has graphs and can capture one now."""
    return tensor.is_cuda and not torch.cuda.is_current_stream_capturing()


def _matmul_precision() -> str:
    """Precision of float32 products, by whichever of PyTorch's two settings is in use."""
    matmul = torch.backends.cuda.matmul
    known = getattr(matmul, "fp32_precision", None)
    return torch.get_float32_matmul_precision() if known is None else str(known)


def _stream(tensor: Tensor) -> int:
    return torch.cuda.current_stream(tensor.device).cuda_stream if tensor.is_cuda else 0


class Graphs:
    """Runner for chains of many small launches, which replays repeated chains as one graph.

    A chain runs directly the first time, is captured the second time with equal shapes, and is
    replayed from then on. Only the most recently used graphs are kept, since each holds memory for
    its inputs and outputs.
    """

    def __init__(self):
        self._known: OrderedDict[Hashable, Graph | None] = OrderedDict()  # None: run once
        self._lock = Lock()  # autograd runs backward in its own threads

    def run(self, chain: Chain, *tensors: Tensor, **options: Hashable) -> tuple[Tensor, ...]:
        """Run chain(*tensors, **options); the chain must not read anything else that changes."""
        bound = partial(chain, **options)
        if not may_capture(tensors[0]):
            return bound(*tensors)
        key = (
            chain,
            tuple(options.items()),
            tuple((x.shape, x.dtype, x.device) for x in tensors),
            _stream(tensors[0]),  # work on two streams must not share memory
            _matmul_precision(),
        )
        # Replay under the lock, too: two threads would write into one graph's inputs.
        with self._lock:
            comes_again = key in self._known
            graph = self._known.pop(key, None)
            if graph is None and comes_again:
                graph = capture(bound, tensors)
            self._known[key] = graph  # most recently used goes last
            if len(self._known) > KEPT:
                self._known.popitem(last=False)
            if graph is not None:
                return graph(tensors)
        return bound(*tensors)
