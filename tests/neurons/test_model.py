"""Custom models, and the errors for invalid ones."""

import pickle
from dataclasses import replace
from types import FunctionType
from typing import Any

import numba
import pytest
import torch
from neuron_cases import LEAST, assert_close, least_step
from torch import Tensor

from blockspike.neurons.alif import alif
from blockspike.neurons.derivative import derived
from blockspike.neurons.model import NeuronModel, exp, maximum, where
from blockspike.neurons.simulate import simulate
from blockspike.neurons.trace import SpikeTrace

CURRENT = torch.rand(20, 2, 9, generator=torch.Generator().manual_seed(0))
BETA = {"beta": torch.full((9,), 0.9)}


def of_beta(step: Any, **options: Any) -> NeuronModel:
    return NeuronModel("mine", ("beta",), ("membrane",), step, **options)


def by_both(
    model: NeuronModel, dtype: torch.dtype, **options: Any
) -> list[tuple[SpikeTrace, dict[str, Tensor]]]:
    """Traces and gradients of the loop, then of the kernels."""
    results = []
    for method in ("standard", "fused"):
        leaves = {
            "current": 4 * CURRENT.to(dtype) - 1,
            "beta": torch.linspace(0.3, 0.9, 9, dtype=dtype),
        }
        leaves = {name: x.requires_grad_() for name, x in leaves.items()}
        trace = simulate(
            model, leaves["current"], {"beta": leaves["beta"]}, membrane=True, **options,
            method=method,
        )  # fmt: skip
        assert trace.membrane is not None and trace.threshold is not None
        loss = trace.membrane.square().mean() + trace.spikes.mean() + trace.state.values.mean()
        grads = torch.autograd.grad(loss, list(leaves.values()))
        results.append((trace, dict(zip(leaves, grads, strict=True))))
    return results


def with_numbers(drive, parameters, constants, state, fire):
    (beta,) = parameters
    membrane = beta * state[0] + 0.5 * drive
    spike, kept = fire(membrane, 1.0)
    return spike, membrane, 1.0, (membrane * kept,)


def with_powers_and_exp(drive, parameters, constants, state, fire):
    (beta,) = parameters
    (membrane,) = state
    membrane = beta * membrane + 0.1 * drive**2 - 0.05 * drive**3 + 0.3 * exp(0.5 * drive)
    threshold = 1 + 0.01 * exp(-membrane)
    spike, kept = fire(membrane, threshold)
    return spike, membrane, threshold, (membrane * kept,)


def with_all_operations(drive, parameters, constants, state, fire):
    (beta,) = parameters
    membrane, since = state
    closed = (since > 0) & (since < 3) | (since == 7)
    membrane = beta * membrane + torch.where(closed, 0, abs(-drive) / 2)
    membrane = where(since != 1, membrane - 0.1, 1.25)
    membrane = membrane.clamp(-0.25, 3) + torch.clamp(drive, max=0.5) / (1.5 - drive.clamp(max=1))
    spike, kept = fire(membrane, 1)
    since = where((membrane - 1 > 0) | (since >= 9), 1, maximum(since - 1, 0))
    return spike, membrane, 1, (membrane * kept, since)


