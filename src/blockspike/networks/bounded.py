"""Parameters with bounds, which hold after each step of any optimiser."""

import warnings
from collections.abc import Mapping
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

Bounds = tuple[float, float]


class BoundedParameters(nn.Module):
    """Parameters that hold effective values and are put back into their bounds after each step.

    A step is that of any PyTorch optimiser that has one of them, in anybody's loop. The published
    code clamps in the forward pass instead, where a parameter that leaves its range never gets a
    gradient again; so would most parametrisations.
    """

    clamps_after_step = True

    def __init__(self):
        super().__init__()
        self._bounds: dict[str, Bounds] = {}
        _modules.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        super().__setstate__(state)
        _modules.add(self)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        def on_meta() -> bool:
            return any(x is not None and x.is_meta for x in self._parameters.values())

        was_on_meta = on_meta()
        super()._apply(fn, recurse)
        if was_on_meta and not on_meta():
            warnings.warn(
                f"{type(self).__name__}: to_empty leaves parameters with what was in memory; "
                "fill them by load_state_dict",
                stacklevel=2,
            )
        return self

    def add_bounded(
        self, name: str, value: Tensor, bounds: Bounds, trainable: bool, argument: str
    ) -> None:
        """Register parameter `name` [N]; if out of bounds, raise a ValueError naming `argument`."""
        low, high = bounds
        if (outside := _outside(value, bounds)) is not None:
            raise ValueError(
                f"{argument}: expected {low} ≤ {name} ≤ {high}, got {name} = {outside:.6g}"
            )
        self.register_parameter(name, nn.Parameter(value, requires_grad=trainable))
        self._bounds[name] = bounds

    @property
    def bounds(self) -> Mapping[str, Bounds]:
        """Bounds of the parameters by name."""
        return self._bounds

    def parameters_repr(self) -> str:
        """Smallest and largest value of each bounded parameter, and whether it is trained."""
        shown = []
        for name in self._bounds:
            value = getattr(self, name)
            if value.is_meta:
                shown.append(f"{name} on meta")
                continue
            low, high = value.min().item(), value.max().item()
            values = f"{low:.4g}" if low == high else f"{low:.4g}…{high:.4g}"
            shown.append(f"{name}={values}" + ("" if value.requires_grad else " (fixed)"))
        return ", ".join(shown)

    @torch.no_grad()
    def project_(self) -> None:
        """Clamp every bounded parameter to its range, in place; for values set by hand."""
        for name, (low, high) in self._bounds.items():
            own = self._parameters.get(name)  # None: parametrised by the user
            if own is not None:
                own.clamp_(low, high)


def _outside(value: Tensor, bounds: Bounds) -> float | None:
    """First value that is out of bounds; None if there is none, or the values are not there."""
    low, high = bounds
    if value.is_meta:
        return None
    outside = value[~((value >= low) & (value <= high))]
    return outside[0].item() if len(outside) else None


_modules: WeakSet[BoundedParameters] = WeakSet()


def _project_what_was_stepped(optimizer: Optimizer, *_: Any) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for module in list(_modules):
        if module.clamps_after_step and any(
            id(module._parameters.get(name)) in stepped for name in module._bounds
        ):
            module.project_()


register_optimizer_step_post_hook(_project_what_was_stepped)
