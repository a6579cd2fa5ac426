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
    Parameters at one of their `bounds`, beyond which the loss would fall, stay there.
    Nocedal & Wright 2006, "Numerical Optimization", chapters 6 and 16.

    Args:
        params: parameters [N].
        lr: largest change of a problem's parameters in a step, as a norm.

    Raises:
        ValueError: parameters of another shape.
    """

    losses: Tensor
    bounds: tuple[Tensor, Tensor] | None = None
    """Lowest and highest value of each parameter, [D] each."""

    def __init__(self, params: Iterable[Tensor], lr: float = 1.0):
        super().__init__(params, {"lr": lr})
        shapes = {tuple(x.shape) for x in self.param_groups[0]["params"]}
        if len(shapes) != 1 or len(next(iter(shapes))) != 1 or len(self.param_groups) != 1:
            raise ValueError(
                "params: expected parameters of one shape [N], as those of `blockspike fit` have"
            )
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
        kept |= {name: x.to(now.device) for name, x in kept.items()}  # a checkpoint is on the CPU
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
            step = now - kept["at"]
            change = torch.where(step != 0, gradient - kept["gradient"], 0)  # not across bounds
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
        is_free = self._is_free(kept["at"], kept["gradient"])
        downhill = torch.where(is_free, -kept["gradient"], 0)
        step = torch.where(is_free, (kept["inverse"] @ downhill.unsqueeze(2)).squeeze(2), 0)
        length = step.norm(dim=1).clamp(min=1e-12)
        step = step * (kept["radius"] / length).clamp(max=1).unsqueeze(1)
        if self.bounds is None:
            return kept["at"] + step
        return (kept["at"] + step).clamp(*(x.to(step) for x in self.bounds))

    def _is_free(self, at: Tensor, gradient: Tensor) -> Tensor:
        """Whether a parameter may follow its gradient, [N, D]."""
        if self.bounds is None:
            return torch.ones_like(at, dtype=torch.bool)
        low, high = (x.to(at) for x in self.bounds)
        return ~(((at <= low) & (gradient > 0)) | ((at >= high) & (gradient < 0)))


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
