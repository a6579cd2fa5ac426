"""One training step of the paper's SHD network: time, memory and the floor that the machine sets.

A step is forward, cross-entropy, backward and Adam, on real batches of a prepared HD-Lauscher file,
in float32 on the CPU; each round has another batch.

Every step starts from the same weights, scaled so that the layers fire as in a trained network.
With freshly drawn weights the second layer is silent, which would flatter event-driven methods.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.check import require_equal
from benchmarks.contenders import SCAN
from benchmarks.roofline import COPIED_BYTES, Copy
from benchmarks.side_by_side import measure
from benchmarks.table import Options, Piece
from benchmarks.timing import Row, Turn, Turns, peak_bytes, quartiles, reason
from blockspike.data.shd import SHDDataModule
from blockspike.data.shd_file import N_CHANNELS, SHD
from blockspike.networks.classifier import SpikingClassifier
from blockspike.networks.synapses import SynapseMode
from blockspike.neurons import Method
from blockspike.neurons.events import EventBatch

Batch = tuple[EventBatch, Tensor]
METHODS: dict[str, tuple[Method, SynapseMode]] = {  # by contender
    "standard": ("standard", "dense"),
    "blocks": ("blocks", "auto"),
    "fused": ("fused", "auto"),
}
_DT_MS = 2.0
_ARPS = (0, 1, 50, 100)  # steps, at which `fused` is timed as well
_N_BATCHES = 5
_GAINS = {  # of drawn weights; both layers then fire at 4 to 5 Hz (trained: 1 to 5), loss 4
    "layers.0.weight": 10.0,
    "layers.1.weight": 8.0,
    "readout.weight": 0.05,
}
_QUANTUM = 2.0**-12  # sums of a few multiples are exact, in any order


@dataclass(frozen=True)
class Size:
    """File, neurons per hidden layer, T, B and refractory period; columns of the table."""

    data_path: str = "data/hd_lauscher_sample.h5"
    n_hidden: int = 256
    n_steps: int = 600
    batch_size: int = 64
    arp_steps: int = 10


def read_batches(size: Size) -> list[Batch]:
    """The first full training batches (EventBatch [T, B, 700], labels [B]), at most five.

    Raises:
        FileNotFoundError: the prepared file is missing.
        ValueError: the training recordings do not fill one batch.
    """
    data = SHDDataModule(
        size.data_path, dt_ms=_DT_MS, n_steps=size.n_steps, batch_size=size.batch_size
    )
    data.setup()
    n_full = len(data.train_indices) // size.batch_size
    if n_full == 0:
        raise ValueError(f"{size.data_path}: expected at least {size.batch_size} recordings")
    return list(islice(data.train_dataloader(), min(n_full, _N_BATCHES)))


def make_network(name: str, size: Size) -> SpikingClassifier:
    """The network 700 → n_hidden → n_hidden → 20 with a contender's method.

    The weights are the same for every contender and refractory period. They are multiples of 2⁻¹²,
    so that spikes do not depend on the order in which a method adds.
    """
    method, synapses = METHODS[name]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = SpikingClassifier(
            N_CHANNELS, SHD.n_classes, size.n_hidden, dt_ms=_DT_MS,
            arp_ms=size.arp_steps * _DT_MS, method=method, synapses=synapses,
        )  # fmt: skip
        for key, weight in network.named_parameters():
            weight.mul_(_GAINS.get(key, 1.0))
            if key.endswith("recurrent_weight"):  # initially the identity
                weight.add_((torch.rand(weight.shape) - 0.5) / 8)
            if key.endswith("weight"):
                weight.copy_((weight / _QUANTUM).round() * _QUANTUM)
    return network


class Training:
    """Training whose every step starts from the same weights, on the next batch."""

    def __init__(self, name: str, size: Size, device: str = "cpu"):
        self.batches = read_batches(size)
        self.network = make_network(name, size)
        self._next = cycle(self.batches)
        self._start = {key: x.clone() for key, x in self.network.state_dict().items()}
        trained = [x for x in self.network.parameters() if x.requires_grad]
        self._optimizer = torch.optim.Adam(trained, lr=1e-3, eps=1e-5)

    def turn(self) -> Turn:
        """Train for one step."""
        self.network.load_state_dict(self._start)
        events, labels = next(self._next)
        started = time.perf_counter()
        loss = F.cross_entropy(self.network(events).scores, labels)
        forwarded = time.perf_counter()
        loss.backward()
        del loss  # frees the graph, which takes a while after a loop over time
        differentiated = time.perf_counter()
        self._optimizer.step()
        self._optimizer.zero_grad()
        ended = time.perf_counter()
        return Turn(forwarded - started, differentiated - forwarded, ended - differentiated)

    def differentiate(self) -> tuple[list[Tensor], Tensor, dict[str, Tensor]]:
        """Spikes of the layers, loss and gradients by parameter, with the starting weights."""
        self.network.load_state_dict(self._start)
        events, labels = self.batches[0]
        output = self.network(events)
        loss = F.cross_entropy(output.scores, labels)
        loss.backward()
        grads = {n: x.grad for n, x in self.network.named_parameters() if x.grad is not None}
        self._optimizer.zero_grad()
        return [s.detach() for s in output.spikes], loss.detach(), grads

    def about(self) -> Row:
        """Mean firing rate of each hidden layer, with the starting weights."""
        rates = (s.mean().item() * 1000 / _DT_MS for s in self.differentiate()[0])
        return {"rates_hz": ", ".join(f"{rate:.1f}" for rate in rates)}

    def peak_bytes(self) -> int:
        """Peak memory of a step; call it in a new process."""
        self.network(self.batches[0][0].steps(0, 32)).scores.sum().backward()  # compiles
        self._optimizer.zero_grad()
        return peak_bytes(self.turn)


def make(name: str, size: Size, device: str) -> Any:
    """A contender; call it in a process of its own for JAX."""
    if name != SCAN:
        return Training(name, size)
    from benchmarks.jax_peers import Network

    state = {key: x.numpy() for key, x in make_network("standard", size).state_dict().items()}
    inputs = [(events.dense().numpy(), labels.numpy()) for events, labels in read_batches(size)]
    return Network(state, size.arp_steps, inputs)


def check(size: Size, made: dict[str, Any]) -> Turns:
    """Compare the contenders with `standard` on a batch.

    `fused` must have equal spikes, loss and gradients; `blocks`, whose gradient is another one,
    equal spikes.

    Returns:
        The reason to leave out JAX, if there is one: it fails, or its loss is not ours.

    Raises:
        RuntimeError: ours differ, or a layer is silent, which leaves nothing to compare.
    """
    spikes, loss, grads = Training("standard", size).differentiate()
    if not all(s.any() for s in spikes):
        raise RuntimeError("a hidden layer is silent: no time is reported")
    for name in made.keys() - {SCAN}:
        own_spikes, own_loss, own_grads = made[name].differentiate()
        require_equal(name, own_spikes, spikes)
        if name != "blocks":
            require_equal(name, [], [], own_grads | {"loss": own_loss}, grads | {"loss": loss})
    if SCAN not in made:
        return {}
    try:
        theirs = made[SCAN].loss()
    except Exception as error:  # JAX may be missing, or fail in any way
        return {SCAN: reason(error)}
    differs = not abs(theirs - loss.item()) <= 0.05 * abs(loss.item())
    return {SCAN: f"loss {theirs:.3g} differs from {loss.item():.3g}"} if differs else {}


# Bytes per neuron and step that go through memory in the neurons' layers. Forward writes the
# current and reads it, writes spikes, their bytes and the total input, and every 8 steps 3 states;
# it reads the bytes twice to list events. Backward writes the gradient of the spikes and reads it,
# the total input and the states; it writes the gradient of the current, which is read again for the
# weights, the recurrent weights and the bias.
_FORWARD_BYTES = 4 + 4 + 4 + 1 + 4 + 12 / 8 + 2
_BACKWARD_BYTES = 4 + 4 + 4 + 12 / 8 + 4 + 3 * 4
_READ_AGAIN_BYTES = 4  # of the second layer, for the gradient of the first layer's spikes


def floor(size: Size) -> Row:
    """Least time of a step: its bytes at a copy's bandwidth, its dense products at full speed.

    Bandwidth and speed are measured now; event-driven products are not counted.
    """
    copy, matrix, seconds = Copy(False), torch.rand(2048, 2048), []
    gb_per_s = 2 * COPIED_BYTES / quartiles([copy.turn().total for _ in range(7)])[1] / 1e9
    for _ in range(8):
        started = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - started)
    gflop_per_s = 2 * 2048**3 / quartiles(seconds[1:])[1] / 1e9
    n_rows = size.n_steps * size.batch_size
    moved = 2 * (_FORWARD_BYTES + _BACKWARD_BYTES) + _READ_AGAIN_BYTES
    gb = n_rows * size.n_hidden * moved / 1e9
    gflop = 2 * n_rows * size.n_hidden * (size.n_hidden + SHD.n_classes) / 1e9
    return {
        "contender": "floor",
        "total_ms_median": round(1000 * (gb / gb_per_s + gflop / gflop_per_s), 2),
        "moved_mb": round(1000 * gb, 1),
        "gflop": round(gflop, 2),
        "gb_per_s": round(gb_per_s, 1),
        "gflop_per_s": round(gflop_per_s, 1),
    }


def _measure(size: Size, names: Sequence[str], options: Options) -> list[Row]:
    rows = measure(
        make, names, size, options, partial(check, size), memory=options.memory and len(names) > 1
    )
    return [*rows, floor(size)] if len(names) > 1 else rows


def pieces(options: Options) -> Iterator[Piece]:
    """All contenders at the paper's size, and `fused` at other refractory periods."""
    paper = Size(str(options.data))
    names = options.choose([*METHODS, SCAN])
    yield Piece(asdict(paper), names, partial(_measure, paper, names, options))
    for arp in _ARPS:
        size, names = replace(paper, arp_steps=arp), options.choose(["fused"])
        yield Piece(asdict(size), names, partial(_measure, size, names, options))
