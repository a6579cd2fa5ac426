"""The neurons alone, forward and backward: every model and method, and a compiled scan.

No synapses, float32. `pieces` are measured on the CPU, `gpu` on a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.check import require_equal
from benchmarks.contenders import SCAN, version_of
from benchmarks.remote import Remote
from benchmarks.table import CPU, Options, Piece
from benchmarks.timing import Row, Turn, Turns, cost, reason, repeat, take_turns, time_turn
from blockspike.neurons import Method, MultiGaussian, SpikeTrace, alif
from blockspike.neurons.adlif import adlif
from blockspike.neurons.c_silif import c_silif
from blockspike.neurons.euler_adlif import euler_adlif
from blockspike.neurons.surrogates import spike

_ROUNDING = 1e-5  # |V − θ| at which parallel blocks may round to the other side of the threshold
_QUANTUM = 2.0**-12  # sums of a few multiples are exact, in any order
_SAME_GRADIENT = ("plain loop", "fused")  # same gradient and rounding as `standard`
PARALLEL = "parallel blocks"  # the paper's Blocks by matrix products


@dataclass(frozen=True)
class Size:
    """One measurement; the fields are columns of the table.

    Attributes:
        n_steps, batch_size, n_units: T, B and N.
        arp_steps: refractory period of ALIF in steps; the delay of the recurrence is one more.
        recurrent: whether the neurons have recurrent weights.
        model: a name in MODELS.
    """

    n_steps: int
    batch_size: int
    n_units: int
    arp_steps: int = 0
    recurrent: bool = False
    model: str = "ALIF"


_DECAYS = {"alpha": 0.8, "beta": 0.97, "a": 0.5, "b": 1.0}
# Model → function, parameters, and the largest current, for spikes in a few percent of the steps.
MODELS: dict[str, tuple[Callable[..., Any], dict[str, float], float]] = {
    "ALIF": (alif, {"beta": 0.9, "p": 0.9, "b": 0.5}, 0.3),
    "SE-adLIF": (partial(euler_adlif, euler="symplectic", q=12.0), _DECAYS, 4.0),
    "EF-adLIF": (partial(euler_adlif, euler="forward", q=12.0), _DECAYS, 4.0),
    "adLIF": (adlif, _DECAYS | {"a": 0.1}, 8.0),
    "C-SiLIF": (c_silif, {"rate": 0.5, "frequency": 3.14, "time_step": 0.1, "b": 0.5}, 0.5),
}
SMALL, RECORDINGS = Size(1024, 32, 128, 40), Size(10_000, 3, 146, 20)
SIZES = (
    SMALL,
    replace(SMALL, recurrent=True),
    Size(600, 64, 256, 0, recurrent=True),
    replace(RECORDINGS, n_units=1),
    RECORDINGS,
    *(
        replace(SMALL, arp_steps=0, recurrent=recurrent, model=model)
        for model in ("EF-adLIF", "SE-adLIF", "adLIF", "C-SiLIF")
        for recurrent in (False, True)
    ),
)
GPU_SIZES = (
    SMALL,
    replace(SMALL, recurrent=True),
    Size(600, 64, 256, 20, recurrent=True),
    Size(1024, 64, 512, 40, recurrent=True),
    RECORDINGS,
)


def plain_loop(
    current: Tensor, beta: Tensor, p: Tensor, b: Tensor, weight: Tensor | None = None, *, arp: int
) -> Tensor:
    """Naive PyTorch implementation of ALIF; returns spikes [T, B, N]."""
    state = torch.zeros_like(current[0])
    adaptation = torch.zeros_like(state)
    refractory_left = torch.zeros_like(state)
    spikes = []
    for t, drive in enumerate(current):
        if weight is not None and t > arp:
            drive = drive + spikes[t - arp - 1].detach() @ weight.T
        membrane = beta * state + drive * (refractory_left == 0)
        s = spike(membrane - (1 + b * adaptation), MultiGaussian())
        state = membrane * (1 - s.detach())
        adaptation = p * adaptation + s
        refractory_left = torch.where(s > 0, arp, (refractory_left - 1).clamp(min=0))
        spikes.append(s)
    return torch.stack(spikes)


def simulate(
    model: str, method: Method, current: Tensor, *rest: Tensor, arp: int, **options: Any
) -> Tensor:
    """Spikes [T, B, N] of a model for parameters in the order of MODELS and recurrent weights."""
    function, names, _ = MODELS[model]
    options |= dict(zip(names, rest, strict=False)) | {"method": method}
    if model == "ALIF":  # the only one with a refractory period
        options["arp"] = arp
    weight = rest[len(names)] if len(rest) > len(names) else None
    return function(current, recurrent_weight=weight, **options).spikes


def methods_for(size: Size) -> dict[str, Callable[..., Tensor]]:
    """Functions (current, parameters and recurrent weights, arp=…) → spikes, by contender."""
    of_model = partial(simulate, size.model)
    found = {"fused": partial(of_model, "fused"), "standard": partial(of_model, "standard")}
    if size.model == "ALIF":
        found |= {"blocks": partial(of_model, "blocks"), "plain loop": plain_loop}
        if not size.recurrent:
            # The membrane is asked for because only matrix products give it.
            found[PARALLEL] = partial(of_model, "blocks", membrane=True)
    return found


def make_inputs(size: Size, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    """Inputs that give spikes in a few percent of the steps, and dLoss/dspikes.

    The inputs are current, parameters and, with recurrence, weights. Currents and weights are
    multiples of 2⁻¹², so that their sums do not depend on the order.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (size.n_steps, size.batch_size, size.n_units)
    _, parameters, largest = MODELS[size.model]
    current = largest * torch.rand(shape, generator=generator, dtype=torch.float64)
    gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
    made = [(current / _QUANTUM).round() * _QUANTUM]
    made += [torch.full(shape[2:], x, dtype=torch.float64) for x in parameters.values()]
    if size.recurrent:
        square = (size.n_units, size.n_units)
        weight = torch.randn(square, generator=generator, dtype=torch.float64)
        scale = 0.2 * largest / size.n_units**0.5
        made.append((scale * weight / _QUANTUM).round() * _QUANTUM)
    return [x.to(dtype) for x in made], gradient.to(dtype)


