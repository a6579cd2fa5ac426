"""Time of each neuron model's fused pass against its standard loop, forward and backward.

    python -m blockspike.benchmark.models [--shape 1024 32 128] [--rounds 5] [--json claims.jsonl]

No synapses, float32, on the CPU, without and with recurrence. Spikes are compared before anything
is timed. The two methods take turns, and a ratio is the median over the rounds.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from blockspike.benchmark.timing import (
    Claim,
    Turn,
    all_turns,
    judge,
    median_ratio,
    parse,
    report,
    take_turns,
    time_turn,
)
from blockspike.neurons import alif
from blockspike.neurons.adlif import adlif

SHAPE = (1024, 32, 128)
LEAST_RATIO = 20.0
_DECAYS = {"alpha": 0.8, "beta": 0.97, "a": 0.5, "b": 1.0}
MODELS: dict[str, tuple[Callable[..., Any], dict[str, float]]] = {
    "ALIF": (alif, {"beta": 0.9, "p": 0.97, "b": 0.5}),
    "adLIF": (partial(adlif, euler="forward", q=12.0), _DECAYS),
    "SE-adLIF": (partial(adlif, euler="symplectic", q=12.0), _DECAYS),
}
METHODS = ("standard", "fused")


def make_inputs(name: str, recurrent: bool, shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Arguments [T, B, N], [N] and [N, N] for spikes in about 2 to 20 % of the steps."""
    generator = torch.Generator().manual_seed(0)
    scale = 0.3 if name == "ALIF" else 4.0
    weight = torch.randn(shape[2], shape[2], generator=generator) * 0.2 / shape[2] ** 0.5
    inputs = {"current": scale * torch.rand(shape, generator=generator)}
    inputs |= {key: torch.full(shape[2:], value) for key, value in MODELS[name][1].items()}
    if recurrent:
        inputs["recurrent_weight"] = scale * weight
    return {key: value.requires_grad_() for key, value in inputs.items()}


def measure(
    name: str, recurrent: bool, rounds: int, shape: tuple[int, int, int]
) -> dict[str, list[Turn]]:
    """Check and time both methods of a model, in turns.

    Raises:
        RuntimeError: their spikes differ. With recurrence, whose sums round differently, up to
            one spike in a thousand may.
    """
    simulate, _ = MODELS[name]
    inputs = make_inputs(name, recurrent, shape)

    def spikes(method: str) -> Tensor:
        return simulate(**inputs, method=method).spikes

    with torch.no_grad():
        ours, loop = spikes("fused"), spikes("standard")
    if (ours != loop).sum() > (1e-3 * loop.sum() if recurrent else 0):
        raise RuntimeError(f"{name}: spikes of the two methods differ: no time is reported")
    device = torch.device("cpu")
    contenders = {m: partial(time_turn, partial(spikes, m), device) for m in METHODS}
    return all_turns(take_turns(contenders, rounds))


def main(argv: Sequence[str] | None = None) -> list[Claim]:
    """Measure, print and return the claims."""
    parser = argparse.ArgumentParser(description="Time every neuron model.")
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, metavar=("T", "B", "N"))
    options = parse(parser, argv)
    shape = (options.shape[0], options.shape[1], options.shape[2])
    console = Console()
    load = os.getloadavg()[0]
    claims = []
    for name in MODELS:
        for recurrent in (False, True):
            turns = measure(name, recurrent, options.rounds, shape)
            loop, ours = ([turn.total for turn in turns[m]] for m in METHODS)
            ratio = median_ratio(loop, ours)
            what = f"{name}{', recurrent' if recurrent else ''}: standard / fused"
            console.print(f"{what} {ratio:.0f} ({1000 * min(ours):.1f} ms)", highlight=False)
            claims.append(judge(what, ratio, "≥", LEAST_RATIO, (loop, ours)))
    report(console, claims, options, load)
    return claims


if __name__ == "__main__":
    main()
