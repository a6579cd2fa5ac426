"""The neurons alone, forward and backward: every model and method, and a compiled scan.

No synapses, float32. `pieces` are measured on the CPU, `gpu` on a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.check import require_equal
from benchmarks.contenders import SCAN
from benchmarks.side_by_side import measure
from benchmarks.table import Options, Piece
from benchmarks.timing import Row, Turn, Turns, reason, repeat, time_turn
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


class Neurons:
    """A contender's neurons with their inputs, ready to be timed.

    Args:
        name: a contender of `methods_for(size)`.
        size: of the measurement.
        device: where it runs.
        dtype: of the inputs.
    """

    def __init__(
        self, name: str, size: Size, device: str = "cpu", dtype: torch.dtype = torch.float32
    ):
        inputs, gradient = make_inputs(size, dtype)
        self.inputs, self._gradient = [x.to(device) for x in inputs], gradient.to(device)
        self._simulate = partial(methods_for(size)[name], arp=size.arp_steps)

    def differentiate(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Spikes, and the gradients of all inputs."""
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        spikes = self._simulate(*leaves)
        grads = torch.autograd.grad(spikes, leaves, self._gradient)
        return spikes.detach(), {f"input {i}": grad for i, grad in enumerate(grads)}

    def turn(self) -> Turn:
        """Time `(spikes * gradient).sum()`, and backward from there, repeatedly if it is quick."""
        return repeat(self._once)

    def _once(self) -> Turn:
        leaves = [x.detach().requires_grad_() for x in self.inputs]
        return time_turn(lambda: self._simulate(*leaves) * self._gradient, self._gradient.device)

    def about(self) -> Row:
        """How active the neurons are."""
        with torch.no_grad():
            return {"firing_per_step": round(self._simulate(*self.inputs).mean().item(), 5)}


def make(name: str, size: Size, device: str) -> Any:
    """A contender; call it in a process of its own for the scan."""
    if name != SCAN:
        return Neurons(name, size, device)
    from benchmarks.jax_peers import neurons

    inputs, gradient = make_inputs(size)
    return neurons([x.numpy() for x in inputs], gradient.numpy(), size.arp_steps)


def require_rounding(trace: SpikeTrace, spikes: Tensor) -> None:
    """Raise RuntimeError unless every spike train first differs where V − θ is 0 within rounding."""
    wrong = spikes != trace.spikes
    first = wrong.int().argmax(dim=0, keepdim=True)
    margin = (trace.membrane - trace.threshold).gather(0, first)
    if bool((wrong.any(dim=0) & (margin.abs() > _ROUNDING)).any()):
        raise RuntimeError(f"spikes of {PARALLEL} differ: no time is reported")


def check(size: Size, device: str, made: dict[str, Any]) -> Turns:
    """Compare each contender's spikes with the standard's, and its gradients where they must agree.

    On a GPU `blocks` is not compared: there it is computed by matrix products.

    Returns:
        The reason to leave out the scan, if there is one.

    Raises:
        RuntimeError: spikes or gradients of ours differ by more than rounding.
    """
    standard = Neurons("standard", size, device)
    expected, wanted = standard.differentiate()
    # A parameter's gradient is a sum of terms as large as the current's.
    largest = wanted["input 0"].abs().max().item()
    for name, neurons in made.items():
        if name == SCAN or (name == "blocks" and device == "cuda"):
            continue
        spikes, grads = neurons.differentiate()
        if name == PARALLEL:
            with torch.no_grad():
                options = {"arp": size.arp_steps, "method": "standard", "membrane": True}
                require_rounding(alif(*standard.inputs, **options), spikes)
        else:
            own = grads if name in _SAME_GRADIENT else None
            require_equal(name, [spikes], [expected], own, wanted, largest)
    return check_scan(size, made[SCAN], expected) if SCAN in made else {}


def check_scan(size: Size, scan: Any, expected: Tensor) -> Turns:
    """The reason to leave out the scan: it fails, or its spikes differ by more than rounding.

    XLA rounds differently, and with recurrence one rounded spike changes others.
    """
    try:
        differing = (scan.spikes() != expected.numpy()).mean() / expected.mean().item()
    except Exception as error:  # JAX may be missing, or fail in any way
        return {SCAN: reason(error)}
    limit = 0.5 if size.recurrent else 0.05
    return {SCAN: f"{differing:.0%} of the spikes differ"} if differing > limit else {}


def _piece(size: Size, names: Sequence[str], options: Options, device: str = "cpu") -> Piece:
    chosen = options.choose(names)
    own = {"check": partial(check, size, device), "device": device}
    timed = partial(measure, make, chosen, size, options, **own)
    return Piece(asdict(size), chosen, timed, device)


def pieces(options: Options) -> Iterator[Piece]:
    """Every model on the CPU, one size after the other."""
    for size in SIZES:
        yield _piece(size, [*methods_for(size), *([SCAN] if size.model == "ALIF" else [])], options)


def gpu(options: Options) -> Iterator[Piece]:
    """ALIF's three methods on the device; `make gpu-check` tests the kernels first."""
    for size in GPU_SIZES:
        yield _piece(size, ("standard", "blocks", "fused"), options, options.device)
