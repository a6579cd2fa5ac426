"""Whole layers: our methods, the published memory pattern and other libraries.

All contenders get the same input: ours as events, the others as a dense tensor; the conversion is
not timed. Other libraries run in processes of their own.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.check import require_equal
from benchmarks.contenders import Contender, Size
from benchmarks.peers import PEERS
from benchmarks.side_by_side import measure
from benchmarks.table import Options, Piece
from benchmarks.timing import Row, Turn, Turns, peak_bytes, time_turn
from blockspike.networks.classifier import run_layers
from blockspike.networks.layers import ALIFLayer
from blockspike.neurons import SpikeTrace, alif
from blockspike.neurons.events import EventBatch
from blockspike.neurons.state import NeuronState
from blockspike.neurons.surrogates import spike

_TAU_MS = -1 / math.log(0.9)  # β and p are 0.9 a step of 1 ms
_MOST_EVENTS = 200  # per unit and sample; the upper end of the uniform rates
# Sums of a few multiples of these (and of their products) are exact in any order.
_QUANTUM, _INPUT_QUANTUM = 2.0**-12, 2.0**-6
_LATER_GAIN = 3.0  # of later layers, whose weights are ≥ 0; otherwise they would be silent
_LEAST_RATE = 5e-4  # spikes per step; a silent event-driven layer would cost nothing
_CHECKED_STEPS = 256


class _Stack(nn.Module):
    """Layers that pass their spikes on as events."""

    def __init__(self, layers: list[ALIFLayer]):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: EventBatch | Tensor) -> Tensor:
        return list(run_layers(self.layers, x))[-1].spikes


class _ParallelBlocksLayer(ALIFLayer):
    """The paper's Blocks by matrix products, even on a CPU."""

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        options |= {"method": "blocks", "membrane": True}
        return alif(current, self.beta, self.p, self.b, arp=self.arp, **options)


class _ReferenceLayer(ALIFLayer):
    """A loop with the memory pattern of the published code: slices of full-size tensors.

    For each assignment of a step, backward copies a whole [T, B, N] gradient: O(T²) traffic.
    """

    def simulate(self, current: Tensor, **options: Any) -> SpikeTrace:
        assert self.p is not None and self.b is not None
        spikes, after = torch.zeros_like(current), torch.zeros_like(current)
        adaptation = torch.zeros_like(current[0])
        refractory_left = torch.zeros_like(adaptation)
        for t in range(len(current)):
            drive = current[t]
            if self.recurrent_weight is not None and t > self.arp:
                fed_back = spikes[t - self.arp - 1].detach().clone()
                drive = drive + F.linear(fed_back, self.recurrent_weight)
            drive = drive * (refractory_left == 0)
            membrane = drive if t == 0 else self.beta * after[t - 1].clone() + drive
            s = spike(membrane - (1 + self.b * adaptation), self.options.surrogate)
            spikes[t] = s
            after[t] = membrane * (1 - s.detach())
            adaptation = self.p * adaptation + s
            refractory_left = torch.where(s > 0, self.arp, (refractory_left - 1).clamp(min=0))
        return SpikeTrace(spikes, NeuronState("timed only", (), current.new_empty(0)))


def _make_ours(layer: Callable[..., ALIFLayer], size: Size) -> nn.Module:
    units = [size.n_inputs] + [size.n_units] * size.n_layers
    layers = [
        layer(
            n_in, n_out, dt_ms=1.0, tau_membrane_ms=_TAU_MS, tau_adaptation_ms=_TAU_MS,
            arp_ms=float(size.arp_steps), recurrent=size.recurrent, train_b=True,
        )
        for n_in, n_out in pairwise(units)
    ]  # fmt: skip
    with torch.no_grad():
        for depth, one in enumerate(layers):
            weight = one.weight if depth == 0 else _LATER_GAIN * one.weight.abs()
            one.weight.copy_((weight / _QUANTUM).round() * _QUANTUM)
    return _Stack(layers)


def _ours(layer: Callable[..., ALIFLayer], differs: str, same: Any, **options: Any) -> Contender:
    return Contender(partial(_make_ours, layer), differs, same=same, **options)


CONTENDERS = {
    "fused": _ours(
        partial(ALIFLayer, method="fused"), "", "spikes and gradients", takes_events=True
    ),
    "blocks": _ours(
        partial(ALIFLayer, method="blocks"), "published gradient", "spikes", takes_events=True
    ),
    "parallel blocks": _ours(
        partial(_ParallelBlocksLayer, synapses="dense"),
        "published gradient; dense synapses", "", arp_matters=True,
    ),
    "standard": _ours(
        partial(ALIFLayer, method="standard", synapses="dense"),
        "dense synapses", "spikes and gradients",
    ),
    "standard reference": _ours(
        partial(_ReferenceLayer, synapses="dense"),
        "dense synapses; assigns slices of full-size tensors", "spikes and gradients",
    ),
    **PEERS,
}  # fmt: skip


