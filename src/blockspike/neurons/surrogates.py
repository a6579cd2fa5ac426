"""Surrogate derivatives dS/dV of the spike S = [V > θ] as functions of the margin u = V − θ.

Source: docs/paper.md, Surrogates.
"""

import math
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

_HALF_PI = math.pi / 2
_DENSITY = 1 / math.sqrt(2 * math.pi)  # standard normal density at 0
CENTRE = 0.5 * 1.15 * _DENSITY / 0.5
SIDES = 0.5 * 0.15 * _DENSITY / 3


_registered: dict[str, type["Surrogate"]] = {}


@dataclass(frozen=True)
class Surrogate:
    """Surrogate derivative; a custom one is a frozen dataclass of numbers with a `formula`.

    The formula runs on tensors in the loop over time; the kernels compile it as they compile a
    model's step, from the same operations (`NeuronModel`) and `torch.exp`.

    Raises:
        ValueError: a value is not finite, or a width or slope is not positive.

    Examples:
        >>> from dataclasses import dataclass
        >>> import torch
        >>> import blockspike as bs
        >>> @dataclass(frozen=True)
        ... class Gaussian(bs.Surrogate):
        ...     sigma: float = 0.5
        ...
        ...     @staticmethod
        ...     def formula(margin, constants):
        ...         _, one, sigma = constants
        ...         x = margin / sigma
        ...         return torch.exp(-0.5 * x**2)
        >>> Gaussian(sigma=1.0).derivative(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0.6065, 1.0000, 0.6065])
    """

    def __init_subclass__(cls) -> None:
        # Operators of torch know a surrogate by this text, also in a file of torch.export.
        cls.key, n = cls.__name__, 1
        while cls.key in _registered:
            n += 1
            cls.key = f"{cls.__name__} ({n})"
        _registered[cls.key] = cls

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("width", "slope") else -math.inf
            if not least < value < math.inf:  # nor NaN
                name = f"{type(self).__name__}: {field.name}"
                raise ValueError(f"{name}: expected a finite number > {least}, got {value!r}")

    @staticmethod
    def formula(margin, constants):
        """Derivative dS/dV at the margin u = V − θ, of any number of neurons.

        Args:
            margin: tensor, or vector of neurons in a kernel.
            constants: 0, 1, then the values of the dataclass, in their order.
        """
        raise NotImplementedError

    @cached_property
    def constants(self) -> tuple[float, ...]:
        """Numbers that the formula gets after 0 and 1."""
        return tuple(float(getattr(self, field.name)) for field in fields(self))

    def derivative(self, margin: Tensor) -> Tensor:
        """Derivative dS/dV at `margin` = V − θ (any shape, floating point, threshold units)."""
        numbers = (0.0, 1.0, *self.constants)
        slope = self.formula(margin, numbers)
        if not isinstance(slope, Tensor) or slope.dtype != margin.dtype:
            # A choice between two numbers has PyTorch's default dtype.
            slope = self.formula(margin, margin.new_tensor(numbers).unbind())
        return torch.as_tensor(slope).to(margin).expand(margin.shape)


def surrogate_of(key: str) -> type[Surrogate]:
    """The class of surrogates with this `key`."""
    return _registered[key]


@dataclass(frozen=True)
class FastSigmoid(Surrogate):
    """Surrogate derivative 1 / (slope·|u| + 1)², used by SuperSpike (Zenke & Ganguli 2018).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.FastSigmoid().derivative(torch.tensor([-0.1, 0.0, 0.1]))
        tensor([0.2500, 1.0000, 0.2500])
        >>> bs.FastSigmoid(slope=25).derivative(torch.tensor(0.04))
        tensor(0.2500)
    """

    slope: float = 10.0

    @staticmethod
    def formula(margin, constants):
        """See `Surrogate.formula`."""
        _, one, slope = constants
        root = slope * abs(margin) + one
        return one / (root * root)


@dataclass(frozen=True)
class Boxcar(Surrogate):
    """Surrogate derivative `height` for −width/2 < u ≤ width/2, else 0 (Kaiser et al. 2020).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.Boxcar().derivative(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([0., 1., 0.])
    """

    width: float = 1.0
    height: float = 1.0

    @staticmethod
    def formula(margin, constants):
        """See `Surrogate.formula`."""
        zero, _, width, height = constants
        half = 0.5 * width
        return torch.where((margin > -half) & (margin <= half), height, zero)


