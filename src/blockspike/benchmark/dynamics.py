"""The neuron dynamics alone, forward and backward: every model and method, and a compiled scan.

No synapses, float32, on the CPU. Contenders take turns within a round, so that other work on the
machine affects all of them, and a ratio is the median over the rounds.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.benchmark.remote import Remote
from blockspike.benchmark.timing import Turn, reason, repeat, take_turns, time_turn
from blockspike.neurons import Method, MultiGaussian, SpikeTrace, alif
from blockspike.neurons.adlif import adlif
from blockspike.neurons.c_silif import c_silif
from blockspike.neurons.euler_adlif import euler_adlif
from blockspike.neurons.surrogates import spike

_ROUNDING = 1e-5  # |V − θ| at which parallel blocks may round to the other side of the threshold
_SURROGATE = MultiGaussian()
_QUANTUM = 2.0**-12  # sums of a few multiples are exact, in any order
SCAN = "JAX (lax.scan)"


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
SIZES = (
    Size(1024, 32, 128, 40),
    Size(1024, 32, 128, 40, recurrent=True),
    Size(600, 64, 256, 0, recurrent=True),
    Size(10_000, 3, 1, 20),
    Size(10_000, 3, 146, 20),
    *(
        Size(1024, 32, 128, recurrent=recurrent, model=model)
        for model in ("EF-adLIF", "SE-adLIF", "adLIF", "C-SiLIF")
        for recurrent in (False, True)
    ),
)
GUARD = Size(512, 32, 64, 20)


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
        s = spike(membrane - (1 + b * adaptation), _SURROGATE)
        state = membrane * (1 - s.detach())
        adaptation = p * adaptation + s
        refractory_left = torch.where(s > 0, arp, (refractory_left - 1).clamp(min=0))
        spikes.append(s)
    return torch.stack(spikes)


class _SpikeWhereOne(torch.autograd.Function):
    """S = [z = 1], with a straight-through gradient."""

    @staticmethod
    def forward(ctx, z: Tensor) -> Tensor:
        return (z == 1).to(z.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        return grads[0]


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Σ_k kernel[last − k] x[t − k] for every neuron; x [B, N, m], kernel [N, 1, n]."""
    return F.conv1d(F.pad(x, (kernel.shape[2] - 1, 0)), kernel, groups=len(kernel))


def grouped_convolution_blocks(
    current: Tensor, beta: Tensor, p: Tensor, b: Tensor, *, arp: int
) -> Tensor:
    """The paper's Blocks as published, with grouped convolutions, one group per neuron.

    The free membrane and the double sum z are convolutions with kernels of arp + 1 steps
    (docs/paper.md, Blocks); the gradient is the published one. Arguments as for `alif`; returns
    spikes [T, B, N].
    """
    n = min(arp + 1, len(current))
    lag = torch.arange(n - 1, -1, -1).to(current)
    beta_, p_, b_ = (x[:, None] for x in (beta, p, b))  # [N, 1]
    decay = (beta_**lag)[:, None]  # [N, 1, n]
    ramp = (lag + 1).expand(len(beta), 1, n)
    fade, fade_to_end = p_ ** lag.flip(0), p_**lag  # p^t and p^(n−1−t)  [N, n]
    drive = current.permute(1, 2, 0).contiguous()  # [B, N, T]
    start = torch.zeros_like(drive[:, :, :1])
    adaptation, input_mask = start, torch.ones_like(drive[:, :, :n])
    spikes = []
    for block in drive.split(n, dim=2):
        m = block.shape[2]
        masked = block * input_mask[:, :, :m]
        masked = torch.cat([masked[:, :, :1] + beta_ * start, masked[:, :, 1:]], dim=2)
        free = _convolve(masked, decay)
        crossings = spike(free - (1 + b_ * fade[:, :m] * adaptation), _SURROGATE)
        s: Tensor = _SpikeWhereOne.apply(_convolve(crossings, ramp))  # pyright: ignore
        spikes.append(s)
        if m == n:
            fixed = s.detach()
            since = fixed.cumsum(2)
            spiked = since[:, :, -1:]
            start = free[:, :, -1:] * (1 - spiked)
            input_mask = since + (1 - spiked)
            at_spike = (fixed * fade * p_ * adaptation).sum(2, keepdim=True) + 1
            after_spike = at_spike * (fixed * fade_to_end).sum(2, keepdim=True)
            adaptation = torch.where(spiked > 0, after_spike, p_**n * adaptation)
    return torch.cat(spikes, dim=2).permute(2, 0, 1).contiguous()


def parallel_blocks(current: Tensor, beta: Tensor, p: Tensor, b: Tensor, *, arp: int) -> Tensor:
    """The paper's Blocks by matrix products, which `alif` uses on devices without a kernel."""
    # On a CPU the membrane is asked for because only this form of the method has it.
    options = {"surrogate": _SURROGATE, "method": "blocks", "membrane": True}
    return alif(current, beta, p, b, arp=arp, **options).spikes


