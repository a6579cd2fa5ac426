"""Recurrent delays of each neuron's own, against a loop of the tests' own and between methods."""

from typing import Any

import pytest
import torch
from neuron_cases import assert_close
from torch import Tensor

import blockspike as bs
from blockspike.neurons.adlif import ADLIF
from blockspike.neurons.c_silif import C_SILIF
from blockspike.neurons.euler_adlif import EF_ADLIF, SE_ADLIF
from blockspike.neurons.surrogates import spike

N, B = 23, 3
RTOL = {torch.float32: 1e-4, torch.float64: 1e-9}


def uniform(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(*shape, generator=generator, dtype=dtype)


def made_inputs(
    longest: int, n_steps: int = 40, with_state: bool = False, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """Current, weight, delays in steps and, if asked for, the spikes before, with gradient."""
    generator = torch.Generator().manual_seed(longest)
    inputs = {
        "current": 0.6 * uniform(generator, n_steps, B, N),
        "weight": 0.3 * torch.randn(N, N, generator=generator, dtype=torch.float64),
        "steps": (longest + 1) * uniform(generator, N),  # some beyond either end
    }
    if with_state:
        inputs["spikes"] = (uniform(generator, longest, B, N) < 0.3).double()
        inputs["membrane"] = uniform(generator, B, N)
    return {name: x.to(dtype).requires_grad_() for name, x in inputs.items()}


def run(
    inputs: dict[str, Tensor], longest: int, span: int = 2, **options: Any
) -> tuple[bs.SpikeTrace, dict[str, Tensor]]:
    """Trace of an ALIF population and the gradients of all inputs."""
    current, steps, n = inputs["current"], inputs["steps"], len(inputs["steps"])
    beta, p, b = (current.new_full((n,), x) for x in (0.9, 0.95, 0.2))
    state = {name: inputs[name] for name in ("spikes", "membrane") if name in inputs}
    trace = bs.alif(
        current, beta, p, b,
        recurrent_weight=inputs["weight"],
        recurrent_delay=bs.RecurrentDelays(steps, longest, span),
        state=state or None,
        **options,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(trace.spikes.shape, generator=generator, dtype=current.dtype)
    loss = (trace.spikes * cotangent).sum() + trace.state.values[0].square().sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return trace, dict(zip(inputs, grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("detach_spikes", [False, True, "reset", "recurrence"])
@pytest.mark.parametrize(("longest", "span"), [(1, 1), (2, 1), (7, 3), (33, 8), (90, 1)])
def test_fused_equals_standard(longest, span, detach_spikes, with_state, dtype):
    inputs = made_inputs(longest, with_state=with_state, dtype=dtype)
    options: dict[str, Any] = {"span": span, "detach_spikes": detach_spikes}
    expected, grads = run(inputs, longest, method="standard", **options)
    trace, own = run(inputs, longest, method="fused", **options)
    assert expected.spikes.sum() > 100
    assert torch.equal(trace.spikes, expected.spikes)
    for name, x in expected.state.as_dict().items():
        assert_close(trace.state.as_dict()[name], x, RTOL[dtype], name)
    for name, grad in grads.items():
        assert_close(own[name], grad, RTOL[dtype], name)
    assert longest == 1 or bool(own["steps"].any())


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_spikes_are_those_of_a_loop_over_synapses(method):
    inputs = made_inputs(9, n_steps=30)
    trace, _ = run(inputs, 9, method=method)
    whole = inputs["steps"].detach().round().clamp(1, 9).int().tolist()
    spikes = torch.zeros(30, B, N, dtype=torch.float64)
    state, adaptation = (torch.zeros(B, N, dtype=torch.float64) for _ in range(2))
    with torch.no_grad():
        for t in range(30):
            drive = inputs["current"][t].clone()
            for pre, delay in enumerate(whole):
                if t >= delay:
                    drive += spikes[t - delay, :, pre, None] * inputs["weight"][:, pre]
            membrane = 0.9 * state + drive
            spikes[t] = spike(membrane - 1 - 0.2 * adaptation, bs.MultiGaussian())
            state = membrane * (1 - spikes[t])
            adaptation = 0.95 * adaptation + spikes[t]
    assert torch.equal(trace.spikes, spikes)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_the_gradient_of_a_delay_is_a_difference_of_arrivals(method):
    # Two steps are too short for the arriving spike to act on the spikes of others.
    current = torch.zeros(8, 1, 2, dtype=torch.float64)
    current[0, 0, 0] = 2.0
    weight = torch.tensor([[0.0, 0.0], [0.25, 0.0]], dtype=torch.float64)
    beta = torch.tensor([0.0, 0.5], dtype=torch.float64)
    for at, span, (early, late) in [(4.2, 1, (3, 5)), (4.2, 9, (1, 6)), (0.0, 2, (1, 3))]:
        steps = torch.tensor([at, 1.0], dtype=torch.float64, requires_grad=True)
        trace = bs.alif(
            current, beta, recurrent_weight=weight, method=method,
            recurrent_delay=bs.RecurrentDelays(steps, 6, span),
        )  # fmt: skip
        assert trace.spikes.sum() == 1
        (grad,) = torch.autograd.grad(trace.state.values[0, 0, 1], steps)
        by_arrival = {d: 0.25 * 0.5 ** (7 - d) for d in (early, late)}
        expected = (by_arrival[late] - by_arrival[early]) / (late - early)
        assert grad.tolist() == pytest.approx([expected, 0.0], rel=1e-12)


@pytest.mark.parametrize("model", [ADLIF, C_SILIF, EF_ADLIF, SE_ADLIF], ids=lambda m: m.name)
def test_every_model_has_them(model):
    generator = torch.Generator().manual_seed(4)
    constants = (24.0,) if model in (EF_ADLIF, SE_ADLIF) else ()
    inputs = made_inputs(6)
    names = model.parameters
    parameters = {x: 0.5 + 0.4 * uniform(generator, N).requires_grad_() for x in names}
    results = []
    for method in ("standard", "fused"):
        trace = bs.simulate(
            model, 12 * inputs["current"], parameters, constants,
            recurrent_weight=inputs["weight"], method=method, detach_spikes=False,
            recurrent_delay=bs.RecurrentDelays(inputs["steps"], 6, 2),
        )  # fmt: skip
        cotangent = torch.linspace(-1, 1, trace.spikes.numel()).view(trace.spikes.shape).double()
        wanted = [*inputs.values(), *parameters.values()]
        results.append((trace, torch.autograd.grad((trace.spikes * cotangent).sum(), wanted)))
    (expected, grads), (trace, own) = results
    assert expected.spikes.sum() > 100 and torch.equal(trace.spikes, expected.spikes)
    for x, y in zip(own, grads, strict=True):
        assert_close(x, y, 1e-9, "gradient")


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_equal_delays_are_those_of_the_whole_layer(method):
    inputs = made_inputs(5)
    with torch.no_grad():
        inputs["steps"].fill_(3.0)
    current, weight = inputs["current"], inputs["weight"]
    beta = current.new_full((N,), 0.9)
    trace, _ = run(inputs, 5, method=method)
    p, b = current.new_full((N,), 0.95), current.new_full((N,), 0.2)
    options: dict[str, Any] = {"recurrent_weight": weight, "method": method}
    assert torch.equal(
        trace.spikes, bs.alif(current, beta, p, b, recurrent_delay=3, **options).spikes
    )


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("n_first", [1, 4, 11])
def test_a_simulation_goes_on_from_its_state(n_first, method):
    inputs = made_inputs(9, n_steps=30)
    whole, _ = run(inputs, 9, method=method)
    current, delays = inputs["current"], bs.RecurrentDelays(inputs["steps"], 9, 2)
    beta, p, b = (current.new_full((N,), x) for x in (0.9, 0.95, 0.2))
    options: dict[str, Any] = {"recurrent_weight": inputs["weight"], "recurrent_delay": delays}
    first = bs.alif(current[:n_first], beta, p, b, method=method, **options)
    second = bs.alif(current[n_first:], beta, p, b, state=first.state, method=method, **options)
    assert torch.equal(torch.cat([first.spikes, second.spikes]), whole.spikes)
    assert first.state.spikes is not None and first.state.spikes.shape == (9, B, N)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_delays_that_changed_are_used_in_the_next_simulation(method):
    current, weight = torch.zeros(9, 1, 2), torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    current[0, 0, 0] = 2.0
    delays = bs.RecurrentDelays(torch.tensor([2.0, 1.0]), 8)
    for delay in (2, 6):
        delays.steps.fill_(float(delay))
        options: dict[str, Any] = {"recurrent_delay": delays, "method": method}
        trace = bs.alif(current, torch.zeros(2), recurrent_weight=weight, **options)
        assert trace.spikes[:, 0, 1].nonzero().flatten().tolist() == [delay]


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_autocast_does_not_round_what_they_do(method):
    inputs = made_inputs(6, dtype=torch.float32)
    inputs = {name: x.detach().bfloat16() for name, x in inputs.items()}
    beta = torch.full((N,), 0.9, dtype=torch.bfloat16)
    results = []
    for dtype in (torch.bfloat16, torch.float32):
        given = {name: x.to(dtype) for name, x in inputs.items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            results.append(
                bs.alif(
                    given["current"], beta.to(dtype), recurrent_weight=given["weight"],
                    recurrent_delay=bs.RecurrentDelays(given["steps"], 6), method=method,
                ).spikes
            )  # fmt: skip
    assert results[1].sum() > 100 and torch.equal(*results)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_number_of_threads_changes_nothing(n_threads):
    before = torch.get_num_threads()
    inputs = made_inputs(7)
    try:
        torch.set_num_threads(3)
        expected, grads = run(inputs, 7)
        torch.set_num_threads(n_threads)
        trace, own = run(inputs, 7)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(trace.spikes, expected.spikes)
    assert all(torch.equal(own[name], grads[name]) for name in ("current", "spikes") if name in own)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"longest": 0}, "recurrent_delay: expected an int ≥ 1"),
        ({"steps": torch.ones(N + 1)}, r"recurrent_delay: steps: expected .*got \(\[24\]"),
        ({"steps": torch.full((N,), torch.nan)}, "recurrent_delay: expected finite values"),
    ],
)
def test_bad_delays_are_named(change, error):
    given: dict[str, Any] = {"steps": torch.ones(N), "longest": 4, "span": 1} | change
    with pytest.raises(ValueError, match=error):
        bs.alif(
            torch.zeros(5, B, N),
            torch.full((N,), 0.9),
            recurrent_weight=torch.eye(N),
            recurrent_delay=bs.RecurrentDelays(**given),
        )


def test_blocks_refuse_them():
    delays = bs.RecurrentDelays(torch.ones(N), 4)
    with pytest.raises(ValueError, match=r"recurrent_delay: expected arp \+ 1 = 1 for 'blocks'"):
        bs.alif(
            torch.zeros(5, B, N),
            torch.full((N,), 0.9),
            recurrent_weight=torch.eye(N),
            recurrent_delay=delays,
            method="blocks",
        )
