"""Derivatives of steps, made from the steps, against autograd through the loop."""

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from neuron_cases import DETACHED, DTYPES, VARIED, assert_close
from torch import Tensor

import blockspike as bs
from blockspike.neurons.derivative import derived, given_spikes
from blockspike.neurons.model import maximum


def gradients(
    method: str,
    detach_spikes: object,
    membrane: bool,
    shape: tuple[int, int, int] = (50, 3, 9),
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
) -> tuple[bs.SpikeTrace, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    n = shape[-1]
    weight = 0.3 * torch.randn(n, n, generator=generator)
    current = torch.randn(shape, generator=generator)
    inputs = {"current": 2 * current, "recurrent_weight": (weight * 64).round() / 64}
    inputs |= {"beta": torch.linspace(0.3, 0.9, n), "b": torch.linspace(0.1, 0.5, n)}
    inputs = {name: x.to(device, dtype).requires_grad_() for name, x in inputs.items()}
    trace = bs.simulate(
        VARIED,
        inputs["current"],
        {name: inputs[name] for name in ("beta", "b")},
        recurrent_weight=inputs["recurrent_weight"],
        detach_spikes=detach_spikes,  # pyright: ignore[reportArgumentType]
        membrane=membrane,
        method=method,  # pyright: ignore[reportArgumentType]
    )
    loss = (trace.spikes * torch.randn(shape, generator=generator).to(device)).sum()
    if membrane:
        assert trace.membrane is not None and trace.threshold is not None
        loss = loss + trace.membrane.square().sum() + trace.threshold.square().sum()
    return trace, dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


def check(detach_spikes: object, membrane: bool, rtol: float = 1e-9, **options: Any) -> None:
    """Assert that kernels and loop have the same spikes and gradients."""
    (expected, grads), (ours, own) = (
        gradients(method, detach_spikes, membrane, **options) for method in ("standard", "fused")
    )
    assert torch.equal(ours.spikes, expected.spikes) and 0.05 < expected.spikes.mean() < 0.6
    for name, grad in grads.items():
        assert_close(own[name], grad, rtol, name)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("membrane", [False, True])
@pytest.mark.parametrize("detach_spikes", DETACHED)
def test_kernels_have_the_gradient_of_the_loop(detach_spikes, membrane, dtype):
    check(detach_spikes, membrane, 1e-4 if dtype == torch.float32 else 1e-9, dtype=dtype)


def with_tanh(drive, parameters, constants, state, fire):
    return fire(torch.tanh(drive), 1)[0], drive, 1, state


def with_another_power(drive, parameters, constants, state, fire):
    return fire(drive**4, 1)[0], drive, 1, state


def with_infinity(drive, parameters, constants, state, fire):
    membrane = maximum(drive, -math.inf)
    return fire(membrane, 1)[0], membrane, 1, state


def with_not(drive, parameters, constants, state, fire):
    membrane = torch.where(not drive > 0, drive, 0)  # pyright: ignore
    return fire(membrane, 1)[0], membrane, 1, state


@pytest.mark.parametrize("make", [derived, given_spikes])
@pytest.mark.parametrize(
    ("step", "words"),
    [
        (with_tanh, "tanh"),
        (with_another_power, r"unsupported operand type\(s\) for \*\*"),
        (with_infinity, "-inf among the numbers"),
        (with_not, "`not`"),
    ],
)
def test_what_cannot_be_expressed_is_named(make, step, words):
    model = bs.NeuronModel("mine", ("beta",), ("membrane",), step)
    with pytest.raises(ValueError, match=f"^{step.__name__}: expected .*{words}") as error:
        make(model, 2)
    assert "\n" not in str(error.value)


def test_a_model_is_copied():
    for other in (copy.deepcopy(VARIED), pickle.loads(pickle.dumps(VARIED))):
        assert other == VARIED and other.key == VARIED.key
        assert derived(other, 2) is derived(VARIED, 2)
