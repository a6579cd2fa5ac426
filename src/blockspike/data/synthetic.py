"""Synthetic spikes of the speed experiment (docs/paper.md, Experiments)."""

from __future__ import annotations

import torch

from blockspike.neurons.events import EventBatch

# Steps drawn at once: bounds the memory of the uniform draws.
_CHUNK_STEPS = 64


def poisson_events(
    n_steps: int, batch_size: int, n_units: int, generator: torch.Generator, max_rate: float = 200.0
) -> EventBatch:
    """Draw Poisson spikes with one rate for each sample.

    Sample ``b`` has a rate r ~ U(0, max_rate) spikes per unit over the run; each unit and step has
    ``min(Poisson(r / n_steps), 1)`` spikes: one with probability 1 - exp(-r / n_steps).

    Args:
        n_steps, batch_size, n_units: shape of the batch.
        generator: a CPU generator; equal states give equal spikes.
        max_rate: largest rate, in spikes per unit over the run.

    Returns:
        A batch ``(n_steps, batch_size, n_units)`` on the CPU; ``.dense()`` gives ``[T, B, K]``.

    Raises:
        ValueError: a size below 1 or a negative ``max_rate``.
    """
    shape = (n_steps, batch_size, n_units)
    if min(shape) < 1:
        raise ValueError(f"n_steps, batch_size, n_units: expected >= 1, got {shape}")
    if not max_rate >= 0:
        raise ValueError(f"max_rate: expected >= 0 spikes per run, got {max_rate}")
    rate = max_rate * torch.rand(batch_size, 1, generator=generator)
    chance = -torch.expm1(-rate / n_steps)  # [B, 1]
    row_ptr = torch.zeros(n_steps * batch_size + 1, dtype=torch.int64)
    units = []
    for start in range(0, n_steps, _CHUNK_STEPS):
        steps = min(_CHUNK_STEPS, n_steps - start)
        spikes = torch.rand(steps, batch_size, n_units, generator=generator) < chance
        first = start * batch_size + 1
        row_ptr[first : first + steps * batch_size] = spikes.sum(dim=2).view(-1)
        units.append(spikes.nonzero(as_tuple=True)[2].to(torch.int32))
    return EventBatch(row_ptr.cumsum(0), torch.cat(units), shape)
