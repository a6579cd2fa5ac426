"""GLIF against its equations in plain Python, ALIF and the kernels against the loop."""

import math
from typing import Any

import pytest
import torch
from neuron_cases import DETACHED, DTYPES, assert_close, cotangent
from torch import Tensor

import blockspike as bs
from blockspike.neurons.glif import ThresholdCoupling, glif
from tiers import mostly_slow

COUPLED = (False, True)


def make_inputs(
    shape: tuple[int, int, int], coupled: bool, recurrent: bool = False, dtype=torch.float64
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    n = shape[2]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)

    inputs = {
        "current": 0.12 + 0.25 * torch.randn(shape, generator=generator, dtype=torch.float64),
        "beta": uniform(0.8, 0.95),
        "reset_share": uniform(0, 0.5),
        "current_1": uniform(-0.05, 0.1),
        "current_decay_1": uniform(0.5, 0.9),
        "current_2": uniform(-0.02, 0.03),
        "current_decay_2": uniform(0.9, 0.99),
        "threshold_1": uniform(0, 0.5),
        "threshold_decay_1": uniform(0.5, 0.9),
        "threshold_2": uniform(-0.1, 0.2),
        "threshold_decay_2": uniform(0.9, 0.99),
    }
    if coupled:
        inputs |= {
            "coupling": uniform(0.1, 0.5),
            "decay": uniform(0.5, 0.9),
            "onset": uniform(0.2, 0.6),
            "width": uniform(0.1, 0.3),
        }
    if recurrent:
        weight = torch.randn(n, n, generator=generator, dtype=torch.float64)
        inputs["recurrent_weight"] = 0.3 * weight / n**0.5
    return {name: value.to(dtype) for name, value in inputs.items()}


def refractory_steps(n: int) -> Tensor:
    return torch.arange(n, dtype=torch.float64) % 4


def simulate(x: dict[str, Tensor], **options: Any) -> bs.SpikeTrace:
    n = x["beta"].numel()
    own: dict[str, Any] = {"refractory": refractory_steps(n).to(x["beta"])}
    for of, name in (("current", "after_spike_currents"), ("threshold", "threshold_kernels")):
        own[name] = [(x[f"{of}_{i}"], x[f"{of}_decay_{i}"]) for i in (1, 2)]
    if "coupling" in x:
        names = ("coupling", "decay", "onset", "width")
        own["threshold_coupling"] = ThresholdCoupling(*(x[name] for name in names))
    weight = x.get("recurrent_weight")
    return glif(
        x["current"], x["beta"], reset_share=x["reset_share"], recurrent_weight=weight,
        **(own | options),
    )  # fmt: skip


def run(x: dict[str, Tensor], of_membrane: bool = False, **options: Any) -> tuple[Tensor, dict]:
    leaves = {name: value.clone().requires_grad_() for name, value in x.items()}
    trace = simulate(leaves, membrane=of_membrane, **options)
    loss = (trace.spikes * cotangent(trace.spikes)).sum()
    if of_membrane:
        loss = loss + 0.1 * trace.membrane.square().sum()
    loss.backward()
    return trace.spikes.detach(), {name: leaf.grad for name, leaf in leaves.items()}


def check(x: dict[str, Tensor], rtol: float, of_membrane: bool = False, **options: Any) -> None:
    spikes, grads = run(x, of_membrane, method="standard", **options)
    ours, our_grads = run(x, of_membrane, method="fused", **options)
    assert 0.02 < spikes.mean() < 0.4
    assert torch.equal(ours, spikes)
    scale = grads["current"].abs().max().item()
    for name, grad in grads.items():
        assert grad.abs().max() > 0
        assert_close(our_grads[name], grad, rtol, name, scale)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_equations_in_plain_numbers(method):
    current = [1.0, 1.1, 0.9, 0.0, 2.0, 0.7, -0.3, 3.0, 0.4, 2.5, 1.5, 0.2]
    beta, share, refractory, weight, delay = 0.8, 0.3, 1, -0.4, 2
    w_amplitude, w_decay = (0.1, -0.05), (0.5, 0.9)
    b, p = (0.4, 0.1), (0.6, 0.95)
    coupling, decay, onset, width = 0.5, 0.7, 0.4, 0.3
    v, left, following = 0.0, 0, 0.0
    w, h = [0.0, 0.0], [0.0, 0.0]
    membranes, thresholds, spikes = [], [], []
    for t, drive in enumerate(current):
        if t >= delay:
            drive += weight * spikes[t - delay]
        drive -= sum(a * x for a, x in zip(w_amplitude, w, strict=True))
        v = v if left else beta * v + drive
        theta = 1 + sum(a * x for a, x in zip(b, h, strict=True)) + coupling * following
        fired = v > theta
        membranes.append(v)
        thresholds.append(theta)
        spikes.append(float(fired))
        v = share * v if fired else v
        left = refractory if fired else max(left - 1, 0)
        w = [d * x + fired for d, x in zip(w_decay, w, strict=True)]
        h = [d * x + fired for d, x in zip(p, h, strict=True)]
        x = v - onset
        rectified = x if x > width else max(x + width, 0) ** 2 / (4 * width)
        following = decay * following + (1 - decay) * rectified
    assert 3 <= sum(spikes) <= 8

    def one(value: float) -> Tensor:
        return torch.tensor([value], dtype=torch.float64)

    trace = glif(
        torch.tensor(current, dtype=torch.float64).view(-1, 1, 1),
        one(beta),
        reset_share=one(share),
        refractory=refractory,
        after_spike_currents=[(one(w_amplitude[i]), one(w_decay[i])) for i in (0, 1)],
        threshold_kernels=[(one(b[i]), one(p[i])) for i in (0, 1)],
        threshold_coupling=ThresholdCoupling(*map(one, (coupling, decay, onset, width))),
        recurrent_weight=one(weight).view(1, 1),
        recurrent_delay=delay,
        method=method,
        membrane=True,
    )
    assert trace.spikes.flatten().tolist() == spikes
    assert trace.membrane.flatten().tolist() == pytest.approx(membranes, rel=1e-12)
    assert trace.threshold.flatten().tolist() == pytest.approx(thresholds, rel=1e-12)


