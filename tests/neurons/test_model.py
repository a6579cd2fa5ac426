"""Custom models, and the errors for invalid ones."""

import dataclasses
import pickle
from types import FunctionType
from typing import Any

import numba
import pytest
import torch
from torch import Tensor

from blockspike.neurons.model import NeuronModel, maximum, where
from blockspike.neurons.simulate import simulate


def step(drive, parameters, constants, state, fire):
    (beta,) = parameters
    _, one = constants
    membrane = beta * state[0] + drive
    spike, kept = fire(membrane - one)
    return spike, membrane - one, (membrane * kept,)


def step_with_a_literal(drive, parameters, constants, state, fire):
    (beta,) = parameters
    membrane = beta * state[0] + 0.5 * drive
    spike, kept = fire(membrane - 1.0)
    return spike, membrane - 1.0, (membrane * kept,)


def reverse_step(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    return drive, parameters, state


SLOW = pytest.mark.slow
MODELS = {s: NeuronModel("mine", ("beta",), ("membrane",), s, reverse_step)
          for s in (step, step_with_a_literal)}  # fmt: skip
CURRENT = torch.rand(20, 2, 9)
BETA = {"beta": torch.full((9,), 0.9)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_literals_are_numbers_of_the_current(dtype):
    arguments = MODELS[step_with_a_literal], CURRENT.to(dtype), {"beta": BETA["beta"].to(dtype)}
    loop = simulate(*arguments, method="standard")
    assert loop.spikes.sum() > 0
    assert torch.equal(simulate(*arguments).spikes, loop.spikes)


def step_with_all_operations(drive, parameters, constants, state, fire):
    (beta,) = parameters
    membrane, since = state
    closed = (since > 0) & (since < 3) | (since == 7)
    membrane = beta * membrane + where(closed, 0, abs(-drive) / 2)
    margin = membrane - 1
    spike, kept = fire(margin)
    return spike, margin, (membrane * kept, where(margin > 0, 1, maximum(since - 1, 0)))


def reverse_with_a_number(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    return slope * grad_spike, (0,), (grad_state[0],)


def test_operations_of_the_loop_work_in_the_kernels():
    model = NeuronModel(
        "mine",
        ("beta",),
        ("membrane",),
        step_with_all_operations,
        reverse_with_a_number,
        ("since",),
    )
    beta = {"beta": torch.full((9,), 0.9, requires_grad=True)}
    loop = simulate(model, 4 * CURRENT, beta, method="standard")
    fused = simulate(model, 4 * CURRENT, beta)
    assert loop.spikes.sum() > 20 and torch.equal(fused.spikes, loop.spikes)
    (grad,) = torch.autograd.grad(fused.spikes.sum(), beta["beta"])
    assert torch.equal(grad, torch.zeros(9))


def with_torch(drive, parameters, constants, state, fire):
    return step(torch.tanh(drive), parameters, constants, state, fire)


def with_what_it_calls(drive, parameters, constants, state, fire):
    return with_torch(drive, parameters, constants, state, fire)


def without_margin(drive, parameters, constants, state, fire):
    return fire(drive)[0], state


def with_too_few_arguments(drive, parameters, constants, state):
    return drive, drive, state


def with_another_number_of_parameters(drive, parameters, constants, state, fire):
    beta, p = parameters
    return step(p * drive, (beta,), constants, state, fire)


def reverse_with_torch(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    return torch.tanh(drive), parameters, state


def reverse_without_states(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    return drive, parameters


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        ((with_torch, reverse_step), r"Numba compiles, got .*'tanh'.*torch \(test_model.py, line "),
        ((with_what_it_calls, reverse_step), r"Numba compiles, got .*'tanh'.*test_model.py, line"),
        ((without_margin, reverse_step), r"to return \(spike, margin, .*, got Tuple\("),
        ((with_too_few_arguments, reverse_step), "Numba compiles, got .*5 argument.*takes 4"),
        ((with_another_number_of_parameters, reverse_step), "got .*parameters: expected 2, got 1"),
        pytest.param((step, reverse_with_torch), "Numba compiles, got .*'tanh'", marks=SLOW),
        pytest.param((step, reverse_without_states), "to return gradients .*, got ", marks=SLOW),
    ],
)
def test_a_function_that_cannot_be_compiled_is_named_in_one_line(functions, words):
    model = NeuronModel("mine", ("beta",), ("membrane",), *functions)
    beta = torch.full((9,), 0.9, requires_grad=True)
    wrong = functions[0] if functions[0] is not step else functions[1]
    with pytest.raises(ValueError, match=f"^{wrong.__name__}: expected .*{words}") as error:
        simulate(model, CURRENT, {"beta": beta}).spikes.sum().backward()
    assert "\n" not in str(error.value) and error.value.__suppress_context__


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"constants": (float("nan"),)}, "constants: expected finite numbers"),
        ({"parameters": {}}, "parameters: expected beta, got $"),
        ({"parameters": {"alpha": BETA["beta"]}}, "parameters: expected beta, got alpha"),
        ({"parameters": {"beta": torch.full((9,), float("inf"))}}, "beta: expected finite"),
        ({"current": CURRENT.to("meta"), "parameters": {"beta": BETA["beta"].to("meta")}},
         "^method='fused': expected current on one of cpu, cuda, .*, got meta"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(changed: dict[str, Any], words):
    arguments = {"current": CURRENT, "parameters": BETA, **changed}
    with pytest.raises(ValueError, match=words):
        simulate(MODELS[step], **arguments)


def test_an_invalid_model_is_named():
    factor = 2.0

    def made_within(drive, parameters, constants, state, fire):
        return fire(factor * drive)[0], drive, state

    bad: list[tuple[dict[str, Any], str]] = [
        ({"step": made_within}, "made_within: expected a module-level function"),
        ({"parameters": ()}, "parameters: expected a tuple of at least one name"),
        ({"states": "v"}, "states: expected a tuple"),
        ({"reverse_step": 1.0}, "^reverse_step: expected a module-level function, got 1.0$"),
        ({"step": torch.exp}, "^step: expected a module-level function, got <built-in"),
    ]
    for changed, words in bad:
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(MODELS[step], **changed)


def test_a_membrane_read_too_late_is_refused():
    beta = BETA["beta"].clone()
    trace = simulate(MODELS[step], CURRENT, {"beta": beta})
    beta.mul_(0.5)
    with pytest.raises(RuntimeError, match="was changed in place"):
        _ = trace.membrane


def test_models_in_the_cache_of_kernels():
    kind, other = (numba.typeof(model) for model in MODELS.values())
    assert kind != other
    assert numba.typeof(dataclasses.replace(MODELS[step])) is kind
    assert numba.typeof(dataclasses.replace(MODELS[step], name="other")) is not kind
    assert pickle.loads(pickle.dumps(kind)) is kind
    assert step.__module__.encode() not in pickle.dumps(kind)  # other processes may lack the module
    digest = kind.name[-33:-1].encode()
    elsewhere = pickle.loads(pickle.dumps(kind).replace(digest, b"0" * 32))  # of an unknown model
    assert elsewhere != kind and {kind: 1}.get(elsewhere) is None


def test_membrane_and_threshold_are_those_of_the_loop():
    ours, loop = (simulate(MODELS[step], CURRENT, BETA, method=m) for m in ("fused", "standard"))
    assert torch.equal(ours.spikes, loop.spikes) and ours.spikes.sum() > 0
    assert torch.allclose(ours.membrane, loop.membrane)
    assert torch.equal(ours.threshold, loop.threshold)


GAIN = 0.1


def with_default(x, factor=2.0):
    return factor * x


def step_of_globals(drive, parameters, constants, state, fire):
    (beta,) = parameters
    _, one = constants
    (membrane,) = state
    margin = beta * membrane + GAIN * with_default(drive) - one
    spike, not_spiked = fire(margin)
    return spike, margin, ((margin + one) * not_spiked,)


@pytest.mark.parametrize("changed", ["GAIN", "with_default"])
def test_a_step_whose_numbers_or_functions_have_changed_is_refused(monkeypatch, changed):
    """Its kernels and derivative have the first ones."""
    model = NeuronModel("of globals", ("beta",), ("membrane",), step_of_globals)

    def results() -> list[tuple[int, Tensor]]:
        found = []
        for method in ("standard", "fused"):
            current = CURRENT.clone().requires_grad_()
            trace = simulate(model, current, BETA, method=method)
            (grad,) = torch.autograd.grad(trace.spikes.sum(), current)
            found.append((int(trace.spikes.sum()), grad))
        return found

    (n, grad), (n_fused, grad_fused) = results()
    assert n == n_fused and grad.abs().sum() > 0
    torch.testing.assert_close(grad, grad_fused)
    same = FunctionType(with_default.__code__, {}, "f", (2.0,)), GAIN + 0
    for value in (*same, FunctionType(with_default.__code__, {}, "f", (20.0,)), 1.0):
        if isinstance(value, float) == (changed == "GAIN"):
            monkeypatch.setitem(step_of_globals.__globals__, changed, value)
            if value in same:
                results()
            else:
                with pytest.raises(ValueError, match=f"of globals: {changed}: expected .* as in"):
                    results()