def make_inputs(size: Size) -> tuple[EventBatch | None, Tensor]:
    """The input as events (None if it is not spikes) and as a dense tensor [T, B, n_inputs].

    "poisson": each sample has a rate r ~ U(0, 200); each unit and step has Poisson(r / T) spikes,
    clipped at 1. "uniform": values from U(0, 1). Both as in docs/paper.md, Experiments.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (size.n_steps, size.batch_size, size.n_inputs)
    if size.inputs == "uniform":
        dense = torch.rand(shape, generator=generator)
        return None, (dense / _INPUT_QUANTUM).round() * _INPUT_QUANTUM
    rate = _MOST_EVENTS * torch.rand(size.batch_size, 1, generator=generator) / size.n_steps
    dense = torch.poisson(rate.expand(shape), generator=generator).clamp_(max=1)
    return EventBatch.from_dense(dense), dense


class Layers:
    """A contender's layers and their input, ready to be timed.

    Args:
        name: a name in CONTENDERS.
        size: the stack and its input.
        device: where they are.
    """

    def __init__(self, name: str, size: Size, device: str = "cpu"):
        self._device = torch.device(device)
        events, dense = make_inputs(size)
        self.input = events if events is not None and CONTENDERS[name].takes_events else dense
        self.input = self.input.to(self._device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = CONTENDERS[name].make(size).to(self._device)

    def turn(self) -> Turn:
        """Time forward and backward."""
        found = time_turn(partial(self.module, self.input), self._device)
        self.module.zero_grad(set_to_none=True)
        return found

    def about(self) -> Row:
        """How active the last layer is."""
        with torch.no_grad():
            return {"firing_per_step": round(self.module(self.input).mean().item(), 5)}

    def differentiate(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Spikes of the first steps, and the gradients of their sum."""
        spikes = self.module(self.first_steps(_CHECKED_STEPS))
        spikes.sum().backward()
        grads = {n: g.grad for n, g in self.module.named_parameters() if g.grad is not None}
        self.module.zero_grad(set_to_none=True)
        return spikes.detach(), grads

    def first_steps(self, n_steps: int) -> EventBatch | Tensor:
        """The first steps of the input, or all of a shorter one."""
        x, n_steps = self.input, min(n_steps, self.input.shape[0])
        return x[:n_steps] if isinstance(x, Tensor) else x.steps(0, n_steps)

    def peak_bytes(self) -> int:
        """Peak memory of a turn, beyond its input and parameters; call it in a new process."""
        self.module(self.first_steps(20)).sum().backward()  # compiles
        self.module.zero_grad(set_to_none=True)
        if self._device.type == "cpu":
            return peak_bytes(self.turn)
        held = torch.cuda.memory_allocated(self._device)
        for _ in range(3):  # captured graphs count
            self.turn()
        return torch.cuda.max_memory_allocated(self._device) - held


def make(name: str, size: Size, device: str) -> Any:
    """A contender's layers."""
    return CONTENDERS[name].make(size) if CONTENDERS[name].in_jax else Layers(name, size, device)


def check(size: Size, device: str, made: dict[str, Any]) -> Turns:
    """Compare spikes and gradients of our contenders with those of `standard`, over 256 steps.

    Raises:
        RuntimeError: they differ, or there are too few spikes to compare.
    """
    ours = {name: x for name, x in made.items() if CONTENDERS[name].same}
    if ours:
        expected, wanted = Layers("standard", size, device).differentiate()
        if expected.mean() < _LEAST_RATE:
            raise RuntimeError(f"{size}: hardly any spikes: no time is reported")
        for name, layers in ours.items():
            spikes, grads = layers.differentiate()
            same = grads if "gradients" in CONTENDERS[name].same else None
            require_equal(name, [spikes], [expected], same, wanted)
    return {}


Slow = dict[tuple[str, Size], str]
"""(Contender, size with arp_steps 0) → why it is left out at the other refractory periods."""


def _measure(
    size: Size, names: Sequence[str], options: Options, memory: bool, slow: Slow
) -> list[Row]:
    any_arp, device = replace(size, arp_steps=0), options.device
    left_out = {name: slow[name, any_arp] for name in names if (name, any_arp) in slow}
    rows = measure(
        make, names, size, options, partial(check, size, device), left_out, device, memory
    )
    dense = make_inputs(size)[1]
    density = round(dense.count_nonzero().item() / dense.numel(), 5)
    for row in rows:
        name, why = row["contender"], row.get("left_out")
        if why and name not in left_out and not CONTENDERS[name].arp_matters:
            slow[name, any_arp] = f"not run, at another refractory period: {why}"
        row |= {key: getattr(CONTENDERS[name], key) for key in ("neuron", "differs")}
        row["input_density"] = density
    return rows


def _piece(
    size: Size, names: Sequence[str], options: Options, memory: bool, slow: Slow | None = None
) -> Piece:
    chosen = [
        name
        for name in options.choose(names)
        if (CONTENDERS[name].has_recurrent or not size.recurrent)
        and not (CONTENDERS[name].in_jax and options.device == "cuda")
    ]
    slow = {} if slow is None else slow
    timed = partial(_measure, size, chosen, options, memory and options.memory, slow)
    return Piece(asdict(size), chosen, timed, options.device)


def length(options: Options) -> Iterator[Piece]:
    """Recurrent layer 1000 → 128: steps × refractory period × batch."""
    slow: Slow = {}
    for batch, n_steps, arp in product(options.batch_size, options.n_steps, options.arp_steps):
        size = Size(n_steps, batch, 1000, 128, arp_steps=arp)
        yield _piece(size, list(CONTENDERS), options, arp == options.arp_steps[0], slow)


def layers(options: Options) -> Iterator[Piece]:
    """Units × layers at T = 1024, batch 64, refractory period 40."""
    names = ("fused", "blocks", "parallel blocks", "standard")
    for n_units, n_layers in product(options.n_units, options.n_layers):
        size = Size(1024, 64, 1000, n_units, n_layers, arp_steps=40)
        yield _piece(size, names, options, False)


def libraries(options: Options) -> Iterator[Piece]:
    """Layer 200 → 100 without recurrence, driven by numbers from U(0, 1)."""
    size = Size(1000, 128, 200, 100, arp_steps=40, recurrent=False, inputs="uniform")
    yield _piece(size, list(CONTENDERS), options, True)
