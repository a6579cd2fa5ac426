"""Masks of dropout on the CPU: independent elements, the same at any number of threads."""

import pytest
import torch

from blockspike.networks.dropout_cpu import dropout_mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elements_are_dropped_equally_often_and_independently(dtype):
    torch.manual_seed(0)
    mask = dropout_mask(torch.zeros(1000, 1000, dtype=dtype), 0.2)
    assert mask.dtype == dtype
    assert mask.unique().tolist() == pytest.approx([0, 1 / 0.8])
    dropped = (mask == 0).double().flatten() - 0.2
    error = 0.2 * 0.8 / len(dropped) ** 0.5  # standard error of a mean of products
    assert abs(dropped.mean().item()) < 4 * 0.4 / len(dropped) ** 0.5
    for lag in (1, 2, 16, 1000, 4096, 65536):
        assert abs((dropped[lag:] * dropped[:-lag]).mean().item()) < 4.5 * error
    other = (dropout_mask(mask, 0.2) == 0).double().flatten() - 0.2
    assert abs((other * dropped).mean().item()) < 4.5 * error


def test_the_seed_alone_decides():
    like, found, before = torch.zeros(3, 41, 101), [], torch.get_num_threads()
    try:
        for n_threads in (1, 2, 3):
            torch.set_num_threads(n_threads)
            torch.manual_seed(5)
            found.append(dropout_mask(like, 0.5))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert not torch.equal(dropout_mask(like, 0.5), found[0])
    assert torch.equal(dropout_mask(like[:0], 0.5), like[:0])
