"""Fixtures for tests of the GPU kernels, on a GPU or on the CPU in Triton's interpreter."""

import os
from typing import Any

import pytest
import torch
from neuron_cases import make_inputs

pytest.importorskip("triton", reason="our dev environment has Triton on Linux only")

from blockspike.neurons import ops
from blockspike.neurons.gpu import events as events_gpu
from blockspike.neurons.gpu import fused as fused_gpu
from blockspike.neurons.gpu.graphs import Graph

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED or not torch.cuda.is_available() else "cuda")
WIDE = [] if INTERPRETED else [(403, 5, 70)]  # the interpreter takes 2 ms a step and tile


@pytest.fixture
def triton_kernels(monkeypatch):
    """Make method "fused" use the Triton kernels, with small tiles when interpreted."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr(ops, "_kernels", lambda device: fused_gpu)
        for module, name, value in [
            (fused_gpu, "CHUNK", 2),
            (fused_gpu, "TILE", 8),
            (events_gpu, "TILE", 16),
            (events_gpu, "GROUP", 4),
        ]:
            monkeypatch.setattr(module, name, value)


@pytest.fixture
def one_tile(monkeypatch, triton_kernels, case):
    """Put all columns in one tile and no chunk beyond a launch, the fastest when interpreted."""
    if INTERPRETED:
        monkeypatch.setattr(fused_gpu, "TILE", 128)
        monkeypatch.setattr(fused_gpu, "CHUNK", min(16, case["arp"] + 1))


def to_device(inputs: dict[str, Any]) -> dict[str, Any]:
    """Differentiable copies of the inputs of `alif` on the device of the kernels."""
    return {name: value.detach().to(DEVICE).requires_grad_() for name, value in inputs.items()}


def make_gpu_inputs(shape: tuple[int, int, int], **options) -> dict[str, Any]:
    """`make_inputs` on the device of the kernels."""
    return to_device(make_inputs(shape, **options))


def capture_by_copying(chain, tensors) -> Graph:
    """Imitate a captured graph without a GPU: fixed memory that is read and overwritten."""
    inputs = [x.clone() for x in tensors]
    outputs = chain(*inputs)
    for output in outputs:
        output.fill_(77)  # a capture does not run anything

    def replay() -> None:
        for fixed, output in zip(outputs, chain(*inputs), strict=True):
            fixed.copy_(output)

    return Graph(inputs, replay, outputs)
