"""C-SiLIF: a neuron with a complex state, a diagonal state space model with threshold and reset.

At the start u = s = 0; u is complex. For t = 0 … T−1:

    α    = exp(Δ (−λ + iω))
    u[t] = α (u[t−1] − ½ s[t−1]) + b I[t]
    s[t] = 1 if 2 Re u[t] > 1 else 0

| symbol | code | shape | unit | in the authors' networks |
|---|---|---|---|---|
| I | `current` | [T, B, N] | | batch-normalised |
| 2 Re u | `trace.membrane` | [T, B, N] | threshold units, before reset | |
| s | `trace.spikes` | [T, B, N] | 0 or 1 | |
| λ | `rate` | [N] | per unit of time | starts at 0.5, log λ is trained |
| ω | `frequency` | [N] | radians per unit of time | starts at π |
| Δ | `time_step` | [N] | units of time | log-uniform in 0.01 to 0.5, log Δ is trained |
| b | `b` | [N] | half a threshold per unit of current | starts as U(0, 1) |

The code steps v = 2u, which is the same number by number: v[t] = α (v[t−1] − s[t−1]) + 2b I[t], and
a neuron spikes if Re v > 1. So the reset subtracts the threshold, and the states are real and
imaginary part of v[t] − s[t].

Source: Fabre, Dudchenko, Bouhadjar and Neftci, "SiLIF: Structured State Space Model Dynamics and
Parametrization for Spiking Neural Networks", arXiv:2506.06374, and their code,
github.com/Maxtimer97/SSM-inspired-LIF, whose layers have no recurrence.
"""

import torch
from torch import Tensor

from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.precision import in_full_precision
from blockspike.neurons.simulate import Detach, ExactMethod, check_tensors, simulate
from blockspike.neurons.state import State
from blockspike.neurons.surrogates import Boxcar, Surrogate
from blockspike.neurons.trace import SpikeTrace


def step(drive, parameters, constants, state, fire):
    """One step of v = 2u, whose real part is the membrane; the state is v[t] − s[t]."""
    decay_real, decay_imaginary, b = parameters
    _, one = constants
    real, imaginary = state
    membrane = decay_real * real - decay_imaginary * imaginary + 2.0 * b * drive
    imaginary = decay_imaginary * real + decay_real * imaginary
    spike, not_spiked = fire(membrane, one)
    return spike, membrane, one, (membrane - (one - not_spiked), imaginary)


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
    membrane: bool = False,
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
        recurrent_weight, recurrent_delay, surrogate, detach_spikes, membrane, method: see
            `simulate`.
        state: see `simulate`. The states are "membrane", after the reset, and "imaginary": real
            and imaginary part of twice the authors' state.

    Returns:
        SpikeTrace with spikes [T, B, N] and the state at the end.

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
    given = {"rate": rate, "frequency": frequency, "time_step": time_step}
    check_tensors(current, given, None, 1, surrogate, method)
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
        membrane=membrane,
        method=method,
    )
