"""Derivatives of steps that nobody has written, against those by hand and against autograd."""

import copy
import math
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from neuron_cases import DETACHED, WITHOUT_DERIVATIVE, assert_close
from torch import Tensor

import blockspike as bs
from blockspike.neurons.alif.step import ALIF, ALIF_ALWAYS_OPEN
from blockspike.neurons.derivative import derived
from blockspike.neurons.euler_adlif.step import EF_ADLIF, SE_ADLIF
from blockspike.neurons.model import maximum

N_CONSTANTS = {ALIF: 3, ALIF_ALWAYS_OPEN: 2, SE_ADLIF: 3, EF_ADLIF: 3}


@pytest.mark.parametrize("reset_has_grad", [0.0, 1.0])
@pytest.mark.parametrize("model", N_CONSTANTS, ids=lambda model: model.name)
def test_it_is_the_derivative_written_by_hand(model, reset_has_grad):
    generator = torch.Generator().manual_seed(0)

    def some(names: tuple[str, ...]) -> list[Tensor]:
        return [torch.randn(50, generator=generator).double() for _ in names]

    def fire(margin: Tensor) -> tuple[Tensor, Tensor]:
        return (margin > 0).double(), (margin <= 0).double()

    drive, slope, grad_spike = some(("drive", "slope", "grad_spike"))
    parameters, grad_state = some(model.parameters), some(model.states)
    state = some(model.states) + [x.round() for x in some(model.counters)]
    constants = (0.0, 1.0, 2.0)[: N_CONSTANTS[model]]
    _, margin, _ = model.step(drive, parameters, constants, state, fire)
    assert 5 < (margin > 0).sum() < 45
    bare = replace(model, reverse_step=None)
    results = [
        cast(Any, either).reverse_step(
            drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad,
            grad_state,
        )
        for either in (derived(bare, len(constants)), model)
    ]  # fmt: skip
    for ours, by_hand in zip(*[[x, *y, *z] for x, y, z in results], strict=True):
        torch.testing.assert_close(ours, by_hand, rtol=1e-12, atol=1e-12)


def gradients(
    method: str,
    detach_spikes: object,
    membrane_gradient: bool,
    shape: tuple[int, int, int] = (50, 3, 9),
    device: str | torch.device = "cpu",
) -> tuple[bs.SpikeTrace, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    n = shape[-1]
    weight = 0.3 * torch.randn(n, n, generator=generator).double()
    current = torch.randn(shape, generator=generator).double()
    inputs = {"current": 2 * current, "recurrent_weight": weight}
    inputs |= {
        "beta": torch.linspace(0.3, 0.9, n).double(),
        "b": torch.linspace(0.1, 0.5, n).double(),
    }
    inputs = {name: x.to(device).requires_grad_() for name, x in inputs.items()}
    trace = bs.simulate(
        WITHOUT_DERIVATIVE,
        inputs["current"],
        {name: inputs[name] for name in ("beta", "b")},
        recurrent_weight=inputs["recurrent_weight"],
        detach_spikes=detach_spikes,  # pyright: ignore[reportArgumentType]
        membrane_gradient=membrane_gradient,
        method=method,  # pyright: ignore[reportArgumentType]
    )
    loss = (trace.spikes * torch.randn(shape, generator=generator).to(device)).sum()
    if membrane_gradient:
        loss = loss + trace.membrane.square().sum()
    return trace, dict(zip(inputs, torch.autograd.grad(loss, list(inputs.values())), strict=True))


def check(detach_spikes: object, membrane_gradient: bool, **options: Any) -> None:
    """Assert that kernels and loop have the same spikes and gradients."""
    (expected, grads), (ours, own) = (
        gradients(method, detach_spikes, membrane_gradient, **options)
        for method in ("standard", "fused")
    )
    assert torch.equal(ours.spikes, expected.spikes) and 0.05 < expected.spikes.mean() < 0.6
    for name, grad in grads.items():
        assert_close(own[name], grad, 1e-9, name, grad.abs().max().item())


@pytest.mark.parametrize("membrane_gradient", [False, True])
@pytest.mark.parametrize("detach_spikes", DETACHED)
def test_kernels_have_the_gradient_of_the_loop(detach_spikes, membrane_gradient):
    check(detach_spikes, membrane_gradient)


def unfinished(drive, parameters, constants, state, fire):
    """A choice that a loop and a compiler can make, and that has no expression."""
    (beta,) = parameters
    _, one, leaks = constants
    membrane = beta * state[0] + drive if leaks > 0 else state[0] + drive
    spike, kept = fire(membrane - one)
    return spike, membrane - one, (membrane * kept,)


def test_what_cannot_be_derived_simulates_and_says_so_when_a_gradient_is_needed():
    model = bs.NeuronModel("mine", ("beta",), ("membrane",), unfinished)
    current, beta = torch.rand(20, 2, 4), torch.full((4,), 0.9)
    found = [
        bs.simulate(model, current, {"beta": beta}, (1.0,), method=method).spikes
        for method in ("standard", "fused")
    ]
    assert torch.equal(*found) and found[0].sum() > 5
    with torch.no_grad():  # a stream
        given = bs.simulate(model, current, {"beta": beta}, (1.0,), state={"membrane": 0.5})
    assert given.spikes.sum() >= found[0].sum()
    with pytest.raises(
        ValueError, match=r"^unfinished: expected a step of .*`if`.*write reverse_step, or use"
    ):
        bs.simulate(model, current.requires_grad_(), {"beta": beta}, (1.0,))
    spikes = bs.simulate(model, current, {"beta": beta}, (1.0,), method="standard").spikes
    assert torch.autograd.grad(spikes.sum(), current)[0].abs().sum() > 0


def with_torch(drive, parameters, constants, state, fire):
    return (*fire(torch.tanh(drive)), state)


def with_a_power(drive, parameters, constants, state, fire):
    return (*fire(drive**2), state)


def without_firing(drive, parameters, constants, state, fire):
    return drive, drive, state


def with_another_margin(drive, parameters, constants, state, fire):
    return fire(drive - 1)[0], drive - 0.5, state


def with_infinity(drive, parameters, constants, state, fire):
    margin = maximum(drive, -math.inf)
    return fire(margin)[0], margin, state


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (with_torch, r"tanh"),
        (with_a_power, r"unsupported operand .*\*\*"),
        (without_firing, "fire called 0 times"),
        (with_another_margin, "the margin given to it"),
        (with_infinity, "-inf among the numbers"),
    ],
)
def test_what_cannot_be_differentiated_is_named(step, words):
    model = bs.NeuronModel("mine", ("beta",), ("membrane",), step)
    with pytest.raises(ValueError, match=f"^{step.__name__}: expected .*{words}") as error:
        derived(model, 2)
    assert "\n" not in str(error.value)


def test_a_model_with_a_derived_derivative_is_copied():
    assert copy.deepcopy(WITHOUT_DERIVATIVE) == WITHOUT_DERIVATIVE
    assert derived(WITHOUT_DERIVATIVE, 2) is derived(WITHOUT_DERIVATIVE, 2)
