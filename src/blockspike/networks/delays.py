"""Learned delays: each input synapse has its own delay as well as its weight.

In training, each batch draws the delay of each synapse from a Gaussian around the learned one. The
Gaussian narrows as training proceeds. The current is then, on average, the one of dilated
convolution with learnable spacings (Hammouamri et al., ICLR 2024), which spreads each weight over
all delays; but a synapse acts at one step instead of at all. In evaluation, delays are the learned
ones, as whole steps.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from blockspike.networks.bounded import BoundedParameters
from blockspike.networks.convolution import causal_convolution
from blockspike.networks.synapses import (
    SynapseMode,
    check_synapses,
    synaptic_current,
    with_type_of,
)
from blockspike.neurons.cpu.delays import (
    SortedSpikes,
    delayed_current,
    delayed_current_gradients,
    sort_spikes,
)
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.events import EventBatch
from blockspike.neurons.ops import is_traced
from blockspike.neurons.precision import in_full_precision

LAST_SIGMA = 0.5
"""Final σ of the Gaussian, in steps."""
ANNEALED = 0.5
"""Share of the training after which σ is `LAST_SIGMA`."""


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
        if not is_traced(self.delay):
            _check_finite(self.delay)
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
        on_cpu = weight.device.type == "cpu" and mode != "dense" and not is_traced(weight)
        span = self.span if self.training else 1
        if on_cpu and 0 not in spikes.shape:
            delay = self.drawn() if self.training else self.max_delay * self.delay.detach()
            return _by_spikes(spikes, weight, delay, bias, events, self.max_delay, span)
        if not self.training or 0 in spikes.shape:
            all_steps = torch.arange(self.max_delay + 1, device=weight.device)[:, None, None]
            shares = all_steps == self.steps()
            return synaptic_current(spikes, weight * shares, bias, events=events, mode=mode)
        dense = spikes.dense(weight.dtype) if isinstance(spikes, EventBatch) else spikes
        dense = F.pad(dense, (0, 0, 0, 0, 0, span))  # the first tap acts `span` steps early
        kernel = weight * taps(self.drawn(), self.max_delay, span)
        return causal_convolution(dense, kernel)[span:] + bias


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


def _check_finite(delay: Tensor) -> None:
    if not math.isfinite(delay.detach().sum()):  # faster than a look at each
        raise NotFiniteError("delay: expected finite numbers, got NaN or Inf")


def _rounded(delay: Tensor, most: int) -> Tensor:
    """Whole steps from 0 to `most`, int64."""
    return delay.detach().round().long().clamp(0, most)  # last, since long() makes NaN a number


@in_full_precision
def _by_spikes(
    spikes: EventBatch | Tensor,
    weight: Tensor,
    delay: Tensor,
    bias: Tensor,
    events: SpikeEvents | None,
    most: int,
    span: int,
) -> Tensor:
    """Current on the CPU, spike by spike."""
    _check_finite(delay)
    dense = None
    if isinstance(spikes, EventBatch):
        scale = weight.new_ones(1) if spikes.scale is None else spikes.scale[:, None]
        scale = scale.to(weight.dtype).expand(spikes.shape)
        by_unit = sort_spikes(spikes.row_ptr, spikes.unit, scale)
    else:
        dense = spikes
        row_ptr, unit = (events or SpikeEvents(dense.detach() != 0)).row_ptr_and_unit
        by_unit = sort_spikes(torch.from_numpy(row_ptr), torch.from_numpy(unit), dense.detach())
    args = dense, weight, delay, bias.to(weight.dtype), by_unit, most, span
    return _DelayedCurrent.apply(*args)  # pyright: ignore


class _DelayedCurrent(torch.autograd.Function):
    """`delayed_current`; `spikes` [T, B, K], the same as `by_unit`, only receives a gradient."""

    @staticmethod
    def forward(
        ctx, spikes: Tensor | None, weight: Tensor, delay: Tensor, bias: Tensor,
        by_unit: SortedSpikes, most: int, span: int,
    ):  # fmt: skip
        steps = _rounded(delay, most)
        ctx.save_for_backward(weight, steps, *by_unit[:4])
        ctx.shape, ctx.span = by_unit.shape, span
        return delayed_current(by_unit, weight, steps, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, steps, *by_unit = ctx.saved_tensors
        by_unit, to_spikes = SortedSpikes(*by_unit, shape=ctx.shape), ctx.needs_input_grad[0]
        gradients = delayed_current_gradients(by_unit, grads[0], weight, steps, ctx.span, to_spikes)
        return *gradients, grads[0].sum((0, 1)), None, None, None
