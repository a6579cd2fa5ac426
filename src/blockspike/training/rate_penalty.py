"""A penalty on firing rates: neurons that are too quiet, layers that are too active."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class RatePenalty:
    """Penalty on firing rates r[b, n] of sample b and neuron n, as in Zenke & Vogels (2021).

    ```text
    lower_factor · mean over b, n of max(0, lower_hz − r[b, n])²
    + upper_factor · mean over b of max(0, mean over n of r[b, n] − upper_hz)²
    ```

    averaged over the hidden layers. They write it for spike counts; rates in Hz do not depend on
    the length of a recording. The lower bound acts on each neuron, the upper one on the population.

    Attributes:
        lower_hz, upper_hz: bounds in Hz; None = no such bound.
        lower_factor, upper_factor: factors in the loss, per Hz²; 0 for a bound that is None.

    Raises:
        ValueError: a bound has no factor, or a factor has no bound.
    """

    lower_hz: float | None = None
    lower_factor: float = 0.0
    upper_hz: float | None = None
    upper_factor: float = 0.0

    def __post_init__(self):
        for side in ("lower", "upper"):
            bound, factor = getattr(self, f"{side}_hz"), getattr(self, f"{side}_factor")
            if (bound is None) != (factor == 0):
                raise ValueError(
                    f"rate_{side}_hz, rate_{side}_factor: expected a rate and a factor > 0, or "
                    f"null and 0, got {'null' if bound is None else bound} and {factor}"
                )

    def __call__(self, rates_hz: Sequence[Tensor]) -> Tensor:
        """The penalty for the rates [B, N] of each hidden layer."""
        return torch.stack([self._of_layer(rates) for rates in rates_hz]).mean()

    def _of_layer(self, rates_hz: Tensor) -> Tensor:
        penalty = rates_hz.new_zeros(())
        if self.lower_hz is not None:
            penalty = penalty + self.lower_factor * F.relu(self.lower_hz - rates_hz).square().mean()
        if self.upper_hz is not None:
            above = F.relu(rates_hz.mean(1) - self.upper_hz)
            penalty = penalty + self.upper_factor * above.square().mean()
        return penalty
