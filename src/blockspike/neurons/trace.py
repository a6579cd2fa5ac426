"""Result of a simulation, `SpikeTrace`, and the check that the simulation stayed finite."""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from blockspike.neurons.autograd import is_transformed
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.readout import leaky_integrate
from blockspike.neurons.spec import SimulationSpec
from blockspike.neurons.state import NeuronState, last_state


class SpikeTrace:
    """Result of a simulation of any model; every array is [T, B, N] (time, batch, neurons).

    Attributes:
        spikes: 0 or 1, in the dtype of the current; differentiable.
        events: the spikes as events, without gradient; computed when first read.
        membrane: V before reset; computed when first read, without gradient, unless the simulation
            was asked for it by `membrane_gradient`.
        threshold: θ in force at each step, without gradient; computed when first read.
        state: `NeuronState` after the last step.

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
        state: Callable[[], NeuronState] | None = None,
        membrane: Tensor | None = None,
    ):
        self.spikes = spikes
        self._check_spikes = _watched(spikes)
        self._compute_values = values
        self._events = events
        self._compute_state = state
        self._membrane = membrane
        self._compute_inputs: Callable[[], Tensor] | None = None

    @cached_property
    def events(self) -> SpikeEvents:
        """Spikes as events, [T, B, N]."""
        return SpikeEvents(self.spikes.detach()) if self._events is None else self._events

    @cached_property
    def _values(self) -> tuple[Tensor, Tensor]:
        self._check_spikes()
        with torch.no_grad():
            return self._compute_values()

    @property
    def membrane(self) -> Tensor:
        """Membrane V[t] before reset, [T, B, N], in threshold units (rest 0, base threshold 1)."""
        return self._values[0] if self._membrane is None else self._membrane

    @property
    def threshold(self) -> Tensor:
        """Threshold θ[t] in force at step t, [T, B, N]."""
        return self._values[1]

    @cached_property
    def state(self) -> NeuronState:
        """State after the last step; `state=` of the next call continues from it.

        Raises:
            RuntimeError: what made this trace does not give a state.
        """
        return self.state_maker()

    @property
    def state_maker(self) -> Callable[[], NeuronState]:
        """Function that gives the state, and keeps less in memory than this trace."""
        checked = (self._check_spikes, self._compute_state, self._compute_inputs)
        return partial(_state_of, *checked, self.spikes.requires_grad)

    def with_check(self, check: Callable[[], None]) -> "SpikeTrace":
        """This trace; `check` is called before its state is first read."""
        compute = self._compute_state
        self._compute_state = compute and (lambda: (check(), compute())[1])
        return self

    def with_inputs(self, compute_inputs: Callable[[], Tensor]) -> "SpikeTrace":
        """This trace; its state has the `inputs` that are computed when it is first read."""
        self._compute_inputs = compute_inputs
        return self


def _state_of(
    check_spikes: Callable[[], None],
    compute_state: Callable[[], NeuronState] | None,
    compute_inputs: Callable[[], Tensor] | None,
    is_differentiable: bool,
) -> NeuronState:
    if compute_state is None:
        raise RuntimeError("state: expected a simulation that gives its state, got another")
    check_spikes()
    # It is made once, and may be read without gradients first.
    with torch.set_grad_enabled(is_differentiable or torch.is_grad_enabled()):
        state = compute_state()
        return state if compute_inputs is None else replace(state, inputs=compute_inputs())


def threshold_of(
    spikes: Tensor, p: Tensor | None, b: Tensor | None, start: Tensor | None = None
) -> Tensor:
    """Threshold θ[t] = 1 + b a[t−1], a[t] = p a[t−1] + S[t], of spikes S; both [T, B, N].

    `start` [B, N] is a[−1]; None = 0.
    """
    if p is None or b is None:
        return torch.ones_like(spikes)
    before = torch.zeros_like(spikes[0]) if start is None else start
    return 1 + b * torch.cat([before[None], leaky_integrate(spikes[:-1], p, before)])


def needs_gradient(*inputs: Tensor | None) -> bool:
    """Whether results computed from these inputs need a gradient."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs)


class Simulation(NamedTuple):
    """Result of a simulation by kernels.

    Attributes:
        spec: the model and settings.
        spikes, events: see `SpikeTrace`.
        last: states after the last step, [K, B, N].
        before: spikes [D, B, N] on their way at the start, or None.
        recurrent: whether spikes are fed back.
        margin: V − θ [T, B, N] with the gradient of V; None if that is not wanted.
        compute_margin: gives V − θ without gradient, of any shape.
        inputs: tensors that it is computed from.
    """

    spec: SimulationSpec
    spikes: Tensor
    events: SpikeEvents | None
    last: Tensor
    before: Tensor | None
    recurrent: bool
    margin: Tensor | None
    compute_margin: Callable[[], Tensor]
    inputs: Sequence[Tensor | None]


