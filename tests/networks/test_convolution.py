"""The convolution in the frequency domain against a sum over taps."""

import pytest
import torch

from blockspike.networks.convolution import causal_convolution


def written_out(x, kernel):
    y = x.new_zeros(*x.shape[:2], kernel.shape[1])
    for t in range(len(x)):
        for d in range(min(len(kernel), t + 1)):
            y[t] += x[t - d] @ kernel[d].T
    return y


def made(n_steps, n_taps, batch_size=3, n_units=5, n_inputs=7):
    torch.manual_seed(n_steps + n_taps)
    x = torch.randn(n_steps, batch_size, n_inputs, dtype=torch.float64)
    kernel = torch.randn(n_taps, n_units, n_inputs, dtype=torch.float64)
    return x.requires_grad_(), kernel.requires_grad_()


# One step; one tap; a kernel longer than the input; as long; one block; several; a short last one.
SIZES = [(1, 1), (9, 1), (1, 4), (5, 9), (9, 9), (20, 7), (28, 7), (29, 7), (100, 6), (97, 4)]


@pytest.mark.parametrize(("n_steps", "n_taps"), SIZES)
def test_values_and_gradients_equal_those_of_the_sum(n_steps, n_taps):
    x, kernel = made(n_steps, n_taps)
    y, expected = causal_convolution(x, kernel), written_out(x, kernel)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, (x, kernel), grad)
    wanted = torch.autograd.grad(expected, (x, kernel), grad)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_one_row_and_one_unit():
    x, kernel = made(30, 5, batch_size=1, n_units=1, n_inputs=1)
    y = causal_convolution(x, kernel)
    torch.testing.assert_close(y, written_out(x, kernel), rtol=1e-12, atol=1e-12)


def test_float32_is_accurate_to_rounding():
    x, kernel = (v.detach() for v in made(300, 20, 4, 16, 64))
    y = causal_convolution(x.float(), kernel.float())
    assert y.dtype == torch.float32
    error = (y - written_out(x, kernel)).abs().max() / y.abs().max()
    assert error < 1e-6


def test_bitwise_equal_with_any_number_of_threads():
    x, kernel = (v.detach().float().requires_grad_() for v in made(125, 21, 32, 64, 70))
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            y = causal_convolution(x, kernel)
            found.append((y, *torch.autograd.grad(y.square().sum(), (x, kernel))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
