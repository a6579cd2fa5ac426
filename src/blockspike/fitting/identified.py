"""Quantities that spikes determine, however the parameters trade off against each other."""

import math

import torch
from torch import Tensor

from blockspike.fitting.escape import RATE_AT_THRESHOLD_HZ
from blockspike.fitting.parameters import NeuronParameters

ADAPTATION_AFTER_MS = (20.0, 100.0)
_RATE_AT_RHEOBASE_HZ = 1.0  # a spike in the second that a step of current often lasts


def identified(parameters: NeuronParameters) -> dict[str, Tensor]:
    """Quantities [N] in pA of neurons whose gain is per pA.

    Scaling gain, b, noise and 1 − rest by one factor hardly changes the spikes of a neuron that has
    forgotten its reset before the next spike; these quantities stay. Of the reset and several
    kernels, spikes tell the sum and not each.

    Returns:
        `rheobase_pa`: the least current, slowly reached, at which the neuron fires; with escape
            noise, at which its rate from rest is 1 Hz.
        `adaptation_20ms_pa`, `adaptation_100ms_pa`: how much more current is needed to reach the
        threshold so long after a spike, by its reset, after-spike currents and threshold kernels
        together; 0 of neurons without adaptation.
    """
    p = parameters
    found = {"rheobase_pa": _rheobase(p)}
    for after_ms in ADAPTATION_AFTER_MS:
        found[f"adaptation_{after_ms:g}ms_pa"] = _adaptation(p, after_ms) / p.gain
    return found


def _rheobase(p: NeuronParameters) -> Tensor:
    """(V − rest) / gain for the lowest V that fires, V = base + coupling · rectified V.

    The base is 1, and lower with escape noise, by the width times ln(1 kHz / 1 Hz).

    The rectified V of neurons/glif.py is 0, a parabola, and V − onset; each has its own
    solution, which counts where that part holds. NaN: V never reaches a threshold that follows it.
    """
    base = 1 - p.escape_width * math.log(RATE_AT_THRESHOLD_HZ / _RATE_AT_RHEOBASE_HZ)
    low, high = p.coupling_onset - p.coupling_width, p.coupling_onset + p.coupling_width
    curvature = p.coupling / (4 * p.coupling_width.clamp(min=1e-6))
    # curvature · x² − x + (base − low) = 0 for x = V − low; the form without cancellation
    root = torch.sqrt(1 - 4 * curvature * (base - low))
    bent = low + 2 * (base - low) / (1 + root)
    straight = (base - p.coupling * p.coupling_onset) / (1 - p.coupling)
    parts = torch.stack([
        torch.where((base <= low) | (p.coupling == 0), base, torch.inf),
        torch.where((bent >= low) & (bent <= high) & (base > low), bent, torch.inf),
        torch.where(straight >= high, straight, torch.inf),
    ])  # fmt: skip
    membrane = parts.nan_to_num(torch.inf, torch.inf).min(0).values
    return torch.where(membrane < torch.inf, (membrane - p.rest) / p.gain, torch.nan)


def _adaptation(p: NeuronParameters, after_ms: float) -> Tensor:
    """Rise of the threshold and fall of V some time after a spike, in thresholds.

    The reset is from the threshold.
    """
    total = (1 - p.reset_share) * torch.exp(-(after_ms - p.arp_ms).clamp(min=0) / p.tau_membrane_ms)
    kernels = ((p.b, p.tau_adaptation_ms), (p.b_2, p.tau_adaptation_2_ms))
    for amplitude, tau_ms in kernels:
        total = total + amplitude * torch.exp(-after_ms / tau_ms.clamp(min=1e-6))
    currents = ((p.current_1, p.tau_current_1_ms), (p.current_2, p.tau_current_2_ms))
    for amplitude, tau_ms in currents:
        # V is held till the end of the refractory period.
        left = amplitude * torch.exp(-p.arp_ms / tau_ms.clamp(min=1e-6))
        since = (after_ms - p.arp_ms).clamp(min=0)
        total = total + left * _through_membrane(tau_ms, p.tau_membrane_ms, since)
    return total


def _through_membrane(tau_ms: Tensor, tau_membrane_ms: Tensor, after_ms: Tensor) -> Tensor:
    """exp(−t/τ), filtered by exp(−t/τ_m) / τ_m, at t; the two time constants may be equal."""
    tau_ms = tau_ms.clamp(min=1e-6)
    rate = 1 / tau_membrane_ms - 1 / tau_ms
    growth = torch.where(
        rate.abs() * after_ms < 1e-9, after_ms, torch.expm1(rate * after_ms) / rate
    )
    return torch.exp(-after_ms / tau_membrane_ms) * growth / tau_membrane_ms