def _alif(
    method: Method, current: Tensor, beta: Tensor, p: Tensor, b: Tensor,
    weight: Tensor | None = None, *, arp: int,
) -> Tensor:  # fmt: skip
    return alif(
        current, beta, p, b, arp=arp, recurrent_weight=weight, surrogate=_SURROGATE, method=method
    ).spikes


def _of_model(model: str, method: str, current: Tensor, *rest: Tensor, arp: int) -> Tensor:
    """Spikes of a model that has no refractory period."""
    simulate, names, _ = MODELS[model]
    parameters = dict(zip(names, rest, strict=False))
    weight = rest[len(names)] if len(rest) > len(names) else None
    return simulate(current, **parameters, recurrent_weight=weight, method=method).spikes


METHODS: dict[str, Callable[..., Tensor]] = {
    "fused": partial(_alif, "fused"),
    "blocks": partial(_alif, "blocks"),
    "standard": partial(_alif, "standard"),
    "plain loop": plain_loop,
    "parallel blocks": parallel_blocks,
    "grouped convolution": grouped_convolution_blocks,
}
_SAME_GRADIENT = ("plain loop", "fused")  # same gradient and rounding as `standard`
_WITHOUT_RECURRENCE = ("parallel blocks", "grouped convolution")


def methods_for(size: Size) -> dict[str, Callable[..., Tensor]]:
    """Functions (current, parameters and recurrent weights, arp=…) → spikes, by contender."""
    if size.model != "ALIF":
        return {name: partial(_of_model, size.model, name) for name in ("fused", "standard")}
    return {
        name: method
        for name, method in METHODS.items()
        if not (size.recurrent and name in _WITHOUT_RECURRENCE)
    }


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


def check(size: Size, methods: dict[str, Callable[..., Tensor]]) -> dict[str, int]:
    """Compare each method's spikes with the standard's, and its gradients where they must agree.

    Returns:
        Method → number of spike trains that differ by rounding.

    Raises:
        RuntimeError: spikes or gradients differ by more than rounding.
    """
    inputs, gradient = make_inputs(size)
    standard = methods_for(size)["standard"]
    expected_spikes, expected = differentiate(standard, inputs, gradient, size.arp_steps)
    # A parameter's gradient is a sum of terms as large as the current's, which may cancel.
    scales = [max(expected[0].abs().max(), grad.abs().max()) for grad in expected]
    n_rounded = {}
    for name, method in methods.items():
        spikes, grads = differentiate(method, inputs, gradient, size.arp_steps)
        if name in _WITHOUT_RECURRENCE:
            with torch.no_grad():
                trace = alif(*inputs, arp=size.arp_steps, method="standard", membrane=True)
            n_rounded[name] = count_rounded(trace, spikes)
        elif not torch.equal(spikes, expected_spikes):
            raise RuntimeError(f"{name}: spikes differ from the standard's: no time is reported")
        if name in _SAME_GRADIENT:
            for grad, reference, scale in zip(grads, expected, scales, strict=True):
                if not (grad - reference).abs().max() <= 1e-4 * scale:
                    raise RuntimeError(f"gradients of {name} differ: no time is reported")
    return n_rounded


def measure(
    size: Size, names: Sequence[str], rounds: int, longest_turn_s: float
) -> tuple[dict[str, list[Turn] | str], dict[str, int]]:
    """Check contenders, then time them in turns, the scan in its own process.

    Returns:
        Contender → its turns, or the reason why there are none; and what `check` returns.
    """
    methods = {name: method for name, method in methods_for(size).items() if name in names}
    n_rounded = check(size, methods)
    inputs = (*make_inputs(size), size.arp_steps)
    contenders: dict[str, Callable[[], Turn]] = {
        name: partial(repeat, partial(time_method, method, *inputs))
        for name, method in methods.items()
    }
    failed: dict[str, list[Turn] | str] = {}
    with ExitStack() as processes:
        if SCAN in names:
            scan = processes.enter_context(Remote(make_scan, size))
            try:
                check_scan(size, scan.call("spikes"))
                contenders[SCAN] = partial(scan.call, "turn")
            except Exception as error:  # JAX may be missing, or fail in any way
                failed[SCAN] = reason(error)
        return failed | take_turns(contenders, rounds, longest_turn_s), n_rounded


def make_scan(size: Size) -> Any:
    """Make the scan's contender for a size; call it in a process of its own."""
    from blockspike.benchmark.jax_peers import Neurons

    inputs, gradient = make_inputs(size)
    return Neurons([x.numpy() for x in inputs], gradient.numpy(), size.arp_steps)


def check_scan(size: Size, spikes: np.ndarray) -> None:
    """Raise RuntimeError unless the scan's spikes are those of `fused` but for rounding.

    XLA rounds otherwise, and with recurrence one rounded spike changes others.
    """
    inputs, _ = make_inputs(size)
    with torch.no_grad():
        ours = methods_for(size)["fused"](*inputs, arp=size.arp_steps).numpy()
    differing = (spikes != ours).mean() / max(ours.mean(), 1e-9)
    if differing > (0.5 if size.recurrent else 0.05):
        raise RuntimeError(f"{SCAN}: {differing:.0%} of the spikes differ: no time is reported")
