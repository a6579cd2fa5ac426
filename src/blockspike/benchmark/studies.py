"""The studies of `blockspike benchmark`, divided into pieces that are measured one by one."""

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from blockspike.benchmark import dynamics, fitting, gpu_check, roofline, training_step
from blockspike.benchmark.layers import CONTENDERS, OURS, Size, check, first_steps, make_inputs
from blockspike.benchmark.remote import Remote
from blockspike.benchmark.table import Row
from blockspike.benchmark.timing import (
    Turn,
    median_ratio,
    peak_bytes,
    summary,
    take_turns,
    time_turn,
)
from blockspike.benchmark.tradeoff import METHODS, STEPS_MS, Neuron, noise, spike_time_error_ms
from blockspike.neurons import Method
from blockspike.neurons.events import EventBatch

_METHODS = tuple(contender.name for contender in OURS if contender.name != "standard reference")
KNOWN = tuple({**CONTENDERS, **dynamics.METHODS})
LeftOut = dict[tuple[str, Size], str]  # (contender, size with arp_steps 0) → why it is left out
_FINEST_MS, _USUAL_MS = min(STEPS_MS), 1.0
_WARM_UPS = {"cpu": 1, "cuda": 3}  # on a GPU the second call captures a graph


@dataclass(frozen=True)
class Options:
    """Options of the studies: sizes, contenders and how to measure them.

    Attributes:
        n_steps, arp_steps, batch_size: grid of the study `length`.
        n_units, n_layers: grid of the study `layers`.
        contenders: names in KNOWN; None = all.
        data_path: prepared HD-Lauscher file for the study `step`.
        simulated_s: simulated time per trial of the study `tradeoff`.
        rounds: turns of each contender, at least 2.
        longest_turn_s: slower contenders are left out, with a row that says so (tradeoff,
            libraries, length, layers, dynamics).
        memory: whether to measure peak memory, each contender in a new process.
        device: device of the layer studies; the others run on the CPU.

    Raises:
        ValueError: a contender or device is unknown or unavailable, or rounds < 2.
    """

    n_steps: tuple[int, ...] = (512, 1024, 2048)
    arp_steps: tuple[int, ...] = (10, 20, 30, 40, 50, 60, 70, 80, 90, 100)
    batch_size: tuple[int, ...] = (32,)
    n_units: tuple[int, ...] = (128, 256, 512)
    n_layers: tuple[int, ...] = (1, 2, 3, 4, 5)
    contenders: tuple[str, ...] | None = None
    data_path: str = "data/hd_lauscher_sample.h5"
    simulated_s: float = 2.0
    rounds: int = 5
    longest_turn_s: float = 10.0
    memory: bool = True
    device: str = "cpu"

    def __post_init__(self):
        unknown = sorted(set(self.contenders or ()) - set(KNOWN))
        if unknown:
            raise ValueError(
                f"contenders: expected some of {', '.join(KNOWN)}, got {', '.join(unknown)}"
            )
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"device: expected cpu or cuda, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device: expected cpu, since PyTorch finds no CUDA GPU, got 'cuda'")
        if self.rounds < 2:
            raise ValueError(f"rounds: expected at least 2, got {self.rounds}")

    def choose(self, names: Sequence[str]) -> list[str]:
        """Keep the `names` that were chosen and can run on the device."""
        kind = torch.device(self.device).type
        return [
            name
            for name in names
            if (self.contenders is None or name in self.contenders)
            and (name not in CONTENDERS or kind in CONTENDERS[name].devices)
        ]


@dataclass(frozen=True)
class Piece:
    """The smallest part of a study: contenders measured side by side.

    Attributes:
        key: column → value, shared by all its rows and by no other piece's.
        contenders: names of the contenders, if known in advance.
        device: where it is measured.
        measure: returns the rows, without the key.
    """

    key: Row
    contenders: tuple[str, ...]
    device: torch.device
    measure: Callable[[], list[Row]]


