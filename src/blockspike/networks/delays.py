"""Learned delays: each input synapse has its own delay as well as its weight.

In training, each batch draws the delay of each synapse from a Gaussian around the learned one. The
Gaussian narrows as training proceeds. The current is then, on average, the one of dilated
convolution with learnable spacings (Hammouamri et al., ICLR 2024), which spreads each weight over
all delays; but a synapse acts at one step instead of at all. In evaluation, delays are the learned
ones, as whole steps.
"""

import math
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

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
from blockspike.neurons.autograd import (
    differentiable_once,
    in_full_precision,
    is_transformed,
    run_as_it_is,
)
from blockspike.neurons.cpu import delays as cpu
from blockspike.neurons.cpu.delayed_spikes import (
    SortedSpikes,
    sort_spikes,
    spike_correlations,
    sum_spikes,
)
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.events import EventBatch
from blockspike.neurons.trace import needs_gradient

LAST_SIGMA = 0.5
"""Final σ of the Gaussian, in steps."""
ANNEALED = 0.5
"""Share of the training after which σ is `LAST_SIGMA`."""
MAX_ACTIVE_SUM, MAX_ACTIVE = 0.09, 0.2
"""Active shares up to which the current, and the gradient, is faster spike by spike."""
MOST_TAPS = 6
"""Number of taps up to which a sum over taps is faster than the convolution."""


class Delays(BoundedParameters):
    """Learned delays of the synapses from n_inputs units to n_units, uniform at first.

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
        """The delays as whole steps, int64 [n_units, n_inputs].

        Raises:
            NotFiniteError: a delay is NaN or Inf.
        """
        if not is_transformed() and not bool(self.delay.isfinite().all()):
            raise NotFiniteError("delay: expected finite numbers, got NaN or Inf")
        return _rounded(self.max_delay * self.delay, self.max_delay)

    @property
    def span(self) -> int:
        """Steps of the difference that is the delays' gradient: σ, rounded, from 1 to `max_delay`.

        A difference over σ hardly blurs the mean loss more than the Gaussian does, and differs much
        less from draw to draw than one over a single step.
        """
        return int(self.sigma.nan_to_num(1.0).clamp(1, self.max_delay).round())

    def drawn(self) -> Tensor:
        """Draw a delay for each synapse, in steps [n_units, n_inputs], differentiable in `delay`.

        It is distributed as the Gaussian cut off half a step outside 0 … `max_delay`.
        """
        mean = self.max_delay * self.delay
        chance = torch.rand(mean.shape, dtype=torch.float32, device=mean.device)  # in any precision
        return _Drawn.apply(mean, self.sigma, self.max_delay, chance)  # pyright: ignore

    def current(
        self,
        spikes: EventBatch | Tensor,
        weight: Tensor,
        bias: Tensor,
        events: SpikeEvents | None = None,
        mode: SynapseMode = "auto",
    ) -> Tensor:
        """Sum I[t, n] = bias[n] + Σ_k weight[n, k] spikes[t − delay[n, k], k].

        In training the delays are drawn, see `drawn`, and rounded. Their gradient is a central
        difference over `span` steps to either side.

        Args:
            spikes, bias, events: see `synaptic_current`.
            weight: [n_units, n_inputs].
            mode: see `synaptic_current`. In training only "dense" matters: a convolution, as on a
                GPU, that can be differentiated twice.

        Returns:
            Current [T, B, n_units].

        Raises:
            NotFiniteError: a delay is NaN or Inf. In training on a GPU the current is NaN instead.
        """
        check_synapses(spikes, weight[None], bias, mode, events)
        spikes = with_type_of(weight, spikes)
        dense = None if isinstance(spikes, EventBatch) else spikes
        is_sparse = dense is None or events is not None
        each_at_its_delay = (
            weight.device.type == "cpu"
            and mode != "dense"
            and not is_transformed()
            and 0 not in spikes.shape
        )
        if not self.training:
            steps, span = self.steps(), 1
            if not each_at_its_delay:
                all_steps = torch.arange(self.max_delay + 1, device=steps.device)
                shares = all_steps[:, None, None] == steps
                return synaptic_current(spikes, weight * shares, bias, events=events, mode=mode)
            if is_sparse and not needs_gradient(dense, weight, bias):
                return delayed_current(spikes, weight, bias, steps, events)
            delay = steps.to(weight.dtype)
        else:
            delay, span = self.drawn(), self.span
        dense = spikes.dense(weight.dtype) if isinstance(spikes, EventBatch) else spikes
        if each_at_its_delay:
            return _of_synapses(dense, weight, delay, bias, self.max_delay, span)
        return _of_taps(dense, weight * taps(delay, self.max_delay, span), bias, span)


class _Drawn(torch.autograd.Function):
    """Delays at a chance from 0 to 1, of a Gaussian cut off half a step outside 0 … `most`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(mean: Tensor, sigma: Tensor, most: int, chance: Tensor) -> Tensor:
        ends = ((end - mean) / sigma for end in (-0.5, most + 0.5))
        below, up_to = (torch.special.ndtr(end) for end in ends)
        share, tiny = below + chance * (up_to - below), torch.finfo(mean.dtype).eps
        quantile = math.sqrt(2) * torch.erfinv(2 * share.clamp(tiny, 1 - tiny) - 1)
        return mean + sigma * quantile

    @staticmethod
    def setup_context(ctx, inputs: tuple, output: Tensor) -> None:
        mean, sigma, ctx.most, chance = inputs
        ctx.save_for_backward(mean, sigma, chance, output)

    @staticmethod
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        mean, sigma, chance, drawn = ctx.saved_tensors
        half = ((drawn - mean) / sigma).square() / 2
        ends = (((end - mean) / sigma).square() / 2 for end in (-0.5, ctx.most + 0.5))
        # Densities at both ends to that at the delay; exp of less is so small that it takes long.
        low, high = ((half - end).clamp(min=-40).exp() for end in ends)
        return grads[0] * (1 - low + chance * (low - high)), None, None, None


