"""Settings of a simulation, shared by all methods."""

from typing import Literal, NamedTuple

from torch import Tensor

from blockspike.neurons.model import NeuronModel
from blockspike.neurons.recurrent_delays import RecurrentDelays, longest_delay
from blockspike.neurons.surrogate import Surrogate

Detach = bool | Literal["reset", "recurrence"]
"""Where gradient stops at the spikes: in the reset and the recurrence (True), one, or neither."""


def detached(spikes: Detach) -> tuple[bool, bool]:
    """Whether spikes are detached in the reset, and in the recurrence.

    Raises:
        ValueError: `spikes` is none of True, False, "reset" and "recurrence".
    """
    if isinstance(spikes, bool):
        return spikes, spikes
    if spikes not in ("reset", "recurrence"):
        raise ValueError(
            f"detach_spikes: expected True, False, 'reset' or 'recurrence', got {spikes!r}"
        )
    return spikes == "reset", spikes == "recurrence"


class SimulationSpec(NamedTuple):
    """Settings shared by all neurons of a simulation.

    Attributes:
        model: the neuron model.
        constants: numbers for `model.step`, without the leading 0 and 1.
        recurrent_delay, surrogate: see `simulate`.
        detach_reset, detach_recurrence: whether no gradient flows through the spikes of each.
    """

    model: NeuronModel
    constants: tuple[float, ...]
    recurrent_delay: int | RecurrentDelays
    surrogate: Surrogate
    detach_reset: bool
    detach_recurrence: bool

    @property
    def longest_delay(self) -> int:
        """The longest recurrent delay in steps."""
        return longest_delay(self.recurrent_delay)

    @property
    def delays(self) -> RecurrentDelays | None:
        """Delays of each neuron's spikes, if they have their own."""
        return None if isinstance(self.recurrent_delay, int) else self.recurrent_delay

    @property
    def delay_steps(self) -> Tensor | None:
        """The delays [N] of each neuron's spikes, differentiable."""
        return None if self.delays is None else self.delays.steps