def pieces(study: str, options: Options) -> Iterator[Piece]:
    """Yield the pieces of a study.

    Raises:
        ValueError: the study is unknown, or has none of the chosen contenders.
    """
    if study not in STUDIES:
        raise ValueError(f"study: expected some of {', '.join(STUDIES)}, got {study!r}")
    found = [x for x in STUDIES[study](options) if x.contenders or study == "roofline"]
    if not found:
        chosen = ", ".join(options.contenders or ())
        raise ValueError(f"contenders: expected some of study {study!r}, got {chosen}")
    yield from found


def _length(options: Options) -> Iterator[Piece]:
    """Recurrent layer 1000 → 128: steps × ARP × batch (docs/paper.md, Experiments)."""
    left_out: LeftOut = {}  # shared: most are as slow at any refractory period
    for batch, n_steps, arp in product(options.batch_size, options.n_steps, options.arp_steps):
        size = Size(n_steps, batch, 1000, 128, arp_steps=arp)
        memory = options.memory and arp == options.arp_steps[0]
        own = replace(options, memory=memory)
        yield _layers_piece("length", size, list(CONTENDERS), own, left_out)


def _layers(options: Options) -> Iterator[Piece]:
    """Units × layers at T = 1024, batch 64, refractory period 40 (docs/paper.md, Experiments)."""
    for n_units, n_layers in product(options.n_units, options.n_layers):
        size = Size(1024, 64, 1000, n_units, n_layers, arp_steps=40)
        yield _layers_piece("layers", size, _METHODS, replace(options, memory=False))


def _libraries(options: Options) -> Iterator[Piece]:
    """Layer 200 → 100 without recurrence, inputs from U(0, 1) (docs/paper.md, Experiments)."""
    size = Size(1000, 128, 200, 100, arp_steps=40, recurrent=False, inputs="uniform")
    yield _layers_piece("libraries", size, list(CONTENDERS), options)


def _layers_piece(
    study: str, size: Size, names: Sequence[str], options: Options, left_out: LeftOut | None = None
) -> Piece:
    key = {"study": study, **asdict(size)}
    chosen = options.choose(names)
    left_out = {} if left_out is None else left_out
    device = torch.device(options.device)
    return Piece(
        key, tuple(chosen), device, partial(_measure_layers, size, chosen, options, left_out)
    )


def _measure_layers(
    size: Size, names: Sequence[str], options: Options, left_out: LeftOut
) -> list[Row]:
    device = torch.device(options.device)
    any_arp = replace(size, arp_steps=0)
    reasons = {name: left_out[name, any_arp] for name in names if (name, any_arp) in left_out}
    wanted = [name for name in names if name not in reasons]
    ours = {name: _Layer(name, size, options.device) for name in wanted if _is_ours(name)}
    rates = check(
        size,
        {name: layer.module for name, layer in ours.items()},
        {name: layer.input for name, layer in ours.items()},
    )
    contenders = {name: layer.turn for name, layer in ours.items()}
    with ExitStack() as processes:
        peers: dict[str, Remote] = {}
        for name in wanted:
            if name not in ours:
                peers[name] = processes.enter_context(_start_peer(name, size, options.device))
                contenders[name] = partial(peers[name].call, "turn")
        turns = take_turns(
            {name: contenders[name] for name in wanted},
            options.rounds,
            options.longest_turn_s,
            _WARM_UPS[device.type],
        )
        for name, peer in peers.items():
            if not isinstance(turns[name], str):
                rates[name] = peer.call("firing_per_step")
    for name, why in turns.items():
        if isinstance(why, str) and CONTENDERS[name].any_arp_costs_the_same:
            left_out[name, any_arp] = f"not run, at another refractory period: {why}"
    dense = make_inputs(size, device)[1]
    density = round(dense.count_nonzero().item() / dense.numel(), 5)
    found = reasons | turns
    rows = []
    for name in names:
        activity = {"input_density": density, "firing_per_step": rates.get(name)}
        rows.append(_about(name) | activity | _cost(found[name], found.get("fused")))
        if options.memory and "left_out" not in rows[-1]:
            rows[-1]["peak_mib"] = _peak_mib(name, size, options)
    return rows


def _is_ours(name: str) -> bool:
    return CONTENDERS[name].package == "blockspike"


