"""Random inputs for `alif`, and comparisons of results, shared by the tests of the neurons."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blockspike import neurons
from blockspike.fitting.distance_cpu import Drive, fitting_distance
from blockspike.neurons import (
    SLAYER,
    Arctan,
    Boxcar,
    FastSigmoid,
    MultiGaussian,
    SpikeTrace,
    Surrogate,
    Triangular,
)
from blockspike.neurons.alif import ALIF
from blockspike.neurons.model import NeuronModel, exp, maximum, where
from blockspike.neurons.simulate import Detach

METHODS = ["standard", "blocks", "parallel blocks", "fused"]
SURROGATES: list[Surrogate] = [FastSigmoid(), Boxcar(), MultiGaussian()]


@dataclass(frozen=True)
class Gaussian(Surrogate):
    """A user's surrogate: height·exp(−u²/2σ²)."""

    sigma: float = 0.5
    height: float = 0.8

    @staticmethod
    def formula(margin, constants):
        _, _, sigma, height = constants
        x = margin / sigma
        return height * torch.exp(-0.5 * x**2)


OTHER_SURROGATES: list[Surrogate] = [
    FastSigmoid(slope=25),
    Boxcar(width=0.75, height=0.3),
    MultiGaussian(width=0.7, height=1.3),
    Triangular(width=0.8, height=0.7),
    Arctan(alpha=3),
    SLAYER(slope=4, height=0.7),
    Gaussian(),
]
DTYPES = [torch.float32, torch.float64]
DETACHED: list[Detach] = [True, False, "reset", "recurrence"]
GRID = 1 / 64  # currents and weights are multiples, so that sums are exact in any order


def alif(*args, method: Any = "fused", **options) -> SpikeTrace:
    """`neurons.alif` with a method "parallel blocks": "blocks" by matrix products, not kernels.

    This form is the one that has the membrane.
    """
    if method != "parallel blocks":
        return neurons.alif(*args, method=method, **options)
    return neurons.alif(*args, method="blocks", **{**options, "membrane": True})


def on_grid(x: Tensor) -> Tensor:
    """Round to multiples of GRID."""
    return torch.round(x / GRID) * GRID


