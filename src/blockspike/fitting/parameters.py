"""Parameters of neurons in units that do not depend on dt, and the simulation of such neurons."""

from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor

from blockspike.fitting.distance_cpu import Drive
from blockspike.fitting.escape import CERTAIN, log_rate_at_threshold
from blockspike.fitting.escape_cpu import escape_spikes
from blockspike.neurons.alif import ALIF
from blockspike.neurons.glif import COUPLED_GLIF, GLIF, ThresholdCoupling, glif
from blockspike.neurons.model import NeuronModel
from blockspike.neurons.state import NeuronState
from blockspike.neurons.trace import SpikeTrace


class Coefficients(NamedTuple):
    """Coefficients of a simulation at one dt.

    Attributes:
        model, constants: see `blockspike.neurons.simulate`.
        parameters: of the model by name, [N] each.
        drive: how the current drives the neurons.
    """

    model: NeuronModel
    constants: tuple[float, ...]
    parameters: dict[str, Tensor]
    drive: Drive


MIN_TAU_MS = 1e-9
"""Shortest time constant of a simulation; its decay in a step is 0."""
MIN_WIDTH = 1e-6
"""Smallest half-width of the bend in the threshold's coupling."""
_NONE = torch.zeros(())  # stands for zeros of the right shape


@dataclass(frozen=True)
class NeuronParameters:
    """Parameters of GLIF neurons in units that do not depend on dt; [N] float64 each.

    τ_m dV/dt = −(V − rest) + gain · current − Σ w_k, with threshold 1; a spike resets V to
    reset_share · V, where it stays for arp_ms, and adds `current_k` to w_k and `b` and `b_2` to the
    threshold, all of which decay. Without the parts whose value is 0, this is ALIF or LIF
    (equations: neurons/glif.py).

    Attributes:
        tau_membrane_ms, tau_adaptation_ms: time constants of V and of the threshold.
        b: increase of the threshold per spike, in thresholds.
        gain: thresholds per unit of current.
        rest: resting potential in thresholds, where V starts.
        noise: standard deviation of V, in thresholds, under the neuron's own white noise while it
            does not fire.
        arp_ms: absolute refractory period.
        reset_share: share of V that a reset leaves.
        b_2, tau_adaptation_2_ms: second increase of the threshold.
        current_1, tau_current_1_ms, current_2, tau_current_2_ms: after-spike currents, as the
            thresholds by which they would lower V if they lasted.
        coupling, tau_coupling_ms, coupling_onset, coupling_width: how the threshold follows V.
        escape_width: width of the escape noise in thresholds: the neuron fires at 1 kHz times
            exp((V − θ) / width), not where V exceeds θ; 0 = without.
    """

    tau_membrane_ms: Tensor
    tau_adaptation_ms: Tensor
    b: Tensor
    gain: Tensor
    rest: Tensor
    noise: Tensor
    arp_ms: Tensor
    reset_share: Tensor = _NONE
    b_2: Tensor = _NONE
    tau_adaptation_2_ms: Tensor = _NONE
    current_1: Tensor = _NONE
    tau_current_1_ms: Tensor = _NONE
    current_2: Tensor = _NONE
    tau_current_2_ms: Tensor = _NONE
    coupling: Tensor = _NONE
    tau_coupling_ms: Tensor = _NONE
    coupling_onset: Tensor = _NONE
    coupling_width: Tensor = _NONE
    escape_width: Tensor = _NONE

    def __post_init__(self):
        for field in fields(self):
            if getattr(self, field.name) is _NONE:
                object.__setattr__(self, field.name, torch.zeros_like(self.tau_membrane_ms))

    def __getitem__(self, chosen: Tensor) -> "NeuronParameters":
        """Parameters of some of the neurons."""
        return NeuronParameters(*(x[chosen] for x in vars(self).values()))

    def drive(self, dt_ms: float) -> tuple[Tensor, Drive]:
        """β = exp(−dt/τ_m), and how the current drives the neurons: weight = (1 − β) gain, ….

        The noise of a step is √(1 − β²) noise, so that the noise of V does not depend on dt.
        """
        beta = _decay(self.tau_membrane_ms, dt_ms)
        share, own = 1 - beta, torch.sqrt(1 - beta * beta) * self.noise
        return beta, Drive(share * self.gain, share * self.rest, own, self.rest)

    def coefficients(self, dt_ms: float, is_coupled: bool) -> Coefficients:
        """Coefficients per step of GLIF, differentiable; those of the coupling if it `is_coupled`.

        arp_ms is rounded to steps.
        """
        beta, drive = self.drive(dt_ms)
        share = 1 - beta
        parameters = {
            "beta": beta,
            "reset_share": self.reset_share,
            "refractory": (self.arp_ms.detach() / dt_ms).round(),
            "current_1": share * self.current_1,
            "current_decay_1": _decay(self.tau_current_1_ms, dt_ms),
            "current_2": share * self.current_2,
            "current_decay_2": _decay(self.tau_current_2_ms, dt_ms),
            "threshold_1": self.b,
            "threshold_decay_1": _decay(self.tau_adaptation_ms, dt_ms),
            "threshold_2": self.b_2,
            "threshold_decay_2": _decay(self.tau_adaptation_2_ms, dt_ms),
        }
        if not is_coupled:
            return Coefficients(GLIF, (), parameters, drive)
        width = self.coupling_width.clamp(min=MIN_WIDTH)
        parameters |= {
            "coupling": self.coupling,
            "coupling_decay": _decay(self.tau_coupling_ms, dt_ms),
            "coupling_onset": self.coupling_onset,
            "coupling_width": width,
            "quarter_of_inverse_width": 0.25 / width,
        }
        return Coefficients(COUPLED_GLIF, (), parameters, drive)

    def alif_coefficients(self, dt_ms: float, arp: int) -> Coefficients:
        """Coefficients per step of ALIF, a faster model for neurons without other parts."""
        beta, drive = self.drive(dt_ms)
        p = _decay(self.tau_adaptation_ms, dt_ms)
        return Coefficients(ALIF, (float(arp),), {"beta": beta, "p": p, "b": self.b}, drive)


