"""Memory bandwidth of each kernel, compared with that of a plain copy on this machine.

Bytes and flops are counted per neuron and step (or per event), not measured: the bytes that the
algorithm must move through memory, and the flops of its formulas. Data that stay in caches are not
counted.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from blockspike.benchmark.layers import Size, make_inputs
from blockspike.benchmark.table import Row
from blockspike.benchmark.timing import Turn, all_turns, quartiles, summary, take_turns
from blockspike.fitting.distance import Window
from blockspike.fitting.distance_cpu import Drive, fitting_distance
from blockspike.networks.synapses import synaptic_current
from blockspike.neurons import (
    Boxcar,
    FastSigmoid,
    Method,
    MultiGaussian,
    Surrogate,
    alif,
    leaky_integrate,
)
from blockspike.neurons.alif import ALIF
from blockspike.neurons.cpu.kernels import kernel
from blockspike.neurons.cpu.lane_memory import load_lanes, store_lanes
from blockspike.neurons.cpu.lanes import n_lanes
from blockspike.neurons.cpu.threads import run

LAYER = Size(n_steps=2048, batch_size=64, n_inputs=256, n_units=128, arp_steps=10, recurrent=False)
COPIED_BYTES = 2**28  # read, and as many written; more than the caches hold
_PIECE = 4096  # elements
_COPY: list[Tensor] = []
_SURROGATE_FLOPS: dict[type[Surrogate], int] = {FastSigmoid: 4, Boxcar: 2, MultiGaussian: 37}


@dataclass(frozen=True)
class Kernel:
    """Bytes and flops of a kernel, and a function that times it.

    Attributes:
        name: name in the table.
        bytes_moved, flops: (forward, backward).
        turn: runs and times both passes.
    """

    name: str
    bytes_moved: tuple[float, float]
    flops: tuple[float, float]
    turn: Callable[[], Turn]


def copy_s(streaming: bool) -> float:
    """Seconds to copy COPIED_BYTES, which is more than the caches hold.

    Args:
        streaming: whether to store past the caches, which is the fastest copy we know, since an
            ordinary store first reads what it overwrites; otherwise PyTorch's `copy_`.
    """
    if not _COPY:
        source = torch.zeros(COPIED_BYTES // 4)
        _COPY.extend((source, torch.ones_like(source)))
    source, target = _COPY
    started = time.perf_counter()
    if streaming:
        run(_stream, len(source) // _PIECE, source.numpy(), target.numpy())
    else:
        target.copy_(source)
    return time.perf_counter() - started


@kernel
def _stream(first, last, source, target):
    lanes = np.uintp(n_lanes(source))
    at, end = np.uintp(first * _PIECE), np.uintp(last * _PIECE)
    while at < end:
        store_lanes(load_lanes(source, at, lanes), target, at, lanes, True)
        at += lanes


def kernels() -> list[Kernel]:
    """All CPU kernels, at the size of LAYER or of the paper's recordings."""
    return [*_neurons(), _integrator(), _event_synapses(), _fitting()]


def _to_3_digits(x: float) -> float:
    return float(f"{x:.3g}")


def measure(rounds: int) -> list[Row]:
    """Time copies and kernels in turns; each kernel's row has its share of their bandwidths."""
    measured = kernels()
    copies: dict[str, bool] = {"copy": False, "copy past the caches": True}

    def copy_turn(streaming: bool) -> Turn:
        return Turn(copy_s(streaming), 0.0)

    contenders = {name: partial(copy_turn, streaming) for name, streaming in copies.items()}
    contenders |= {one.name: one.turn for one in measured}
    turns = all_turns(take_turns(contenders, rounds))
    bandwidth: dict[str, float] = {}
    rows: list[Row] = []
    for name in copies:
        seconds = quartiles([turn.total for turn in turns[name]])[1]
        bandwidth[name] = 2 * COPIED_BYTES / seconds
        rows.append({"contender": name, "gb_per_s": _to_3_digits(bandwidth[name] / 1e9)})
    for one in measured:
        row: Row = {"contender": one.name, **summary(turns[one.name], None)}
        for i, part in enumerate(("forward", "backward")):
            seconds = row[f"{part}_ms_median"] / 1000
            row[f"{part}_mb"] = round(one.bytes_moved[i] / 1e6, 1)
            row[f"{part}_mflop"] = round(one.flops[i] / 1e6, 1)
            row[f"{part}_gb_per_s"] = _to_3_digits(one.bytes_moved[i] / seconds / 1e9)
            row[f"{part}_gflop_per_s"] = round(one.flops[i] / seconds / 1e9, 1)
            for name, bytes_per_s in bandwidth.items():
                share = one.bytes_moved[i] / seconds / bytes_per_s
                row[f"{part}_share_of_{name.replace(' ', '_')}"] = _to_3_digits(share)
        rows.append(row)
    return rows