def ones_like_margin(spikes: Tensor, margin: Tensor) -> Tensor:
    """Threshold [T, B, N] of neurons that always have 1."""
    return torch.ones_like(margin)


def trace_of(
    simulation: Simulation,
    compute_threshold: Callable[[Tensor, Tensor], Tensor] = ones_like_margin,
    n_block: int = 1,
) -> SpikeTrace:
    """Make the trace of a simulation.

    When membrane or threshold is first read, V − θ is computed again, and `compute_threshold`
    computes θ from the spikes and V − θ. In each block of `n_block` steps, V continues without
    reset up to the end, so that it is set to 0 after a spike.

    Raises:
        RuntimeError: raised on that read if the spikes or an input was changed in place since the
            simulation.
    """
    spec, spikes, events, last, before, recurrent, of_membrane, compute_margin, inputs = simulation
    check_unchanged = unchanged(inputs)

    def complete(margin: Tensor) -> tuple[Tensor, Tensor]:
        margin = margin.view(spikes.shape)
        threshold = compute_threshold(spikes.detach().to(margin.dtype), margin.detach()).detach()
        membrane = margin + threshold
        return zero_after_spike(membrane, spikes.detach(), n_block), threshold

    def membrane_and_threshold() -> tuple[Tensor, Tensor]:
        check_unchanged()
        margin = compute_margin()
        _check_recomputed(margin.view(spikes.shape), spikes.detach(), n_block)
        return complete(margin)

    membrane = None if of_membrane is None else complete(of_membrane)[0]
    state = partial(last_state, spec, recurrent, last, spikes, before)
    return SpikeTrace(spikes, membrane_and_threshold, events, state, membrane)


def _check_recomputed(margin: Tensor, spikes: Tensor, n_block: int) -> None:
    """Raise RuntimeError if V − θ is not that of the spikes; sees what `unchanged` cannot."""
    above, fired = margin > 0, spikes > 0
    if not (torch.equal(above, fired) if n_block == 1 else above[fired].all()):
        raise RuntimeError(
            "membrane: expected to be read before any argument or spike of the simulation "
            "changes, got other spikes when it was computed again; an argument was changed "
            "through .data, NumPy or in inference mode"
        )


def unchanged(inputs: Sequence[Tensor | None]) -> Callable[[], None]:
    """Function that raises RuntimeError if an input was changed in place since this call."""
    versions = _versions(inputs)

    def check() -> None:
        if versions != _versions(inputs):
            raise RuntimeError(
                "membrane: expected to be read before any argument of the simulation changes, "
                "got one that was changed in place (by an optimiser?)"
            )

    return check


def _watched(spikes: Tensor) -> Callable[[], None]:
    """Do as `unchanged`, for the spikes as long as somebody holds them."""
    held, versions = weakref.ref(spikes), _versions([spikes])

    def check() -> None:
        if (still := held()) is not None and versions != _versions([still]):
            raise RuntimeError(
                "trace: expected to be read before its spikes change, got spikes that were changed "
                "in place; change a copy"
            )

    return check


def _versions(inputs: Sequence[Tensor | None]) -> list[int]:
    """PyTorch's counts of in-place changes, for the inputs that have one."""
    return [x._version for x in inputs if x is not None and not x.is_inference()]


def zero_after_spike(membrane: Tensor, spikes: Tensor, n: int) -> Tensor:
    """V [T, B, N], but 0 after the spike in each block of n steps."""
    if n == 1:
        return membrane
    blocks = [s + 1 - s.cumsum(0) for s in spikes.split(n)]
    return membrane * torch.cat(blocks)


def check_finite(last_states: Tensor, current: Tensor, names: Sequence[str]) -> None:
    """Raise NotFiniteError if a state became NaN or Inf.

    Either one persists, so checking the last states [K, B, N], of these K names, is enough. The
    current is searched for the place only if that check fails.
    """
    if is_transformed():
        return
    # A finite sum is the quicker proof; a sum of huge values may overflow.
    if math.isfinite(last_states.detach().sum()) or torch.isfinite(last_states).all():
        return
    bad = (~torch.isfinite(current)).nonzero()
    if len(bad):
        t, sample, neuron = bad[0].tolist()
        raise NotFiniteError(
            f"current: expected finite values, got {current[t, sample, neuron].item()} "
            f"at step {t}, sample {sample}, neuron {neuron} ({len(bad)} such values)",
            neuron,
        )
    state, _, neuron = (~torch.isfinite(last_states)).nonzero()[0].tolist()
    raise NotFiniteError(
        f"{names[state]}: expected finite values, got NaN or Inf from a finite current; "
        "the parameters or recurrent_weight make it overflow",
        neuron,
    )
