"""Batch normalisation of the synaptic current (Ioffe & Szegedy, ICML 2015)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM, EPSILON = 0.1, 1e-5
"""Share of a batch in the running statistics, and what is added to the variance."""


class BatchNorm(nn.Module):
    """Normalises each unit's synaptic current to mean 0 and variance gain² over samples and time.

    In training, mean and variance are those of the batch. In evaluation they are running ones, so
    that the whole is a change of weights and bias: `folded`.

    Attributes:
        gain: [n_units], learned; starts at 1, of a model whose step scales its input at the inverse
            of that scale.
        mean, variance: [n_units], running statistics of the current without bias.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, n_units: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(n_units))
        self.register_buffer("mean", torch.zeros(n_units))
        self.register_buffer("variance", torch.ones(n_units))

    def forward(self, current: Tensor, bias: Tensor) -> Tensor:
        """Normalise a batch's current [T, B, n_units], add bias [n_units], and update statistics.

        A batch has at least two rows of steps × samples.
        """
        rows = current.flatten(0, 1)
        options = {"training": True, "momentum": MOMENTUM, "eps": EPSILON}
        gain, bias, mean, variance = (
            x.to(rows.dtype) for x in (self.gain, bias, self.mean, self.variance)
        )
        normalised = F.batch_norm(rows, mean, variance, gain, bias, **options)
        if mean is not self.mean:  # half precision, whose currents are float32
            self.mean.copy_(mean)
            self.variance.copy_(variance)
        return normalised.view_as(current)

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [n_taps, n_units, n_inputs] and bias [n_units] of the normalised current."""
        scale = self.gain * (self.variance + EPSILON).rsqrt()
        return weight * scale[:, None], bias - scale * self.mean
