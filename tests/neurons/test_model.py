"""Custom models, and the errors for invalid ones."""

import dataclasses
import pickle
from types import FunctionType
from typing import Any

import numba
import pytest
import torch
from torch import Tensor

from blockspike.neurons.alif import alif
from blockspike.neurons.loop import loop
from blockspike.neurons.model import NeuronModel, exp, maximum, where
from blockspike.neurons.simulate import simulate
from blockspike.neurons.spec import SimulationSpec, detached
from blockspike.neurons.surrogate import MultiGaussian
from blockspike.neurons.trace import threshold_of


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
CURRENT = torch.rand(20, 2, 9, generator=torch.Generator().manual_seed(0))
BETA = {"beta": torch.full((9,), 0.9)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_literals_are_numbers_of_the_current(dtype):
    arguments = MODELS[step_with_a_literal], CURRENT.to(dtype), {"beta": BETA["beta"].to(dtype)}
    loop = simulate(*arguments, method="standard")
    assert loop.spikes.sum() > 0
    assert torch.equal(simulate(*arguments).spikes, loop.spikes)


def with_exp(drive, parameters, constants, state, fire):
    (beta,) = parameters
    membrane = beta * state[0] + 0.1 * exp(state[0]) + drive
    spike, kept = fire(membrane - 1)
    return spike, membrane - 1, (membrane * kept,)


def test_a_step_with_exp_simulates_and_says_that_it_has_no_derivative():
    """`exp` calls an attribute of its own name."""
    model = NeuronModel("exponential", ("beta",), ("membrane",), with_exp)
    loop, fused = (simulate(model, CURRENT, BETA, method=m) for m in ("standard", "fused"))
    assert torch.equal(loop.spikes, fused.spikes) and loop.spikes.sum() > 20
    with pytest.raises(ValueError, match="^with_exp: expected a step of .* exp.*reverse_step"):
        simulate(model, CURRENT.clone().requires_grad_(), BETA)


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
        ((without_margin, reverse_step), r"spike, margin and .* to be returned, got 2 values"),
        ((with_too_few_arguments, reverse_step), "runs on tensors, got .*takes 4 positional"),
        (
            (with_another_number_of_parameters, reverse_step),
            "runs on tensors, got not enough values",
        ),
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


@pytest.mark.parametrize("mode", ["NumPy", "data", "inference mode"])
def test_a_change_that_pytorch_does_not_count_is_refused_too(mode):
    array = torch.rand(20, 1, 9).numpy()
    beta = BETA["beta"].clone()
    with torch.inference_mode(mode == "inference mode"):
        current = torch.from_numpy(array)
        trace = simulate(MODELS[step], current, {"beta": beta})
        if mode == "NumPy":
            array[:] = 0
        elif mode == "data":
            beta.data.clamp_(max=0.3)
        else:
            current.zero_()
        for name in ("membrane", "threshold"):
            with pytest.raises(RuntimeError, match="got other spikes when it was computed again"):
                getattr(trace, name)


def with_adaptation(drive, parameters, constants, state, fire):
    beta, b = parameters
    _, one = constants
    membrane, adaptation = state
    membrane = beta * membrane + drive
    margin = membrane - (one + b * adaptation)
    spike, kept = fire(margin)
    return spike, margin, (membrane * kept, 0.9 * adaptation + spike)


def test_the_loop_computes_the_threshold_from_given_spikes():
    """They may differ from its own by rounding; here they differ a lot."""
    states, parameters = ("membrane", "adaptation"), ("beta", "b")
    model = NeuronModel(
        "own ALIF", parameters, states, with_adaptation, threshold_parameters=("b",)
    )
    spec = SimulationSpec(model, (), 1, MultiGaussian(), *detached(True))
    own = [BETA["beta"], torch.full((9,), 0.5)]
    given = (torch.rand_like(CURRENT) < 0.1).float()
    trace = loop(spec, CURRENT, own, None, given=given)
    assert torch.equal(trace.spikes, given)
    torch.testing.assert_close(trace.threshold, threshold_of(given, torch.full((9,), 0.9), own[1]))


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_the_threshold_of_an_own_model_is_read_from_its_step(method):
    states = ("membrane", "adaptation")
    model = NeuronModel(
        "own ALIF", ("beta", "b"), states, with_adaptation, threshold_parameters=("b",)
    )
    own = {"beta": BETA["beta"].double(), "b": torch.linspace(0.1, 0.5, 9).double()}
    current, p = 2 * CURRENT.double(), torch.full((9,), 0.9).double()
    options: dict[str, Any] = {"recurrent_weight": 0.1 * torch.randn(9, 9).double()}
    expected = alif(current, own["beta"], p, own["b"], **options, method="standard")
    trace = simulate(model, current, own, **options, method=method)
    assert torch.equal(trace.spikes, expected.spikes) and expected.threshold.max() > 1.3
    torch.testing.assert_close(trace.threshold, expected.threshold)
    torch.testing.assert_close(trace.membrane, expected.membrane)

    grads = []
    for run in (alif, simulate):
        leaves = {name: value.clone().requires_grad_() for name, value in own.items()}
        options |= {"method": method, "membrane_gradient": True}
        if run is alif:
            trace = alif(current, leaves["beta"], p, leaves["b"], **options)
        else:
            trace = simulate(model, current, leaves, **options)
        torch.testing.assert_close(trace.membrane, expected.membrane)
        loss = trace.membrane.square().mean() + trace.spikes.mean()
        grads.append(torch.autograd.grad(loss, list(leaves.values())))
    for grad, same in zip(*grads, strict=True):
        torch.testing.assert_close(grad, same)


def in_another_order(drive, parameters, constants, state, fire):
    spike, margin, after = step(drive, parameters, constants, state, fire)
    return margin, spike, after


def with_another_margin(drive, parameters, constants, state, fire):
    return fire(drive - 1)[0], drive - 0.5, state


def with_a_state_too_many(drive, parameters, constants, state, fire):
    return *step(drive, parameters, constants, state, fire)[:2], (drive, drive)


def with_the_threshold_left_out(drive, parameters, constants, state, fire):
    """The other margin is the same while the state is 0."""
    spike, kept = fire(drive - 1 - state[0])
    return spike, drive - 1, (drive * kept,)


def without_states(drive, parameters, constants, state, fire):
    return step(drive, parameters, constants, state, fire)[:2]


def with_two_calls(drive, parameters, constants, state, fire):
    fire(drive)
    return step(drive, parameters, constants, state, fire)


def in_place(drive, parameters, constants, state, fire):
    drive += 1
    return step(drive, parameters, constants, state, fire)


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (in_another_order, "the spike of fire and the margin given to it"),
        (with_another_margin, "the spike of fire and the margin given to it"),
        (with_the_threshold_left_out, "the spike of fire and the margin given to it"),
        (with_a_state_too_many, r"a tuple of 1 states \(membrane\) to be returned last, got 2"),
        (without_states, "spike, margin and the states after the step .*, got 2 values"),
        (with_two_calls, "one call of fire, got 2"),
        (in_place, "no argument to be changed in place"),
    ],
)
def test_a_step_that_does_something_else_is_named(wrong, words, method):
    current = CURRENT.clone()
    model = NeuronModel("mine", ("beta",), ("membrane",), wrong)
    with pytest.raises(ValueError, match=f"^{wrong.__name__}: expected {words}"):
        simulate(model, current, BETA, method=method)
    assert torch.equal(current, CURRENT)


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
