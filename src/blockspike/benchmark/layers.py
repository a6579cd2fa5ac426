"""Contenders of the layer benchmark: our methods, the published memory pattern, other libraries.

A contender is a stack of layers of synapses and neurons. All get the same input: ours as events,
the others as a dense tensor (the conversion is not timed).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blockspike.benchmark.peers import PEERS, version_of
from blockspike.networks.classifier import run_layers
from blockspike.networks.layers import ALIFLayer
from blockspike.neurons import SpikeTrace, alif
from blockspike.neurons.events import EventBatch
from blockspike.neurons.state import NeuronState
from blockspike.neurons.surrogates import spike

_DECAY = 0.9  # β and p, per step
_DT_MS = 1.0
_TAU_MS = -_DT_MS / math.log(_DECAY)
_MOST_EVENTS = 200  # per unit and sample; the upper end of the uniform rates
# Sums of a few multiples of these (and of their products) are exact in any order.
_QUANTUM, _INPUT_QUANTUM = 2.0**-12, 2.0**-6
_LATER_GAIN = 3.0  # of later layers, whose weights are ≥ 0; they would be silent otherwise
_LEAST_RATE = 5e-4  # spikes per step; a silent event-driven layer would cost nothing
_CHECKED_STEPS = 256
_TOLERANCE = 1e-4  # of gradients in float32, relative to the largest


@dataclass(frozen=True)
class Size:
    """Size of one measurement; the fields are columns of the table."""

    n_steps: int
    batch_size: int
    n_inputs: int
    n_units: int
    n_layers: int = 1
    arp_steps: int = 0
    recurrent: bool = True
    inputs: Literal["poisson", "uniform"] = "poisson"


class _Stack(nn.Module):
    """A stack of layers, each passing its spikes to the next as events."""

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
        none = NeuronState("timed only", (), current.new_empty(0))
        return SpikeTrace(spikes, none)


@dataclass(frozen=True)
class Contender:
    """One way to compute the layers.

    Attributes:
        name: name in the table.
        package, version: its distribution; version None = not installed.
        neuron, differs: its neuron model, and how that differs from ours.
        takes_events: whether its input is an EventBatch.
        make: size → module; all of ours have the same weights.
        spikes, gradients: whether they must equal those of `standard`.
        any_arp_costs_the_same: whether its time does not depend on the refractory period.
        devices: types of devices that it runs on.
    """

    name: str
    package: str
    version: str | None
    neuron: str
    differs: str
    takes_events: bool
    make: Callable[[Size], nn.Module]
    spikes: bool = True
    gradients: bool = True
    any_arp_costs_the_same: bool = True
    devices: tuple[str, ...] = ("cpu", "cuda")


def _make_ours(layer: Callable[..., ALIFLayer], size: Size) -> nn.Module:
    units = [size.n_inputs] + [size.n_units] * size.n_layers
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        layers = [
            layer(
                n_in, n_out, dt_ms=_DT_MS, tau_membrane_ms=_TAU_MS, tau_adaptation_ms=_TAU_MS,
                arp_ms=size.arp_steps * _DT_MS, recurrent=size.recurrent, train_b=True,
            )
            for n_in, n_out in pairwise(units)
        ]  # fmt: skip
        for depth, one in enumerate(layers):
            weight = one.weight if depth == 0 else _LATER_GAIN * one.weight.abs()
            one.weight.copy_((weight / _QUANTUM).round() * _QUANTUM)
    return _Stack(layers)


def _make_peer(make: Callable[[int, int, bool, int], nn.Module], size: Size) -> nn.Module:
    if size.n_layers != 1:
        raise ValueError(f"n_layers: expected 1 for other libraries, got {size.n_layers}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(size.n_inputs, size.n_units, size.recurrent, size.arp_steps)


def _ours(name: str, differs: str, layer: Callable[..., ALIFLayer], **options) -> Contender:
    own = {"takes_events": True, **options}
    return Contender(
        name, "blockspike", None, "ALIF", differs, make=partial(_make_ours, layer), **own
    )


OURS = (
    _ours("fused", "", partial(ALIFLayer, method="fused")),
    _ours(
        "blocks", "published gradient", partial(ALIFLayer, method="blocks"), gradients=False
    ),
    _ours(
        "parallel blocks", "published gradient; dense synapses",
        partial(_ParallelBlocksLayer, synapses="dense"),
        takes_events=False, spikes=False, gradients=False, any_arp_costs_the_same=False,
    ),
    _ours(
        "standard", "dense synapses",
        partial(ALIFLayer, method="standard", synapses="dense"), takes_events=False,
    ),
    _ours(
        "standard reference", "dense synapses; assigns slices of full-size tensors",
        partial(_ReferenceLayer, synapses="dense"), takes_events=False,
    ),
)  # fmt: skip
CONTENDERS = {
    contender.name: contender
    for contender in (
        *OURS,
        *(
            Contender(
                peer.name, peer.package, version_of(peer.package), peer.neuron, peer.differs, False,
                partial(_make_peer, peer.make), spikes=False, gradients=False,
                devices=peer.devices,
            )
            for peer in PEERS
        ),
    )
}  # fmt: skip


def make_inputs(size: Size, device: torch.device) -> tuple[EventBatch | None, Tensor]:
    """The input as events (None if it is not spikes) and as a dense tensor [T, B, n_inputs].

    "poisson": each sample has a rate r ~ U(0, 200); each unit and step has Poisson(r / T) spikes,
    clipped at 1. "uniform": values from U(0, 1). Both as in docs/paper.md, Experiments.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (size.n_steps, size.batch_size, size.n_inputs)
    if size.inputs == "uniform":
        dense = torch.rand(shape, generator=generator)
        return None, ((dense / _INPUT_QUANTUM).round() * _INPUT_QUANTUM).to(device)
    rate = _MOST_EVENTS * torch.rand(size.batch_size, 1, generator=generator) / size.n_steps
    dense = torch.poisson(rate.expand(shape), generator=generator).clamp_(max=1)
    events = EventBatch.from_dense(dense)
    return events.to(device), dense.to(device)