def taps(delay: Tensor, most: int, span: int) -> Tensor:
    """Share of each weight at each delay of −span … most + span steps, [most + 2 span + 1, N, K].

    The share is 1 at the rounded delay [N, K] and 0 elsewhere. Its gradient to the delay is that of
    a difference between the taps `span` steps to either side.
    """
    steps = torch.arange(-span, most + span + 1, device=delay.device)[:, None, None]
    nearest = _rounded(delay, most)
    before, here, after = ((steps == nearest + x).to(delay.dtype) for x in (-span, 0, span))
    return here + (delay - delay.detach()) * (after - before) / (2 * span)


def _rounded(delay: Tensor, most: int) -> Tensor:
    """Whole steps from 0 to `most`, int64."""
    return delay.detach().round().long().clamp(0, most)  # last, since long() makes NaN a number


def _of_taps(spikes: Tensor, kernel: Tensor, bias: Tensor, span: int) -> Tensor:
    """Current of spikes [T, B, K] for `weight * taps(delay, most, span)`, by products."""
    spikes = F.pad(spikes, (0, 0, 0, 0, 0, span))  # the first tap acts `span` steps early
    if len(kernel) <= MOST_TAPS or not spikes.numel():
        return synaptic_current(spikes, kernel, bias)[span:]
    return (causal_convolution(spikes, kernel) + bias)[span:]


@in_full_precision
def _of_synapses(
    spikes: Tensor, weight: Tensor, delay: Tensor, bias: Tensor, most: int, span: int
) -> Tensor:
    """Current of spikes [T, B, K] on the CPU, each synapse at its delay."""
    if not bool(delay.isfinite().all()):
        raise NotFiniteError("delay: expected finite numbers, got NaN or Inf")
    bias = bias.to(weight.dtype)
    return _DelayedCurrent.apply(spikes, weight, delay, bias, most, span)  # pyright: ignore


class _DelayedCurrent(torch.autograd.Function):
    """Spike by spike, or where there are many as products in lanes."""

    @staticmethod
    def forward(
        ctx,
        spikes: Tensor,
        weight: Tensor,
        delay: Tensor,
        bias: Tensor,
        most: int,
        span: int,
    ):
        ctx.most, ctx.span, ctx.shape = most, span, spikes.shape
        n_steps, batch_size, _ = spikes.shape
        steps = _rounded(delay, most)
        by_unit = sort_spikes(spikes, most, MAX_ACTIVE)
        if by_unit is not None:
            ctx.save_for_backward(weight, steps, *by_unit[:4])
            if by_unit.n_spikes() <= MAX_ACTIVE_SUM * spikes.numel():
                return sum_spikes(by_unit, weight, steps, bias, n_steps, batch_size)
        lanes = cpu.to_lanes(spikes, before=most, after=span)
        if by_unit is None:
            ctx.save_for_backward(weight, steps, lanes)
        summed = cpu.sum_shifted(lanes, weight, most - steps, n_steps)
        return cpu.from_lanes(summed, n_steps, batch_size, bias)

    @staticmethod
    @differentiable_once("synapses with delays", instead="synapses='dense'")
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, steps, *inputs = ctx.saved_tensors
        (n_steps, batch_size, n_inputs), most, span = ctx.shape, ctx.most, ctx.span
        by_unit = SortedSpikes(*inputs, row=n_steps + most) if len(inputs) > 1 else None
        grad_spikes = grad_weight = grad_delay = grad_bias = None
        grad = grads[0]
        if ctx.needs_input_grad[0] or by_unit is None:
            grad = cpu.to_lanes(grad, before=span, after=most + span)
        if ctx.needs_input_grad[0]:
            summed = cpu.sum_shifted(grad, weight.T, steps.T + span, n_steps)
            grad_spikes = cpu.from_lanes(summed, n_steps, batch_size, weight.new_zeros(n_inputs))
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            if by_unit is None:
                sums = cpu.correlations(inputs[0], grad, most - steps, n_steps + span, span)
            else:
                sums = spike_correlations(by_unit, grads[0], steps, span)
            grad_weight, change = sums
            grad_delay = weight * change / (2 * span)
        if ctx.needs_input_grad[3]:
            grad_bias = grads[0].sum((0, 1))
        return grad_spikes, grad_weight, grad_delay, grad_bias, None, None


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


@run_as_it_is
def _delayed(weight: Tensor, delay: Tensor, events: EventBatch, bias: Tensor) -> Tensor:
    n_steps, batch_size, _ = events.shape
    out = weight.new_empty(n_steps, batch_size, len(bias), requires_grad=False)
    arrays = (events.row_ptr, events.unit, weight.T, delay.T, bias, out)
    cpu.delayed_event_currents(*(x.detach().contiguous().numpy() for x in arrays))
    return out
