"""adLIF and RadLIF against the equations of Bittar & Garner in a loop of their own, by autograd."""

from typing import Any

import pytest
import torch
from neuron_cases import (
    DETACHED,
    DTYPES,
    OTHER_SURROGATES,
    SURROGATES,
    BoxcarSpike,
    assert_close,
    check_kernels,
    cotangent,
)
from torch import Tensor

import blockspike as bs
from tiers import mostly_slow


def published(
    current: Tensor, alpha: Tensor, beta: Tensor, a: Tensor, b: Tensor, u: Tensor, w: Tensor,
    s: Tensor, recurrent_weight: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Spikes [T, B, N] after u, w and s [B, N] of the step before the first."""
    spikes = []
    for drive in current:
        if recurrent_weight is not None:
            off_diagonal = recurrent_weight - torch.diag(recurrent_weight.diagonal())
            drive = drive + s @ off_diagonal.T
        w = beta * w + a * u + b * s
        u = alpha * (u - s) + (1 - alpha) * (drive - w)
        s = BoxcarSpike.apply(u - 1)
        spikes.append(s)
    return torch.stack(spikes)


def made(shape: tuple[int, int, int], recurrent: bool) -> dict[str, Tensor]:
    """Arguments of `published`, within the authors' ranges."""
    generator = torch.Generator().manual_seed(0)
    _, batch, n = shape

    def uniform(low: float, high: float, *size: int) -> Tensor:
        drawn = torch.rand(size or (n,), generator=generator, dtype=torch.float64)
        return (low + (high - low) * drawn).requires_grad_()

    inputs = {
        "current": uniform(-8, 22, *shape),
        "alpha": uniform(0.8187, 0.9608),
        "beta": uniform(0.9672, 0.9917),
        "a": uniform(-1, 1),
        "b": uniform(0, 2),
        **{name: uniform(0, 1, batch, n) for name in ("u", "w", "s")},
    }
    if recurrent:
        inputs["recurrent_weight"] = uniform(-4, 4, n, n)
    return inputs


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("shape", [(40, 2, 17), (33, 1, 2)])
def test_spikes_and_gradients_are_the_published_ones(shape, recurrent, method):
    inputs = made(shape, recurrent)
    expected = published(**inputs)
    assert 0.1 < expected.mean() < 0.9
    u, w, s = (inputs[name] for name in ("u", "w", "s"))
    alpha, beta, a, b = (inputs[name] for name in ("alpha", "beta", "a", "b"))
    options: dict[str, Any] = {}
    current = inputs["current"]
    if recurrent:
        weight = inputs["recurrent_weight"]
        options["recurrent_weight"] = weight - torch.diag(weight.diagonal())
        first = current[:1] + s @ options["recurrent_weight"].T
        current = torch.cat([first, current[1:]])
    state = {"membrane": u - s, "adaptation": beta * w + a * u + b * s}
    spikes = bs.adlif(current, alpha, beta, a, b, state=state, method=method, **options).spikes
    assert torch.equal(spikes, expected)
    leaves = list(inputs.values())
    found, wanted = (torch.autograd.grad(x, leaves, cotangent(x)) for x in (spikes, expected))
    for name, ours, theirs in zip(inputs, found, wanted, strict=True):
        assert theirs.any()
        assert_close(ours, theirs, 1e-9, name)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_equations_in_plain_numbers(method):
    currents = [30.0, 30.0, 0.0, 8.0, 90.0, -2.0, 70.0, 3.0, 5.0, 40.0, -10.0]
    alpha, beta, a, b = 0.9, 0.97, 0.5, 1.5
    u = w = s = 0.0
    membranes, spikes = [], []
    for drive in currents:
        w = beta * w + a * u + b * s
        u = alpha * (u - s) + (1 - alpha) * (drive - w)
        s = float(u > 1)
        membranes.append(u)
        spikes.append(s)
    assert 5 <= sum(spikes) <= 9 and max(membranes) > 2  # a reset that leaves some above 1
    trace = bs.adlif(
        torch.tensor(currents, dtype=torch.float64).view(-1, 1, 1),
        *torch.tensor([[alpha], [beta], [a], [b]], dtype=torch.float64),
        method=method,
        membrane=True,
    )
    assert trace.spikes.flatten().tolist() == spikes
    assert trace.membrane.flatten().tolist() == pytest.approx(membranes, rel=1e-12)
    last = trace.state.as_dict()
    assert last["membrane"].item() == pytest.approx(u - s)
    assert last["adaptation"].item() == pytest.approx(beta * w + a * u + b * s)


def make_inputs(shape: tuple[int, int, int], delay: int) -> dict[str, Any]:
    """Tensor arguments of `adlif`; delay 0 = no recurrence."""
    inputs = made(shape, delay > 0)
    return {name: x.detach() for name, x in inputs.items() if name not in ("u", "w", "s")}


@pytest.mark.parametrize("detach_spikes", DETACHED)
@pytest.mark.parametrize("delay", [0, 1, 3, 100])  # 0 = no recurrence
@pytest.mark.parametrize("shape", [(65, 2, 17), (40, 3, 130)])
def test_fused_equals_the_loop(shape, delay, detach_spikes):
    inputs = make_inputs(shape, delay)
    check_kernels(
        bs.adlif,
        inputs,
        1e-9,
        (0.05, 0.9),
        recurrent_delay=max(delay, 1),
        detach_spikes=detach_spikes,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "surrogate",
    mostly_slow([*SURROGATES, *OTHER_SURROGATES], lambda s: isinstance(s, bs.Boxcar | bs.SLAYER)),
    ids=repr,
)
def test_every_surrogate_and_type(surrogate, dtype):
    inputs = {name: x.to(dtype) for name, x in make_inputs((30, 2, 20), 0).items()}
    rtol = 1e-9 if dtype == torch.float64 else 1e-4
    check_kernels(bs.adlif, inputs, rtol, (0.05, 0.9), surrogate=surrogate)


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_the_state_grows_below_a_coupling_of_minus_one_plus_beta(method):
    """The README's condition for a neuron below threshold."""
    current = torch.zeros(3000, 1, 2, dtype=torch.float64)
    alpha, beta = torch.tensor([0.9, 0.9]).double(), torch.tensor([0.97, 0.97]).double()
    a = torch.tensor([-0.0305, -0.0295]).double()
    state = {"membrane": -0.001}
    trace = bs.adlif(
        current, alpha, beta, a, torch.zeros(2).double(), state=state, method=method, membrane=True
    )
    grown = (trace.membrane[-1] / trace.membrane[500]).flatten()
    assert grown[0] > 1.1 and grown[1] < 0.9 and not trace.spikes.any()


@pytest.mark.parametrize("method", ["standard", "fused"])
def test_nan_is_reported_with_its_position(method):
    inputs = make_inputs((50, 2, 20), 0)
    inputs["current"][7, 1, 3] = float("nan")
    with pytest.raises(bs.NotFiniteError, match="at step 7, sample 1, neuron 3"):
        bs.adlif(**inputs, method=method)
