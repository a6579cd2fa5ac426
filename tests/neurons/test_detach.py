"""Where gradient stops at the spikes, against loops that detach in one place each."""

from typing import Any

import pytest
import torch
from neuron_cases import DETACHED, assert_close, make_inputs
from torch import Tensor

import blockspike as bs
from blockspike.neurons.surrogates import spike

SURROGATE = bs.MultiGaussian()


def alif_spikes(
    current: Tensor,
    beta: Tensor,
    p: Tensor,
    b: Tensor,
    recurrent_weight: Tensor,
    in_reset: bool,
    in_recurrence: bool,
) -> Tensor:
    """Spikes of ALIF without a refractory period, detached in the reset or in the recurrence."""
    membrane = adaptation = s = torch.zeros_like(current[0])
    spikes = []
    for drive in current:
        arriving = s.detach() if in_recurrence else s
        membrane = beta * membrane + drive + arriving @ recurrent_weight.T
        s = spike(membrane - (1 + b * adaptation), SURROGATE)
        membrane = membrane * (1 - (s.detach() if in_reset else s))
        adaptation = p * adaptation + s
        spikes.append(s)
    return torch.stack(spikes)


def adlif_spikes(
    current: Tensor, parameters: dict[str, Tensor], weight: Tensor, symplectic: bool
) -> Tensor:
    """Spikes as the authors simulate them, with the reset detached."""
    alpha, beta, a, b = (parameters[name] for name in ("alpha", "beta", "a", "b"))
    u = w = s = torch.zeros_like(current[0])
    spikes = []
    for drive in current:
        u_before, s_before = u, s
        u = alpha * u + (1 - alpha) * (drive + s @ weight.T - w)
        s = spike(u - 1, SURROGATE)
        u = u * (1 - s.detach())
        by = (u, s) if symplectic else (u_before, s_before)
        w = beta * w + (1 - beta) * 12.0 * (a * by[0] + b * by[1])
        spikes.append(s)
    return torch.stack(spikes)


def assert_same_gradients(ours: Tensor, expected: Tensor, leaves: dict[str, Tensor]) -> None:
    assert torch.equal(ours, expected) and 0.02 < expected.mean() < 0.6
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).double()
    found = [torch.autograd.grad(x, list(leaves.values()), weights) for x in (ours, expected)]
    for name, own, other in zip(leaves, *found, strict=True):
        assert_close(own, other, 1e-9, name, other.abs().max().item())


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("detach_spikes", DETACHED)
def test_alif_detaches_where_asked(detach_spikes, method):
    leaves = make_inputs((40, 2, 6), recurrent=True)
    ours = bs.alif(**leaves, surrogate=SURROGATE, detach_spikes=detach_spikes, method=method).spikes
    expected = alif_spikes(
        **leaves,
        in_reset=detach_spikes in (True, "reset"),
        in_recurrence=detach_spikes in (True, "recurrence"),
    )
    assert_same_gradients(ours, expected, leaves)


@pytest.mark.parametrize("method", ["standard", "fused"])
@pytest.mark.parametrize("euler", ["symplectic", "forward"])
def test_adlif_detaches_by_default_where_its_authors_do(euler, method):
    generator = torch.Generator().manual_seed(0)
    current = (2 + 3 * torch.randn(40, 2, 6, generator=generator)).double()
    ranges = {"alpha": (0.6, 0.9), "beta": (0.9, 0.98), "a": (0.0, 1.0), "b": (0.0, 2.0)}
    leaves = {"current": current, "recurrent_weight": torch.randn(6, 6, generator=generator)}
    leaves |= {
        name: low + (high - low) * torch.rand(6, generator=generator)
        for name, (low, high) in ranges.items()
    }
    leaves: dict[str, Any] = {name: x.double().requires_grad_() for name, x in leaves.items()}
    ours = bs.euler_adlif(**leaves, q=12.0, euler=euler, method=method).spikes
    weight = leaves["recurrent_weight"]
    expected = adlif_spikes(leaves["current"], leaves, weight, euler == "symplectic")
    assert_same_gradients(ours, expected, leaves)
    layer = bs.EulerAdLIFLayer(3, 6, dt_ms=1.0, euler=euler)
    assert layer.options.detach_spikes == "reset"


def test_another_place_is_refused():
    with pytest.raises(ValueError, match="detach_spikes: expected True, False, 'reset' or 're"):
        bs.alif(torch.ones(3, 1, 1), torch.ones(1), detach_spikes="membrane")  # pyright: ignore
