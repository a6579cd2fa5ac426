"""`glif`: the generalised leaky integrate-and-fire neuron, with the parts that are given."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from blockspike.neurons.alif.step import check_arp
from blockspike.neurons.autograd import in_full_precision, is_transformed
from blockspike.neurons.glif.step import COUPLED_GLIF, GLIF, N_KERNELS, follow
from blockspike.neurons.recurrent_delays import RecurrentDelays
from blockspike.neurons.simulate import ExactMethod, check_like, run_model
from blockspike.neurons.spec import Detach
from blockspike.neurons.state import Start, State
from blockspike.neurons.surrogate import MultiGaussian, Surrogate
from blockspike.neurons.trace import SpikeTrace, threshold_of

Kernel = tuple[Tensor, Tensor]
"""Amplitude and decay per step of what a spike leaves behind, [N] each."""


class ThresholdCoupling(NamedTuple):
    """How the threshold follows the membrane; equations: neurons/glif/README.md.

    Attributes:
        coupling: [N] rise of the threshold per rise of V above the onset.
        decay: [N] decay per step of what follows the membrane, exp(−dt/τ).
        onset: [N] V around which the threshold begins to rise.
        width: [N] half the width of the bend around the onset, above 0.

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> values = (torch.tensor([x]) for x in (0.5, 0.9, 0.3, 0.2))
        >>> follows = bs.ThresholdCoupling(*values)
        >>> current = torch.full((200, 1, 1), 0.1)  # [T, B, N]
        >>> trace = bs.glif(current, torch.tensor([0.95]), threshold_coupling=follows)
        >>> bool(trace.threshold[-1] > 1)
        True
    """

    coupling: Tensor
    decay: Tensor
    onset: Tensor
    width: Tensor


@in_full_precision
def glif(
    current: Tensor,
    beta: Tensor,
    *,
    reset_share: Tensor | None = None,
    refractory: int | Tensor = 0,
    after_spike_currents: Sequence[Kernel] = (),
    threshold_kernels: Sequence[Kernel] = (),
    threshold_coupling: ThresholdCoupling | None = None,
    recurrent_weight: Tensor | None = None,
    recurrent_delay: int | RecurrentDelays = 1,
    surrogate: Surrogate = MultiGaussian(),  # noqa: B008 (frozen)
    detach_spikes: Detach = True,
    state: State | None = None,
    membrane_gradient: bool = False,
    method: ExactMethod = "fused",
) -> SpikeTrace:
    """Simulate generalised leaky integrate-and-fire neurons (neurons/glif/README.md).

    With no part this is the LIF neuron, and with one threshold kernel ALIF. GLIF1 to GLIF4 of
    Teeter et al. 2018 are choices of the parts, and so is the GIF of Mensi et al. 2012 and
    Pozzorini et al. 2015, without its escape noise and with kernels that are sums of exponentials.

    Args:
        current: [T, B, N] input current in threshold units per step, see `simulate`; never
            modified.
        beta: [N] membrane decay per step, exp(−dt/τ_m).
        reset_share: [N] share of V that a reset leaves; None = 0, a reset to 0.
        refractory: steps after a spike in which V stays at its reset, ≥ 0, one number or [N].
        after_spike_currents: up to two pairs (amplitude, decay), [N] each: a spike adds the
            amplitude to a current that is subtracted from the input and decays each step.
        threshold_kernels: up to two pairs (amplitude, decay), [N] each: a spike adds the amplitude
            to the threshold, where it decays each step.
        threshold_coupling: how the threshold follows the membrane; None = it does not.
        recurrent_weight, recurrent_delay, surrogate, detach_spikes, membrane_gradient, method: see
            `simulate`.
        state: see `simulate`; the states are "membrane", "in_current_1", "in_current_2",
            "in_threshold_1", "in_threshold_2", "following" with a coupling, "refractory_left".

    Returns:
        SpikeTrace with spikes, membrane and threshold, each [T, B, N], and the state at the end.

    Raises:
        ValueError: a bad argument, naming it.
        NotFiniteError: a NaN or Inf in an argument or in a state (a ValueError too).

    Examples:
        >>> import torch
        >>> import blockspike as bs
        >>> current = torch.full((1000, 1, 1), 0.1)  # [T, B, N]
        >>> slow = (torch.tensor([0.02]), torch.tensor([0.99]))
        >>> fast = (torch.tensor([0.5]), torch.tensor([0.9]))
        >>> trace = bs.glif(
        ...     current, torch.tensor([0.95]), refractory=4,
        ...     after_spike_currents=[slow], threshold_kernels=[fast],
        ... )
        >>> int(trace.spikes.sum())
        24
    """  # fmt: skip
    for name, value in {"beta": beta, **_named(threshold_coupling)}.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"{name}: expected a tensor [N], got {type(value).__name__}")
    parameters = {"beta": beta}
    parameters["reset_share"] = torch.zeros_like(beta) if reset_share is None else reset_share
    parameters["refractory"] = _steps(refractory, beta)
    for name, kernels in (("current", after_spike_currents), ("threshold", threshold_kernels)):
        parameters |= _kernels(name, kernels, beta)
    model = GLIF
    if threshold_coupling is not None:
        model, parameters = COUPLED_GLIF, parameters | _coupling(threshold_coupling)
    return run_model(
        model, current, parameters, recurrent_weight=recurrent_weight,
        recurrent_delay=recurrent_delay, surrogate=surrogate, detach_spikes=detach_spikes,
        state=state, membrane_gradient=membrane_gradient, method=method,
        compute_threshold=partial(_threshold, parameters),
    )  # fmt: skip


def _steps(refractory: int | Tensor, like: Tensor) -> Tensor:
    """Refractory steps of each neuron, [N]."""
    if not isinstance(refractory, Tensor):
        check_arp(refractory, refractory, like.dtype, "refractory")
        return torch.full_like(like, refractory)
    if not is_transformed():
        wrong = refractory[(refractory < 0) | (refractory % 1 != 0)]
        if wrong.numel():
            got = wrong.flatten()[0].item()
            raise ValueError(f"refractory: expected whole steps ≥ 0, got {got}")
    return refractory.to(like)


def _kernels(of: str, kernels: Sequence[Kernel], like: Tensor) -> dict[str, Tensor]:
    """Amplitudes and decays by the model's names for them; 0 for kernels that are not given."""
    name = "after_spike_currents" if of == "current" else "threshold_kernels"
    if not isinstance(kernels, Iterable):
        raise ValueError(f"{name}: expected a list of pairs, got {type(kernels).__name__}")
    pairs = list(kernels)
    if len(pairs) > N_KERNELS or any(not isinstance(x, tuple | list) or len(x) != 2 for x in pairs):
        raise ValueError(
            f"{name}: expected up to {N_KERNELS} pairs of an amplitude and a decay, "
            f"got {len(pairs)}"
        )
    for i, pair in enumerate(pairs):
        for part, value in zip(("amplitude", "decay"), pair, strict=True):
            check_like(f"{name}[{i}]: {part}", value, tuple(like.shape), like)
    pairs += [(torch.zeros_like(like), torch.zeros_like(like))] * (N_KERNELS - len(pairs))
    return {
        key: value
        for i, pair in enumerate(pairs)
        for key, value in zip((f"{of}_{i + 1}", f"{of}_decay_{i + 1}"), pair, strict=True)
    }