def _neurons() -> list[Kernel]:
    """Passes of the neurons.

    Forward reads I and writes S as floats and as bytes; backward reads I and ∂S and writes ∂I.
    Every 8 steps, V, a and the refractory steps left are stored. Blocks stores V − θ of every step
    and reads it instead of I in backward; every 16 steps it stores four values.
    """
    shape = (LAYER.n_steps, LAYER.batch_size, LAYER.n_units)
    generator = torch.Generator().manual_seed(0)
    current = (0.3 * torch.rand(shape, generator=generator)).requires_grad_()
    gradient = torch.randn(shape, generator=generator)
    parameters = [torch.full(shape[2:], x, requires_grad=True) for x in (0.9, 0.9, 0.5)]
    inputs = [current, *parameters]
    n = current.numel()
    found = []
    kept_by_fused, kept_by_blocks = (3 * 4 / 8, 3 * 4 / 8), (4 + 4 * 4 / 16, 4 * 4 / 16)
    choices: list[tuple[Method, Surrogate, tuple[float, float], int, int]] = [
        ("fused", FastSigmoid(), kept_by_fused, 10, 32),
        ("fused", Boxcar(), kept_by_fused, 10, 32),
        ("fused", MultiGaussian(), kept_by_fused, 10, 32),
        ("blocks", MultiGaussian(), kept_by_blocks, 11, 35),
    ]
    for method, surrogate, (kept, kept_back), flops, flops_back in choices:
        simulate = partial(alif, *inputs, arp=LAYER.arp_steps, surrogate=surrogate, method=method)
        found.append(
            Kernel(
                f"{method}, {type(surrogate).__name__}",
                ((9 + kept) * n, (12 + kept_back) * n),
                (flops * n, (flops_back + _SURROGATE_FLOPS[type(surrogate)]) * n),
                partial(_turn, lambda simulate=simulate: simulate().spikes, inputs, gradient),
            )
        )
    return found


def _integrator() -> Kernel:
    """Leaky integrator: both passes read and write one value."""
    shape = (LAYER.n_steps, LAYER.batch_size, LAYER.n_units)
    current = torch.rand(shape, requires_grad=True)
    beta = torch.full(shape[2:], 0.9)
    n = current.numel()
    forward = partial(leaky_integrate, current, beta)
    return Kernel(
        "leaky integrator", (8 * n, 8 * n), (2 * n, 2 * n),
        partial(_turn, forward, [current], torch.ones(shape)),
    )  # fmt: skip


def _event_synapses() -> Kernel:
    """Event-driven synapses: forward reads events and writes currents, backward reads both.

    The gradient is that of the weights. The rows of weights that events add are in a cache.
    """
    events, _ = make_inputs(LAYER, torch.device("cpu"))
    assert events is not None
    weight = torch.rand(1, LAYER.n_units, LAYER.n_inputs, requires_grad=True)
    bias = torch.zeros(LAYER.n_units)
    shape = (LAYER.n_steps, LAYER.batch_size, LAYER.n_units)
    moved = 4 * math.prod(shape) + 4 * len(events.unit) + 8 * len(events.row_ptr)
    flops = len(events.unit) * LAYER.n_units
    forward = partial(synaptic_current, events, weight, bias, mode="events")
    return Kernel(
        "event-driven synapses", (moved, moved), (flops, flops),
        partial(_turn, forward, [weight], torch.ones(shape)),
    )  # fmt: skip


def _fitting() -> Kernel:
    """Fit to recordings: one call goes through current and target and back; backward scales."""
    shape = (10_000, 3, 146)  # the paper's recordings
    current = 0.2 * torch.rand(shape)
    target = torch.zeros(shape)
    beta, p, b, *drive = parameters = [
        torch.full(shape[2:], x, requires_grad=True)
        for x in (0.995, 0.999, 0.1, 1.0, 0.0, 0.0, 0.0)
    ]
    n = current.numel()

    def forward() -> Tensor:
        return fitting_distance(
            current, target, ALIF, (20.0,), (beta, p, b), Drive(*drive), surrogate=MultiGaussian(),
            decay=0.99, window=Window(0, shape[0], shape[0]),
        )[0]  # fmt: skip

    n_gradients = len(parameters) * math.prod(shape[1:])
    flops = ((16 + 16 + 45 + _SURROGATE_FLOPS[MultiGaussian]) * n, n_gradients)
    return Kernel(
        "fit to recordings", (16 * n, 8 * n_gradients), flops,
        partial(_turn, forward, parameters, torch.ones(shape[1:])),
    )  # fmt: skip


def _turn(forward: Callable[[], Tensor], inputs: Sequence[Tensor], gradient: Tensor) -> Turn:
    started = time.perf_counter()
    out = forward()
    forwarded = time.perf_counter()
    torch.autograd.grad(out, inputs, gradient)
    return Turn(forwarded - started, time.perf_counter() - forwarded)
