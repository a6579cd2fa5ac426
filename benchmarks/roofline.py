"""Memory bandwidth of each CPU kernel, compared with that of a plain copy on this machine.

The bytes that the algorithm must move through memory are counted per neuron and step (or per
event), not measured. Data that stay in caches are not counted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.contenders import Size
from benchmarks.layers import make_inputs
from benchmarks.table import Options, Piece
from benchmarks.timing import Row, Turn, all_turns, cost, take_turns
from blockspike.fitting.distance import Window
from blockspike.fitting.distance_cpu import Drive, fitting_distance
from blockspike.networks.synapses import synaptic_current
from blockspike.neurons import Boxcar, FastSigmoid, Method, MultiGaussian, alif, leaky_integrate
from blockspike.neurons.alif import ALIF
from blockspike.neurons.cpu.kernels import kernel
from blockspike.neurons.cpu.lane_memory import load_lanes, store_lanes
from blockspike.neurons.cpu.lanes import n_lanes
from blockspike.neurons.cpu.threads import run

LAYER = Size(n_steps=2048, batch_size=64, n_inputs=256, n_units=128, arp_steps=10, recurrent=False)
COPIED_BYTES = 2**28  # read, and as many written; more than the caches hold
_PIECE = 4096  # elements


class Kernel(NamedTuple):
    """A kernel: bytes that its passes move, a function to run it, and arguments of its gradient."""

    forward_bytes: float
    backward_bytes: float
    forward: Callable[[], Tensor]
    inputs: Sequence[Tensor]
    gradient: Tensor

    def turn(self) -> Turn:
        """Time both passes."""
        started = time.perf_counter()
        out = self.forward()
        forwarded = time.perf_counter()
        torch.autograd.grad(out, self.inputs, self.gradient)
        return Turn(forwarded - started, time.perf_counter() - forwarded)


class Copy:
    """A copy of COPIED_BYTES.

    Args:
        past_caches: whether to store past the caches, which is the fastest copy we know, since an
            ordinary store first reads what it overwrites; otherwise PyTorch's `copy_`.
    """

    def __init__(self, past_caches: bool):
        self.source = torch.zeros(COPIED_BYTES // 4)
        self.target = torch.ones_like(self.source)
        self._past_caches = past_caches

    def turn(self) -> Turn:
        """Time the copy."""
        started = time.perf_counter()
        if self._past_caches:
            n_pieces = len(self.source) // _PIECE
            run(_stream, n_pieces, self.source.numpy(), self.target.numpy())
        else:
            self.target.copy_(self.source)
        return Turn(time.perf_counter() - started)


@kernel
def _stream(first, last, source, target):
    lanes = np.uintp(n_lanes(source))
    at, end = np.uintp(first * _PIECE), np.uintp(last * _PIECE)
    while at < end:
        store_lanes(load_lanes(source, at, lanes), target, at, lanes, True)
        at += lanes


def kernels() -> dict[str, Kernel]:
    """All CPU kernels, at the size of LAYER or of the paper's recordings.

    - Neurons: forward reads I and writes S as floats and as bytes; backward reads I and ∂S and
      writes ∂I. `fused` stores V, a and the refractory steps left every 8 steps. `blocks` stores
      V − θ of every step and reads it instead of I in backward; every 16 steps it stores four
      values.
    - Leaky integrator: both passes read and write one value.
    - Event-driven synapses: forward reads events and writes currents, backward, for the gradient
      of the weights, reads both. The rows of weights that events add are in a cache.
    - Fit to recordings: forward goes through current and target and back; backward scales.
    """
    shape = (LAYER.n_steps, LAYER.batch_size, LAYER.n_units)
    generator = torch.Generator().manual_seed(0)
    current = (0.3 * torch.rand(shape, generator=generator)).requires_grad_()
    gradient = torch.randn(shape, generator=generator)
    n = current.numel()
    beta, p, b = (torch.full(shape[2:], x, requires_grad=True) for x in (0.9, 0.9, 0.5))

    def of_neurons(method: Method, surrogate, forward_bytes: float, backward_bytes: float):
        inputs = [current, beta, p, b]
        options = {"arp": LAYER.arp_steps, "surrogate": surrogate, "method": method}
        forward = lambda: alif(*inputs, **options).spikes  # noqa: E731
        return Kernel(forward_bytes * n, backward_bytes * n, forward, inputs, gradient)

    surrogates = (FastSigmoid(), Boxcar(), MultiGaussian())
    kept = 3 * 4 / 8
    found = {
        f"fused, {type(s).__name__}": of_neurons("fused", s, 9 + kept, 12 + kept)
        for s in surrogates
    }
    kept = 4 * 4 / 16
    found["blocks, MultiGaussian"] = of_neurons("blocks", surrogates[2], 13 + kept, 12 + kept)
    integrate = partial(leaky_integrate, current, beta)
    found["leaky integrator"] = Kernel(8 * n, 8 * n, integrate, [current], gradient)

    events, _ = make_inputs(LAYER)
    assert events is not None
    weight = torch.rand(1, LAYER.n_units, LAYER.n_inputs, requires_grad=True)
    bias = torch.zeros(LAYER.n_units)
    moved = 4 * n + 4 * len(events.unit) + 8 * len(events.row_ptr)
    forward = partial(synaptic_current, events, weight, bias, mode="events")
    found["event-driven synapses"] = Kernel(moved, moved, forward, [weight], gradient)

    shape = (10_000, 3, 146)
    values = (0.995, 0.999, 0.1, 1.0, 0.0, 0.0, 0.0)
    beta, p, b, *drive = parameters = [torch.full(shape[2:], x, requires_grad=True) for x in values]
    fit = partial(
        fitting_distance, 0.2 * torch.rand(shape), torch.zeros(shape), ALIF, (20.0,), (beta, p, b),
        Drive(*drive), surrogate=surrogates[2], decay=0.99, window=Window(0, shape[0], shape[0]),
    )  # fmt: skip
    scaled = 8 * len(parameters) * 3 * 146
    found["fit to recordings"] = Kernel(
        16 * 3 * 146 * shape[0], scaled, lambda: fit()[0], parameters, torch.ones(shape[1:])
    )
    return found


def measure(rounds: int) -> list[Row]:
    """Time copies and kernels in turns; a kernel's row has its shares of the copies' bandwidths."""
    copies = {"copy": Copy(False), "copy past the caches": Copy(True)}
    measured = kernels()
    turns = all_turns(take_turns({k: x.turn for k, x in (copies | measured).items()}, rounds))
    costs = {name: cost(own) for name, own in turns.items()}
    bandwidth = {k: 2 * COPIED_BYTES / costs[k]["total_ms_median"] / 1e6 for k in copies}
    rows: list[Row] = [{"contender": k, "gb_per_s": _rounded(x)} for k, x in bandwidth.items()]
    for name, one in measured.items():
        row = {"contender": name, **costs[name]}
        for part, n_bytes in (("forward", one.forward_bytes), ("backward", one.backward_bytes)):
            gb_per_s = n_bytes / row[f"{part}_ms_median"] / 1e6
            row |= {f"{part}_mb": round(n_bytes / 1e6, 1), f"{part}_gb_per_s": _rounded(gb_per_s)}
            for copy, of_copy in bandwidth.items():
                row[f"{part}_share_of_{copy.replace(' ', '_')}"] = _rounded(gb_per_s / of_copy)
        rows.append(row)
    return rows


def _rounded(x: float) -> float:
    return float(f"{x:.3g}")


def pieces(options: Options) -> Iterator[Piece]:
    """All CPU kernels, whatever contenders are chosen."""
    yield Piece({}, ["copy"], partial(measure, options.rounds))
