"""Parameters with bounds."""

import torch
from torch import Tensor, nn

Bounds = tuple[float, float]


class BoundedParameters(nn.Module):
    """Parameters that hold effective values and are put back into their bounds after each step.

    Clamping inside the forward pass, as the published code does, would stop the gradient of a
    parameter that has left its range, for good.
    """

    def __init__(self):
        super().__init__()
        self._bounds: dict[str, Bounds] = {}

    def add_bounded(
        self, name: str, value: Tensor, bounds: Bounds, trainable: bool, argument: str
    ) -> None:
        """Register `value` [N] as the parameter `name`; ValueError names `argument` if outside."""
        low, high = bounds
        if not bool(((value >= low) & (value <= high)).all()):
            raise ValueError(
                f"{argument}: gives {name} = {value.flatten()[0].item():.6g}, "
                f"expected {low} ≤ {name} ≤ {high}"
            )
        self.register_parameter(name, nn.Parameter(value, requires_grad=trainable))
        self._bounds[name] = bounds

    @torch.no_grad()
    def project_(self) -> None:
        """Put every bounded parameter back into its range, in place."""
        for name, (low, high) in self._bounds.items():
            self.get_parameter(name).clamp_(low, high)
