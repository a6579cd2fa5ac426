"""`ALIFInputs`: the arguments of `alif`, as its methods take them."""

from typing import NamedTuple

import torch
from torch import Tensor

from blockspike.neurons.alif.step import ALIF, ALIF_ALWAYS_OPEN
from blockspike.neurons.recurrent_delays import RecurrentDelays, of_now
from blockspike.neurons.spec import Detach, SimulationSpec, detached
from blockspike.neurons.state import Start, State, start_of
from blockspike.neurons.surrogate import MultiGaussian, Surrogate
from blockspike.neurons.trace import threshold_of


class ALIFInputs(NamedTuple):
    """Arguments of `alif` that belong together; make them by `alif_inputs`.

    Attributes:
        spec: the model, with or without a refractory period, and the settings of all neurons.
        start: the state at the start; None = 0.
        current, beta, p, b, arp, recurrent_weight, membrane_gradient: see `alif`.
    """

    spec: SimulationSpec
    current: Tensor
    beta: Tensor
    p: Tensor | None
    b: Tensor | None
    arp: int
    recurrent_weight: Tensor | None
    start: Start | None
    membrane_gradient: bool

    @property
    def parameters(self) -> list[Tensor]:
        """β, p and b, with 0 for those that are None."""
        p_and_b = (torch.zeros_like(self.beta) if x is None else x for x in (self.p, self.b))
        return [self.beta, *p_and_b]

    def threshold(self, spikes: Tensor, margin: Tensor) -> Tensor:
        """Threshold [T, B, N] of spikes [T, B, N]; V − θ is not needed."""
        start = None if self.start is None else self.start.values[1]
        return threshold_of(spikes, self.p, self.b, start)


def alif_inputs(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None = None,
    b: Tensor | None = None,
    *,
    arp: int = 0,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | RecurrentDelays | None = None,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: Detach = True,
    state: State | None = None,
    membrane_gradient: bool = False,
) -> ALIFInputs:
    """Bundle the arguments of `alif`, of which only `state` is checked here."""
    model, constants = (ALIF, (float(arp),)) if arp else (ALIF_ALWAYS_OPEN, ())
    delay = arp + 1 if recurrent_delay is None else of_now(recurrent_delay)
    spec = SimulationSpec(model, constants, delay, surrogate, *detached(detach_spikes))
    longest = None if recurrent_weight is None else spec.longest_delay
    start = start_of(state, model, current, longest)
    return ALIFInputs(spec, current, beta, p, b, arp, recurrent_weight, start, membrane_gradient)
