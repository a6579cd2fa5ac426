"""Many small problems at once by BFGS."""

import copy

import pytest
import torch
from torch import Tensor

from blockspike.fitting.bfgs import BatchedBFGS

N = 5


def parameters() -> tuple[Tensor, Tensor]:
    x = torch.linspace(-1.5, 1.5, N).requires_grad_()
    y = torch.linspace(2.0, -1.0, N).requires_grad_()
    return x, y


def rosenbrock(x: Tensor, y: Tensor) -> Tensor:
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def steps(optimizer: BatchedBFGS, x: Tensor, y: Tensor, n: int, loss=rosenbrock) -> list[Tensor]:
    found = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        optimizer.losses = loss(x, y)
        optimizer.losses.sum().backward()
        found.append(optimizer.losses.detach().clone())
        return optimizer.losses.sum()

    for _ in range(n):
        optimizer.step(closure)
    return found


def test_every_problem_reaches_its_minimum():
    x, y = parameters()
    losses = steps(BatchedBFGS([x, y]), x, y, 150)
    assert losses[0].min() > 0.5
    assert torch.stack(losses).min(0).values.max() < 1e-6


def test_problems_do_not_depend_on_each_other():
    x, y = parameters()
    together = torch.stack(steps(BatchedBFGS([x, y]), x, y, 40))
    for i in range(N):
        own = [z.detach()[i : i + 1].clone().requires_grad_() for z in parameters()]
        alone = torch.stack(steps(BatchedBFGS(own), own[0], own[1], 40))
        torch.testing.assert_close(alone[:, 0], together[:, i], rtol=1e-3, atol=1e-5)


def test_no_step_is_longer_than_allowed():
    x, y = parameters()
    optimizer = BatchedBFGS([x, y], lr=0.2)
    for _ in range(30):
        kept = optimizer.param_groups[0]["bfgs"].get("at")
        steps(optimizer, x, y, 1)
        if kept is not None:
            now = torch.stack([x, y], 1).detach() - optimizer.param_groups[0]["bfgs"]["at"]
            assert now.norm(dim=1).max() < 0.2 + 1e-5


def test_it_returns_from_where_the_loss_is_not_a_number():
    def loss(x: Tensor, y: Tensor) -> Tensor:
        return torch.log(x) ** 2 + y**2  # NaN below 0

    x = torch.full((2,), 0.2, requires_grad=True)
    y = torch.tensor([5.0, -3.0], requires_grad=True)
    losses = steps(BatchedBFGS([x, y]), x, y, 80, loss)
    assert torch.stack(losses).nan_to_num(1e9).min(0).values.max() < 1e-6


def test_it_goes_on_from_a_checkpoint_to_the_same_bits():
    x, y = parameters()
    optimizer = BatchedBFGS([x, y])
    steps(optimizer, x, y, 10)
    saved = copy.deepcopy(optimizer.state_dict())
    again = [z.detach().clone().requires_grad_() for z in (x, y)]
    expected = steps(optimizer, x, y, 20)
    resumed = BatchedBFGS(again)
    resumed.load_state_dict(saved)
    for one, other in zip(steps(resumed, again[0], again[1], 20), expected, strict=True):
        assert torch.equal(one, other)


def test_it_needs_a_closure():
    with pytest.raises(ValueError, match="closure"):
        BatchedBFGS(parameters()).step()


def test_a_minimum_at_a_bound_is_reached():
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(3, 40, dtype=torch.float64)
    a = torch.randn(40, 3, 3, generator=generator, dtype=torch.float64)
    a = a @ a.transpose(1, 2) + 0.1 * torch.eye(3)
    centre = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    low, high = torch.tensor([-9.0, -0.2, -9.0]), torch.tensor([9.0, 0.3, 9.0])
    own = [z.requires_grad_() for z in x]
    optimizer = BatchedBFGS(own)
    optimizer.bounds = low, high

    def loss(*parameters: Tensor) -> Tensor:
        apart = torch.stack(parameters, 1) - centre
        return (apart.unsqueeze(1) @ a @ apart.unsqueeze(2))[:, 0, 0]

    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        optimizer.losses = loss(*own)
        optimizer.losses.sum().backward()
        losses.append(optimizer.losses.detach())
        return optimizer.losses.sum()

    for _ in range(150):
        optimizer.step(closure)
    # Exact: with the middle one at each bound, or free; the best feasible of the three.
    best = torch.full((40,), torch.inf, dtype=torch.float64)
    free = torch.tensor([0, 2])
    for value in (-0.2, 0.3):
        y = centre.clone()
        y[:, 1] = value
        rest = torch.linalg.solve(a[:, free][:, :, free], a[:, free, 1] * (y - centre)[:, 1:2])
        y[:, free] = centre[:, free] - rest
        best = torch.minimum(best, loss(*y.T))
    inside = (centre[:, 1] >= -0.2) & (centre[:, 1] <= 0.3)
    best = torch.where(inside, 0, best)
    assert (~inside).sum() > 20
    torch.testing.assert_close(torch.stack(losses).min(0).values, best, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("shapes", [[(3, 2)], [(3,), (4,)]])
def test_parameters_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match="of one shape"):
        BatchedBFGS([torch.zeros(shape, requires_grad=True) for shape in shapes])
