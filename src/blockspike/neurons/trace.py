"""Result of a simulation, `SpikeTrace`, and the check that the simulation stayed finite."""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.readout import leaky_integrate


class SpikeTrace:
    """Result of a simulation of any model; every array is [T, B, N] (time, batch, neurons).

    Attributes:
        spikes: 0 or 1, in the dtype of the current; differentiable.
        events: the spikes as events, without gradient; computed when first read.
        membrane: V before reset, without gradient; computed when first read.
        threshold: θ in force at each step, without gradient; computed when first read.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> trace = bs.alif(torch.full((20, 1, 1), 0.3), torch.tensor([0.9]))
        >>> trace.spikes.flatten().nonzero().flatten()
        tensor([ 3,  7, 11, 15, 19])
        >>> float(trace.membrane.max()) > 1, float(trace.threshold.max())
        (True, 1.0)
    """

    def __init__(
        self,
        spikes: Tensor,
        values: Callable[[], tuple[Tensor, Tensor]],
        events: SpikeEvents | None = None,
    ):
        self.spikes = spikes
        self._compute_values = values
        self._events = events

    @cached_property
    def events(self) -> SpikeEvents:
        """Spikes as events, [T, B, N]."""
        return SpikeEvents(self.spikes.detach()) if self._events is None else self._events

    @cached_property
    def _values(self) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return self._compute_values()

    @property
    def membrane(self) -> Tensor:
        """Membrane V[t] before reset, [T, B, N], in threshold units (rest 0, base threshold 1)."""
        return self._values[0]

    @property
    def threshold(self) -> Tensor:
        """Threshold θ[t] in force at step t, [T, B, N]."""
        return self._values[1]


def threshold_of(spikes: Tensor, p: Tensor | None, b: Tensor | None) -> Tensor:
    """Threshold θ[t+1] = 1 + b a[t], a[t] = p a[t−1] + S[t], of spikes S; both [T, B, N]."""
    threshold = torch.ones_like(spikes)
    if p is not None and b is not None:
        threshold[1:] += b * leaky_integrate(spikes, p)[:-1]
    return threshold


def needs_gradient(*inputs: Tensor | None) -> bool:
    """Whether results computed from these inputs need a gradient."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


def trace_of_margin(
    spikes: Tensor,
    compute_margin: Callable[[], Tensor],
    compute_threshold: Callable[[Tensor], Tensor],
    inputs: Sequence[Tensor | None],
    events: SpikeEvents | None = None,
) -> SpikeTrace:
    """Make the trace of a kernel that gives spikes [T, B, N].

    When membrane or threshold is first read, `compute_margin` computes V − θ from `inputs`, and
    `compute_threshold` computes θ from the spikes.

    Raises:
        RuntimeError: raised on that read if an input was changed in place since the simulation.
    """
    versions = _versions(inputs)

    def membrane_and_threshold() -> tuple[Tensor, Tensor]:
        if versions != _versions(inputs):
            raise RuntimeError(
                "membrane: expected to be read before any argument of the simulation changes, "
                "got one that was changed in place (by an optimiser?)"
            )
        margin = compute_margin().view(spikes.shape)
        threshold = compute_threshold(spikes.detach().to(margin.dtype))
        return margin + threshold, threshold

    return SpikeTrace(spikes, membrane_and_threshold, events)


def _versions(inputs: Sequence[Tensor | None]) -> list[int]:
    """PyTorch's counts of in-place changes, for the inputs that have one."""
    return [x._version for x in inputs if x is not None and not x.is_inference()]


def zero_after_spike_(membrane: Tensor, spikes: Tensor, n: int) -> None:
    """Set V to 0 after the spike in each block of n steps, in place; both [T, B, N]."""
    if n == 1:
        return
    whole = len(spikes) // n * n
    for steps, length in ((slice(0, whole), n), (slice(whole, None), len(spikes) - whole)):
        if length:
            s = spikes[steps].unflatten(0, (-1, length))
            membrane[steps] *= (1 + s - s.cumsum(1)).flatten(0, 1)


class NotFiniteError(ValueError):
    """NaN or Inf in an argument or the membrane; `neuron` is the first affected one, if known.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((10, 1, 2), float("nan"))
        >>> try:
        ...     bs.alif(current, torch.tensor([0.9, 0.9]))
        ... except bs.NotFiniteError as error:
        ...     print(error.neuron)
        0
    """

    def __init__(self, message: str, neuron: int | None = None):
        super().__init__(message)
        self.neuron = neuron


def check_finite(last_state: Tensor, current: Tensor) -> None:
    """Raise NotFiniteError if the membrane became NaN or Inf.

    Either one persists in the membrane, so checking the last state [B, N] is enough. The current is
    searched for the place only if that check fails.
    """
    # A finite sum is the quicker proof; a sum of huge values may overflow.
    if math.isfinite(last_state.detach().sum()) or torch.isfinite(last_state).all():
        return
    bad = (~torch.isfinite(current)).nonzero()
    if len(bad):
        t, sample, neuron = bad[0].tolist()
        raise NotFiniteError(
            f"current: expected finite values, got {current[t, sample, neuron].item()} "
            f"at step {t}, sample {sample}, neuron {neuron} ({len(bad)} such values)",
            neuron,
        )
    raise NotFiniteError(
        "membrane: expected finite values, got NaN or Inf from a finite current; "
        "the parameters or recurrent_weight make it overflow",
        int((~torch.isfinite(last_state)).nonzero()[0, -1]),
    )
