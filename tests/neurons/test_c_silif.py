"""C-SiLIF against the equations of Fabre et al. with complex numbers, in a loop, by autograd."""

import cmath
import math
from typing import Any

import pytest
import torch
from neuron_cases import (
    DETACHED,
    DTYPES,
    OTHER_SURROGATES,
    SURROGATES,
    BoxcarSpike,
    assert_close,
    check_kernels,
    cotangent,
)
from torch import Tensor

import blockspike as bs
from tiers import mostly_slow


def published(
    current: Tensor, log_rate: Tensor, frequency: Tensor, log_time_step: Tensor, b: Tensor,
    u: Tensor, s: Tensor,
) -> Tensor:  # fmt: skip
    """Spikes [T, B, N] after u, complex, and s [B, N] of the step before the first."""
    time_step = log_time_step.exp()
    alpha = torch.exp(torch.complex(-log_rate.exp() * time_step, frequency * time_step))
    spikes = []
    for drive in current:
        u = alpha * (u - 0.5 * s) + b * drive
        s = BoxcarSpike.apply(2 * u.real - 1)
        spikes.append(s)
    return torch.stack(spikes)


def made(shape: tuple[int, int, int]) -> dict[str, Tensor]:
    """Arguments of `published`, in the authors' ranges; the state in two parts."""
    generator = torch.Generator().manual_seed(0)
    _, batch, n = shape

    def uniform(low: float, high: float, *size: int) -> Tensor:
        drawn = torch.rand(size or (n,), generator=generator, dtype=torch.float64)
        return (low + (high - low) * drawn).requires_grad_()

    return {
        "current": uniform(-1, 1.4, *shape),
        "log_rate": uniform(math.log(0.3), math.log(0.9)),
        "frequency": uniform(2, 4),
        "log_time_step": uniform(math.log(0.01), math.log(0.5)),
        "b": uniform(0, 1),
        **{name: uniform(0, 1, batch, n) for name in ("real", "imaginary", "s")},
    }


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("shape", [(60, 2, 17), (33, 1, 1)])
def test_spikes_and_gradients_are_the_published_ones(shape, method):
    inputs = made(shape)
    current, log_rate, frequency, log_time_step, b, real, imaginary, s = inputs.values()
    u = torch.complex(real, imaginary)
    expected = published(current, log_rate, frequency, log_time_step, b, u, s)
    assert 0.05 < expected.mean() < 0.6
    state = {"membrane": 2 * real - s, "imaginary": 2 * imaginary}
    neurons = (log_rate.exp(), frequency, log_time_step.exp(), b)
    spikes = bs.c_silif(current, *neurons, state=state, method=method).spikes
    assert torch.equal(spikes, expected)
    leaves = list(inputs.values())
    found, wanted = (torch.autograd.grad(x, leaves, cotangent(x)) for x in (spikes, expected))
    for name, ours, theirs in zip(inputs, found, wanted, strict=True):
        assert theirs.any()
        assert_close(ours, theirs, 1e-9, name)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_equations_in_plain_numbers(method):
    currents = [0.9, 1.5, 0.0, 0.0, 0.2, -0.4, 0.0, 0.0, 3.0, 0.3, 0.0, 0.0]
    rate, frequency, time_step, b, weight, delay = 0.5, math.pi, 0.2, 0.6, -1.5, 2
    alpha = cmath.exp(time_step * complex(-rate, frequency))
    u, s = 0j, 0.0
    membranes, spikes = [], []
    for t, drive in enumerate(currents):
        if t >= delay:
            drive += weight * spikes[t - delay]
        u = alpha * (u - 0.5 * s) + b * drive
        s = float(2 * u.real > 1)
        membranes.append(2 * u.real)
        spikes.append(s)
    assert 3 <= sum(spikes) <= 8 and min(membranes) < -0.5  # it oscillates
    numbers = [[rate], [frequency], [time_step], [b]]
    trace = bs.c_silif(
        torch.tensor(currents, dtype=torch.float64).view(-1, 1, 1),
        *torch.tensor(numbers, dtype=torch.float64),
        recurrent_weight=torch.tensor([[weight]], dtype=torch.float64),
        recurrent_delay=delay,
        method=method,
        membrane=True,
    )
    assert trace.spikes.flatten().tolist() == spikes
    assert trace.membrane.flatten().tolist() == pytest.approx(membranes, rel=1e-9)


def make_inputs(shape: tuple[int, int, int], delay: int) -> dict[str, Any]:
    """Tensor arguments of `c_silif`; delay 0 = no recurrence."""
    drawn = {name: x.detach() for name, x in made(shape).items()}
    inputs = {name: drawn[name] for name in ("current", "frequency", "b")}
    inputs |= {name: drawn[f"log_{name}"].exp() for name in ("rate", "time_step")}
    if delay:
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(shape[2], shape[2], generator=generator, dtype=torch.float64)
        inputs["recurrent_weight"] = weight / shape[2] ** 0.5
    return inputs


@pytest.mark.parametrize("detach_spikes", DETACHED)
@pytest.mark.parametrize("delay", [0, 1, 3, 100])  # 0 = no recurrence
@pytest.mark.parametrize("shape", [(65, 2, 17), (40, 3, 130)])
def test_fused_equals_the_loop(shape, delay, detach_spikes):
    inputs = make_inputs(shape, delay)
    check_kernels(
        bs.c_silif,
        inputs,
        1e-9,
        (0.05, 0.9),
        recurrent_delay=max(delay, 1),
        detach_spikes=detach_spikes,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "surrogate",
    mostly_slow([*SURROGATES, *OTHER_SURROGATES], lambda s: isinstance(s, bs.Boxcar | bs.SLAYER)),
    ids=repr,
)
def test_every_surrogate_and_type(surrogate, dtype):
    inputs = {name: x.to(dtype) for name, x in make_inputs((30, 2, 20), 0).items()}
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    check_kernels(bs.c_silif, inputs, rtol, (0.05, 0.9), surrogate=surrogate)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_nan_is_reported_with_its_position(method):
    inputs = make_inputs((50, 2, 20), 0)
    inputs["current"][7, 1, 3] = float("nan")
    with pytest.raises(bs.NotFiniteError, match="at step 7, sample 1, neuron 3"):
        bs.c_silif(**inputs, method=method)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate": torch.ones(1)}, "^rate: expected a tensor"),
        ({"time_step": torch.ones(3).double()}, "^time_step: expected a tensor"),
    ],
)
def test_a_bad_parameter_is_named(change, message):
    own = {name: torch.full((3,), 0.5) for name in ("rate", "frequency", "time_step", "b")}
    with pytest.raises(ValueError, match=message):
        bs.c_silif(torch.ones(5, 2, 3), **(own | change))


@pytest.mark.parametrize("name", ["rate", "frequency", "time_step"])
def test_a_parameter_that_is_not_finite_is_found(name):
    given = dict.fromkeys(("rate", "frequency", "time_step", "b"), torch.ones(2))
    given[name] = torch.tensor([1.0, float("nan")])
    with pytest.raises(bs.NotFiniteError, match="^decay_real: expected finite values"):
        bs.c_silif(torch.ones(5, 1, 2), **given)
