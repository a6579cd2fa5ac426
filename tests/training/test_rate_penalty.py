"""The penalty on firing rates, against its formula written out."""

from typing import Any

import pytest
import torch

from blockspike.networks.classifier import SpikingClassifier
from blockspike.training.classification import ClassificationModule
from blockspike.training.rate_penalty import RatePenalty

LOWER, UPPER, S_LOWER, S_UPPER = 15.0, 20.0, 0.3, 0.7


def by_hand(layers: list[list[list[float]]]) -> tuple[float, list[list[list[float]]]]:
    """Penalty and its gradient for rates[layer][sample][neuron], in loops."""
    total = 0.0
    grads = [[[0.0] * len(row) for row in rates] for rates in layers]
    for rates, grad in zip(layers, grads, strict=True):
        scale = 1 / (len(layers) * len(rates))
        for row, of_row in zip(rates, grad, strict=True):
            mean = sum(row) / len(row)
            above = max(0.0, mean - UPPER)
            total += scale * S_UPPER * above**2
            for n, rate in enumerate(row):
                below = max(0.0, LOWER - rate)
                total += scale * S_LOWER * below**2 / len(row)
                of_row[n] = scale * (2 * S_UPPER * above - 2 * S_LOWER * below) / len(row)
    return total, grads


def test_penalty_and_gradient_follow_the_formula():
    torch.manual_seed(0)
    rates = [(50 * torch.rand(3, n, dtype=torch.float64)).requires_grad_() for n in (4, 7)]
    penalty = RatePenalty(LOWER, S_LOWER, UPPER, S_UPPER)(rates)
    expected, grads = by_hand([r.tolist() for r in rates])
    assert penalty.item() == pytest.approx(expected) and expected > 0
    found = torch.autograd.grad(penalty, rates)
    for own, wanted in zip(found, grads, strict=True):
        torch.testing.assert_close(own, torch.tensor(wanted, dtype=torch.float64))
    assert torch.cat([x.flatten() for x in found]).min() < 0 < found[0].max()


def test_rates_within_the_bounds_cost_nothing():
    rates = torch.full((2, 3), 18.0)
    assert RatePenalty(LOWER, S_LOWER, UPPER, S_UPPER)([rates]).item() == 0
    assert RatePenalty(upper_hz=16.0, upper_factor=2.0)([rates]).item() == pytest.approx(8.0)
    assert RatePenalty(lower_hz=21.0, lower_factor=2.0)([rates]).item() == pytest.approx(18.0)


def losses_of(penalty: RatePenalty | None, stage: str, **options: Any):
    """Loss of a batch, and the gradient of each parameter."""
    torch.manual_seed(0)
    network = SpikingClassifier(6, 2, [5, 4], dt_ms=2.0).double()
    module = ClassificationModule(
        network, 2, 2.0, torch.optim.Adam, rate_penalty=penalty, **options
    )
    module.log_dict = lambda *_, **__: None  # pyright: ignore
    x = (torch.rand(40, 3, 6) < 0.4).double()
    loss = module._step(stage, (x, torch.tensor([0, 1, 1])))  # pyright: ignore
    trained = [p for p in network.parameters() if p.requires_grad]
    rates_hz = [spikes.sum(0) / 0.08 for spikes in network(x).spikes]
    return loss.detach(), torch.autograd.grad(loss, trained), rates_hz


def test_it_is_part_of_the_training_loss_alone():
    penalty = RatePenalty(4.0, 0.01, 4.0, 0.02)
    plain, without, rates_hz = losses_of(None, "train")
    loss, grads, _ = losses_of(penalty, "train")
    torch.testing.assert_close(loss - plain, penalty(rates_hz))
    assert not torch.allclose(grads[0], without[0])
    assert torch.equal(losses_of(penalty, "val")[0], plain)


@pytest.mark.parametrize("options", [{"recompute_steps": 7}, {"truncate_steps": 40}])
def test_pieces_give_the_same_gradient(options):
    penalty = RatePenalty(4.0, 0.01, 4.0, 0.02)
    whole, pieces = losses_of(penalty, "train"), losses_of(penalty, "train", **options)
    torch.testing.assert_close(pieces[:2], whole[:2], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lower_hz": 3.0}, "rate_lower_hz, rate_lower_factor: expected .* got 3.0 and 0"),
        ({"upper_factor": 1.0}, "rate_upper_hz, rate_upper_factor: expected .* got null and 1.0"),
    ],
)
def test_bounds_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        RatePenalty(**options)