def _named(coupling: ThresholdCoupling | None) -> dict[str, Tensor]:
    if not isinstance(coupling, ThresholdCoupling | None):
        got = type(coupling).__name__
        raise ValueError(f"threshold_coupling: expected a ThresholdCoupling or None, got {got}")
    own = {} if coupling is None else coupling._asdict()
    return {f"threshold_coupling.{name}": value for name, value in own.items()}


def _coupling(x: ThresholdCoupling) -> dict[str, Tensor]:
    if not is_transformed():
        wrong = x.width[~(x.width > 0)]
        if wrong.numel():
            raise ValueError(f"threshold_coupling: expected a width > 0, got {wrong[0].item()}")
    return {
        "coupling": x.coupling,
        "coupling_decay": x.decay,
        "coupling_onset": x.onset,
        "coupling_width": x.width,
        "quarter_of_inverse_width": 0.25 / x.width,
    }


def _threshold(
    parameters: dict[str, Tensor], start: Start | None, spikes: Tensor, margin: Tensor
) -> Tensor:
    """Threshold [T, B, N] from the spikes and V − θ."""
    rows = None if start is None else start.values
    threshold = torch.ones_like(margin)
    for i in (1, 2):
        decay, amplitude = parameters[f"threshold_decay_{i}"], parameters[f"threshold_{i}"]
        first = None if rows is None else rows[i + 2]
        threshold = threshold + threshold_of(spikes, decay, amplitude, first) - 1
    if "coupling" not in parameters:
        return threshold
    following = torch.zeros_like(spikes[0]) if rows is None else rows[5]
    names = ("coupling_decay", "coupling_onset", "coupling_width", "quarter_of_inverse_width")
    shape = [parameters[name] for name in names]
    thresholds = []
    for fired, above, fixed in zip(spikes, margin, threshold, strict=True):
        thresholds.append(fixed + parameters["coupling"] * following)
        membrane = above + thresholds[-1]
        after = torch.where(fired > 0, parameters["reset_share"] * membrane, membrane)
        following = follow(after, following, *shape)
    return torch.stack(thresholds)