MODELS = [
    LEAST,
    of_beta(with_numbers),
    of_beta(with_powers_and_exp),
    of_beta(with_all_operations, counters=("since",)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.step.__name__)
def test_a_step_gives_the_same_bits_in_loop_and_kernels(model, detach_spikes, dtype):
    (loop, expected), (fused, grads) = by_both(model, dtype, detach_spikes=detach_spikes)
    assert 20 < loop.spikes.sum() < 300 and fused.spikes.dtype == dtype
    for name in ("spikes", "membrane", "threshold"):
        assert torch.equal(getattr(fused, name), getattr(loop, name)), name
    assert torch.equal(fused.state.values, loop.state.values)
    for name, grad in expected.items():
        assert_close(grads[name], grad, 1e-4 if dtype == torch.float32 else 1e-9, name)


def with_a_product_of_a_condition(drive, parameters, constants, state, fire):
    return least_step(drive * (drive > 0.5), parameters, constants, state, fire)


def with_a_choice_of_numbers(drive, parameters, constants, state, fire):
    return least_step(drive - where(drive > 0.5, 0.1, 0.2), parameters, constants, state, fire)


def with_exp_of_torch(drive, parameters, constants, state, fire):
    return least_step(torch.exp(drive) - torch.abs(drive), parameters, constants, state, fire)


def test_a_choice_of_two_numbers_is_refused():
    """In the loop PyTorch would round it to its default dtype."""
    with pytest.raises(ValueError, match="torch.where of two numbers"):
        simulate(of_beta(with_a_choice_of_numbers), CURRENT, BETA)


@pytest.mark.parametrize("step", [with_exp_of_torch, with_a_product_of_a_condition])
def test_other_ways_to_write_a_step(step):
    (loop, expected), (fused, grads) = by_both(of_beta(step), torch.float64)
    assert torch.equal(fused.spikes, loop.spikes) and loop.spikes.sum() > 20
    assert fused.membrane is not None and loop.membrane is not None
    assert_close(fused.membrane, loop.membrane, 1e-11, "membrane")
    for name, grad in expected.items():
        assert_close(grads[name], grad, 1e-9, name)


def reverse_with_numbers(
    drive, parameters, constants, state, margin, slope, grad_spike, reset_has_grad, grad_state
):
    return slope * grad_spike, (0,), (3 * grad_state[0],)


def test_a_reverse_step_replaces_the_derivative():
    model = of_beta(least_step, reverse_step=reverse_with_numbers)
    (start, current), beta = torch.zeros(2, 20, 2, 9).double(), BETA["beta"].double()
    leaves = start[0].clone(), current, beta
    membrane, current, beta = (x.requires_grad_() for x in leaves)
    trace = simulate(model, current, {"beta": beta}, state={"membrane": membrane})
    grads = torch.autograd.grad(trace.state.values.sum(), [membrane, beta])
    assert (grads[0] == 3.0**20).all() and not grads[1].any()


def with_tanh(drive, parameters, constants, state, fire):
    return least_step(torch.tanh(drive), parameters, constants, state, fire)


def with_an_if(drive, parameters, constants, state, fire):
    return least_step(drive if (drive > 9).any() else 2 * drive, parameters, constants, state, fire)


def with_an_if_on_a_number(drive, parameters, constants, state, fire):
    _, one, leaks = constants
    membrane = parameters[0] * state[0] + drive if leaks > 0 else state[0] + drive
    spike, kept = fire(membrane, one)
    return spike, membrane, one, (membrane * kept,)


@pytest.mark.parametrize(
    ("step", "constants", "words"),
    [
        (with_tanh, (), "no attribute 'tanh'"),
        (with_an_if, (), "any"),
        (with_an_if_on_a_number, (1.0,), "`if`"),
    ],
)
def test_what_kernels_cannot_run_is_named_and_runs_in_the_loop(step, constants, words):
    model, current = of_beta(step), 2 * CURRENT
    for needs_grad in (False, True):
        current.requires_grad_(needs_grad)
        message = f"^{step.__name__}: expected a function of .*{words}.*method='standard' runs any$"
        with pytest.raises(ValueError, match=message) as error:
            simulate(model, current, BETA, constants)
        assert "\n" not in str(error.value) and error.value.__suppress_context__
    spikes = simulate(model, current, BETA, constants, method="standard").spikes
    (grad,) = torch.autograd.grad(spikes.sum(), current)
    assert spikes.sum() > 20 and grad.any()


def with_too_few_arguments(drive, parameters, constants, state):
    return drive, drive, 1, state


def with_another_number_of_parameters(drive, parameters, constants, state, fire):
    beta, p = parameters
    return least_step(p * drive, (beta,), constants, state, fire)


def in_another_order(drive, parameters, constants, state, fire):
    spike, membrane, threshold, after = least_step(drive, parameters, constants, state, fire)
    return membrane, spike, threshold, after


def with_another_threshold(drive, parameters, constants, state, fire):
    return fire(drive, 1)[0], drive, 0.5, state


def with_the_threshold_left_out(drive, parameters, constants, state, fire):
    """The other membrane is the same while the state is 0."""
    spike, kept = fire(drive - state[0], 1)
    return spike, drive, 1, (drive * kept,)


def with_a_state_too_many(drive, parameters, constants, state, fire):
    return *least_step(drive, parameters, constants, state, fire)[:3], (drive, drive)


def without_states(drive, parameters, constants, state, fire):
    return least_step(drive, parameters, constants, state, fire)[:3]


def without_a_call(drive, parameters, constants, state, fire):
    return drive, drive, 1, state


def with_two_calls(drive, parameters, constants, state, fire):
    fire(drive, 1)
    return least_step(drive, parameters, constants, state, fire)


OTHERS = "other values than the spike, membrane and threshold of `fire`"


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (with_too_few_arguments, "takes 4 positional arguments"),
        (in_another_order, OTHERS),
        (with_another_threshold, OTHERS),
        (with_the_threshold_left_out, OTHERS),
        (with_a_state_too_many, "1 calls of fire and 2 states after the step"),
        (without_states, "not iterable"),
        (without_a_call, "0 calls of fire"),
        (with_two_calls, "2 calls of fire"),
    ],
)
def test_a_wrong_step_is_named(step, words):
    with pytest.raises(ValueError, match=f"^{step.__name__}: expected .*, got .*{words}"):
        simulate(of_beta(step), CURRENT, BETA)