class _Layer:
    """A contender's layers with their input, for libraries in a process of their own."""

    def __init__(self, name: str, size: Size, device_name: str):
        self._device = torch.device(device_name)
        self.module = CONTENDERS[name].make(size).to(self._device)
        self.input = _input(name, *make_inputs(size, self._device))

    def turn(self) -> Turn:
        """Time forward and backward."""
        found = time_turn(partial(self.module, self.input), self._device)
        self.module.zero_grad(set_to_none=True)
        return found

    def firing_per_step(self) -> float:
        """Share of the last layer's neurons that fire in a step."""
        with torch.no_grad():
            return round(self.module(self.input).mean().item(), 5)


def _start_peer(name: str, size: Size, device_name: str) -> Remote:
    return Remote(_Layer, name, size, device_name)


def _about(name: str) -> Row:
    contender = CONTENDERS[name]
    about = ("version", "neuron", "differs")
    return {"contender": name} | {key: getattr(contender, key) for key in about}


def _cost(found: list[Turn] | str, fused: list[Turn] | str | None) -> Row:
    """Columns of a contender's times, or the reason why it was left out."""
    if isinstance(found, str):
        return {"left_out": found}
    return summary(found, fused if isinstance(fused, list) else None)


def _input(name: str, events: EventBatch | None, dense: Tensor) -> EventBatch | Tensor:
    return events if events is not None and CONTENDERS[name].takes_events else dense


