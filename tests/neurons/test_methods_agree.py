"""The three methods compared: spikes, membrane, threshold and gradients."""

import pytest
import torch
from neuron_cases import (
    DETACHED,
    DTYPES,
    METHODS,
    SURROGATES,
    alif,
    assert_close,
    assert_gradient_alone,
    assert_same_result,
    make_inputs,
    run,
)

from blockspike.neurons import Boxcar
from tiers import mostly_slow

RTOL = {torch.float32: 1e-4, torch.float64: 1e-9}


def check_fused(inputs, **options):
    expected = run(inputs, method="standard", **options)
    assert expected[0].sum() > 0
    assert_same_result(
        run(inputs, method="fused", **options), expected, RTOL[inputs["current"].dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("n_neurons", [1, 17, 1030])
@pytest.mark.parametrize("n_steps", [63, 64, 65])
def test_fused_equals_standard_at_odd_sizes(n_steps, n_neurons, recurrent, detach_spikes, dtype):
    inputs = make_inputs((n_steps, 2, n_neurons), recurrent=recurrent, dtype=dtype)
    check_fused(inputs, arp=3, detach_spikes=detach_spikes)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("detach_spikes", DETACHED)
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize(
    "surrogate",
    mostly_slow(SURROGATES, lambda s: not isinstance(s, Boxcar)),  # each has kernels of its own
    ids=lambda s: type(s).__name__,
)
def test_fused_equals_standard_for_every_option(
    surrogate, recurrent, adaptive, detach_spikes, dtype
):
    inputs = make_inputs((65, 3, 17), recurrent=recurrent, adaptive=adaptive, dtype=dtype)
    check_fused(inputs, arp=2, detach_spikes=detach_spikes, surrogate=surrogate)


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("arp", [0, 1, 31, 32, 33, 64, 65, 66, 10**12])
def test_fused_equals_standard_at_every_arp(arp, recurrent, detach_spikes):
    delay = min(arp + 1, 1000)  # the state holds the spikes of as many steps
    inputs = make_inputs((65, 2, 7), recurrent=recurrent)
    check_fused(inputs, arp=arp, recurrent_delay=delay, detach_spikes=detach_spikes)


@pytest.mark.parametrize("detach_spikes", [True, False])
@pytest.mark.parametrize("arp", [0, 3])
@pytest.mark.parametrize("delay", [1, 2, 9, 64, 65, 1000])
def test_fused_equals_standard_at_every_recurrent_delay(delay, arp, detach_spikes):
    inputs = make_inputs((65, 2, 7), recurrent=True)
    check_fused(inputs, arp=arp, recurrent_delay=delay, detach_spikes=detach_spikes)
    if delay == arp + 1:
        assert_same_result(run(inputs, arp=arp, recurrent_delay=delay), run(inputs, arp=arp))


@pytest.mark.parametrize("method", ["blocks", "parallel blocks"])
def test_blocks_support_one_delay(method):
    inputs = make_inputs(recurrent=True)
    assert alif(**inputs, arp=3, recurrent_delay=4, method=method).spikes.sum() > 0
    with pytest.raises(ValueError, match="recurrent_delay: expected arp .* 4 for 'blocks'"):
        alif(**inputs, arp=3, recurrent_delay=3, method=method)


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("arp", [0, 1, 5, 63, 64, 65, 1000])
def test_blocks_give_the_spikes_of_standard(arp, recurrent, adaptive):
    inputs = make_inputs((64, 3, 17), recurrent=recurrent, adaptive=adaptive)
    expected = alif(**inputs, arp=arp, method="standard").spikes
    assert expected.sum() > 0
    for method in ("blocks", "parallel blocks"):
        assert torch.equal(alif(**inputs, arp=arp, method=method).spikes, expected)


@pytest.mark.parametrize(("arp", "most"), [(5, 0.5), (20, 0.2)])
def test_blocks_do_not_give_the_gradient_of_standard(arp, most):
    # The documentation says so; the two must not be confused.
    inputs = make_inputs((200, 3, 17))
    published = run(inputs, method="blocks", arp=arp)[1]["current"].flatten()
    standard = run(inputs, method="standard", arp=arp)[1]["current"].flatten()
    assert torch.cosine_similarity(published, standard, dim=0) < most
    assert published.norm() > 5 * standard.norm()


def test_blocks_of_one_step_without_adaptation_equal_standard():
    inputs = make_inputs(adaptive=False)
    expected = run(inputs, method="standard", arp=0)
    assert_same_result(run(inputs, method="blocks", arp=0), expected, 1e-12)


@pytest.mark.parametrize("with_grad", [True, False])
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("recurrent", [True, False])
@pytest.mark.parametrize("method", METHODS[1:])
def test_membrane_and_threshold_are_those_of_standard(method, recurrent, adaptive, with_grad):
    inputs = make_inputs((65, 2, 7), recurrent=recurrent, adaptive=adaptive)
    expected = alif(**inputs, arp=4, membrane=True, method="standard")
    with torch.set_grad_enabled(with_grad):
        trace = alif(**inputs, arp=4, membrane=True, method=method)
    assert trace.membrane is not None and trace.threshold is not None
    assert trace.membrane.requires_grad == with_grad
    assert_close(trace.membrane, expected.membrane, 1e-12, "membrane")
    assert_close(trace.threshold, expected.threshold, 1e-12, "threshold")
    assert torch.equal((trace.membrane > trace.threshold).double(), trace.spikes)


@pytest.mark.parametrize("method", ["standard", "blocks", "fused"])
def test_membrane_and_threshold_are_given_only_on_request(method):
    trace = alif(**make_inputs(), method=method)
    assert trace.membrane is None and trace.threshold is None


@pytest.mark.parametrize("method", METHODS)
def test_without_gradient_the_spikes_are_the_same(method):
    inputs = make_inputs(recurrent=True)
    expected = alif(**inputs, arp=2, method=method).spikes
    with torch.no_grad():
        spikes = alif(**inputs, arp=2, method=method).spikes
    assert torch.equal(spikes, expected) and not spikes.requires_grad


@pytest.mark.parametrize("name", ["current", "beta", "p", "b", "recurrent_weight"])
def test_one_differentiable_argument_is_enough(name):
    assert_gradient_alone(alif, make_inputs(recurrent=True), name)
