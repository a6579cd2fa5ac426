"""Time and memory of one training step of the paper's SHD network, against what we claim of it.

    python -m blockspike.benchmark.training_step [--data data/hd_lauscher.h5] [--rounds 5]
        [--only comparison|memory|length|refractory ...] [--json claims.jsonl]

A step is the network forward, cross-entropy, backward, Adam and `project_`, on real batches of a
prepared HD-Lauscher file, float32, on the CPU. The contenders take turns within a round, every
round has another batch, and a ratio is the median over the rounds.

Every step starts from the same weights, which fire as those of a trained network do: as first drawn
the second layer is silent, which would flatter whatever works event by event.

`length` repeats the first half of the batch's steps (300 of 600) once, 2, 4 and 8 times. The
recordings are over by then, so a whole batch would have busy steps first and empty ones after, and
its lengths would differ in events per step.
"""

import argparse
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

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
    peak_bytes,
    quartiles,
    report,
)
from blockspike.data.shd import SHDDataModule
from blockspike.data.shd_file import N_CHANNELS, N_CLASSES
from blockspike.memory import keep_freed_memory
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons import Method
from blockspike.neurons.events import EventBatch

Batch = tuple[EventBatch, Tensor]
Costs = dict[str, tuple[float, ...]]  # contender → what a step cost, one value per round

METHODS: dict[str, tuple[Method, SynapseMode]] = {  # by contender
    "standard": ("standard", "dense"),
    "blocks": ("blocks", "auto"),
    "fused": ("fused", "auto"),
}
_DT_MS = 2.0
_ARP = 10  # steps, where it is not what varies
_ARPS = (0, 1, 10, 50, 100)
_REPEATS = (1, 2, 4, 8)  # of the first half of a batch
_GAINS = {  # of weights as drawn; both layers then fire at 4 to 5 Hz (trained: 1 to 5), loss 4
    "layers.0.weight": 10.0,
    "layers.1.weight": 8.0,
    "readout.weight": 0.05,
}
_QUANTUM = 2.0**-12
_TOLERANCE = 1e-4  # of the loss, and of a gradient by its largest element
_WARM_UP = 32  # steps, more than the refractory period


@dataclass(frozen=True)
class Size:
    """Neurons of a hidden layer, steps T and batch B."""

    n_hidden: int = 256
    n_steps: int = 600
    batch_size: int = 64


PAPER = Size()


@dataclass(frozen=True)
class Task:
    """What is measured: a prepared file, sizes, batches (EventBatch [T, B, 700], labels [B])."""

    data: Path
    size: Size
    batches: Sequence[Batch]
    rounds: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of the parts of one training step; `update` is Adam and `project_`."""

    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.forward + self.backward + self.update


def read_batches(path: Path, size: Size, n: int) -> list[Batch]:
    """The first `n` full training batches (EventBatch [T, B, 700], labels [B]), or all there are.

    Raises:
        FileNotFoundError: no prepared file.
        ValueError: the training recordings do not fill one batch.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected prepared recordings, got none; `blockspike prepare "
            "data=hd_lauscher_sample` and --data data/hd_lauscher_sample.h5 take those that come "
            "with blockspike"
        )
    data = SHDDataModule(path, dt_ms=_DT_MS, n_steps=size.n_steps, batch_size=size.batch_size)
    data.setup()
    n_full = len(data.train_indices) // size.batch_size
    if n_full == 0:
        raise ValueError(
            f"{path}: expected at least {size.batch_size} training recordings, "
            f"got {len(data.train_indices)}"
        )
    return list(islice(data.train_dataloader(), min(n, n_full)))


