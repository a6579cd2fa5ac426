"""Fail if a speed ratio is below its floor, to notice a change that slows down a fast path.

python -m benchmarks.guard
"""

import sys
from collections.abc import Callable
from functools import partial

import torch

from benchmarks import dynamics
from benchmarks.timing import Turn, all_turns, median_ratio, take_turns, time_turn
from blockspike.networks.synapses import synaptic_current
from blockspike.neurons.events import EventBatch

# Slow / fast: four fifths of what was measured on two cores of an Intel Xeon (44.8, 1.42, 4.2).
FLOORS = {
    ("standard", "fused"): 35.0,
    ("blocks", "fused"): 1.15,
    ("dense synapses", "event-driven synapses"): 3.3,
}
SIZE = dynamics.Size(512, 32, 64, 20)
_SHAPE, _N_NEURONS, _DENSITY = (256, 32, 700), 256, 0.03
_ROUNDS = 5
_TRIES = 3  # per ratio: other work on the machine may make one too low


def contenders() -> dict[str, Callable[[], Turn]]:
    """What is compared: the neurons by method, and the synaptic current with its gradient.

    Raises:
        RuntimeError: the methods' spikes or gradients differ.
    """
    neurons = {name: dynamics.Neurons(name, SIZE) for name in ("fused", "blocks", "standard")}
    dynamics.check(SIZE, "cpu", neurons)
    found: dict[str, Callable[[], Turn]] = {name: own.turn for name, own in neurons.items()}
    generator = torch.Generator().manual_seed(0)
    dense = (torch.rand(_SHAPE, generator=generator) < _DENSITY).float()
    weight = torch.randn(1, _N_NEURONS, _SHAPE[2], generator=generator, requires_grad=True)
    bias = torch.zeros(_N_NEURONS)
    inputs = {"event-driven synapses": EventBatch.from_dense(dense), "dense synapses": dense}
    for name, x in inputs.items():
        forward = partial(synaptic_current, x, weight, bias)
        found[name] = partial(time_turn, forward, dense.device)
    return found


def ratios(rounds: int = _ROUNDS) -> dict[tuple[str, str], float]:
    """Median ratio of each pair in FLOORS, measured up to three times while it is too low."""
    runs, found = contenders(), dict.fromkeys(FLOORS, 0.0)
    for _ in range(_TRIES):
        low = [pair for pair, floor in FLOORS.items() if found[pair] < floor]
        for slow, fast in low:
            turns = all_turns(take_turns({name: runs[name] for name in (fast, slow)}, rounds))
            slow_s, fast_s = ([turn.total for turn in turns[name]] for name in (slow, fast))
            found[slow, fast] = median_ratio(slow_s, fast_s)
    return found


def main() -> None:
    """Print each ratio and its floor; the exit code is 1 if one is below."""
    found = ratios()
    for (slow, fast), ratio in found.items():
        print(f"{slow} / {fast}: {ratio:.3g}, floor {FLOORS[slow, fast]:g}")
    low = [" / ".join(pair) for pair, floor in FLOORS.items() if found[pair] < floor]
    sys.exit(f"below the floor: {', '.join(low)}" if low else 0)


if __name__ == "__main__":
    main()
