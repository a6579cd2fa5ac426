"""Time and memory of one training step of the paper's SHD network, checked against our claims.

    python -m blockspike.benchmark.training_step [--data data/hd_lauscher.h5] [--rounds 5]
        [--only comparison|memory|length|refractory ...] [--json claims.jsonl]

A step is forward, cross-entropy, backward, Adam and `project_`, on real batches of a prepared
HD-Lauscher file, in float32 on the CPU. The contenders take turns within a round, each round has
another batch, and a ratio is the median over the rounds.

Every step starts from the same weights, scaled so that the layers fire as in a trained network.
With freshly drawn weights the second layer is silent, which would flatter event-driven methods.

`length` repeats the first half of the batch's steps (300 of 600) 1, 2, 4 and 8 times. The second
half is empty, since the recordings are over by then: with whole batches, the number of events per
step would depend on the length.
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
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons import Method
from blockspike.neurons.events import EventBatch

Batch = tuple[EventBatch, Tensor]
Costs = dict[str, tuple[float, ...]]  # contender → cost of a step, one value per round

METHODS: dict[str, tuple[Method, SynapseMode]] = {  # by contender
    "standard": ("standard", "dense"),
    "blocks": ("blocks", "auto"),
    "fused": ("fused", "auto"),
}
_DT_MS = 2.0
_ARP = 10  # steps, except where it is varied
_ARPS = (0, 1, 10, 50, 100)
_REPEATS = (1, 2, 4, 8)  # of the first half of a batch
_GAINS = {  # of drawn weights; both layers then fire at 4 to 5 Hz (trained: 1 to 5), loss 4
    "layers.0.weight": 10.0,
    "layers.1.weight": 8.0,
    "readout.weight": 0.05,
}
_QUANTUM = 2.0**-12
_TOLERANCE = 1e-4  # relative: of the loss, and of a gradient to its largest element
_WARM_UP = 32  # steps, more than the refractory period


@dataclass(frozen=True)
class Size:
    """Neurons per hidden layer, steps T and batch size B."""

    n_hidden: int = 256
    n_steps: int = 600
    batch_size: int = 64


PAPER = Size()


@dataclass(frozen=True)
class Task:
    """A measurement: prepared file, sizes, batches (EventBatch [T, B, 700], labels [B]), rounds."""

    data: Path
    size: Size
    batches: Sequence[Batch]
    rounds: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of one training step's parts; `update` is Adam and `project_`."""

    forward: float
    backward: float
    update: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.forward + self.backward + self.update


def read_batches(path: Path, size: Size, n: int) -> list[Batch]:
    """Read at most `n` full training batches (EventBatch [T, B, 700], labels [B]).

    Raises:
        FileNotFoundError: the prepared file is missing.
        ValueError: the training recordings do not fill one batch.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected prepared recordings, got none; to use those shipped with "
            "blockspike, run `blockspike prepare data=hd_lauscher_sample` and pass "
            "--data data/hd_lauscher_sample.h5"
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
    """Repeat the first `n_steps` steps of `events` [T, B, K]: [n_steps · times, B, K].

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
    """Make the network 700 → n_hidden → n_hidden → 20 with a contender's method.

    The weights are the same for every contender and every refractory period `arp` (steps). They
    are multiples of 2⁻¹², so that their sums are exact in float32 and spikes do not depend on the
    order in which a method adds.
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
            if key.endswith("recurrent_weight"):  # initially the identity
                weight.add_((torch.rand(weight.shape) - 0.5) / 8)
            if key.endswith("weight"):
                weight.copy_((weight / _QUANTUM).round() * _QUANTUM)
    return network


class Training:
    """Training whose every step starts from the same weights."""

    def __init__(self, network: SpikingClassifier):
        self.network = network
        self._start = {name: x.clone() for name, x in network.state_dict().items()}
        trainable = [x for x in network.parameters() if x.requires_grad]
        self._optimizer = torch.optim.Adam(trainable, lr=1e-3, eps=1e-5)

    def step(self, batch: Batch) -> StepTime:
        """Reset the weights, train on one batch and return its times."""
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
        """Mean firing rate of each hidden layer on a batch, with the starting weights."""
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
    """Compare the timed networks with `standard` on a batch.

    `fused` must have equal spikes (exact, see `make_network`), loss and gradients; `blocks`, which
    has another gradient, only equal spikes.

    Raises:
        RuntimeError: they differ, or a layer is silent so that there is nothing to compare.
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
    """Warm up every contender with a step, then time them in turns for some rounds."""
    for training, batches in contenders.values():
        training.step(batches[0])
    steps: dict[str, list[StepTime]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name, (training, batches) in contenders.items():
            steps[name].append(training.step(batches[turn % len(batches)]))
    return steps


def compare(task: Task, console: Console) -> Costs:
    """Check the methods, then measure the seconds that each takes for the same steps."""
    check(task.batches[0], task.size)
    contenders = {name: (Training(make_network(name, task.size)), task.batches) for name in METHODS}
    steps = take_turns(contenders, task.rounds)
    costs = {name: tuple(s.total for s in steps[name]) for name in steps}
    relative = {name: median_ratio(costs["standard"], costs[name]) for name in costs}
    _print_steps(console, "one step, ms", contenders, steps, "standard / it", relative)
    return costs


def measure_lengths(task: Task, console: Console) -> Costs:
    """Seconds per time step of `fused` at four lengths with equally many events per step."""
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
    """Seconds of a training step of `fused` at refractory periods of 0 to 100 steps."""
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
    """Peak memory of a contender's first step, beyond what the process held before; Linux only.

    Run it in a new process, since memory freed earlier would be reused without being counted. A
    step of a tiny network beforehand compiles every kernel.
    """
    events, labels = read_batches(data, size, 1)[0]
    tiny = Training(make_network(name, Size(n_hidden=8)))
    tiny.step((repeat_in_time(events, min(_WARM_UP, events.n_steps), 1), labels))
    training = Training(make_network(name, size))
    return peak_bytes(lambda: training.step((events, labels)))


def _peak_in_fresh_process(name: str, data: Path, size: Size) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step_peak_bytes, name, data, size).result()


def measure_memory(task: Task, console: Console) -> Costs:
    """Peak bytes of a step of `standard` and `fused`, each measured in a new process."""
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
_CLAIMS = [  # part, text, bound, whether it is a lower or an upper bound
    ("comparison", "standard / fused", 10.0, "≥"),
    ("memory", "standard / fused", 4.0, "≥"),
    ("length", "most / least per step of time", 1.2, "≤"),
    ("refractory", "slowest / fastest", 1.3, "≤"),
]


def claims(measured: Mapping[str, Costs]) -> list[Claim]:
    """The documented claims about the measured parts."""
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
    """The contenders with the largest and the smallest median cost."""
    ordered = sorted(costs, key=lambda name: quartiles(costs[name])[1])
    return ordered[-1], ordered[0]


def main(argv: Sequence[str] | None = None) -> dict[str, Costs]:
    """Measure, print times and claims, and return the costs of every part."""
    parser = argparse.ArgumentParser(description="Time one training step of the SHD network.")
    parser.add_argument("--data", type=Path, default=Path("data/hd_lauscher.h5"))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="default: all parts")
    options = parse(parser, argv)
    console = Console()
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