def repeat_in_time(events: EventBatch, n_steps: int, times: int) -> EventBatch:
    """The first `n_steps` steps of `events` [T, B, K], `times` times: [n_steps · times, B, K].

    Raises:
        ValueError: `n_steps` is not in 1 … T, or `times` is below 1.
    """
    if not 1 <= n_steps <= events.n_steps or times < 1:
        raise ValueError(
            f"n_steps, times: expected 1 to {events.n_steps} and at least 1, "
            f"got {n_steps} and {times}"
        )
    n_rows = n_steps * events.batch_size
    end = int(events.row_ptr[n_rows])
    starts = end * torch.arange(times)[:, None]
    row_ptr = torch.cat([(events.row_ptr[:n_rows] + starts).flatten(), torch.tensor([end * times])])
    shape = (n_steps * times, events.batch_size, events.n_units)
    return EventBatch(row_ptr, events.unit[:end].repeat(times), shape)


def make_network(name: str, size: Size = PAPER, arp: int = _ARP) -> SpikingClassifier:
    """700 → n_hidden → n_hidden → 20 with the method of a contender and `arp` steps refractory.

    The weights are the same for every contender and every `arp`. They are multiples of 2⁻¹², so
    that their sums are exact in float32 in any order, and spikes do not depend on how a method
    adds them up.
    """
    method, synapses = METHODS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = SpikingClassifier(
            N_CHANNELS,
            N_CLASSES,
            size.n_hidden,
            dt_ms=_DT_MS,
            arp_ms=arp * _DT_MS,
            method=method,
            synapses=synapses,
        )
        for key, weight in network.named_parameters():
            weight.mul_(_GAINS.get(key, 1.0))
            if key.endswith("recurrent_weight"):  # the identity, as first drawn
                weight.add_((torch.rand(weight.shape) - 0.5) / 8)
            if key.endswith("weight"):
                weight.copy_((weight / _QUANTUM).round() * _QUANTUM)
    return network


class Training:
    """A network in training, every step of which starts from the same weights."""

    def __init__(self, network: SpikingClassifier):
        self.network = network
        self._start = {name: x.clone() for name, x in network.state_dict().items()}
        trainable = [x for x in network.parameters() if x.requires_grad]
        self._optimizer = torch.optim.Adam(trainable, lr=1e-3, eps=1e-5)

    def step(self, batch: Batch) -> StepTime:
        """Train on one batch and return the seconds it took; the weights are reset before."""
        self.network.load_state_dict(self._start)
        events, labels = batch
        started = time.perf_counter()
        loss = F.cross_entropy(self.network(events).scores, labels)
        forwarded = time.perf_counter()
        loss.backward()
        del loss  # and with it the graph, which takes a while for a loop over time
        differentiated = time.perf_counter()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.network.project_()
        ended = time.perf_counter()
        return StepTime(forwarded - started, differentiated - forwarded, ended - differentiated)

    @torch.no_grad()
    def rates_hz(self, batch: Batch) -> list[float]:
        """Mean firing rate of each hidden layer on a batch, at the weights of the start."""
        self.network.load_state_dict(self._start)
        return [s.mean().item() * 1000 / _DT_MS for s in self.network(batch[0]).spikes]


def _differentiate(network: SpikingClassifier, batch: Batch):
    """Spikes of the hidden layers, loss, and gradients by parameter name."""
    output = network(batch[0])
    loss = F.cross_entropy(output.scores, batch[1])
    loss.backward()
    grads = {n: x.grad for n, x in network.named_parameters() if x.grad is not None}
    return [s.detach() for s in output.spikes], loss.item(), grads


def check(batch: Batch, size: Size = PAPER) -> None:
    """Compare the contenders on a batch, each as it is timed, with `standard`.

    `fused` in spikes (exact, see `make_network`), loss and gradients. `blocks`, whose gradient is
    another, only in spikes.

    Raises:
        RuntimeError: something differs by more, or a layer is silent and there is nothing to
            compare.
    """
    spikes, loss, grads = _differentiate(make_network("standard", size), batch)
    if not all(s.any() for s in spikes):
        raise RuntimeError("a hidden layer is silent: no time is reported")
    fused_spikes, fused_loss, fused_grads = _differentiate(make_network("fused", size), batch)
    if not all(map(torch.equal, fused_spikes, spikes)):
        raise RuntimeError("spikes of fused differ: no time is reported")
    if not abs(fused_loss - loss) <= _TOLERANCE * abs(loss):
        raise RuntimeError("loss of fused differs: no time is reported")
    for key, grad in grads.items():
        if not (fused_grads[key] - grad).abs().max() <= _TOLERANCE * grad.abs().max():
            raise RuntimeError(f"gradients of fused differ ({key}): no time is reported")
    blocks_spikes = make_network("blocks", size)(batch[0]).spikes
    if not all(map(torch.equal, blocks_spikes, spikes)):
        raise RuntimeError("spikes of blocks differ: no time is reported")


