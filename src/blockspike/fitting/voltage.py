"""Recorded voltage between spikes, as a part of the loss of a fit.

A neuron is reset by the recorded spikes, as for the likelihood. Its membrane, in thresholds, is
compared to the voltage in mV by least squares, whose scale and offset follow from the membrane in
closed form (variable projection; Golub & Pereyra 1973): V [mV] = reset + unit · V + electrode ·
current. So the neuron's parameters are fitted to the shape of the voltage, and no other parameters
are added.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from blockspike.data.parts import Part, beside, stacked
from blockspike.data.spikes import between_spikes, shows_spikes
from blockspike.fitting.distance import Window
from blockspike.fitting.parameters import NeuronParameters
from blockspike.neurons.derivative import given_spikes, on_tensors
from blockspike.neurons.readout import leaky_integrate


class RecordedVoltage(NamedTuple):
    """Voltage of the first trial of each segment.

    Attributes:
        mv: [T, B, C], 0 where it is not compared.
        weight: [T, B, C], 1 where it is: known, and between spikes; as often as a step was drawn,
            in resampled data.
        spikes: [T, B, C], 1 where that trial has a spike.
    """

    mv: Tensor
    weight: Tensor
    spikes: Tensor


def recorded_voltage(
    names: list[str], part: Part, voltage_mv: list[np.ndarray | None], dt_ms: float
) -> RecordedVoltage:
    """Voltage of a part of the recordings, to fit to.

    Args:
        names: of the cells.
        part: whose trials were recorded.
        voltage_mv: of each cell, mean voltage [B, T], NaN where it is not known; None without.
        dt_ms: length of a step.

    Raises:
        ValueError: a cell has no voltage between spikes, or it is not that of the first trial;
            names the cell.
    """
    voltages, betweens, spikes = [], [], []
    for cell, (name, voltage) in enumerate(zip(names, voltage_mv, strict=True)):
        fired = beside([trains[0] for _, trains in part.segments(cell)]) > 0
        found = np.full(fired.shape, np.nan) if voltage is None else voltage.T
        is_between = between_spikes(fired, dt_ms) & np.isfinite(found)
        if not is_between.any():
            raise ValueError(f"{name}: voltage_weight: expected a voltage between spikes, got none")
        if not shows_spikes(fired, found, dt_ms):
            raise ValueError(
                f"{name}: voltage_weight: expected the voltage of the first trial, got one without "
                "its spikes"
            )
        voltages.append(np.where(is_between, found, np.nan))
        betweens.append(is_between)
        spikes.append(fired)
    of_part = (stacked([x.astype(np.float32) for x in of]) for of in (voltages, betweens, spikes))
    return RecordedVoltage(*of_part)


def _weights(recorded: RecordedVoltage, window: Window) -> list[Tensor]:
    """Weights of the fitted and of the held-out steps, [T, B, C] each."""
    masks = window.masks(recorded.mv.shape, recorded.mv.device)
    return [recorded.weight * x for x in masks]


def check_fitted(names: list[str], recorded: RecordedVoltage, window: Window) -> None:
    """Raise ValueError, naming the cell, if no voltage that varies is in the fitted steps."""
    fitted, _ = _weights(recorded, window)
    for cell, name in enumerate(names):
        own = recorded.mv[:, :, cell][fitted[:, :, cell] > 0]
        if len(own) == 0 or bool((own == own[0]).all()):
            raise ValueError(
                f"{name}: voltage_weight: expected a voltage that varies between the spikes of the "
                f"fitted steps, got {len(own)} steps of it"
            )


def driven_membrane_by_steps(
    values: NeuronParameters, dt_ms: float, current: Tensor, spikes: Tensor
) -> Tensor:
    """Membrane as `driven_membrane` returns it, step by step: the readable twin."""
    nothing = torch.zeros_like(values.b)
    c = replace(values, b=nothing, b_2=nothing).coefficients(dt_ms, False)
    step = on_tensors(given_spikes(c.model, 2).step)
    n_starts = len(c.drive.weight) // current.shape[2]
    driven = current.repeat_interleave(n_starts, 2) * c.drive.weight + c.drive.bias
    state = [torch.zeros_like(driven[0]) for _ in (*c.model.states, *c.model.counters)]
    state[0] = state[0] + c.drive.start
    constants, rows = (driven.new_zeros(()), driven.new_ones(())), []
    for input_, spike in zip(driven, spikes.repeat_interleave(n_starts, 2), strict=True):
        own = tuple(c.parameters.values())
        _, membrane, *_, state = step((input_, spike.to(driven)), own, constants, state)
        rows.append(membrane)
    return torch.stack(rows)


def driven_membrane(
    values: NeuronParameters, dt_ms: float, current: Tensor, spikes: Tensor
) -> Tensor:
    """Membrane [T, B, N] in thresholds, before its reset, of neurons reset by recorded spikes.

    Between spikes the membrane is linear: that of a neuron without any spike, minus what it had
    been when the refractory period ended, as far as it has not decayed.

    Args:
        values: parameters of N = C · K neurons, K consecutive ones for each cell.
        dt_ms: length of a step.
        current: [T, B, C].
        spikes: [T, B, C], 0 or 1.
    """
    c = values.coefficients(dt_ms, False)
    own, n_starts = c.parameters, len(c.drive.weight) // current.shape[2]
    driven = current.repeat_interleave(n_starts, 2) * c.drive.weight + c.drive.bias
    fired = spikes.to(driven).repeat_interleave(n_starts, 2)
    for i in (1, 2):
        behind = leaky_integrate(fired, own[f"current_decay_{i}"])
        driven = driven - own[f"current_{i}"] * torch.cat([0 * behind[:1], behind[:-1]])
    start = c.drive.start.expand(driven.shape[1:])
    free = leaky_integrate(driven, own["beta"], start)
    last = _last_spike(spikes).repeat_interleave(n_starts, 2)
    end = last + own["refractory"].long()  # of the refractory period
    steps = torch.arange(len(free), device=free.device).view(-1, 1, 1)
    is_partial = values.reset_share.requires_grad or bool(values.reset_share.any())
    held = _after_resets(free, own, spikes, n_starts) if is_partial else torch.zeros_like(free)
    return torch.where(last < 0, free, _since(free, own["beta"], held, end, steps))


def _last_spike(spikes: Tensor) -> Tensor:
    """Step of the last spike before each step, −1 if there is none, [T, B, C]."""
    steps = torch.arange(len(spikes), device=spikes.device).view(-1, 1, 1)
    last = torch.where(spikes > 0, steps, -1).cummax(0).values
    return torch.cat([torch.full_like(last[:1], -1), last[:-1]])


def _since(free: Tensor, beta: Tensor, held: Tensor, end: Tensor, steps: Tensor) -> Tensor:
    """Membrane at `steps` after a refractory period, until whose `end` it is held."""
    age = (steps - end).clamp(min=0)
    before = held - free.gather(0, end.clamp(0, len(free) - 1))
    left = torch.exp(age * torch.log(beta)) * before
    return torch.where(age > 0, free.gather(0, steps.expand_as(end)) + left, held)


def _after_resets(free: Tensor, own: dict[str, Tensor], spikes: Tensor, n_starts: int) -> Tensor:
    """Membrane after the last reset before each step, [T, B, N], of neurons with partial resets."""
    n_spikes = (spikes > 0).sum(0)
    most = int(n_spikes.max())
    order = torch.argsort((spikes > 0).long(), dim=0, descending=True, stable=True)
    times = order[:most].repeat_interleave(n_starts, 2)  # [J, B, N]
    held, end, found = torch.zeros_like(free[0]), None, [torch.zeros_like(free[0])]
    for at in times.unsqueeze(1):  # [1, B, N]
        if end is None:
            membrane = free.gather(0, at)
        else:
            membrane = _since(free, own["beta"], held.unsqueeze(0), end, at)
        held, end = own["reset_share"] * membrane[0], at + own["refractory"].long()
        found.append(held)
    earlier = torch.cumsum(spikes > 0, 0)
    number = torch.cat([torch.zeros_like(earlier[:1]), earlier[:-1]])
    return torch.stack(found).gather(0, number.repeat_interleave(n_starts, 2))


def unexplained_voltage(
    membrane: Tensor, current: Tensor, recorded: RecordedVoltage, window: Window
) -> tuple[Tensor, Tensor]:
    """Shares of the voltage's variance that the membrane does not explain, [B, N] each.

    Scale, offset and electrode are those of least squares over the fitted steps of all segments; a
    membrane that falls where the voltage rises gets the scale 0.

    Args:
        membrane: [T, B, N], at the end of each step.
        current: [T, B, C], of the cells.
        recorded: their voltage, the mean of each step.
        window: the steps that are fitted and those held out.

    Returns:
        Squared errors summed over the fitted and over the held-out steps of each segment, over the
        variance of the voltage, and the number, of the fitted steps of the cell. Only the first
        carries a gradient.
    """
    n_cells, n = current.shape[2], membrane.shape[2]
    middle = torch.cat([membrane[:1], (membrane[1:] + membrane[:-1]) / 2])

    def each(x: Tensor) -> Tensor:
        return x.to(membrane).repeat_interleave(n // n_cells, 2)

    weight, held_out = (each(x) for x in _weights(recorded, window))
    n_fitted = weight.sum((0, 1)).clamp(min=1)

    def dot(x: Tensor, y: Tensor) -> Tensor:
        return (weight * x * y).sum((0, 1)) / n_fitted

    one, voltage, through_electrode = torch.ones_like(weight), each(recorded.mv), each(current)
    voltage, through_electrode, middle = (
        x - dot(one, x) for x in (voltage, through_electrode, middle)
    )
    variance = dot(voltage, voltage).clamp(min=1e-12)
    of_current = dot(through_electrode, through_electrode).clamp(min=1e-12)
    voltage, middle = (
        x - through_electrode * (dot(through_electrode, x) / of_current) for x in (voltage, middle)
    )
    unit = (dot(middle, voltage) / dot(middle, middle).clamp(min=1e-12)).clamp(min=0)
    error = (voltage - unit * middle).square() / (variance * n_fitted)
    return (weight * error).sum(0), (held_out * error.detach()).sum(0)