@pytest.mark.parametrize("of_membrane", [False, True])
@pytest.mark.parametrize("detach_spikes", DETACHED)
@pytest.mark.parametrize("delay", [0, 3])  # 0 = no recurrence
@pytest.mark.parametrize("coupled", COUPLED)
def test_fused_equals_the_loop(coupled, delay, detach_spikes, of_membrane):
    x = make_inputs((65, 2, 17), coupled, recurrent=delay > 0)
    options = {"recurrent_delay": max(delay, 1), "detach_spikes": detach_spikes}
    check(x, 1e-9, of_membrane, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("coupled", mostly_slow(COUPLED, lambda coupled: not coupled))
def test_every_type(coupled, dtype):
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    check(make_inputs((50, 3, 20), coupled, dtype=dtype), rtol)


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_threshold_kernel_is_alif(dtype, method):
    x = make_inputs((300, 2, 20), False, dtype=dtype)
    beta, b, p = x["beta"], x["threshold_1"], x["threshold_decay_1"]
    of_alif = bs.alif(x["current"], beta, p, b, arp=3, method=method, membrane=True)
    options = {"method": method, "membrane": True}
    of_glif = glif(x["current"], beta, refractory=3, threshold_kernels=[(b, p)], **options)
    assert torch.equal(of_alif.spikes, of_glif.spikes) and of_alif.spikes.sum() > 100
    torch.testing.assert_close(of_glif.membrane, of_alif.membrane)
    torch.testing.assert_close(of_glif.threshold, of_alif.threshold)


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("coupled", COUPLED)
def test_pieces_are_the_whole(coupled, method):
    x = make_inputs((60, 2, 7), coupled, recurrent=True)
    whole = simulate(x, method=method, recurrent_delay=2, membrane=True)
    state, pieces = None, []
    for first, last in ((0, 1), (1, 20), (20, 60)):
        piece = simulate(
            x | {"current": x["current"][first:last]}, method=method, recurrent_delay=2,
            state=state, membrane=True,
        )  # fmt: skip
        pieces.append(piece)
        state = piece.state
    assert torch.equal(torch.cat([piece.spikes for piece in pieces]), whole.spikes)
    for name in ("membrane", "threshold"):
        of_pieces = torch.cat([getattr(piece, name) for piece in pieces])
        torch.testing.assert_close(of_pieces, getattr(whole, name))


def test_refractory_neurons_keep_their_reset():
    x = make_inputs((80, 1, 12), False)
    trace = simulate(x, refractory=3, membrane=True)
    reset = x["reset_share"] * trace.membrane
    for t, sample, neuron in trace.spikes[:-3].nonzero().tolist():
        held = trace.membrane[t + 1 : t + 4, sample, neuron]
        torch.testing.assert_close(held, reset[t, sample, neuron].expand(3))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"refractory": -1}, "refractory: expected whole steps ≥ 0"),
        ({"refractory": torch.full((5,), 1.5)}, "refractory: expected whole steps ≥ 0"),
        ({"threshold_kernels": [(None, None)] * 3}, "threshold kernels: expected up to 2 pairs"),
        ({"threshold_kernels": [(0.1, 0.9)]}, "threshold_1: expected a tensor"),
        ({"reset_share": torch.zeros(4)}, "reset_share: expected a tensor"),
        (
            {"threshold_coupling": ThresholdCoupling(*torch.zeros(4, 5))},
            "quarter_of_inverse_width: expected finite",
        ),
    ],
)
def test_bad_arguments_are_named(changed, words):
    with pytest.raises(ValueError, match=words):
        glif(**({"current": torch.ones(10, 1, 5), "beta": torch.full((5,), 0.9)} | changed))


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_a_nan_while_refractory_is_found(method):
    current = torch.full((20, 1, 1), 2.0)
    current[1] = math.nan  # just after the first spike
    with pytest.raises(bs.NotFiniteError, match="step 1, sample 0, neuron 0"):
        glif(current, torch.tensor([0.9]), refractory=5, method=method)


def test_models_hold_each_other():
    """The step without coupling is the coupled step at a coupling of 0."""
    x = make_inputs((100, 2, 9), True)
    off = x | {"coupling": torch.zeros(9, dtype=torch.float64)}
    without = {k: v for k, v in x.items() if k not in ("coupling", "decay", "onset", "width")}
    assert torch.equal(simulate(off).spikes, simulate(without).spikes)


def test_parts_are_mapped_by_vmap():
    current, beta = torch.ones(5, 1, 3), torch.full((3,), 0.9)

    def spikes(width, refractory):
        coupling = bs.ThresholdCoupling(beta, beta, beta, width)
        return bs.glif(
            current, beta, refractory=refractory, threshold_coupling=coupling, method="standard"
        ).spikes

    widths, periods = torch.full((2, 3), 0.5), torch.tensor([[0.0] * 3, [2.0] * 3])
    found = torch.vmap(spikes)(widths, periods)
    for i in range(2):
        assert torch.equal(found[i], spikes(widths[i], periods[i]))
