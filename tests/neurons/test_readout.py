"""The leaky integrator against a loop, and its two scans compared."""

import pytest
import torch
from neuron_cases import DTYPES, assert_close, on_grid

from blockspike.neurons import leaky_integrate
from blockspike.neurons.readout import _scan, _scan_by_doubling

RTOL = {torch.float32: 1e-6, torch.float64: 1e-14}


def loop(current, beta):
    """Integrate V[t] = β V[t−1] + I[t] step by step."""
    state, out = torch.zeros_like(current[0]), []
    for row in current:
        state = beta * state + row
        out.append(state)
    return torch.stack(out)


def inputs(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    current = torch.randn(shape, generator=generator, dtype=torch.float64)
    beta = torch.rand(shape[2], generator=generator, dtype=torch.float64)
    return on_grid(current).to(dtype), beta.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 2, 3), (65, 3, 1), (33, 1, 257), (64, 2, 600)])
def test_values_and_gradients_are_those_of_the_loop(shape, dtype):
    results = []
    for integrate in (loop, leaky_integrate):
        current, beta = (x.requires_grad_() for x in inputs(shape, dtype))
        out = integrate(current, beta)
        torch.manual_seed(0)
        out.backward(torch.randn_like(out))
        grad_beta = torch.zeros_like(beta) if beta.grad is None else beta.grad
        results.append((out.detach(), current.grad, grad_beta))
    assert torch.equal(results[0][0], results[1][0])
    assert_close(results[1][1], results[0][1], RTOL[dtype], "current")
    assert_close(results[1][2], results[0][2], 20 * RTOL[dtype], "beta")


def test_gradcheck():
    current, beta = (x.requires_grad_() for x in inputs((7, 2, 3)))
    assert torch.autograd.gradcheck(leaky_integrate, (current, beta))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 63, 64, 65, 1000])
def test_doubling_equals_the_kernel(n_steps, reverse, dtype):
    x, beta = inputs((n_steps, 2, 5), dtype)
    doubled = _scan_by_doubling(x.flip(0) if reverse else x, beta)
    expected = _scan(x, beta, reverse)
    assert_close(doubled.flip(0) if reverse else doubled, expected, 10 * RTOL[dtype], "scan")


def test_the_reverse_scan_equals_a_loop_from_the_end():
    x, beta = inputs((65, 2, 5))
    assert torch.equal(_scan(x, beta, True), loop(x.flip(0), beta).flip(0))


def test_any_memory_layout_without_modifying_inputs():
    current, beta = inputs((40, 3, 5))
    expected = loop(current, beta)
    for other in (current.permute(1, 2, 0).contiguous().permute(2, 0, 1), current.clone()):
        before = other.clone()
        assert torch.equal(leaky_integrate(other, beta), expected)
        assert torch.equal(other, before)
    one_sample = current[:, :1].expand(-1, 3, -1)
    assert torch.equal(leaky_integrate(one_sample, beta), loop(one_sample, beta))


def test_only_beta_or_only_current_differentiable():
    current, beta = inputs((40, 3, 5))
    leaky_integrate(current, beta.requires_grad_()).sum().backward()
    assert beta.grad is not None and beta.grad.any() and current.grad is None
    leaky_integrate(current.requires_grad_(), beta.detach()).sum().backward()
    assert current.grad is not None and current.grad.any()


@pytest.mark.parametrize(
    ("current_shape", "beta_shape"), [((4, 3), (3,)), ((4, 2, 3), (2,)), ((4, 2, 3), ())]
)
def test_bad_shapes(current_shape, beta_shape):
    with pytest.raises(ValueError, match="current, beta: expected .*, got "):
        leaky_integrate(torch.zeros(current_shape), torch.zeros(beta_shape))


@pytest.mark.parametrize("n_steps", [1, 2])
def test_scan_by_doubling_returns_new_memory(n_steps):
    x, beta = inputs((n_steps, 2, 3))
    assert _scan_by_doubling(x, beta).data_ptr() != x.data_ptr()
