"""Spikes, weights and reference products for tests of event-driven currents."""

import torch

from blockspike.neurons.cpu.events import SpikeEvents


def make_spikes(shape=(20, 3, 70), density=0.05, most=1, dtype=torch.float64):
    """Spike counts 0 … `most`, with some empty rows."""
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(shape, generator=generator) < density
    counts = torch.randint(1, most + 1, shape, generator=generator)
    spikes = (active * counts).to(dtype)
    spikes[shape[0] // 2] = 0
    return spikes


def events_of(spikes):
    return SpikeEvents(spikes.to(torch.uint8, memory_format=torch.contiguous_format))


def make_parameters(rf_len=1, n_units=67, n_inputs=70, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(rf_len, n_units, n_inputs, generator=generator, dtype=torch.float64)
    bias = torch.randn(n_units, generator=generator, dtype=torch.float64)
    return weight.to(dtype).requires_grad_(), bias.to(dtype).requires_grad_()


def reference(spikes, weight, bias):
    """Sum I[t] = bias + Σ_k weight[k] spikes[t − k] term by term."""
    rows = []
    for t in range(len(spikes)):
        row = bias.expand(spikes.shape[1], -1)
        for k in range(min(len(weight), t + 1)):
            row = row + spikes[t - k] @ weight[k].T
        rows.append(row)
    return torch.stack(rows)


def value_and_gradients(function, spikes, weight, bias, **options):
    """Current, and the gradients of weight, bias and dense spikes."""
    leaves = [x for x in (weight, bias, spikes) if isinstance(x, torch.Tensor)]
    leaves = [leaf.detach().requires_grad_() for leaf in leaves]
    given = leaves[2] if isinstance(spikes, torch.Tensor) else spikes
    current = function(given, leaves[0], leaves[1], **options)
    cotangent = torch.randn(current.shape, generator=torch.Generator().manual_seed(2))
    grads = torch.autograd.grad(current, leaves, cotangent.to(current.dtype))
    return [current.detach(), *grads]


def assert_all_close(actual, expected, dtype):
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=rtol, atol=rtol * e.abs().max().item())
