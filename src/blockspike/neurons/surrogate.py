"""Surrogate derivatives dS/dV of the spike S = [V > θ] as functions of the margin u = V − θ.

Source: docs/paper.md, Surrogates.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_DENSITY = 1 / math.sqrt(2 * math.pi)  # standard normal density at 0


@dataclass(frozen=True)
class FastSigmoid:
    """Surrogate derivative 1 / (10|u| + 1)², used by SuperSpike (Zenke & Ganguli 2018).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.FastSigmoid().derivative(torch.tensor([-0.1, 0.0, 0.1]))
        tensor([0.2500, 1.0000, 0.2500])
    """

    def derivative(self, margin: Tensor) -> Tensor:
        """Derivative dS/dV at `margin` = V − θ (any shape, threshold units)."""
        return 1 / (10 * margin.abs() + 1) ** 2


@dataclass(frozen=True)
class Boxcar:
    """Surrogate derivative 1 for −0.5 < u ≤ 0.5, else 0 (Kaiser, Mostafa & Neftci 2020).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.Boxcar().derivative(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0., 1., 0.])
    """

    def derivative(self, margin: Tensor) -> Tensor:
        """Derivative dS/dV at `margin` = V − θ (any shape, threshold units)."""
        return ((margin > -0.5) & (margin <= 0.5)).to(margin.dtype)


@dataclass(frozen=True)
class MultiGaussian:
    """Surrogate derivative made of three normal densities (Yin, Corradi & Bohté 2021).

    It is 0.5·[1.15·N(u; 0, 0.5) − 0.15·N(u; 0.5, 3) − 0.15·N(u; −0.5, 3)], where N(u; μ, σ) is the
    normal density with mean μ and standard deviation σ.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.MultiGaussian().derivative(torch.tensor([-0.5, 0.0, 0.5])).round(decimals=2)
        tensor([0.2600, 0.4400, 0.2600])
    """

    def derivative(self, margin: Tensor) -> Tensor:
        """Derivative dS/dV at `margin` = V − θ (any shape, threshold units)."""
        if torch.is_grad_enabled() and margin.requires_grad:
            return self._differentiable_derivative(margin)
        x = margin * (1 / math.sqrt(18))  # in place from here on, to save memory traffic
        above, below = x - 0.5 / math.sqrt(18), x.add_(0.5 / math.sqrt(18))
        sides = above.square_().neg_().exp_().add_(below.square_().neg_().exp_())
        centre = (margin * margin).mul_(-2).exp_().mul_(0.5 * 1.15 * _DENSITY / 0.5)
        return centre.sub_(sides, alpha=0.5 * 0.15 * _DENSITY / 3)

    @staticmethod
    def _differentiable_derivative(margin: Tensor) -> Tensor:
        """Derivative computed out of place, since autograd needs the intermediate values."""
        centre = (-2 * margin.square()).exp() * (0.5 * 1.15 * _DENSITY / 0.5)
        above, below = (margin - 0.5).square(), (margin + 0.5).square()
        sides = (above / -18).exp() + (below / -18).exp()
        return centre - sides * (0.5 * 0.15 * _DENSITY / 3)


Surrogate = FastSigmoid | Boxcar | MultiGaussian


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx, margin: Tensor, surrogate: Surrogate) -> Tensor:
        ctx.save_for_backward(margin)
        ctx.surrogate = surrogate
        return (margin > 0).to(margin.dtype)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (margin,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(margin), None


def spike(margin: Tensor, surrogate: Surrogate) -> Tensor:
    """Spike: 1 where `margin` = V − θ > 0, else 0, with the surrogate's derivative as gradient."""
    return _Spike.apply(margin, surrogate)  # pyright: ignore[reportReturnType]
