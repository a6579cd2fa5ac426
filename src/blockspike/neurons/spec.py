"""Settings of a simulation, shared by all methods."""

from typing import Literal, NamedTuple

from blockspike.neurons.model import NeuronModel
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
    recurrent_delay: int
    surrogate: Surrogate
    detach_reset: bool
    detach_recurrence: bool
