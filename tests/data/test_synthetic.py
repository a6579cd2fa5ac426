from __future__ import annotations

import pytest
import torch

from blockspike.data.synthetic import poisson_events


def test_equal_seeds_give_equal_spikes():
    first, second, other = (
        poisson_events(130, 3, 20, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first.unit, second.unit)
    assert torch.equal(first.row_ptr, second.row_ptr)
    assert not torch.equal(first.dense(), other.dense())


def test_global_random_state_is_untouched():
    before = torch.get_rng_state()
    poisson_events(10, 2, 5, torch.Generator().manual_seed(0))
    assert torch.equal(before, torch.get_rng_state())


def test_rates_are_uniform_and_spikes_poisson_clipped():
    n_steps, n_units = 100, 200
    dense = poisson_events(n_steps, 400, n_units, torch.Generator().manual_seed(0)).dense()
    assert dense.max() == 1
    # Inverts E[min(Poisson(r / T), 1)] = 1 - exp(-r / T) for each sample.
    rate = -n_steps * torch.log1p(-dense.mean(dim=(0, 2)))
    assert rate.max() < 210
    assert abs(rate.mean() - 100) < 10
    assert abs(rate.std() - 200 / 12**0.5) < 6


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_empty_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="expected >= 1"):
        poisson_events(*sizes, generator=torch.Generator())


def test_negative_rate_is_refused():
    with pytest.raises(ValueError, match="max_rate: expected >= 0 .*, got -1"):
        poisson_events(1, 1, 1, torch.Generator(), max_rate=-1)
