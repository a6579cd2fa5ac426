"""adLIF, and with recurrent weights RadLIF: adaptive neurons with a soft reset.

At the start u = w = s = 0. For t = 0 … T−1:

    w[t] = β w[t−1] + a u[t−1] + b s[t−1]
    u[t] = α (u[t−1] − s[t−1]) + (1 − α) (I[t] + W s[t−d] − w[t])
    s[t] = 1 if u[t] > 1 else 0

| symbol | code | shape | unit | in the authors' networks |
|---|---|---|---|---|
| I | `current` | [T, B, N] | threshold units | batch-normalised |
| u | `trace.membrane` | [T, B, N] | threshold units, before reset | |
| s | `trace.spikes` | [T, B, N] | 0 or 1 | |
| α | `alpha` | [N] | per step | exp(−1/5) to exp(−1/25) |
| β | `beta` | [N] | per step | exp(−1/30) to exp(−1/120) |
| a | `a` | [N] | coupling to the membrane | −1 to 1 |
| b | `b` | [N] | threshold units per spike | 0 to 2 |
| W | `recurrent_weight` | [N, N] (post, pre) | threshold units per spike | diagonal 0 |
| d | `recurrent_delay` | int ≥ 1, or `RecurrentDelays` | steps | 1 |

The reset subtracts the threshold. The adaptation acts in the step in which it changes. So a step
hands u[t] − s[t] and w[t+1] to the next, and they are the states.

Below threshold, u and w grow without end if a < −(1 − β), which is almost half of the authors'
range. Such a neuron soon fires in each step, gets no gradient from the boxcar, and overflows
float32 after hundreds of steps. The authors' recordings have 100 steps; for longer ones use
`model.a=[0,1]`.

Source: Bittar & Garner, Frontiers in Neuroscience 16:865897, 2022, and their code,
github.com/idiap/sparch. SE-adLIF and EF-adLIF (`euler_adlif.py`) are other neurons of the family.
"""

from torch import Tensor

from blockspike.neurons.delays import RecurrentDelays
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.simulate import Detach, ExactMethod, simulate
from blockspike.neurons.state import State
from blockspike.neurons.surrogates import Boxcar, Surrogate
from blockspike.neurons.trace import SpikeTrace


def step(drive, parameters, constants, state, fire):
    """One step; the states are u[t] − s[t] and w[t+1]."""
    alpha, beta, a, b = parameters
    _, one = constants
    after_reset, adaptation = state
    membrane = alpha * after_reset + (one - alpha) * (drive - adaptation)
    spike, not_spiked = fire(membrane, one)
    adaptation = beta * adaptation + a * membrane + b * spike
    return spike, membrane, one, (membrane - (one - not_spiked), adaptation)


ADLIF = NeuronModel(
    "adLIF",
    parameters=("alpha", "beta", "a", "b"),
    states=("membrane", "adaptation"),
    step=step,
)


def adlif(
    current: Tensor,
    alpha: Tensor,
    beta: Tensor,
    a: Tensor,
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
    """Simulate adLIF neurons of Bittar & Garner 2022, with recurrent weights RadLIF.

    The reset subtracts the threshold, 1, and the adaptation acts in the step in which it changes.
    Defaults are those of the authors' code.

    Args:
        current: [T, B, N] input current in threshold units, see `simulate`; never modified.
        alpha: [N] membrane decay per step; in the authors' networks exp(−1/5) to exp(−1/25).
        beta: [N] adaptation decay per step; exp(−1/30) to exp(−1/120).
        a: [N] coupling of the adaptation to the membrane; −1 to 1.
        b: [N] coupling of the adaptation to the spike; 0 to 2.
        recurrent_weight, recurrent_delay, surrogate, detach_spikes, membrane, method: see
            `simulate`.
        state: see `simulate`. The states are "membrane", u[t] − s[t] after the reset, and
            "adaptation", w[t+1] of the step that follows.

    Returns:
        SpikeTrace with spikes [T, B, N] and the state at the end.

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((1000, 1, 1), 2.0)  # [T, B, N]
        >>> alpha, beta = torch.tensor([0.9]), torch.tensor([0.98])
        >>> trace = bs.adlif(current, alpha, beta, a=torch.tensor([0.1]), b=torch.tensor([1.0]))
        >>> trace.spikes.shape
        torch.Size([1000, 1, 1])
    """
    return simulate(
        ADLIF,
        current,
        {"alpha": alpha, "beta": beta, "a": a, "b": b},
        recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay,
        surrogate=surrogate,
        detach_spikes=detach_spikes,
        state=state,
        membrane=membrane,
        method=method,
    )
