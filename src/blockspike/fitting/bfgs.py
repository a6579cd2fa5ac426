"""The BFGS method for many small independent problems at once."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

_GROWTH, _SHRINKAGE = 2.0, 0.25  # of the largest step: relative to one that was accepted, refused
_FIRST_STEP = 0.1  # length
_LEAST_CURVATURE = 1e-10  # cosine of the step and the change of the gradient


class BatchedBFGS(Optimizer):
    """BFGS for N independent problems, each with one number of each parameter [N].

    A step evaluates the losses once. Each problem keeps the step if its loss has become smaller;
    otherwise it returns, and tries a shorter one. `losses` [N] have to be set by the closure.
    Nocedal & Wright 2006, "Numerical Optimization", chapter 6.

    Args:
        params: parameters [N].
        lr: largest change of a problem's parameters in a step, as a norm.
    """

    losses: Tensor

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0):
        super().__init__(params, {"lr": lr})
        # Not in `state`, whose numbers PyTorch rounds to float32 when it loads a checkpoint.
        self.param_groups[0]["bfgs"] = {}

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """Evaluate the parameters, and move each problem to where it is to be evaluated next.

        Raises:
            ValueError: no closure.
        """
        if closure is None:
            raise ValueError("closure: expected a function that computes losses and gradients")
        with torch.enable_grad():
            result = closure()
        parameters = self.param_groups[0]["params"]
        with torch.no_grad():
            now = torch.stack(list(parameters), 1).double()
            gradient = torch.stack([x.grad for x in parameters], 1).double()
            moved = self._next(now, self.losses.double(), gradient)
            for parameter, values in zip(parameters, moved.unbind(1), strict=True):
                parameter.copy_(values)
        return result

    def _next(self, now: Tensor, loss: Tensor, gradient: Tensor) -> Tensor:
        """Where to evaluate next, [N, D], given the loss [N] and gradient [N, D] at `now`."""
        kept, lr = self.param_groups[0]["bfgs"], self.param_groups[0]["lr"]
        identity = torch.eye(now.shape[1], dtype=now.dtype, device=now.device)
        if not kept:
            size = gradient.norm(dim=1).clamp(min=1e-12)
            kept |= {
                "at": now, "loss": loss, "gradient": gradient,
                "inverse": _FIRST_STEP / size.view(-1, 1, 1) * identity,
                "is_scaled": torch.zeros_like(loss, dtype=torch.bool),
                "radius": torch.full_like(loss, _FIRST_STEP),
            }  # fmt: skip
        else:
            step, change = now - kept["at"], gradient - kept["gradient"]
            length = step.norm(dim=1)
            curvature = (step * change).sum(1)
            is_finite = torch.isfinite(loss) & torch.isfinite(gradient).all(1)
            is_convex = curvature > _LEAST_CURVATURE * length * change.norm(dim=1)
            _update(kept, step, change, curvature, is_finite & is_convex, identity)
            better = is_finite & ~(loss >= kept["loss"])  # also than NaN
            grown = torch.maximum(kept["radius"], _GROWTH * length).clamp(max=lr)
            kept["radius"] = torch.where(better, grown, _SHRINKAGE * length)
            # Where the loss bends downwards, nothing is learnt but that the step was too short.
            longer = torch.where(better & is_finite & ~is_convex, _GROWTH, 1.0).view(-1, 1, 1)
            kept["inverse"] = longer.to(now) * kept["inverse"]
            for name, value in (("at", now), ("gradient", gradient)):
                kept[name] = torch.where(better.unsqueeze(1), value, kept[name])
            kept["loss"] = torch.where(better, loss, kept["loss"])
        step = -(kept["inverse"] @ kept["gradient"].unsqueeze(2)).squeeze(2)
        length = step.norm(dim=1).clamp(min=1e-12)
        return kept["at"] + step * (kept["radius"] / length).clamp(max=1).unsqueeze(1)


def _update(
    kept: dict[str, Tensor], step: Tensor, change: Tensor, curvature: Tensor, chosen: Tensor,
    identity: Tensor,
) -> None:  # fmt: skip
    """Update the inverse Hessians of the chosen problems by what a step has changed."""
    squared = change.square().sum(1).clamp(min=1e-30)
    is_first = chosen & ~kept["is_scaled"]
    scaled = (curvature / squared).view(-1, 1, 1) * identity
    inverse = torch.where(is_first.view(-1, 1, 1), scaled, kept["inverse"])
    kept["is_scaled"] = kept["is_scaled"] | is_first
    rho = (1 / torch.where(chosen, curvature, 1)).view(-1, 1, 1)
    rest = identity - rho * step.unsqueeze(2) * change.unsqueeze(1)
    updated = rest @ inverse @ rest.transpose(1, 2)
    updated = updated + rho * step.unsqueeze(2) * step.unsqueeze(1)
    kept["inverse"] = torch.where(chosen.view(-1, 1, 1), updated, kept["inverse"])