def take_turns(
    contenders: Mapping[str, tuple[Training, Sequence[Batch]]], rounds: int
) -> dict[str, list[StepTime]]:
    """Warm every contender up with a step, then time them in turns, round by round."""
    for training, batches in contenders.values():
        training.step(batches[0])
    steps: dict[str, list[StepTime]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, (training, batches) in contenders.items():
            steps[name].append(training.step(batches[turn % len(batches)]))
    return steps


def compare(task: Task, console: Console) -> Costs:
    """Seconds of a step of each method, the same step for all; checks them first."""
    check(task.batches[0], task.size)
    contenders = {name: (Training(make_network(name, task.size)), task.batches) for name in METHODS}
    steps = take_turns(contenders, task.rounds)
    costs = {name: tuple(s.total for s in steps[name]) for name in steps}
    relative = {name: median_ratio(costs["standard"], costs[name]) for name in costs}
    _print_steps(console, "one step, ms", contenders, steps, "standard / it", relative)
    return costs


def measure_lengths(task: Task, console: Console) -> Costs:
    """Seconds per step of time of `fused` at four lengths, the events per step being the same."""
    training = Training(make_network("fused", task.size))
    half = task.size.n_steps // 2
    contenders = {
        f"T={half * times}": (
            training,
            [(repeat_in_time(events, half, times), labels) for events, labels in task.batches],
        )
        for times in _REPEATS
    }
    steps = take_turns(contenders, task.rounds)
    costs = {
        name: tuple(s.total / (half * times) for s in steps[name])
        for name, times in zip(contenders, _REPEATS, strict=True)
    }
    reference = f"T={2 * half}"
    relative = {name: median_ratio(costs[name], costs[reference]) for name in costs}
    heading = f"per T / {reference}"
    _print_steps(console, "fused by length, ms", contenders, steps, heading, relative)
    return costs


def measure_refractory(task: Task, console: Console) -> Costs:
    """Seconds of a step of `fused` at refractory periods of 0 to 100 steps, same weights."""
    contenders = {
        f"arp={arp}": (Training(make_network("fused", task.size, arp)), task.batches)
        for arp in _ARPS
    }
    steps = take_turns(contenders, task.rounds)
    costs = {name: tuple(s.total for s in steps[name]) for name in steps}
    relative = {name: median_ratio(costs[name], costs["arp=0"]) for name in costs}
    title = "fused by refractory period in steps, ms"
    _print_steps(console, title, contenders, steps, "it / arp=0", relative)
    return costs


def step_peak_bytes(name: str, data: Path, size: Size = PAPER) -> int:
    """Most memory of the first step of a contender, above what the process held before it.

    Run it in a fresh process: what was freed earlier would be used again without being counted.
    A step of a tiny network compiles every kernel before. Linux only.
    """
    keep_freed_memory()  # as `blockspike train` does
    events, labels = read_batches(data, size, 1)[0]
    tiny = Training(make_network(name, Size(n_hidden=8)))
    tiny.step((repeat_in_time(events, min(_WARM_UP, events.n_steps), 1), labels))
    training = Training(make_network(name, size))
    return peak_bytes(lambda: training.step((events, labels)))


def _peak_in_fresh_process(name: str, data: Path, size: Size) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step_peak_bytes, name, data, size).result()


