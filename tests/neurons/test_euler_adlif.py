"""adLIF and SE-adLIF against their equations in plain Python, and kernels against the loop."""

from typing import Any

import pytest
import torch
from neuron_cases import DETACHED, DTYPES, SURROGATES, check_kernels
from torch import Tensor

from blockspike.neurons import MultiGaussian, NotFiniteError
from blockspike.neurons.euler_adlif import euler_adlif
from tiers import mostly_slow

EULERS = ("symplectic", "forward")


def make_inputs(
    shape: tuple[int, int, int], recurrent: bool = False, dtype: torch.dtype = torch.float64
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    n = shape[2]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    inputs = {
        "current": 2 + 3 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "alpha": uniform(0.6, 0.9),
        "beta": uniform(0.9, 0.98),
        "a": uniform(0, 1),
        "b": uniform(0, 2),
    }
    if recurrent:
        weight = torch.randn(n, n, generator=generator, dtype=torch.float64)
        inputs["recurrent_weight"] = 2 * weight / n**0.5
    return {name: value.to(dtype) for name, value in inputs.items()}


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("euler", EULERS)
def test_equations_in_plain_numbers(euler, method):
    current = [3.0, 0.0, 8.0, 9.0, -2.0, 7.0, 30.0, 30.0, 5.0, 40.0]
    alpha, beta, a, b, q, weight, delay = 0.8, 0.9, 0.5, 1.5, 12.0, -3.0, 2
    u = w = s = 0.0
    membranes, spikes = [], []
    for t, drive in enumerate(current):
        if t >= delay:
            drive += weight * spikes[t - delay]
        before, fired = alpha * u + (1 - alpha) * (drive - w), 0.0
        fired = 1.0 if before > 1 else 0.0
        after = before * (1 - fired)
        w = beta * w + (1 - beta) * q * (
            a * after + b * fired if euler == "symplectic" else a * u + b * s
        )
        u, s = after, fired
        membranes.append(before)
        spikes.append(fired)
    assert 2 <= sum(spikes) <= 8
    trace = euler_adlif(
        torch.tensor(current, dtype=torch.float64).view(-1, 1, 1),
        *torch.tensor([[alpha], [beta], [a], [b]], dtype=torch.float64),
        q=q,
        euler=euler,
        recurrent_weight=torch.tensor([[weight]], dtype=torch.float64),
        recurrent_delay=delay,
        method=method,
        membrane=True,
    )
    assert trace.spikes.flatten().tolist() == spikes
    assert trace.membrane.flatten().tolist() == pytest.approx(membranes, rel=1e-12)
    assert (trace.threshold == 1).all()


@pytest.mark.parametrize("detach_spikes", DETACHED)
@pytest.mark.parametrize("delay", [0, 1, 3, 100])  # 0 = no recurrence
@pytest.mark.parametrize("shape", [(65, 2, 17), (40, 3, 130), (33, 1, 1)])
@pytest.mark.parametrize("euler", EULERS)
def test_fused_equals_the_loop(euler, shape, delay, detach_spikes):
    inputs = make_inputs(shape, recurrent=delay > 0)
    check_kernels(
        euler_adlif, inputs, 1e-9, (0.02, 0.6), euler=euler, recurrent_delay=max(delay, 1),
        detach_spikes=detach_spikes, q=12.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    "surrogate",
    mostly_slow(SURROGATES, lambda s: isinstance(s, MultiGaussian)),  # each has kernels of its own
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("euler", EULERS)
def test_every_surrogate_and_type(euler, dtype, surrogate):
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    inputs = make_inputs((50, 2, 20), dtype=dtype)
    check_kernels(
        euler_adlif,
        inputs,
        rtol,
        (0.02, 0.6),
        euler=euler,
        surrogate=surrogate,
        detach_spikes=False,
        q=12.0,
    )


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"euler": "backward"}, "euler: expected one of symplectic, forward"),
        ({"method": "blocks"}, "method: expected one of standard, fused"),
        ({"recurrent_delay": 0}, "recurrent_delay: expected an int ≥ 1"),
        ({"alpha": torch.zeros(3)}, "alpha: expected a tensor"),
    ],
)
def test_a_bad_argument_is_named(changed, words):
    with pytest.raises(ValueError, match=words):
        euler_adlif(**{**make_inputs((50, 2, 20)), **changed})


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("euler", EULERS)
def test_nan_is_reported_with_its_position(euler, method):
    inputs = make_inputs((50, 2, 20))
    inputs["current"][7, 1, 3] = float("nan")
    with pytest.raises(NotFiniteError, match="at step 7, sample 1, neuron 3"):
        euler_adlif(**inputs, euler=euler, method=method)


def test_a_scale_that_is_not_finite_is_named():
    with pytest.raises(NotFiniteError, match="expected finite"):
        euler_adlif(torch.ones(5, 1, 2), *[torch.full((2,), 0.5)] * 4, q=float("nan"))