def _decay(tau_ms: Tensor, dt_ms: float) -> Tensor:
    """exp(−dt/τ), 0 for τ = 0."""
    return torch.exp(-dt_ms / tau_ms.clamp(min=MIN_TAU_MS))


def of_coefficients(c: Coefficients, dt_ms: float) -> NeuronParameters:
    """Invert `NeuronParameters.alif_coefficients`; p = 0 gives τ_a = 0."""
    beta, p, b = (c.parameters[name] for name in ("beta", "p", "b"))
    tau_membrane_ms, tau_adaptation_ms = (-dt_ms / torch.log(x) for x in (beta, p))
    share = 1 - beta
    return NeuronParameters(
        tau_membrane_ms, tau_adaptation_ms, b, c.drive.weight / share, c.drive.bias / share,
        c.drive.noise / torch.sqrt(1 - beta * beta), torch.full_like(beta, c.constants[0] * dt_ms),
    )  # fmt: skip


def with_noise(drive: Tensor, noise: Tensor, draws: Tensor) -> Tensor:
    """Drives [T, B · R, N] of R noisy trials, from drives [T, B, N] and draws [T, B, R]."""
    return torch.addcmul(drive.unsqueeze(2), draws.to(drive).unsqueeze(3), noise).flatten(1, 2)


def simulate(
    parameters: NeuronParameters, current: Tensor, dt_ms: float, draws: Tensor | None = None
) -> Tensor:
    """Spikes [T, B, N] of neurons, each driven by its own current [T, B, N], in float64.

    They start at rest. With standard normal draws [T, B, R], the spikes [T, B, R, N] of R trials
    with noise.
    """
    spikes = simulated_trace(parameters, current, dt_ms, draws).spikes
    return spikes if draws is None else spikes.unflatten(1, draws.shape[1:])


def simulated_trace(
    parameters: NeuronParameters, current: Tensor, dt_ms: float, draws: Tensor | None = None
) -> SpikeTrace:
    """Trace of the simulation of `simulate`, arrays [T, B, N], or [T, B · R, N] with draws.

    A neuron with escape noise fires, without draws, at the median of the times at which it could.

    Raises:
        ValueError: some neurons have escape noise and others do not.
    """
    is_coupled = bool(parameters.coupling.any())
    c = parameters.coefficients(dt_ms, is_coupled)
    drive = c.drive.weight * current.double() + c.drive.bias
    if parameters.escape_width.any():
        return _trace_by_escape(parameters, c, drive, dt_ms, draws)
    if draws is not None:
        drive = with_noise(drive, c.drive.noise, draws)
    x = c.parameters
    return glif(
        drive, x["beta"], reset_share=x["reset_share"], refractory=x["refractory"],
        after_spike_currents=[(x[f"current_{i}"], x[f"current_decay_{i}"]) for i in (1, 2)],
        threshold_kernels=[(x[f"threshold_{i}"], x[f"threshold_decay_{i}"]) for i in (1, 2)],
        threshold_coupling=ThresholdCoupling(
            x["coupling"], x["coupling_decay"], x["coupling_onset"], x["coupling_width"]
        ) if is_coupled else None,
        state={"membrane": c.drive.start}, membrane=True,
    )  # fmt: skip


def _trace_by_escape(
    parameters: NeuronParameters, c: Coefficients, drive: Tensor, dt_ms: float, draws: Tensor | None
) -> SpikeTrace:
    if not parameters.escape_width.all():
        raise ValueError("escape_width: expected one above 0 of all neurons, or of none")
    if draws is None:
        limits = torch.full_like(drive, CERTAIN)
    else:  # of a uniform distribution, by that of the normal one; then of the exponential one
        limits = -torch.special.log_ndtr(draws.double()).flatten(1).unsqueeze(2)
        limits = limits.expand(-1, -1, drive.shape[2])
        drive = drive.repeat_interleave(draws.shape[2], 1)
    spikes, membrane, margin = escape_spikes(
        drive, limits, c.model, tuple(c.parameters.values()),
        c.drive._replace(noise=1 / parameters.escape_width), log_rate_at_threshold(dt_ms),
    )  # fmt: skip
    after = NeuronState(c.model.name, (), spikes.new_empty(0, *spikes.shape[1:]))
    return SpikeTrace(spikes, after, membrane, membrane - margin)