def test_a_step_with_other_parameters_has_the_error_of_python():
    with pytest.raises(ValueError, match="^not enough values to unpack"):
        simulate(of_beta(with_another_number_of_parameters), CURRENT, BETA)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"parameters": {"beta": torch.full((9,), float("inf"))}}, "beta: expected finite"),
        ({"current": CURRENT.to("meta"), "parameters": {"beta": BETA["beta"].to("meta")}},
         "^method='fused': expected current on one of cpu, cuda, .*, got meta"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(changed: dict[str, Any], words):
    arguments = {"current": CURRENT, "parameters": BETA, **changed}
    with pytest.raises(ValueError, match=words):
        simulate(LEAST, **arguments)


def with_adaptation(drive, parameters, constants, state, fire):
    beta, b = parameters
    _, one = constants
    membrane, adaptation = state
    membrane = beta * membrane + drive
    threshold = one + b * adaptation
    spike, kept = fire(membrane, threshold)
    return spike, membrane, threshold, (membrane * kept, 0.9 * adaptation + spike)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_an_own_alif_is_alif(method):
    model = NeuronModel("own ALIF", ("beta", "b"), ("membrane", "adaptation"), with_adaptation)
    own = {"beta": BETA["beta"].double(), "b": torch.linspace(0.1, 0.5, 9).double()}
    current, p = 2 * CURRENT.double(), torch.full((9,), 0.9).double()
    generator = torch.Generator().manual_seed(0)
    weight = 0.1 * torch.randn(9, 9, generator=generator).double()
    options: dict[str, Any] = {"recurrent_weight": weight, "membrane": True, "method": method}
    traces, grads = [], []
    for run in (alif, simulate):
        leaves = {name: value.clone().requires_grad_() for name, value in own.items()}
        if run is alif:
            trace = alif(current, leaves["beta"], p, leaves["b"], **options)
        else:
            trace = simulate(model, current, leaves, **options)
        assert trace.membrane is not None and trace.threshold is not None
        loss = trace.membrane.square().mean() + trace.threshold.mean() + trace.spikes.mean()
        grads.append(torch.autograd.grad(loss, list(leaves.values())))
        traces.append(trace)
    expected, trace = traces
    assert torch.equal(trace.spikes, expected.spikes) and expected.threshold.max() > 1.3
    torch.testing.assert_close(trace.threshold, expected.threshold)
    torch.testing.assert_close(trace.membrane, expected.membrane)
    for grad, same in zip(*grads, strict=True):
        torch.testing.assert_close(grad, same)


def test_models_of_one_name_have_kernels_of_their_own():
    """As those of a notebook, where a cell with a changed number runs again."""

    def scaled(factor: float) -> NeuronModel:
        def step(drive, parameters, constants, state, fire):
            return least_step(factor * drive, parameters, constants, state, fire)

        return of_beta(step)

    counts = []
    for factor in (0.5, 2.0):
        loop, fused = (
            simulate(scaled(factor), CURRENT, BETA, method=method).spikes
            for method in ("standard", "fused")
        )
        assert torch.equal(loop, fused)
        counts.append(int(fused.sum()))
    assert 0 < counts[0] < counts[1]


def test_models_in_the_cache_of_kernels():
    texts = [derived(model, 2) for model in MODELS]
    kinds = [numba.typeof(text) for text in texts]
    assert len(set(kinds)) == len(MODELS)
    kind, module = kinds[1], with_numbers.__module__.encode()
    assert numba.typeof(derived(replace(MODELS[1]), 2)) is kind
    # The name of a model is in no kernel, and neither is the place of its step.
    copy = FunctionType(with_numbers.__code__, {}, "copy")
    assert numba.typeof(derived(replace(MODELS[1], name="other", step=copy), 2)) == kind
    assert pickle.loads(pickle.dumps(kind)) == kind
    assert module not in pickle.dumps(kind)  # other processes may lack the module
    digest = texts[1].digest.encode()
    elsewhere = pickle.loads(pickle.dumps(kind).replace(digest, b"0" * 32))  # of an unknown model
    assert elsewhere != kind and {kind: 1}.get(elsewhere) is None


def in_place(drive, parameters, constants, state, fire):
    drive += 1
    return least_step(drive, parameters, constants, state, fire)


def test_a_step_that_writes_to_its_drive_leaves_the_current_alone():
    current = CURRENT.clone()
    loop, fused = (
        simulate(of_beta(in_place), current, BETA, method=m) for m in ("standard", "fused")
    )
    assert torch.equal(current, CURRENT) and torch.equal(loop.spikes, fused.spikes)
    assert loop.spikes.sum() > 0


@pytest.mark.parametrize("method", ["standard", "fused", "blocks"])
def test_currents_of_any_dimensions(method):
    """Parameters of the last dimension, or of channels; one sample."""
    torch.manual_seed(0)
    current = 2 * torch.rand(36, 2, 3, 4, 5, dtype=torch.float64)
    for sizes in ((5,), (3, 1, 1)):
        beta, p, b = (torch.rand(sizes, dtype=torch.float64).requires_grad_() for _ in range(3))
        trace = alif(current, beta, p, b, arp=2, method=method, membrane=True)
        own = [x.expand(3, 4, 5).reshape(-1) for x in (beta, p, b)]
        flat = current.flatten(2)
        expected = alif(flat, *own, arp=2, method=method, membrane=True)
        assert torch.equal(trace.spikes.flatten(2), expected.spikes) and trace.spikes.any()
        torch.testing.assert_close(trace.membrane.flatten(2), expected.membrane)
        grads = [torch.autograd.grad(x.spikes.sum(), [beta, p, b]) for x in (trace, expected)]
        for grad, wanted in zip(*grads, strict=True):
            torch.testing.assert_close(grad, wanted)
        first = alif(current[:12], beta, p, b, arp=2, method=method)
        assert first.state.values.shape[1:] == current.shape[1:]
        for state in (first.state, first.state.as_dict()):
            second = alif(current[12:], beta, p, b, arp=2, method=method, state=state)
            assert torch.equal(torch.cat([first.spikes, second.spikes]), trace.spikes)
    one, weight = current[:, 0, 0, 0], torch.rand(5, 5, dtype=torch.float64)
    beta = torch.rand(5, dtype=torch.float64)
    trace = alif(one, beta, recurrent_weight=weight, method=method)
    expected = alif(one[:, None], beta, recurrent_weight=weight, method=method)
    assert torch.equal(trace.spikes, expected.spikes[:, 0])