def first_steps(x: EventBatch | Tensor, n_steps: int) -> EventBatch | Tensor:
    """The first `n_steps` steps of an input [T, B, K], or all of a shorter one."""
    n_steps = min(n_steps, x.shape[0])
    return x[:n_steps] if isinstance(x, Tensor) else x.steps(0, n_steps)


def check(
    size: Size, modules: dict[str, nn.Module], inputs: dict[str, EventBatch | Tensor]
) -> dict[str, float]:
    """Compare spikes and gradients of our contenders with those of `standard`, over 256 steps.

    Returns:
        Contender → share of the last layer's neurons that fire in a step.

    Raises:
        RuntimeError: they differ, or there are too few spikes to compare.
    """
    inputs = {name: first_steps(x, _CHECKED_STEPS) for name, x in inputs.items()}
    rates = {}
    dense = next((x for x in inputs.values() if isinstance(x, Tensor)), None)
    ours = [name for name in modules if CONTENDERS[name].spikes]
    if dense is None and ours:
        given = inputs[ours[0]]
        dense = given if isinstance(given, Tensor) else given.dense()
    expected = None
    if dense is not None and ours:
        reference = CONTENDERS["standard"].make(size).to(dense.device)
        expected = _differentiate(reference, dense)
    for name, module in modules.items():
        try:
            spikes, grads = _differentiate(module, inputs[name])
        except Exception:
            if CONTENDERS[name].spikes:
                raise
            continue  # reported when it is timed
        rates[name] = round(spikes.mean().item(), 5)
        if expected is not None and CONTENDERS[name].spikes:
            _compare(name, spikes, grads, *expected)
            if rates[name] < _LEAST_RATE:
                raise RuntimeError(f"{size}: hardly any spikes: no time is reported")
    return rates


def _compare(
    name: str, spikes: Tensor, grads: dict[str, Tensor], expected: Tensor,
    expected_grads: dict[str, Tensor],
) -> None:  # fmt: skip
    if not torch.equal(spikes, expected):
        raise RuntimeError(f"spikes of {name} differ: no time is reported")
    if CONTENDERS[name].gradients:
        for key, grad in expected_grads.items():
            if not (grads[key] - grad).abs().max() <= _TOLERANCE * grad.abs().max():
                raise RuntimeError(f"gradients of {name} differ ({key}): no time is reported")


def _differentiate(module: nn.Module, x: EventBatch | Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    spikes = module(x)
    spikes.sum().backward()
    grads = {n: g.grad for n, g in module.named_parameters() if g.grad is not None}
    module.zero_grad(set_to_none=True)
    return spikes.detach(), grads