def measure_memory(task: Task, console: Console) -> Costs:
    """Peak bytes of a step of `standard` and of `fused`, each in a process of its own."""
    peaks: dict[str, list[float]] = {"standard": [], "fused": []}
    for _ in range(task.rounds):
        for name, values in peaks.items():
            values.append(_peak_in_fresh_process(name, task.data, task.size))
    costs = {name: tuple(values) for name, values in peaks.items()}
    table = Table("method", "median", "quartiles", "standard / it", title="peak of one step, MiB")
    for name, values in costs.items():
        low, median, high = (x / 2**20 for x in quartiles(values))
        ratio = median_ratio(costs["standard"], values)
        table.add_row(name, f"{median:.0f}", f"{low:.0f} … {high:.0f}", f"{ratio:.3g}")
    console.print(table)
    return costs


def _print_steps(
    console: Console,
    title: str,
    contenders: Mapping[str, tuple[Training, Sequence[Batch]]],
    steps: Mapping[str, Sequence[StepTime]],
    heading: str,
    relative: Mapping[str, float],
) -> None:
    table = Table(title=title)
    table.add_column("contender", no_wrap=True)
    for column in ("forward", "backward", "update", "step", "quartiles", heading):
        table.add_column(column, justify="right")
    for name in contenders:
        parts = zip(*((s.forward, s.backward, s.update, s.total) for s in steps[name]), strict=True)
        medians = [f"{1000 * quartiles(seconds)[1]:.0f}" for seconds in parts]
        low, _, high = (1000 * x for x in quartiles([s.total for s in steps[name]]))
        table.add_row(name, *medians, f"{low:.0f} … {high:.0f}", f"{relative[name]:.3g}")
    console.print(table)
    for name, (training, batches) in contenders.items():
        rates = ", ".join(f"{rate:.1f}" for rate in training.rates_hz(batches[0]))
        console.print(f"{name}: the hidden layers fire at {rates} Hz")


PARTS: dict[str, Callable[[Task, Console], Costs]] = {
    "comparison": compare,
    "memory": measure_memory,
    "length": measure_lengths,
    "refractory": measure_refractory,
}
_CLAIMS = [  # part, text, bound, whether it is the least or the most
    ("comparison", "standard / fused", 10.0, "≥"),
    ("memory", "standard / fused", 4.0, "≥"),
    ("length", "most / least per step of time", 1.2, "≤"),
    ("refractory", "slowest / fastest", 1.3, "≤"),
]


def claims(measured: Mapping[str, Costs]) -> list[Claim]:
    """What the documentation claims of the parts that were measured."""
    found = []
    for part, text, bound, sense in _CLAIMS:
        if part in measured:
            costs = measured[part]
            pair = ("standard", "fused") if "fused" in costs else _most_and_least(costs)
            ratio = median_ratio(*(costs[name] for name in pair))
            judged = [costs[name] for name in (pair if "fused" in costs else costs)]
            found.append(judge(f"{part}: {text}", ratio, sense, bound, judged))
    return found


def _most_and_least(costs: Costs) -> tuple[str, str]:
    """The contenders that cost most and least, by the median over the rounds."""
    ordered = sorted(costs, key=lambda name: quartiles(costs[name])[1])
    return ordered[-1], ordered[0]


def main(argv: Sequence[str] | None = None) -> dict[str, Costs]:
    """Measure, print the times and the claims, and return the costs of every part."""
    parser = argparse.ArgumentParser(description="Time one training step of the SHD network.")
    parser.add_argument("--data", type=Path, default=Path("data/hd_lauscher.h5"))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="default: all parts")
    options = parse(parser, argv)
    console = Console()
    keep_freed_memory()
    load = os.getloadavg()[0]
    try:
        batches = read_batches(options.data, PAPER, options.rounds)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    task = Task(options.data, PAPER, batches, options.rounds)
    measured = {}
    for name in options.only or PARTS:
        console.print(f"{name}: {PAPER}, {options.rounds} rounds ...")
        measured[name] = PARTS[name](task, console)
    report(console, claims(measured), options, load)
    return measured


if __name__ == "__main__":
    main()
