"""A simulation cut anywhere is the whole simulation; the gradient of the membrane; states."""

import gc
import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_cases import DETACHED, METHODS, alif, assert_close, make_inputs
from torch import Tensor

import blockspike as bs
from blockspike.neurons import blocks
from blockspike.neurons.euler_adlif import SE_ADLIF
from blockspike.neurons.simulate import Detach

KINDS = ["symplectic", "forward", "adlif", "c_silif"]


@dataclass
class Case:
    """A simulation of T steps that is cut, and what it is differentiated by."""

    simulate: Callable[..., bs.SpikeTrace]
    current: Tensor
    start: dict[str, Tensor]
    leaves: dict[str, Tensor]
    membrane: bool

    def run(self, cuts: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All results, and the gradient of every leaf, of a simulation in pieces."""
        state: Any = self.start
        traces = []
        bounds = (0, *cuts, len(self.current))
        for first, last in pairwise(bounds):
            traces.append(self.simulate(self.current[first:last], state=state))
            state = traces[-1].state
        names = ("spikes", "membrane", "threshold") if self.membrane else ("spikes",)
        results = {name: torch.cat([getattr(x, name) for x in traces]) for name in names}
        results |= {f"last {name}": value for name, value in state.as_dict().items()}
        generator = torch.Generator().manual_seed(1)
        loss = torch.zeros((), dtype=torch.float64)
        for value in results.values():
            weight = torch.randn(value.shape, generator=generator, dtype=value.dtype)
            if value.requires_grad:
                loss = loss + (value.cpu() * weight).sum()
        assert not self.membrane or results["membrane"].requires_grad
        grads = torch.autograd.grad(loss, list(self.leaves.values()), materialize_grads=True)
        values = {name: value.detach() for name, value in results.items()}
        return values, dict(zip(self.leaves, grads, strict=True))


def made(
    kind: str, method: str, shape: tuple[int, int, int], *, recurrent: bool = True, arp: int = 2,
    delay: int | None = None, detach_spikes: Detach = False, membrane: bool = True,
    adaptive: bool = True, seed: int = 0, dtype: torch.dtype = torch.float64,
    device: Any = "cpu",
) -> Case:  # fmt: skip
    inputs = make_inputs(shape, recurrent=recurrent, adaptive=adaptive, dtype=dtype, seed=seed)
    inputs = {name: x.detach().to(device).requires_grad_() for name, x in inputs.items()}
    current, weight = inputs.pop("current"), inputs.pop("recurrent_weight", None)
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {
        "recurrent_weight": weight,
        "detach_spikes": detach_spikes,
        "membrane": membrane,
        "method": method,
    }
    names = ["membrane", "imaginary" if kind == "c_silif" else "adaptation"]
    if kind == "alif" and not adaptive:
        names = ["membrane"]
    start = {
        name: torch.rand(shape[1:], generator=generator, dtype=torch.float64).to(device, dtype)
        for name in names
    }
    if recurrent:
        n_delayed = (arp + 1 if kind == "alif" else 1) if delay is None else delay
        drawn = torch.rand((n_delayed, *shape[1:]), generator=generator)
        start["spikes"] = (drawn < 0.2).to(device, dtype)
    leaves = {"current": current, **inputs}
    leaves |= {f"start {name}": value.requires_grad_() for name, value in start.items()}
    if weight is not None:
        leaves["recurrent_weight"] = weight

    def simulate(current: Tensor, state: Any) -> bs.SpikeTrace:
        if kind == "alif":
            return alif(current, **inputs, arp=arp, recurrent_delay=delay, state=state, **options)
        beta, p, b = inputs.values()
        alone = {"recurrent_delay": delay or 1, "state": state, **options}
        if kind == "adlif":
            return bs.adlif(4 * current, beta, p, 0.1 * b, 1 - b, **alone)
        if kind == "c_silif":
            return bs.c_silif(2 * current, beta, 3 * p, b, 1 - b, **alone)
        return bs.euler_adlif(
            4 * current, beta, p, b, 1 - b, q=1.0, euler=cast(Any, kind), **alone
        )  # fmt: skip

    return Case(simulate, current, start, leaves, membrane)


def assert_the_same(actual, expected, rtol=1e-9):
    results, grads = actual
    assert torch.equal(results["spikes"], expected[0]["spikes"])
    for name, value in expected[0].items():
        assert_close(results[name], value, 1e-3 * rtol, name, scale=1.0)
    for name, grad in expected[1].items():
        assert_close(grads[name], grad, rtol, name, scale=1e-3)


@st.composite
def cut_simulations(draw):
    kind = draw(st.sampled_from(["alif", *KINDS]))
    method = draw(st.sampled_from(METHODS if kind == "alif" else ["standard", "fused"]))
    in_blocks = "blocks" in method
    arp = draw(st.integers(0, 5))
    n = arp + 1 if in_blocks else 1
    n_steps = n * draw(st.integers(2, 40 // n))
    cuts = draw(st.lists(st.integers(1, n_steps // n - 1), min_size=1, max_size=4, unique=True))
    recurrent = draw(st.booleans())
    own_delay = recurrent and not in_blocks
    case = made(
        kind,
        method,
        (n_steps, draw(st.integers(1, 3)), draw(st.integers(1, 20))),
        arp=arp,
        recurrent=recurrent,
        delay=draw(st.one_of(st.none(), st.integers(1, 50))) if own_delay else None,
        detach_spikes=draw(st.sampled_from(DETACHED)),
        membrane=draw(st.booleans()),
        adaptive=kind != "alif" or draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
    )
    return case, [n * cut for cut in sorted(cuts)]


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(cut_simulations())
def test_the_whole_from_its_parts(drawn):
    case, cuts = drawn
    assert_the_same(case.run(cuts), case.run([]))


@pytest.mark.parametrize("kind", ["alif", *KINDS])
@pytest.mark.parametrize("cuts", [[1], [7], [8, 9, 20]])
def test_spikes_of_float32_in_parts(kind, cuts):
    case = made(kind, "fused", (33, 2, 20), dtype=torch.float32)
    assert_the_same(case.run(cuts), case.run([]), 1e-4)


@pytest.mark.parametrize("membrane", [True, False])
@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("kind", ["alif", *KINDS])
def test_fused_equals_standard_from_any_state(kind, recurrent, detach_spikes, membrane):
    options: Any = {
        "recurrent": recurrent,
        "detach_spikes": detach_spikes,
        "membrane": membrane,
    }
    expected, actual = (
        made(kind, method, (29, 2, 17), **options).run([]) for method in ("standard", "fused")
    )
    assert_the_same(actual, expected)


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
def test_the_kernel_of_blocks_equals_its_twin_from_any_state(recurrent, detach_spikes):
    expected, actual = (
        made(
            "alif",
            method,
            (30, 2, 17),
            recurrent=recurrent,
            detach_spikes=detach_spikes,
            membrane=False,
        ).run([])
        for method in ("parallel blocks", "blocks")
    )
    assert_the_same(actual, expected)


@pytest.mark.parametrize("method", ["standard", "fused", "blocks"])
def test_a_state_of_one_method_continues_by_another(method):
    whole = made("alif", "standard", (30, 2, 5), membrane=False)
    other = made("alif", method, (30, 2, 5), membrane=False)
    first = whole.simulate(whole.current[:12], state=whole.start)
    second = other.simulate(whole.current[12:], state=first.state)
    spikes = whole.simulate(whole.current, state=whole.start).spikes
    assert torch.equal(torch.cat([first.spikes, second.spikes]), spikes)


def test_detaching_cuts_the_gradient():
    case = made("alif", "fused", (20, 1, 3))
    state = case.simulate(case.current[:10], state=None).state
    later = case.simulate(case.current[10:], state=state.detach())
    (grad,) = torch.autograd.grad(later.spikes.sum(), case.current)
    assert not grad[:10].any() and grad[10:].any()


@pytest.fixture
def state() -> bs.NeuronState:
    return (
        made("alif", "fused", (9, 4, 3))
        .simulate(torch.ones(9, 4, 3, dtype=torch.float64), state=None)
        .state
    )


@pytest.mark.parametrize(
    "samples",
    [
        2,
        np.int64(2),
        np.array(2),
        torch.tensor(2),
        slice(1, 3),
        [0, 3],
        torch.tensor([True, False] * 2),
    ],
)
def test_samples_of_a_state(state, samples):
    chosen = samples if isinstance(samples, slice | list) or np.ndim(samples) else [int(samples)]
    assert torch.equal(state[samples].values, state.values[:, chosen])
    assert torch.equal(state[samples].spikes, state.spikes[:, chosen])
    assert len(state) == 4 and len(state[samples]) == state.values[:, chosen].shape[1]


def test_copies_of_a_state(state):
    assert state.values.requires_grad and not state.detach().values.requires_grad
    assert state.clone().values.requires_grad
    single = state.to(torch.float32)
    assert single.values.dtype == single.spikes.dtype == torch.float32


def test_a_state_is_saved_and_loaded(state, tmp_path):
    state.save(tmp_path / "a.safetensors")
    loaded = bs.NeuronState.load(tmp_path / "a.safetensors")
    assert repr(loaded) == repr(state)
    for name, value in state.as_dict().items():
        assert torch.equal(loaded.as_dict()[name], value)


def test_a_membrane_that_does_not_start_at_0():
    current = torch.zeros(3, 2, 2)
    beta = torch.tensor([0.5, 0.9])
    for start in (0.8, torch.tensor([0.2, 0.4]), torch.tensor([[0.2, 0.4], [0.6, 0.8]])):
        trace = bs.alif(current, beta, state={"membrane": start}, membrane=True)
        assert trace.membrane is not None
        assert torch.allclose(trace.membrane[0], (beta * start).expand(2, 2))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s[:2], r"state: values: expected \(\(3, 4, 3\), .*got \(\(3, 2, 3\)"),
        (lambda s: s.to(torch.float32), "state: values: expected .*float64.*got .*float32"),
        (
            lambda s: bs.NeuronState(s.model, s.names, s.values * math.nan, s.spikes),
            "state: expected finite values, got nan",
        ),
        (
            lambda s: bs.NeuronState("other", s.names, s.values, s.spikes),
            "state: expected a state of alif, got NeuronState of other",
        ),
        (
            lambda s: bs.NeuronState(s.model, s.names, s.values),
            "state: spikes: expected .* got None",
        ),
        (
            lambda s: bs.NeuronState(s.model, s.names, s.values, s.spikes[1:]),
            r"state: spikes: expected \(\(3, 4, 3\), .*got \(\(2, 4, 3\)",
        ),
        (
            lambda s: {"voltage": 1.0},
            "expected some of membrane, adaptation, refractory_left, spikes, got 'voltage'",
        ),
        (
            lambda s: bs.NeuronState(s.model, s.names, s.values, 2 - s.spikes),
            "state: spikes: expected values of 0 or 1",
        ),
        (
            lambda s: bs.NeuronState(s.model, s.names, s.values, s.spikes / 0),
            "state: spikes: expected values of 0 or 1",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(state, change, words):
    case = made("alif", "fused", (9, 4, 3))
    with pytest.raises(ValueError, match=words):
        case.simulate(case.current, state=change(state))


def test_a_number_of_a_state_that_is_not_finite():
    with pytest.raises(bs.NotFiniteError, match="^state: expected finite values, got nan"):
        bs.alif(torch.ones(6, 2, 3), torch.full((3,), 0.9), state={"membrane": math.nan})


@pytest.mark.parametrize("membrane", [True, False])
def test_the_state_within_a_block_is_nan(membrane):
    case = made("alif", "blocks", (30, 2, 5), membrane=membrane)
    trace = case.simulate(case.current[:10], state=None)
    assert trace.spikes.any() and trace.state.values.isnan().all()
    with pytest.raises(bs.NotFiniteError, match="^state: expected finite values, got nan"):
        case.simulate(case.current[10:], state=trace.state)


def test_of_a_user_model_in_parts():
    current = torch.rand(40, 2, 3, dtype=torch.float64)
    parameters = {name: torch.full((3,), 0.5).double() for name in ("alpha", "beta", "a", "b")}
    model = SE_ADLIF
    state, spikes = None, []
    for piece in current.split(7):
        trace = bs.simulate(model, 4 * piece, parameters, (1.0,), state=state)
        state = trace.state
        spikes.append(trace.spikes)
    whole = bs.simulate(model, 4 * current, parameters, (1.0,)).spikes
    assert torch.equal(torch.cat(spikes), whole) and whole.any()


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"refractory_left": 7.0}, "^state: arp - refractory_left: expected values ≥ 0"),
        ({"adaptation": -5.0}, "≥ 0"),
    ],
)
def test_blocks_refuse_states_that_a_block_cannot_represent(state, words):
    case = made("alif", "blocks", (9, 2, 5))
    with pytest.raises(ValueError, match=words):
        case.simulate(case.current, state=state)


def test_nothing_of_parallel_blocks_stays_in_memory(monkeypatch):
    found = []

    def remember(*arguments):
        crossings = spike(*arguments)
        found.append(weakref.ref(crossings))
        return crossings

    spike = blocks.spike
    monkeypatch.setattr(blocks, "spike", remember)
    made("alif", "parallel blocks", (9, 2, 5)).run([])
    gc.collect()
    assert found and not any(crossings() is not None for crossings in found)