def _peak_mib(name: str, size: Size, options: Options) -> float | None:
    if options.device == "cpu" and sys.platform != "linux":
        return None
    context = get_context("forkserver")
    context.set_forkserver_preload(["blockspike.benchmark.studies"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        task = layer_peak_bytes, name, size, options.device, torch.get_num_threads()
        try:
            return round(pool.submit(*task).result() / 2**20, 1)
        except Exception:  # killed when out of memory, or /proc lacks the file
            return None


def layer_peak_bytes(name: str, size: Size, device_name: str, n_threads: int) -> int:
    """Peak memory of a contender's turn, beyond its input and parameters; see `peak_bytes`.

    Run it in a new process. A few steps beforehand compile every kernel.
    """
    torch.set_num_threads(n_threads)
    device = torch.device(device_name)
    x = _input(name, *make_inputs(size, device))
    module = CONTENDERS[name].make(size).to(device)

    def turn(x: EventBatch | Tensor) -> None:
        module(x).sum().backward()
        module.zero_grad(set_to_none=True)

    turn(first_steps(x, 20))
    if device.type == "cpu":
        return peak_bytes(lambda: turn(x))
    held = torch.cuda.memory_allocated(device)
    for _ in range(_WARM_UPS["cuda"]):  # captured graphs count
        turn(x)
    return torch.cuda.max_memory_allocated(device) - held


def _tradeoff(options: Options) -> Iterator[Piece]:
    """One neuron at every step length, simulated by every method."""
    key = {"study": "tradeoff", "simulated_s": options.simulated_s}
    chosen = options.choose(METHODS)
    methods: list[Method] = [method for method in METHODS if method in chosen]
    yield Piece(
        key, tuple(methods), torch.device("cpu"), partial(_measure_tradeoff, methods, options)
    )


def _measure_tradeoff(methods: Sequence[Method], options: Options) -> list[Row]:
    current = noise(options.simulated_s)
    neurons = {dt_ms: Neuron(current, dt_ms) for dt_ms in STEPS_MS}
    reference = neurons[_FINEST_MS].spike_times_ms("fused")
    turns = take_turns(
        {
            f"{method} {dt_ms}": partial(neuron.turn, method)
            for method, (dt_ms, neuron) in product(methods, neurons.items())
        },
        options.rounds,
        options.longest_turn_s,
    )
    usual = turns.get(f"standard {_USUAL_MS}")
    rows = []
    for method, dt_ms in product(methods, STEPS_MS):
        found, fused = turns[f"{method} {dt_ms}"], turns.get(f"fused {dt_ms}")
        row: Row = {
            "contender": method,
            "dt_ms": dt_ms,
        }
        if isinstance(found, str):
            rows.append(row | _cost(found, fused))
            continue
        times = neurons[dt_ms].spike_times_ms(method)
        row["n_spikes"] = sum(map(len, times))
        row["spike_time_error_ms"] = spike_time_error_ms(times, reference)
        row |= _cost(found, fused)
        if isinstance(usual, list):
            row["total_by_standard_at_1_ms"] = round(
                median_ratio([t.total for t in found], [t.total for t in usual]), 5
            )
        rows.append(row)
    return rows


def _roofline(options: Options) -> Iterator[Piece]:
    """All CPU kernels, compared with the bandwidth of a copy."""
    cpu = torch.device("cpu")
    yield Piece({"study": "roofline"}, (), cpu, partial(roofline.measure, options.rounds))


def _dynamics(options: Options) -> Iterator[Piece]:
    """The neurons alone: every model and method, and a compiled scan."""
    for size in dynamics.SIZES:
        names = [*dynamics.methods_for(size)]
        names += [dynamics.SCAN] if size.model == "ALIF" else []
        chosen = options.choose(names)
        key = {"study": "dynamics", **asdict(size)}
        measure = partial(_measure_dynamics, size, chosen, options)
        if chosen:
            yield Piece(key, tuple(chosen), torch.device("cpu"), measure)


def _measure_dynamics(size: dynamics.Size, names: Sequence[str], options: Options) -> list[Row]:
    turns, n_rounded = dynamics.measure(size, names, options.rounds, options.longest_turn_s)
    rows = []
    for name in names:
        row: Row = _about(name) if name in CONTENDERS else {"contender": name}
        if name in n_rounded:
            row["n_rounded"] = n_rounded[name]
        rows.append(row | _cost(turns[name], turns.get("fused")))
    return rows


def _step(options: Options) -> Iterator[Piece]:
    """A training step of the paper's SHD network: contenders, lengths and refractory periods."""
    size, cpu = training_step.PAPER, torch.device("cpu")
    chosen = options.choose([*training_step.METHODS, training_step.SCAN])
    if chosen:  # before other studies have taken an hour
        training_step.require_file(Path(options.data_path))

    def task() -> training_step.Task:
        data = Path(options.data_path)
        batches = training_step.read_batches(data, size, options.rounds)
        return training_step.Task(data, size, batches, options.rounds, options.memory)

    parts: dict[str, tuple[list[str], Callable[[], list[Row]]]] = {
        "contenders": (chosen, lambda: training_step.compare(task(), chosen)),
        "lengths": (["fused"], lambda: training_step.measure_lengths(task())),
        "refractory periods": (["fused"], lambda: training_step.measure_refractory(task())),
    }
    for part, (names, measure) in parts.items():
        if chosen and set(names) <= set(chosen):
            key = {"study": "step", "part": part, "data_path": options.data_path, **asdict(size)}
            yield Piece(key, tuple(names), cpu, measure)


def _gpu(options: Options) -> Iterator[Piece]:
    """The neurons alone on a GPU, once the kernels' tests have passed there."""
    if options.device != "cuda":
        raise ValueError(f"device: expected cuda for the study 'gpu', got {options.device!r}")
    device = torch.device("cuda", torch.cuda.current_device())
    methods: list[Method] = [x for x in get_args(Method) if x in options.choose(get_args(Method))]
    if methods:
        gpu_check.require_passing_tests()
    for size in gpu_check.SIZES:
        key = {"study": "gpu", **asdict(size)}
        measure = partial(gpu_check.measure, size, device, options.rounds, methods)
        yield Piece(key, tuple(methods), device, measure)


def _fit(options: Options) -> Iterator[Piece]:
    """An epoch of fitting as many cells as the paper's."""
    size, known = fitting.Size(), get_args(Method)
    methods: list[Method] = [x for x in known if x in options.choose(("fused", "standard"))]
    if methods:
        key = {"study": "fit", **asdict(size)}
        measure = partial(fitting.measure, size, options.rounds, methods)
        yield Piece(key, tuple(methods), torch.device("cpu"), measure)


STUDIES: dict[str, Callable[[Options], Iterator[Piece]]] = {
    "roofline": _roofline,
    "dynamics": _dynamics,
    "step": _step,
    "fit": _fit,
    "gpu": _gpu,
    "tradeoff": _tradeoff,
    "libraries": _libraries,
    "length": _length,
    "layers": _layers,
}