@dataclass(frozen=True)
class Triangular(Surrogate):
    """Surrogate derivative height·max(0, 1 − |u|/width) (Bellec et al. 2018).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.Triangular().derivative(torch.tensor([-0.5, 0.0, 2.0]))
        tensor([0.1500, 0.3000, 0.0000])
    """

    width: float = 1.0
    height: float = 0.3

    @staticmethod
    def formula(margin, constants):
        """See `Surrogate.formula`."""
        zero, one, width, height = constants
        return height * (one - abs(margin) / width).clamp(min=zero)


@dataclass(frozen=True)
class Arctan(Surrogate):
    """Surrogate derivative (α/2) / (1 + (π/2·α·u)²), that of an arctangent (Fang et al. 2021).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.Arctan().derivative(torch.tensor([0.0, 0.5]))
        tensor([1.0000, 0.2884])
    """

    alpha: float = 2.0

    @staticmethod
    def formula(margin, constants):
        """See `Surrogate.formula`."""
        _, one, alpha = constants
        x = _HALF_PI * alpha * margin
        return 0.5 * alpha / (one + x * x)


@dataclass(frozen=True)
class SLAYER(Surrogate):
    """Surrogate derivative height·exp(−slope·|u|) (Shrestha & Orchard, NeurIPS 2018).

    Baronig et al. 2025 write it as c·α/2·exp(−α·|u|); with their α = 5 and c = 0.4 it is the
    default.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.SLAYER(slope=1).derivative(torch.tensor([-1.0, 0.0]))
        tensor([0.3679, 1.0000])
    """

    slope: float = 5.0
    height: float = 1.0

    @staticmethod
    def formula(margin, constants):
        """See `Surrogate.formula`."""
        _, _, slope, height = constants
        return height * torch.exp(-slope * abs(margin))


@dataclass(frozen=True)
class MultiGaussian(Surrogate):
    """Surrogate derivative made of three normal densities (Yin, Corradi & Bohté 2021).

    It is height·g(u/width) with g(u) = 0.5·[1.15·N(u; 0, 0.5) − 0.15·N(u; 0.5, 3) −
    0.15·N(u; −0.5, 3)], where N(u; μ, σ) is the normal density with mean μ and standard deviation
    σ.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> bs.MultiGaussian().derivative(torch.tensor([-0.5, 0.0, 0.5])).round(decimals=2)
        tensor([0.2600, 0.4400, 0.2600])
    """

    width: float = 1.0
    height: float = 1.0

    @staticmethod
    def formula(margin, constants):
        """See `Surrogate.formula`."""
        _, one, width, height = constants
        u = margin * (one / width)
        above, below = u - 0.5, u + 0.5
        sides = torch.exp(above * above * (-1 / 18)) + torch.exp(below * below * (-1 / 18))
        return height * (CENTRE * torch.exp(-2.0 * u * u) - SIDES * sides)

    def derivative(self, margin: Tensor) -> Tensor:
        """Derivative dS/dV at `margin` = V − θ (any shape, threshold units)."""
        is_own = type(self).formula is MultiGaussian.formula and margin.is_floating_point()
        if not is_own or (torch.is_grad_enabled() and margin.requires_grad):
            return super().derivative(margin)  # autograd needs the intermediate values
        u = margin if self.width == 1 else margin * (1 / self.width)
        x = u * (1 / math.sqrt(18))  # in place from here on, to save memory traffic
        above, below = x - 0.5 / math.sqrt(18), x.add_(0.5 / math.sqrt(18))
        sides = above.square_().neg_().exp_().add_(below.square_().neg_().exp_())
        centre = (u * u).mul_(-2).exp_().mul_(CENTRE)
        slope = centre.sub_(sides, alpha=SIDES)
        return slope if self.height == 1 else slope.mul_(self.height)


SURROGATES: dict[str, type[Surrogate]] = {
    "fast_sigmoid": FastSigmoid,
    "boxcar": Boxcar,
    "multi_gaussian": MultiGaussian,
    "triangular": Triangular,
    "arctan": Arctan,
    "slayer": SLAYER,
}
"""The surrogates by their names in a configuration."""


class _Spike(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(margin: Tensor, surrogate: Surrogate) -> Tensor:
        return (margin > 0).to(margin.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        margin, ctx.surrogate = inputs
        ctx.save_for_backward(margin)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (margin,) = ctx.saved_tensors
        return grads[0] * ctx.surrogate.derivative(margin), None


def spike(margin: Tensor, surrogate: Surrogate) -> Tensor:
    """Spike: 1 where `margin` = V − θ > 0, else 0, with the surrogate's derivative as gradient."""
    return _Spike.apply(margin, surrogate)  # pyright: ignore[reportReturnType]
