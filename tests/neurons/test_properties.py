"""Properties that hold for every input: refractoriness, causality, independence, symmetry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neuron_cases import METHODS, alif, assert_close, make_inputs


@st.composite
def cases(draw, least_batch: int = 1, least_neurons: int = 1):
    """Inputs of random size, and options for `alif`."""
    shape = (
        draw(st.integers(1, 70)),
        draw(st.integers(least_batch, 3)),
        draw(st.integers(least_neurons, 6)),
    )
    inputs = make_inputs(
        shape,
        recurrent=draw(st.booleans()),
        adaptive=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
    )
    return inputs, {"arp": draw(st.integers(0, 80)), "detach_spikes": draw(st.booleans())}


def properties(**kwargs):
    """Run a test with `cases` for each of the three methods."""

    def decorate(test):
        test = settings(max_examples=25, deadline=None)(given(case=cases(**kwargs))(test))
        return pytest.mark.parametrize("method", METHODS)(test)

    return decorate


@properties()
def test_at_most_one_spike_in_arp_plus_one_steps(method, case):
    inputs, options = case
    spikes = alif(**inputs, **options, method=method).spikes.detach()
    assert set(spikes.unique().tolist()) <= {0.0, 1.0}
    total = torch.cat([torch.zeros_like(spikes[:1]), spikes.cumsum(0)])
    window = min(options["arp"] + 1, len(spikes))
    assert (total[window:] - total[:-window]).max() <= 1


@properties()
def test_the_future_does_not_change_the_past(method, case):
    inputs, options = case
    present = len(inputs["current"]) // 2
    spikes = alif(**inputs, **options, method=method).spikes
    changed = inputs["current"].detach().clone()
    changed[present:] = 2 - changed[present:]
    after = alif(**(inputs | {"current": changed}), **options, method=method).spikes
    assert torch.equal(after[:present], spikes[:present])
    (grad,) = torch.autograd.grad(spikes[:present].sum(), inputs["current"])
    assert not grad[present:].any()


@properties(least_batch=2)
def test_samples_are_independent(method, case):
    inputs, options = case
    spikes = alif(**inputs, **options, method=method).spikes
    for sample in range(spikes.shape[1]):
        current = inputs["current"].detach()[:, sample : sample + 1].requires_grad_()
        alone = alif(**(inputs | {"current": current}), **options, method=method).spikes
        assert torch.equal(alone, spikes[:, sample : sample + 1])
    # A loss on the last sample gives the others no gradient.
    (grad,) = torch.autograd.grad(spikes[:, -1].sum(), inputs["current"])
    assert not grad[:, :-1].any()


@properties(least_neurons=2)
def test_the_order_of_neurons_does_not_matter(method, case):
    inputs, options = case
    order = torch.randperm(inputs["beta"].numel(), generator=torch.Generator().manual_seed(0))
    permuted = {name: value.detach()[..., order] for name, value in inputs.items()}
    if "recurrent_weight" in permuted:
        permuted["recurrent_weight"] = permuted["recurrent_weight"][order]
    spikes = alif(**inputs, **options, method=method).spikes
    spikes.sum().backward()
    leaves = {name: value.requires_grad_() for name, value in permuted.items()}
    again = alif(**leaves, **options, method=method).spikes
    again.sum().backward()
    assert torch.equal(again, spikes[..., order])
    grad, expected = leaves["current"].grad, inputs["current"].grad
    assert grad is not None and expected is not None
    assert_close(grad, expected[..., order], 1e-9, "current")


@properties()
def test_no_input_no_spike(method, case):
    inputs, options = case
    silence = torch.zeros_like(inputs["current"])
    inputs = inputs | {"current": silence}
    trace = alif(**inputs, **options, membrane=True, method=method)
    assert not trace.spikes.any() and not trace.membrane.any() and (trace.threshold == 1).all()
