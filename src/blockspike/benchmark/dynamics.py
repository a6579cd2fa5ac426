"""Time of the neuron dynamics alone, forward and backward, checked against our claims.

    python -m blockspike.benchmark.dynamics [--size layer] [--rounds 5] [--json claims.jsonl]

No synapses and no recurrence, float32, on the CPU. The methods take turns within a round, so that
other work on the machine affects all of them, and a ratio is the median over the rounds.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from blockspike.benchmark.timing import (
    Claim,
    judge,
    median_ratio,
    parse,
    quartiles,
    report,
    steady,
)
from blockspike.neurons import Method, MultiGaussian, SpikeTrace, alif
from blockspike.neurons.alif.blocks import blocks
from blockspike.neurons.surrogate import spike

_ROUNDING = 1e-5  # |V − θ| at which parallel blocks may round to the other side of the threshold
_SURROGATE = MultiGaussian()


@dataclass(frozen=True)
class Size:
    """Steps T, batch B, neurons N and refractory period (steps) of one measurement."""

    n_steps: int
    batch_size: int
    n_neurons: int
    arp: int


SIZES = {
    "layer": Size(1024, 32, 128, 40),
    "recording": Size(10_000, 3, 1, 20),
    "guard": Size(512, 32, 64, 20),
    "small": Size(64, 2, 8, 5),
}


@dataclass(frozen=True)
class Row:
    """Seconds of forward and backward of one method at one size.

    Attributes:
        size, method: names in SIZES and METHODS.
        seconds: one per round, in order.
        n_rounded: spike trains that differ from those of `standard` because of rounding.
    """

    size: str
    method: str
    seconds: tuple[float, ...]
    n_rounded: int

    @property
    def quartiles(self) -> tuple[float, float, float]:
        """First quartile, median and third quartile of the seconds."""
        return quartiles(self.seconds)

    @property
    def steady(self) -> bool:
        """Whether the rounds agree well enough to judge a claim by them."""
        return steady(self.seconds)


def plain_loop(current: Tensor, beta: Tensor, p: Tensor, b: Tensor, arp: int) -> Tensor:
    """Naive PyTorch implementation of the neuron; returns spikes [T, B, N]."""
    state = torch.zeros_like(current[0])
    adaptation = torch.zeros_like(state)
    refractory_left = torch.zeros_like(state)
    spikes = []
    for drive in current:
        membrane = beta * state + drive * (refractory_left == 0)
        s = spike(membrane - (1 + b * adaptation), _SURROGATE)
        state = membrane * (1 - s.detach())
        adaptation = p * adaptation + s
        refractory_left = torch.where(s > 0, arp, (refractory_left - 1).clamp(min=0))
        spikes.append(s)
    return torch.stack(spikes)


class _SpikeWhereOne(torch.autograd.Function):
    """S = [z = 1], with a straight-through gradient."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return (z == 1).to(z.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0]


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Σ_k kernel[last − k] x[t − k] for every neuron; x [B, N, m], kernel [N, 1, n]."""
    return F.conv1d(F.pad(x, (kernel.shape[2] - 1, 0)), kernel, groups=len(kernel))


def grouped_convolution_blocks(
    current: Tensor, beta: Tensor, p: Tensor, b: Tensor, arp: int
) -> Tensor:
    """The paper's Blocks as published, with grouped convolutions, one group per neuron.

    The free membrane and the double sum z are convolutions with kernels of arp + 1 steps
    (docs/paper.md, Blocks); the gradient is the published one. Arguments as for `alif`; returns
    spikes [T, B, N].
    """
    n = min(arp + 1, len(current))
    lag = torch.arange(n - 1, -1, -1).to(current)
    beta_, p_, b_ = (x[:, None] for x in (beta, p, b))  # [N, 1]
    decay = (beta_**lag)[:, None]  # [N, 1, n]
    ramp = (lag + 1).expand(len(beta), 1, n)
    fade, fade_to_end = p_ ** lag.flip(0), p_**lag  # p^t and p^(n−1−t)  [N, n]
    drive = current.permute(1, 2, 0).contiguous()  # [B, N, T]
    start = torch.zeros_like(drive[:, :, :1])
    adaptation, input_mask = start, torch.ones_like(drive[:, :, :n])
    spikes = []
    for block in drive.split(n, dim=2):
        m = block.shape[2]
        masked = block * input_mask[:, :, :m]
        masked = torch.cat([masked[:, :, :1] + beta_ * start, masked[:, :, 1:]], dim=2)
        free = _convolve(masked, decay)
        crossings = spike(free - (1 + b_ * fade[:, :m] * adaptation), _SURROGATE)
        s: Tensor = _SpikeWhereOne.apply(_convolve(crossings, ramp))  # pyright: ignore
        spikes.append(s)
        if m == n:
            fixed = s.detach()
            since = fixed.cumsum(2)
            spiked = since[:, :, -1:]
            start = free[:, :, -1:] * (1 - spiked)
            input_mask = since + (1 - spiked)
            at_spike = (fixed * fade * p_ * adaptation).sum(2, keepdim=True) + 1
            after_spike = at_spike * (fixed * fade_to_end).sum(2, keepdim=True)
            adaptation = torch.where(spiked > 0, after_spike, p_**n * adaptation)
    return torch.cat(spikes, dim=2).permute(2, 0, 1).contiguous()


def _simulate(method: Method, current, beta, p, b, arp) -> Tensor:
    return alif(current, beta, p, b, arp=arp, surrogate=_SURROGATE, method=method).spikes


def parallel_blocks(current: Tensor, beta: Tensor, p: Tensor, b: Tensor, arp: int) -> Tensor:
    """The paper's Blocks by matrix products, which `alif` uses on devices without a kernel."""
    return blocks(
        current,
        beta,
        p,
        b,
        arp=arp,
        recurrent_weight=None,
        surrogate=_SURROGATE,
        detach_spikes=True,
    ).spikes


