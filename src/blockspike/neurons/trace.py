"""Result of a simulation: `SpikeTrace`."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.state import NeuronState


@dataclass(frozen=True, eq=False)
class SpikeTrace:
    """Result of a simulation of any model; every array has the shape of the current, [T, B, N].

    Attributes:
        spikes: 0 or 1, in the dtype of the current; differentiable.
        state: `NeuronState` after the last step; `state=` of the next call continues from it.
        membrane: V before reset (rest 0, base threshold 1), differentiable; None unless the
            simulation was called with `membrane=True`.
        threshold: θ in force at each step, as the membrane.
        events: the spikes as events, without gradient.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current, beta = torch.full((20, 1, 1), 0.3), torch.tensor([0.9])
        >>> trace = bs.alif(current, beta, membrane=True)
        >>> trace.spikes.flatten().nonzero().flatten()
        tensor([ 3,  7, 11, 15, 19])
        >>> float(trace.membrane.max()) > 1, float(trace.threshold.max())
        (True, 1.0)
    """

    spikes: Tensor
    state: NeuronState
    membrane: Tensor = None  # pyright: ignore[reportAssignmentType]
    threshold: Tensor = None  # pyright: ignore[reportAssignmentType]
    events: SpikeEvents = field(default=None, repr=False)  # pyright: ignore

    def __post_init__(self):
        if self.events is None:
            object.__setattr__(self, "events", SpikeEvents(self.spikes.detach()))

    def map(self, change: Callable[[Tensor], Tensor], *, of_state: bool = False) -> "SpikeTrace":
        """The trace with each array changed, and with each tensor of the state if `of_state`."""
        membrane, threshold = self.membrane, self.threshold
        return SpikeTrace(
            change(self.spikes),
            self.state.map(change) if of_state else self.state,
            membrane if membrane is None else change(membrane),
            threshold if threshold is None else change(threshold),
        )


def needs_gradient(*inputs: Tensor | None) -> bool:
    """Whether results computed from these inputs need a gradient."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)
