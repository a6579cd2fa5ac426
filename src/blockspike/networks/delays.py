"""Learned delays: each input synapse has its own delay as well as its weight.

In training, a Gaussian around the learned delay spreads the weight over all delays, so that the
delay gets a gradient. The Gaussian narrows as training proceeds. In evaluation, delays are whole
steps (dilated convolution with learnable spacings, Hammouamri et al., ICLR 2024).
"""

import math
from functools import partial

import torch
from torch import Tensor

from blockspike.networks.bounded import BoundedParameters
from blockspike.networks.convolution import causal_convolution
from blockspike.networks.synapses import (
    SynapseMode,
    check_synapses,
    current_of_batch,
    events_of_spikes,
    synaptic_current,
    with_type_of,
)
from blockspike.neurons.cpu.events import SpikeEvents, delayed_event_currents
from blockspike.neurons.events import EventBatch
from blockspike.neurons.trace import needs_gradient

LAST_SIGMA = 0.5
"""Final σ of the Gaussian, in steps."""
ANNEALED = 0.5
"""Share of the training after which σ is `LAST_SIGMA`."""
MOST_TAPS, MOST_EVENT_TAPS = 6, 2.0
"""Number of taps, and of events × taps per input and step, up to which a sum over taps is faster
than the convolution (one thread, 70 to 700 inputs, 128 to 256 units, batches of 16 to 64)."""


class Delays(BoundedParameters):
    """Learned delays of the synapses from n_inputs units to n_units, drawn uniformly at first.

    Attributes:
        delay: [n_units, n_inputs], learned, as a fraction of `max_delay`, 0 to 1.
        sigma: σ of the Gaussian in steps; starts at half of `max_delay`.

    Args:
        n_units, n_inputs: numbers of post- and presynaptic units.
        max_delay: the longest delay, in steps.
    """

    delay: Tensor
    sigma: Tensor

    def __init__(self, n_units: int, n_inputs: int, max_delay: int):
        super().__init__()
        self.max_delay = max_delay
        self.add_bounded("delay", torch.rand(n_units, n_inputs), (0.0, 1.0), True, "max_delay")
        self.register_buffer("sigma", torch.tensor(max(max_delay / 2, LAST_SIGMA)))

    def extra_repr(self) -> str:
        """Longest delay, and the width of the Gaussian."""
        return f"max_delay={self.max_delay}, sigma={self.sigma.item():.3g}"

    def anneal_(self, progress: float) -> None:
        """Narrow the Gaussian exponentially, down to `LAST_SIGMA` at progress `ANNEALED`."""
        first = max(self.max_delay / 2, LAST_SIGMA)
        share = min(progress / ANNEALED, 1.0)
        self.sigma.fill_(first ** (1 - share) * LAST_SIGMA**share)

    def steps(self) -> Tensor:
        """The delays as whole steps, int64 [n_units, n_inputs]."""
        steps = (self.delay.detach() * self.max_delay).round().long()
        return steps.clamp(0, self.max_delay)  # last, since long() turns a NaN into a number

    def kernel(self) -> Tensor:
        """Share of each weight at each delay, [max_delay + 1, n_units, n_inputs], summing to 1."""
        steps = torch.arange(self.max_delay + 1, device=self.delay.device)[:, None, None]
        if not self.training:
            return (steps == self.steps()).to(self.delay.dtype)
        return (-0.5 * ((steps - self.max_delay * self.delay) / self.sigma) ** 2).softmax(0)

    def current(
        self,
        spikes: EventBatch | Tensor,
        weight: Tensor,
        bias: Tensor,
        events: SpikeEvents | None = None,
        mode: SynapseMode = "auto",
    ) -> Tensor:
        """Sum I[t, n] = bias[n] + Σ_k Σ_d weight[n, k] kernel[d, n, k] spikes[t − d, k].

        In evaluation on the CPU without gradient, it is summed event by event. In training it is a
        convolution in the frequency domain, or a sum over taps if `mode` is "events" or if there
        are so few taps or events that the sum is cheaper.

        Args:
            spikes, bias, events, mode: see `synaptic_current`.
            weight: [n_units, n_inputs].

        Returns:
            Current [T, B, n_units].
        """
        check_synapses(spikes, weight[None], bias, mode, events)
        spikes = with_type_of(weight, spikes)
        is_sparse = isinstance(spikes, EventBatch) or events is not None
        dense = None if isinstance(spikes, EventBatch) else spikes
        if (
            self.training
            or not is_sparse
            or mode == "dense"
            or weight.device.type != "cpu"
            or needs_gradient(dense, weight, bias)
        ):
            kernel = weight * self.kernel()
            if not self.training or mode == "events" or _tap_by_tap(spikes, len(kernel), mode):
                return synaptic_current(spikes, kernel, bias, events=events, mode=mode)
            dense = spikes.dense(weight.dtype) if isinstance(spikes, EventBatch) else spikes
            return causal_convolution(dense, kernel) + bias
        return delayed_current(spikes, weight, bias, self.steps(), events)


def _tap_by_tap(spikes: EventBatch | Tensor, n_taps: int, mode: SynapseMode) -> bool:
    """Whether to sum over taps, which is faster or, for an empty input, the only way."""
    if n_taps <= MOST_TAPS or 0 in spikes.shape:
        return True
    if mode == "dense" or not isinstance(spikes, EventBatch) or spikes.device.type != "cpu":
        return False
    return len(spikes.unit) * n_taps <= MOST_EVENT_TAPS * math.prod(spikes.shape)


def delayed_current(
    spikes: EventBatch | Tensor,
    weight: Tensor,
    bias: Tensor,
    delay: Tensor,
    events: SpikeEvents | None = None,
) -> Tensor:
    """Sum I[t, n] = bias[n] + Σ_k weight[n, k] spikes[t − delay[n, k], k] by events, on the CPU.

    Args:
        spikes: EventBatch of shape (T, B, K), or a dense tensor [T, B, K] with its `events`.
        weight: [N, K].
        bias: [N].
        delay: int64 [N, K] in steps, ≥ 0.
        events: see `synaptic_current`.

    Returns:
        Current [T, B, N], without gradient.

    Raises:
        ValueError: a dense tensor without `events`; shapes do not match; a delay below 0.
    """
    check_synapses(spikes, weight[None], bias, events=events)
    spikes = with_type_of(weight, spikes)
    if delay.shape != weight.shape or bool((delay < 0).any()):
        raise ValueError(f"delay: expected steps ≥ 0 of shape {list(weight.shape)}, got {delay}")
    if isinstance(spikes, EventBatch):
        return current_of_batch(spikes, bias.detach(), partial(_delayed, weight, delay))
    if events is None:
        raise ValueError("spikes: expected an EventBatch or `events`, got a dense tensor")
    return _delayed(events.scale * weight, delay, events_of_spikes(events), bias)


def _delayed(weight: Tensor, delay: Tensor, events: EventBatch, bias: Tensor) -> Tensor:
    n_steps, batch_size, _ = events.shape
    out = weight.new_empty(n_steps, batch_size, len(bias), requires_grad=False)
    arrays = (events.row_ptr, events.unit, weight.T, delay.T, bias, out)
    delayed_event_currents(*(x.detach().contiguous().numpy() for x in arrays))
    return out
