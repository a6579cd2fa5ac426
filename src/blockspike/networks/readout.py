"""`LeakyReadout`: output neurons that do not spike."""

import math

import torch
from torch import Tensor, nn

from blockspike.networks.bounded import BoundedParameters, Bounds
from blockspike.networks.layer import check_counts, decay
from blockspike.networks.synapses import SynapseMode, presynaptic_first, synaptic_current
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.readout import leaky_integrate


class LeakyReadout(BoundedParameters):
    """Leaky integrators that do not spike, input [T, B, n_inputs]: V[t] = β V[t−1] + W S[t] + bias.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> readout = bs.LeakyReadout(64, 10, dt_ms=2.0)
        >>> readout(torch.zeros(50, 8, 64)).shape  # [T, B, n_units]
        torch.Size([50, 8, 10])
    """

    beta: Tensor

    def __init__(
        self,
        n_inputs: int,
        n_units: int,
        *,
        dt_ms: float,
        tau_membrane_ms: float = 20.0,
        train_beta: bool = True,
        beta_bounds: Bounds = (0.001, 0.999),
        synapses: SynapseMode = "auto",
    ):
        super().__init__()
        check_counts(n_inputs=n_inputs, n_units=n_units)
        self.synapses: SynapseMode = synapses
        bound = 1 / math.sqrt(n_inputs)
        weight = torch.empty(n_units, n_inputs).uniform_(-bound, bound)
        self.weight = nn.Parameter(presynaptic_first(weight))
        self.bias = nn.Parameter(torch.zeros(n_units))
        beta = torch.full((n_units,), decay(tau_membrane_ms, dt_ms, "tau_membrane_ms"))
        self.add_bounded("beta", beta, beta_bounds, train_beta, "tau_membrane_ms")

    def extra_repr(self) -> str:
        """Sizes, and the range of β."""
        n_units, n_inputs = self.weight.shape
        return f"{n_inputs}, {n_units}, {self.parameters_repr()}"

    def forward(
        self, spikes: Tensor, events: SpikeEvents | None = None, start: Tensor | None = None
    ) -> Tensor:
        """Membrane [T, B, n_units] for spikes [T, B, n_inputs] and their events.

        `events`: see `synaptic_current`; `start` [B, n_units] is the membrane before; None = 0.
        """
        weight, mode = self.weight[None], self.synapses
        current = synaptic_current(spikes, weight, self.bias, events=events, mode=mode)
        return leaky_integrate(current, self.beta, start)
