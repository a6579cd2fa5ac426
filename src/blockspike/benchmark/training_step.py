"""One training step of the paper's SHD network: time, memory and the floor that the machine sets.

A step is forward, cross-entropy, backward and Adam, on real batches of a prepared
HD-Lauscher file, in float32 on the CPU. The contenders take turns within a round, each round has
another batch, and a ratio is the median over the rounds.

Every step starts from the same weights, scaled so that the layers fire as in a trained network.
With freshly drawn weights the second layer is silent, which would flatter event-driven methods.

"lengths" repeats the first half of the batch's steps (300 of 600) 1, 2, 4 and 8 times. The second
half is empty, since the recordings are over by then: with whole batches, the number of events per
step would depend on the length.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.benchmark import roofline
from blockspike.benchmark.peers import version_of
from blockspike.benchmark.remote import Remote
from blockspike.benchmark.table import Row
from blockspike.benchmark.timing import (
    Turn,
    all_turns,
    peak_bytes,
    quartiles,
    reason,
    summary,
    take_turns,
)
from blockspike.data.shd import SHDDataModule
from blockspike.data.shd_file import N_CHANNELS, SHD
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons import Method
from blockspike.neurons.events import EventBatch

Batch = tuple[EventBatch, Tensor]
SCAN = "JAX (lax.scan)"

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
    """Neurons per hidden layer, steps T and batch size B; the fields are columns of the table."""

    n_hidden: int = 256
    n_steps: int = 600
    batch_size: int = 64


PAPER = Size()


@dataclass(frozen=True)
class Task:
    """A measurement: file, sizes, batches (EventBatch [T, B, 700], labels [B]), rounds, memory."""

    data: Path
    size: Size
    batches: Sequence[Batch]
    rounds: int
    memory: bool = False


def require_file(path: Path) -> None:
    """Raise FileNotFoundError unless the prepared file exists."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: expected prepared recordings, got none; to use those shipped with "
            "blockspike, run `blockspike prepare data=hd_lauscher_sample`"
        )


def read_batches(path: Path, size: Size, n: int) -> list[Batch]:
    """Read at most `n` full training batches (EventBatch [T, B, 700], labels [B]).

    Raises:
        FileNotFoundError: the prepared file is missing.
        ValueError: the training recordings do not fill one batch.
    """
    require_file(path)
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
            SHD.n_classes,
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

    def step(self, batch: Batch) -> Turn:
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
        ended = time.perf_counter()
        return Turn(forwarded - started, differentiated - forwarded, ended - differentiated)

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


def steps_in_turns(
    contenders: Mapping[str, tuple[Any, Sequence[Batch]]], rounds: int
) -> dict[str, list[Turn]]:
    """Time a step of every contender in turns, each round on the next batch."""

    def stepping(training: Any, batches: Sequence[Batch]) -> Callable[[], Turn]:
        rest = cycle(batches)
        return lambda: training.step(next(rest))

    own = {name: stepping(*of_one) for name, of_one in contenders.items()}
    return all_turns(take_turns(own, rounds))


def compare(task: Task, names: Sequence[str]) -> list[Row]:
    """Check the methods, then time the same steps by each, JAX among them, and the floor."""
    check(task.batches[0], task.size)
    trainings = {name: Training(make_network(name, task.size)) for name in names if name != SCAN}
    contenders: dict[str, tuple[Any, Sequence[Batch]]] = {
        name: (training, task.batches) for name, training in trainings.items()
    }
    found: dict[str, list[Turn] | str] = {}
    with ExitStack() as processes:
        if SCAN in names:
            scan = processes.enter_context(
                Remote(make_scan, task.data, task.size, len(task.batches))
            )
            try:
                _check_scan(scan, task)
                contenders[SCAN] = _Scan(scan, task.batches), task.batches
            except Exception as error:  # JAX may be missing, or fail in any way
                found[SCAN] = reason(error)
        steps = steps_in_turns(contenders, task.rounds)
    found |= steps
    fused = steps.get("fused")
    rows: list[Row] = []
    for name in names:
        turns = found[name]
        about: Row = {"contender": name, "case": "step"}
        if name == SCAN:
            about["version"] = version_of("jax")
        else:
            rates = trainings[name].rates_hz(task.batches[0])
            about["rates_hz"] = ", ".join(f"{rate:.1f}" for rate in rates)
        if isinstance(turns, str):
            rows.append(about | {"left_out": turns})
            continue
        rows.append(about | summary(turns, fused))
        if task.memory and name in METHODS:
            rows[-1]["peak_mib"] = round(
                _peak_in_new_process(name, task.data, task.size) / 2**20, 1
            )
    return [*rows, {"contender": "floor", "case": "step", **floor(task.size, fused)}]