def make_inputs(
    shape: tuple[int, int, int] = (60, 2, 5),
    *,
    recurrent: bool = False,
    adaptive: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> dict[str, Any]:
    """Tensor arguments for `alif` with spikes at about 5-20 % of the steps."""
    generator = torch.Generator().manual_seed(seed)
    n = shape[2]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    inputs = {"current": on_grid(0.15 + 0.6 * noise), "beta": uniform(0.3, 0.97)}
    if adaptive:
        inputs |= {"p": uniform(0.3, 0.97), "b": uniform(0.05, 0.6)}
    if recurrent:
        weight = torch.randn(n, n, generator=generator, dtype=torch.float64)
        inputs["recurrent_weight"] = on_grid(weight * 0.5 / n**0.5)
    return {name: value.to(dtype).requires_grad_() for name, value in inputs.items()}


def assert_gradient_alone(simulate, inputs: dict[str, Any], name: str) -> None:
    """Assert that one differentiable input gets the gradient of the standard method."""
    inputs = {k: v.detach() for k, v in inputs.items()}
    expected = run(inputs, method="standard", arp=2)[1][name]
    inputs[name].requires_grad_()
    spikes = simulate(**inputs, arp=2).spikes
    spikes.backward(cotangent(spikes))
    grad = inputs[name].grad
    assert grad is not None
    assert_close(grad, expected, 1e-9, name)


class BoxcarSpike(torch.autograd.Function):
    """S = [x > 0], with gradient 1 where −0.5 < x ≤ 0.5."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (x,) = ctx.saved_tensors
        return grads[0] * ((x > -0.5) & (x <= 0.5))


def cotangent(spikes: Tensor, seed: int = 1) -> Tensor:
    """A random gradient of the loss with respect to `spikes`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(spikes.shape, generator=generator, dtype=torch.float64).to(spikes)


def run(
    inputs: dict[str, Any], *, of: Callable[..., SpikeTrace] | None = None, seed: int = 1, **options
) -> tuple[Tensor, dict[str, Any]]:
    """Spikes `of` neurons (None: ALIF), and the gradient of every input (zeros if none)."""
    leaves: dict[str, Any] = {
        name: value.detach().requires_grad_() for name, value in inputs.items()
    }
    spikes = (of or alif)(**leaves, **options).spikes
    spikes.backward(cotangent(spikes, seed))
    grads = {
        name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        for name, leaf in leaves.items()
    }
    return spikes.detach(), grads


def assert_close(
    actual: Tensor, expected: Tensor, rtol: float, name: str, scale: float = 0.0
) -> None:
    """Assert equality within `rtol` of the largest expected value, or of a larger `scale`."""
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    error = (actual - expected).abs().max().item()
    scale = max(scale, expected.abs().max().item())
    assert error <= rtol * scale, f"{name}: off by {error:.3g} at scale {scale:.3g}"


def assert_same_result(actual, expected, rtol: float = 0.0) -> None:
    """Assert that two results of `run` have equal spikes, and gradients equal within `rtol`.

    A parameter's gradient is a sum of terms as large as the current's gradient. They may cancel, so
    the tolerance is relative to the terms.
    """
    assert torch.equal(actual[0], expected[0])
    assert actual[1].keys() == expected[1].keys()
    scale = expected[1]["current"].abs().max().item()
    for name, grad in expected[1].items():
        assert_close(actual[1][name], grad, rtol, name, scale)


def check_kernels(
    of: Callable[..., SpikeTrace], inputs: dict[str, Tensor], rtol: float,
    rates: tuple[float, float], **options: Any,
) -> None:  # fmt: skip
    """Assert that both methods `of` neurons agree, and that spikes per step are within `rates`."""
    expected = run(inputs, of=of, method="standard", **options)
    assert rates[0] < expected[0].mean() < rates[1]
    assert_same_result(run(inputs, of=of, method="fused", **options), expected, rtol)


def least_step(drive, parameters, constants, state, fire):
    """Step of the smallest model, with one parameter and one state."""
    (beta,) = parameters
    _, one = constants
    (membrane,) = state
    membrane = beta * membrane + drive
    spike, kept = fire(membrane, one)
    return spike, membrane, one, (membrane * kept,)


def varied_step(drive, parameters, constants, state, fire):
    """Every operation of a step."""
    beta, b = parameters
    _, one = constants
    membrane, adaptation, since = state
    closed = (since > 0) & (since < 3) | (since == 7)
    drive = where(closed, 0.25 * drive, maximum(drive, -0.5) / (1.5 + abs(adaptation)))
    before = beta * membrane + drive + 0.01 * exp(-drive) + 0.01 * membrane**2
    threshold = one + b * adaptation
    spike, kept = fire(before, threshold)
    membrane = before * kept - 0.1 * (one - kept)
    adaptation = beta * maximum(adaptation, threshold - before) + spike
    since = where(before - threshold > 0, 1, maximum(since - 1, 0))
    return spike, before, threshold, (membrane, adaptation, since)


VARIED = NeuronModel(
    "varied",
    ("beta", "b"),
    ("membrane", "adaptation"),
    varied_step,
    counters=("since",),
)
LEAST = NeuronModel("least", ("beta",), ("membrane",), least_step)


def distance_of_alif(
    current: Tensor, target: Tensor, beta: Tensor, p: Tensor, b: Tensor, weight: Tensor,
    bias: Tensor, noise: Tensor, *, arp: int, **options: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`fitting_distance` of ALIF from a membrane of 0."""
    drive = Drive(weight, bias, noise, torch.zeros_like(beta))
    constants = (float(arp),)
    return fitting_distance(current, target, ALIF, constants, (beta, p, b), drive, **options)