def differentiate(
    method: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor, arp: int
) -> tuple[Tensor, list[Tensor]]:
    """Run forward and backward; returns spikes and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    spikes = method(*leaves, arp=arp)
    return spikes.detach(), list(torch.autograd.grad(spikes, leaves, gradient))


def time_method(
    method: Callable[..., Tensor], inputs: Sequence[Tensor], gradient: Tensor, arp: int
) -> Turn:
    """Time `(spikes * gradient).sum()`, and backward from there."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    return time_turn(lambda: method(*leaves, arp=arp) * gradient, gradient.device)


def count_rounded(trace: SpikeTrace, spikes: Tensor) -> int:
    """Count the spike trains that first differ from `trace` where V − θ is 0 within rounding.

    Raises:
        RuntimeError: a train first differs anywhere else.
    """
    wrong = spikes != trace.spikes
    first = wrong.int().argmax(dim=0, keepdim=True)
    margin = (trace.membrane - trace.threshold).gather(0, first)
    if bool((wrong.any(dim=0) & (margin.abs() > _ROUNDING)).any()):
        raise RuntimeError("spikes differ from those of the standard method: no time is reported")
    return int(wrong.any(dim=0).sum())


def check(
    size: Size, methods: dict[str, Callable[..., Tensor]], device: torch.device = CPU
) -> dict[str, int]:
    """Compare each method's spikes with the standard's, and its gradients where they must agree.

    On a GPU `blocks` is not compared: there it is computed by matrix products.

    Returns:
        Method → number of spike trains that differ by rounding.

    Raises:
        RuntimeError: spikes or gradients differ by more than rounding.
    """
    inputs, gradient = _on(device, size)
    arp, n_rounded = size.arp_steps, {}
    expected, expected_grads = differentiate(methods_for(size)["standard"], inputs, gradient, arp)
    # A parameter's gradient is a sum of terms as large as the current's.
    largest = expected_grads[0].abs().max().item()
    names = ["current", *(f"input {i}" for i in range(1, len(inputs)))]
    wanted = dict(zip(names, expected_grads, strict=True))
    for name, method in methods.items():
        if name == "blocks" and device.type == "cuda":
            continue
        spikes, grads = differentiate(method, inputs, gradient, arp)
        if name == PARALLEL:
            with torch.no_grad():
                trace = alif(*inputs, arp=arp, method="standard", membrane=True)
            n_rounded[name] = count_rounded(trace, spikes)
            continue
        own = dict(zip(names, grads, strict=True)) if name in _SAME_GRADIENT else None
        require_equal(name, [spikes], [expected], own, wanted, largest)
    return n_rounded