# Bytes per neuron and step that go through memory in the neurons' layers. Forward writes the
# current and reads it, writes spikes, their bytes and the total input, and every 8 steps 3 states;
# it reads the bytes twice to list events. Backward writes the gradient of the spikes and reads it,
# the total input and the states; it writes the gradient of the current, which is read again for the
# weights, the recurrent weights and the bias.
_FORWARD_BYTES = 4 + 4 + 4 + 1 + 4 + 12 / 8 + 2
_BACKWARD_BYTES = 4 + 4 + 4 + 12 / 8 + 4 + 3 * 4
_READ_AGAIN_BYTES = 4  # of the second layer, for the gradient of the first layer's spikes


def floor(size: Size, fused: Sequence[Turn] | None) -> Row:
    """Least time of a step: its bytes at a copy's bandwidth, its dense products at full speed.

    Bandwidth and speed are measured now; event-driven products are not counted.
    """
    copy_s = quartiles([roofline.copy_s(streaming=False) for _ in range(7)])[1]
    gb_per_s = 2 * roofline.COPIED_BYTES / copy_s / 1e9
    gflop_per_s = _full_speed()
    n_rows = size.n_steps * size.batch_size
    elements = n_rows * size.n_hidden
    moved = elements * (2 * (_FORWARD_BYTES + _BACKWARD_BYTES) + _READ_AGAIN_BYTES)
    flops = 2 * n_rows * size.n_hidden * (size.n_hidden + SHD.n_classes)
    seconds = moved / gb_per_s / 1e9 + flops / gflop_per_s / 1e9
    row: Row = {
        "total_ms_median": round(1000 * seconds, 2), "moved_mb": round(moved / 1e6, 1),
        "gflop": round(flops / 1e9, 2), "gb_per_s": round(gb_per_s, 1),
        "gflop_per_s": round(gflop_per_s, 1),
    }  # fmt: skip
    if fused is not None:
        row["total_by_fused"] = round(seconds / quartiles([x.total for x in fused])[1], 4)
    return row


def _full_speed(n: int = 2048) -> float:
    """Speed of PyTorch's product of large matrices, in GFLOP/s."""
    a, seconds = torch.rand(n, n), []
    out = torch.empty(n, n)
    for _ in range(8):
        started = time.perf_counter()
        torch.mm(a, a, out=out)
        seconds.append(time.perf_counter() - started)
    return 2 * n**3 / quartiles(seconds[1:])[1] / 1e9


def _check_scan(scan: Remote, task: Task) -> None:
    """Raise RuntimeError unless the loss in JAX is ours; rounding moves some spikes."""
    with torch.no_grad():
        events, labels = task.batches[0]
        ours = F.cross_entropy(make_network("fused", task.size)(events).scores, labels).item()
    theirs = scan.call("loss")
    if not abs(theirs - ours) <= 0.05 * abs(ours):
        raise RuntimeError(
            f"{SCAN}: loss {theirs:.3g} differs from {ours:.3g}: no time is reported"
        )


class _Scan:
    """The step in JAX, in its own process, with the interface of `Training`."""

    def __init__(self, remote: Remote, batches: Sequence[Batch]):
        self._remote = remote
        self._index = {id(batch): i for i, batch in enumerate(batches)}

    def step(self, batch: Batch) -> Turn:
        """One step on the batch of the same number there."""
        return self._remote.call("step", self._index[id(batch)])


def make_scan(data: Path, size: Size, n_batches: int) -> Any:
    """The network in JAX, with the same weights and batches; call it in a process of its own."""
    from blockspike.benchmark.jax_peers import Network

    batches = read_batches(data, size, n_batches)
    state = {name: x.numpy() for name, x in make_network("standard", size).state_dict().items()}
    inputs = [(events.dense().numpy(), labels.numpy()) for events, labels in batches]
    return Network(state, _ARP, inputs)


def measure_lengths(task: Task) -> list[Row]:
    """Steps of `fused` at four lengths with equally many events per step."""
    training = Training(make_network("fused", task.size))
    half = task.size.n_steps // 2
    cases = {
        half * times: (
            training,
            [(repeat_in_time(events, half, times), labels) for events, labels in task.batches],
        )
        for times in _REPEATS
    }
    named = {f"{n_steps} steps": case for n_steps, case in cases.items()}
    steps = steps_in_turns(named, task.rounds)
    rows = []
    for n_steps, turns in zip(cases, steps.values(), strict=True):
        row: Row = {"contender": "fused", "case": f"{n_steps} steps", **summary(turns, None)}
        rows.append(row | {"us_per_step": round(1000 * row["total_ms_median"] / n_steps, 2)})
    return rows


def measure_refractory(task: Task) -> list[Row]:
    """Steps of `fused` at refractory periods of 0 to 100 steps."""
    contenders = {
        f"refractory period {arp}": (Training(make_network("fused", task.size, arp)), task.batches)
        for arp in _ARPS
    }
    steps = steps_in_turns(contenders, task.rounds)
    return [{"contender": "fused", "case": case, **summary(steps[case], None)} for case in steps]


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


def _peak_in_new_process(name: str, data: Path, size: Size) -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step_peak_bytes, name, data, size).result()
