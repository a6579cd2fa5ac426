"""Models that somebody else writes: what is said of one that is not right."""

import dataclasses
import pickle
from typing import Any

import numba
import pytest
import torch
from numba.core.errors import TypingError

from blockspike.neurons.model import NeuronModel
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
    drive, parameters, constants, state, margin, slope, grad_spike, attached, grad_state
):
    return drive, parameters, state


MODELS = {s: NeuronModel("mine", ("beta",), ("membrane",), s, reverse_step)
          for s in (step, step_with_a_literal)}  # fmt: skip
CURRENT = torch.rand(20, 2, 9)
BETA = {"beta": torch.full((9,), 0.9)}


def test_a_literal_in_a_step_is_named():
    loop = simulate(MODELS[step_with_a_literal], CURRENT, BETA, method="standard")
    assert loop.spikes.sum() > 0
    with pytest.raises(TypingError, match="mine: a step gives .*float64.*, expected 1 of float32"):
        simulate(MODELS[step_with_a_literal], CURRENT, BETA)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"constants": (float("nan"),)}, "constants: expected finite numbers"),
        ({"parameters": {}}, "parameters: expected beta, got $"),
        ({"parameters": {"alpha": BETA["beta"]}}, "parameters: expected beta, got alpha"),
        ({"parameters": {"beta": torch.full((9,), float("inf"))}}, "beta: expected finite"),
        ({"current": CURRENT.to("meta"), "parameters": {"beta": BETA["beta"].to("meta")}},
         "method: 'fused' runs on cpu, cuda, .*; got current on meta"),
    ],
)  # fmt: skip
def test_a_bad_argument_is_named(changed: dict[str, Any], words):
    arguments = {"current": CURRENT, "parameters": BETA, **changed}
    with pytest.raises(ValueError, match=words):
        simulate(MODELS[step], **arguments)


def test_a_model_that_cannot_be_one_is_named():
    factor = 2.0

    def made_within(drive, parameters, constants, state, fire):
        return fire(factor * drive)[0], drive, state

    bad: list[tuple[dict[str, Any], str]] = [
        ({"step": made_within}, "made_within: expected a function of a module"),
        ({"parameters": ()}, "parameters: expected a tuple of at least one name"),
        ({"states": "v"}, "states: expected a tuple"),
    ]
    for changed, words in bad:
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(MODELS[step], **changed)


def test_a_membrane_that_is_read_too_late():
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
    assert step.__module__.encode() not in pickle.dumps(kind)  # others have no such module
    digest = kind.name[-33:-1].encode()
    elsewhere = pickle.loads(pickle.dumps(kind).replace(digest, b"0" * 32))  # of a model not here
    assert elsewhere != kind and {kind: 1}.get(elsewhere) is None


def test_membrane_and_threshold_are_those_of_the_loop():
    ours, loop = (simulate(MODELS[step], CURRENT, BETA, method=m) for m in ("fused", "standard"))
    assert torch.equal(ours.spikes, loop.spikes) and ours.spikes.sum() > 0
    assert torch.allclose(ours.membrane, loop.membrane)
    assert torch.equal(ours.threshold, loop.threshold)
