"""The kernel of the Blocks method against its readable twin, `blocks.py`."""

import pytest
import torch
from neuron_cases import (
    DETACHED,
    DTYPES,
    SURROGATES,
    assert_same_result,
    make_inputs,
    run,
)

from blockspike.neurons import MultiGaussian
from tiers import mostly_slow


def check(inputs, **options):
    expected = run(inputs, method="parallel blocks", **options)
    assert expected[0].sum() > 0
    rtol = 1e-9 if inputs["current"].dtype == torch.float64 else 1e-4
    assert_same_result(run(inputs, method="blocks", **options), expected, rtol)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_spikes", DETACHED)
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize(
    "surrogate",
    mostly_slow(SURROGATES, lambda s: isinstance(s, MultiGaussian)),  # each has kernels of its own
    ids=lambda s: type(s).__name__,
)
def test_kernel_equals_its_twin_for_every_option(
    surrogate, recurrent, adaptive, detach_spikes, dtype
):
    inputs = make_inputs((65, 3, 17), recurrent=recurrent, adaptive=adaptive, dtype=dtype)
    check(inputs, arp=2, detach_spikes=detach_spikes, surrogate=surrogate)


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("arp", [0, 1, 14, 15, 16, 17, 31, 32, 63, 64, 65, 1000])
def test_kernel_equals_its_twin_at_every_arp(arp, recurrent, detach_spikes):
    check(make_inputs((65, 2, 7), recurrent=recurrent), arp=arp, detach_spikes=detach_spikes)


@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1, 3), (33, 1, 257), (70, 9, 300)])
def test_kernel_equals_its_twin_at_odd_sizes(shape, recurrent):
    inputs = make_inputs(shape, recurrent=recurrent)
    with torch.no_grad():
        inputs["current"] += 1.0 if shape[0] < 3 else 0.0  # so that there are spikes
    check(inputs, arp=4, detach_spikes=False)


@pytest.mark.parametrize("name", ["beta", "p", "b"])
def test_a_parameter_of_zero(name):
    inputs = make_inputs((65, 2, 7), recurrent=True)
    with torch.no_grad():
        inputs[name].zero_()
    check(inputs, arp=3, detach_spikes=False)