def _on(device: torch.device, size: Size) -> tuple[list[Tensor], Tensor]:
    inputs, gradient = make_inputs(size)
    return [x.to(device) for x in inputs], gradient.to(device)


def measure(size: Size, names: Sequence[str], options: Options, device: torch.device) -> list[Row]:
    """Check contenders, then time them in turns, the scan in its own process; a row for each."""
    methods = {name: method for name, method in methods_for(size).items() if name in names}
    n_rounded = check(size, methods, device)
    inputs = (*_on(device, size), size.arp_steps)
    contenders: dict[str, Callable[[], Turn]] = {
        name: partial(repeat, partial(time_method, method, *inputs))
        for name, method in methods.items()
    }
    found: Turns = {}
    with ExitStack() as processes:
        if SCAN in names:
            scan = processes.enter_context(Remote(make_scan, size))
            try:
                check_scan(size, scan.spikes())
                contenders[SCAN] = scan.repeated
            except Exception as error:  # JAX may be missing, or fail in any way
                found[SCAN] = reason(error)
        warm_ups = 1 if device.type == "cpu" else 3  # the second call captures a graph
        found |= take_turns(contenders, options.rounds, options.longest_turn_s, warm_ups)
    about = {name: {"contender": name, "version": version_of(name)} for name in names}
    about |= {name: about[name] | {"n_rounded": n} for name, n in n_rounded.items()}
    return [about[name] | cost(found[name], found.get("fused")) for name in names]


def make_scan(size: Size) -> Any:
    """The scan's contender for a size; call it in a process of its own."""
    from benchmarks.jax_peers import neurons

    inputs, gradient = make_inputs(size)
    return neurons([x.numpy() for x in inputs], gradient.numpy(), size.arp_steps)


def check_scan(size: Size, spikes: np.ndarray) -> None:
    """Raise RuntimeError unless the scan's spikes are those of `fused` but for rounding.

    XLA rounds differently, and with recurrence one rounded spike changes others.
    """
    inputs, _ = make_inputs(size)
    with torch.no_grad():
        ours = methods_for(size)["fused"](*inputs, arp=size.arp_steps).numpy()
    differing = (spikes != ours).mean() / max(ours.mean(), 1e-9)
    if differing > (0.5 if size.recurrent else 0.05):
        raise RuntimeError(f"{SCAN}: {differing:.0%} of the spikes differ: no time is reported")


def pieces(options: Options) -> Iterator[Piece]:
    """Every model on the CPU, one size after the other."""
    for size in SIZES:
        scan = [SCAN] if size.model == "ALIF" else []
        chosen = options.choose([*methods_for(size), *scan])
        yield Piece(asdict(size), chosen, partial(measure, size, chosen, options, CPU))


def gpu(options: Options) -> Iterator[Piece]:
    """ALIF's three methods on the device; `make gpu-check` tests the kernels first."""
    device = torch.device(options.device)
    for size in GPU_SIZES:
        chosen = options.choose(("standard", "blocks", "fused"))
        yield Piece(asdict(size), chosen, partial(measure, size, chosen, options, device), device)
