"""`c_silif` and its step; equations: README.md."""

import torch
from torch import Tensor

from blockspike.neurons.autograd import in_full_precision
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.recurrent_delays import RecurrentDelays
from blockspike.neurons.simulate import (
    ExactMethod,
    check_current,
    check_like,
    check_parameters_finite,
    simulate,
)
from blockspike.neurons.spec import Detach
from blockspike.neurons.state import State
from blockspike.neurons.surrogate import Boxcar, Surrogate
from blockspike.neurons.trace import SpikeTrace


def step(drive, parameters, constants, state, fire):
    """One step of v = 2u, whose real part is the membrane; the state is v[t] − s[t]."""
    decay_real, decay_imaginary, b = parameters
    _, one = constants
    real, imaginary = state
    membrane = decay_real * real - decay_imaginary * imaginary + 2.0 * b * drive
    imaginary = decay_imaginary * real + decay_real * imaginary
    margin = membrane - one
    spike, not_spiked = fire(margin)
    return spike, margin, (membrane - (one - not_spiked), imaginary)


C_SILIF = NeuronModel(
    "C-SiLIF",
    parameters=("decay_real", "decay_imaginary", "b"),
    states=("membrane", "imaginary"),
    step=step,
)


@in_full_precision
def c_silif(
    current: Tensor,
    rate: Tensor,
    frequency: Tensor,
    time_step: Tensor,
    b: Tensor,
    *,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | RecurrentDelays = 1,
    surrogate: Surrogate = Boxcar(),  # noqa: B008 (frozen)
    detach_spikes: Detach = False,
    state: State | None = None,
    membrane_gradient: bool = False,
    method: ExactMethod = "fused",
) -> SpikeTrace:
    """Simulate C-SiLIF neurons of Fabre et al. 2025, whose state is a complex number.

    A step multiplies the state by α = exp(Δ (−rate + i·frequency)), of each neuron's own time step
    Δ. Defaults are those of the authors' code; their networks have no recurrence.

    Args:
        current: [T, B, N] input current, see `simulate`; never modified. The membrane rises by 2b
            times the current, in threshold units.
        rate: [N] decay rate per unit of time, ≥ 0 for a state that decays.
        frequency: [N] angular frequency in radians per unit of time.
        time_step: [N] Δ in units of time.
        b: [N] scale of the current.
        recurrent_weight, recurrent_delay, surrogate, detach_spikes, membrane_gradient, method: see
            `simulate`.
        state: see `simulate`. The states are "membrane", after the reset, and "imaginary": real
            and imaginary part of twice the authors' state.

    Returns:
        SpikeTrace with spikes, membrane before reset and threshold, each [T, B, N].

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((1000, 1, 1), 0.5)  # [T, B, N]
        >>> rate, frequency = torch.tensor([0.5]), torch.tensor([3.14])
        >>> trace = bs.c_silif(current, rate, frequency, torch.tensor([0.1]), b=torch.tensor([0.5]))
        >>> trace.spikes.shape
        torch.Size([1000, 1, 1])
    """
    check_current(current, method)
    for name, value in (("rate", rate), ("frequency", frequency), ("time_step", time_step)):
        check_like(name, value, tuple(current.shape[2:]), current)
    check_parameters_finite({"rate": rate, "frequency": frequency, "time_step": time_step}, None)
    size, angle = torch.exp(-time_step * rate), time_step * frequency
    return simulate(
        C_SILIF,
        current,
        {"decay_real": size * angle.cos(), "decay_imaginary": size * angle.sin(), "b": b},
        recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay,
        surrogate=surrogate,
        detach_spikes=detach_spikes,
        state=state,
        membrane_gradient=membrane_gradient,
        method=method,
    )