METHODS: dict[str, Callable[..., Tensor]] = {
    "standard": partial(_simulate, "standard"),
    "plain loop": plain_loop,
    "blocks": partial(_simulate, "blocks"),
    "parallel blocks": parallel_blocks,
    "grouped convolution": grouped_convolution_blocks,
    "fused": partial(_simulate, "fused"),
}
_SAME_GRADIENT = ("plain loop", "fused")  # same gradient and rounding as `standard`


def make_inputs(size: Size, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Current, β, p and b that give spikes in a few percent of the steps; and dLoss/dspikes."""
    generator = torch.Generator().manual_seed(0)
    shape = (size.n_steps, size.batch_size, size.n_neurons)
    current = 0.3 * torch.rand(shape, generator=generator, dtype=torch.float64)
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    parameters = [torch.full(shape[2:], x, dtype=torch.float64) for x in (0.9, 0.9, 0.5)]
    return [x.to(dtype) for x in (current, *parameters)], gradient.to(dtype)


def differentiate(
    method: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor, arp: int
) -> tuple[Tensor, list[Tensor], float]:
    """Run forward and backward; returns spikes, gradients (current, β, p, b) and seconds."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    started = time.perf_counter()
    spikes = method(*leaves, arp)
    grads = torch.autograd.grad(spikes, leaves, gradient)
    return spikes.detach(), list(grads), time.perf_counter() - started


def count_rounded(trace: SpikeTrace, spikes: Tensor) -> int:
    """Count the spike trains that first differ from `trace` where V − θ is 0 within rounding.

    Raises:
        RuntimeError: a train first differs anywhere else.
    """
    wrong = spikes != trace.spikes
    first = wrong.int().argmax(dim=0, keepdim=True)
    margin = (trace.membrane - trace.threshold).gather(0, first)
    if bool((wrong.any(dim=0) & (margin.abs() > _ROUNDING)).any()):
        raise RuntimeError("spikes differ from those of the standard method: no time is reported")
    return int(wrong.any(dim=0).sum())


def check(size: Size) -> dict[str, int]:
    """Compare each method's spikes with the standard's, and its gradients where they must agree.

    Returns:
        Method → number of spike trains that differ by rounding.

    Raises:
        RuntimeError: spikes or gradients differ by more than rounding.
    """
    inputs, gradient = make_inputs(size)
    with torch.no_grad():
        trace = alif(*inputs, arp=size.arp, method="standard")
    expected = differentiate(METHODS["standard"], inputs, gradient, size.arp)[1]
    # A parameter's gradient is a sum of terms as large as the current's, which may cancel.
    scales = [max(expected[0].abs().max(), grad.abs().max()) for grad in expected]
    n_rounded = {}
    for name, method in METHODS.items():
        spikes, grads, _ = differentiate(method, inputs, gradient, size.arp)
        n_rounded[name] = count_rounded(trace, spikes)
        if name in _SAME_GRADIENT:
            for grad, reference, scale in zip(grads, expected, scales, strict=True):
                if not (grad - reference).abs().max() <= 1e-4 * scale:
                    raise RuntimeError(f"gradients of {name} differ: no time is reported")
    return n_rounded


def measure(size_name: str, rounds: int = 5) -> list[Row]:
    """Check the methods, which warms them up, then time them in turns for some rounds."""
    size = SIZES[size_name]
    n_rounded = check(size)
    inputs, gradient = make_inputs(size)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for _ in range(rounds):
        for name, method in METHODS.items():
            seconds[name].append(differentiate(method, inputs, gradient, size.arp)[2])
    return [Row(size_name, name, tuple(seconds[name]), n_rounded[name]) for name in METHODS]


def ratio(rows: Sequence[Row], size: str, slow: str, fast: str) -> float:
    """Time of `slow` divided by that of `fast`, median over the rounds."""
    by_method = {row.method: row.seconds for row in rows if row.size == size}
    return median_ratio(by_method[slow], by_method[fast])


_CLAIMS = [  # size, slow, fast, bound of slow / fast, whether it is a lower or an upper bound
    ("layer", "standard", "fused", 25.0, "≥"),
    ("recording", "standard", "fused", 1000.0, "≥"),
    ("layer", "grouped convolution", "parallel blocks", 3.0, "≥"),
    ("layer", "standard", "plain loop", 1.5, "≤"),
    ("recording", "standard", "plain loop", 1.5, "≤"),
]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The documented claims about the measured sizes."""
    by_name = {(row.size, row.method): row for row in rows}
    found = []
    for size, slow, fast, bound, sense in _CLAIMS:
        if (size, slow) in by_name:
            measured = ratio(rows, size, slow, fast)
            seconds = [by_name[size, method].seconds for method in (slow, fast)]
            found.append(judge(f"{size}: {slow} / {fast}", measured, sense, bound, seconds))
    return found


def _print_rows(console: Console, rows: Sequence[Row]) -> None:
    table = Table(title=f"{rows[0].size}: forward + backward, ms")
    table.add_column("method", no_wrap=True)
    for column in ("median", "quartiles", "standard / it", "rounded"):
        table.add_column(column, justify="right")
    for row in rows:
        low, median, high = (1000 * x for x in row.quartiles)
        table.add_row(
            row.method,
            f"{median:.1f}",
            f"{low:.1f} … {high:.1f}",
            f"{ratio(rows, row.size, 'standard', row.method):.3g}",
            str(row.n_rounded),
        )
    console.print(table)


def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Measure, print times and claims, and return the rows."""
    parser = argparse.ArgumentParser(description="Time the neuron dynamics.")
    parser.add_argument(
        "--size", action="append", choices=list(SIZES), help="default: layer and recording"
    )
    options = parse(parser, argv)
    console = Console()
    load = os.getloadavg()[0]
    rows = []
    for name in options.size or ("layer", "recording"):
        console.print(f"{name}: {SIZES[name]}")
        measured = measure(name, options.rounds)
        _print_rows(console, measured)
        rows += measured
    report(console, claims(rows), options, load)
    return rows


if __name__ == "__main__":
    main()
