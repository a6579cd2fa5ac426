"""`adlif` and its step; equations: README.md."""

from torch import Tensor

from blockspike.neurons.model import NeuronModel
from blockspike.neurons.recurrent_delays import RecurrentDelays
from blockspike.neurons.simulate import ExactMethod, simulate
from blockspike.neurons.spec import Detach
from blockspike.neurons.state import State
from blockspike.neurons.surrogate import Boxcar, Surrogate
from blockspike.neurons.trace import SpikeTrace


def step(drive, parameters, constants, state, fire):
    """One step; the state holds u[t] − s[t] and w[t+1], which u[t] and s[t] determine."""
    alpha, beta, a, b = parameters
    _, one = constants
    after_reset, adaptation = state
    membrane = alpha * after_reset + (one - alpha) * (drive - adaptation)
    margin = membrane - one
    spike, not_spiked = fire(margin)
    adaptation = beta * adaptation + a * membrane + b * spike
    return spike, margin, (membrane - (one - not_spiked), adaptation)


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
    membrane_gradient: bool = False,
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
        recurrent_weight, recurrent_delay, surrogate, detach_spikes, membrane_gradient, method: see
            `simulate`.
        state: see `simulate`. The states are "membrane", u[t] − s[t] after the reset, and
            "adaptation", w[t+1] of the step that follows.

    Returns:
        SpikeTrace with spikes, membrane before reset and threshold, each [T, B, N].

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
        membrane_gradient=membrane_gradient,
        method=method,
    )
