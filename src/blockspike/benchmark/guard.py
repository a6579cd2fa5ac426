"""A quick check of a few speed ratios, to notice a change that slows down a fast path."""

import math
from functools import partial

import torch

from blockspike.benchmark import dynamics
from blockspike.benchmark.timing import (
    Claim,
    all_turns,
    judge,
    median_ratio,
    take_turns,
    time_turn,
)
from blockspike.networks.synapses import synaptic_current
from blockspike.neurons.events import EventBatch

# Slow / fast: four fifths of what was measured on two cores of an Intel Xeon (44.8, 1.42, 4.2).
FLOORS = {
    ("standard", "fused"): 35.0,
    ("blocks", "fused"): 1.15,
    ("dense synapses", "event-driven synapses"): 3.3,
}
_SHAPE, _N_NEURONS, _DENSITY = (256, 32, 700), 256, 0.03
_TRIES = 3  # per ratio: other work on the machine may make one too low


def check_floors(rounds: int = 5) -> list[Claim]:
    """Measure each ratio, repeatedly if it is too low, and compare it with its floor."""
    found = []
    for (slow, fast), floor in FLOORS.items():
        claim = _judge(slow, fast, floor, rounds)
        for _ in range(_TRIES - 1):
            if claim.measured < floor:
                claim = _judge(slow, fast, floor, rounds)
        found.append(claim)
    return found


def _judge(slow: str, fast: str, floor: float, rounds: int) -> Claim:
    measure = _measure_synapses if "synapses" in fast else _measure_neurons
    seconds = measure(rounds)
    costs = seconds[slow], seconds[fast]
    return judge(f"{slow} / {fast}", median_ratio(*costs), floor, costs)


def _measure_neurons(rounds: int) -> dict[str, tuple[float, ...]]:
    """Seconds of forward and backward of the neurons, by method."""
    names = ("fused", "blocks", "standard")
    turns, _ = dynamics.measure(dynamics.GUARD, names, rounds, math.inf)
    return {name: tuple(turn.total for turn in own) for name, own in all_turns(turns).items()}


def _measure_synapses(rounds: int) -> dict[str, tuple[float, ...]]:
    """Seconds of the synaptic current and its gradient to the weights, by contender."""
    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(_SHAPE, generator=generator) < _DENSITY).float()
    weight = torch.randn(1, _N_NEURONS, _SHAPE[2], generator=generator, requires_grad=True)
    bias = torch.zeros(_N_NEURONS)
    spikes = {"event-driven synapses": EventBatch.from_dense(dense), "dense synapses": dense}
    contenders = {
        name: partial(time_turn, partial(synaptic_current, x, weight, bias), dense.device)
        for name, x in spikes.items()
    }
    turns = all_turns(take_turns(contenders, rounds))
    return {name: tuple(turn.total for turn in own) for name, own in turns.items()}
