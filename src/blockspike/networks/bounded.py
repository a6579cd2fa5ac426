"""Parameters with bounds."""

import torch
from torch import Tensor, nn

Bounds = tuple[float, float]


class BoundedParameters(nn.Module):
    """Parameters that hold effective values and are projected into their bounds after each step.

    The published code clamps in the forward pass instead. There, a parameter that leaves its range
    never gets a gradient again.
    """

    def __init__(self):
        super().__init__()
        self._bounds: dict[str, Bounds] = {}

    def add_bounded(
        self, name: str, value: Tensor, bounds: Bounds, trainable: bool, argument: str
    ) -> None:
        """Register parameter `name` [N]; if out of bounds, raise a ValueError naming `argument`."""
        low, high = bounds
        if not bool(((value >= low) & (value <= high)).all()):
            raise ValueError(
                f"{argument}: expected {low} ≤ {name} ≤ {high}, "
                f"got {name} = {value.flatten()[0].item():.6g}"
            )
        self.register_parameter(name, nn.Parameter(value, requires_grad=trainable))
        self._bounds[name] = bounds

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp every bounded parameter to its range, in place."""
        for name, (low, high) in self._bounds.items():
            self.get_parameter(name).clamp_(low, high)
