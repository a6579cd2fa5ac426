"""The squared van Rossum distance against its formula and the metric."""

import math

import pytest
import torch

from blockspike.fitting.distance import Window, squared_distance
from blockspike.fitting.metrics import van_rossum_distance

DECAY = math.exp(-0.1 / 10)


def trains(*shape: int, dtype=torch.float64, seed: int = 0) -> torch.Tensor:
    return (torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.02).to(dtype)


def by_steps(spikes: torch.Tensor, target: torch.Tensor, window: Window):
    """The formula, step by step."""
    wanted = target.repeat_interleave(spikes.shape[2] // target.shape[2], 2)
    f = torch.zeros_like(spikes[0])
    sums = [0 * spikes[0], torch.zeros_like(f)]
    for t in range(window.last):
        f = DECAY * f + spikes[t] - wanted[t]
        if t >= window.first:
            sums[t >= window.split] = sums[t >= window.split] + f * f
    return sums


@pytest.mark.parametrize("n_starts", [1, 3, 70])
@pytest.mark.parametrize("window", [Window(0, 2100, 2100), Window(63, 1500, 2001), Window(0, 0, 9)])
def test_values_and_gradient_match_the_formula(n_starts, window):
    spikes = trains(2100, 2, 5 * n_starts).requires_grad_()
    target = trains(2100, 2, 5, seed=1) * 0.3
    fused = squared_distance(spikes, target, DECAY, window)
    whole = by_steps(spikes, target, window)
    for ours, theirs in zip(fused, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    weight = torch.rand_like(fused[0])
    (ours,) = torch.autograd.grad((fused[0] * weight).sum(), spikes)
    (theirs,) = torch.autograd.grad((whole[0] * weight).sum(), spikes)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-9)
    assert not fused[1].requires_grad


def test_it_is_the_square_of_the_metric():
    x, y = trains(3000, 1, 4), trains(3000, 1, 4, seed=1)
    fitted, _ = squared_distance(x, y, DECAY, Window(0, 3000, 3000))
    expected = van_rossum_distance(x, y, tau_ms=10.0, dt_ms=0.1)
    torch.testing.assert_close((fitted * 0.1 / 10).sqrt(), expected)


def test_threads_do_not_change_the_result():
    x, y = (
        trains(500, 3, 301, dtype=torch.float32),
        trains(500, 3, 301, dtype=torch.float32, seed=1),
    )
    before, results = torch.get_num_threads(), []
    for n in (1, 2):
        torch.set_num_threads(n)
        results.append(squared_distance(x, y, DECAY, Window(0, 500, 500))[0])
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("shape", "window", "message"),
    [
        ((100, 2, 4), (0, 100, 100), "target"),
        ((100, 1, 3), (0, 100, 101), "window"),
        ((100, 1, 3), (9, 8, 100), "window"),
    ],
)
def test_bad_arguments_are_named(shape, window, message):
    with pytest.raises(ValueError, match=message):
        squared_distance(trains(100, 1, 6), trains(*shape), DECAY, Window(*window))
