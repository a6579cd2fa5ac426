"""Learned delays: each input synapse has its own delay as well as its weight.

In training, each batch draws the delay of each synapse from a Gaussian around the learned one. The
Gaussian narrows as training proceeds. The current is then, on average, the one of dilated
convolution with learnable spacings (Hammouamri et al., ICLR 2024), which spreads each weight over
all delays; but a synapse acts at one step instead of at all. In evaluation, delays are the learned
ones, as whole steps.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from blockspike.networks.bounded import BoundedParameters
from blockspike.networks.convolution import causal_convolution
from blockspike.networks.synapses import (
    SynapseMode,
    matched,
    synaptic_current,
)
from blockspike.neurons.cpu.delays import (
    SortedSpikes,
    delayed_current,
    delayed_current_sums,
    gradient_to_spikes,
    room_for_spikes,
    sort_spikes,
)
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.errors import NotFiniteError
from blockspike.neurons.events import EventBatch
from blockspike.neurons.ops import Operator, is_traced

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
        learned = self._learned
        if not is_traced(learned):
            _check_finite(learned)
        return _rounded(learned, self.max_delay)

    @property
    def _learned(self) -> Tensor:
        """The delays in steps [n_units, n_inputs], at least in float32."""
        delay = self.delay
        return self.max_delay * delay.to(torch.promote_types(delay.dtype, torch.float32))

    @property
    def span(self) -> Tensor:
        """Steps of the difference that is the delays' gradient: σ, rounded, from 1 to `max_delay`.

        A difference over σ hardly blurs the mean loss more than the Gaussian does, and differs much
        less from draw to draw than one over a single step. It is an int64 tensor [], so that
        compiled code stays valid when it changes.
        """
        return self.sigma.nan_to_num(1.0).clamp(1, self.max_delay).round().long()

    def drawn(self) -> Tensor:
        """Draw a delay for each synapse, in steps [n_units, n_inputs], differentiable in `delay`.

        It is distributed as the Gaussian cut off half a step outside 0 … `max_delay`.
        """
        mean = self._learned
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
        weight, bias, spikes = matched(weight, bias, spikes, events, n_dims=2)
        has_spikes, most, span = 0 not in spikes.shape, self.max_delay, self.span
        if weight.device.type == "cpu" and mode != "dense" and has_spikes:
            delay = self.drawn() if self.training else self._learned.detach()
            dense = None if isinstance(spikes, EventBatch) else spikes
            by_unit = _sorted_spikes(*_events_in(spikes, events, weight))
            return _currents(weight, delay, bias, dense, *by_unit, spikes.shape[:2], most, span)
        if not self.training or not has_spikes:
            shares = torch.arange(most + 1, device=weight.device)[:, None, None] == self.steps()
            return synaptic_current(spikes, weight * shares, bias, events=events, mode=mode)
        dense = spikes.dense(weight.dtype) if isinstance(spikes, EventBatch) else spikes
        reach = most if is_traced(weight) else int(span)
        dense = F.pad(dense, (0, 0, 0, 0, 0, reach))  # the first tap acts `reach` steps early
        shares = taps(self.drawn(), most, span, reach).to(weight.dtype)
        return causal_convolution(dense, weight * shares)[reach:] + bias


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


def taps(delay: Tensor, most: int, span: Tensor, reach: int) -> Tensor:
    """Share of each weight at each delay −reach … most + reach, [most + 2 reach + 1, N, K].

    The share is 1 at the rounded delay [N, K] and 0 elsewhere. Its gradient to the delay is that of
    a difference between the taps `span` ≤ `reach` steps to either side.
    """
    steps = torch.arange(-reach, most + reach + 1, device=delay.device)[:, None, None]
    nearest = _rounded(delay, most)
    before, here, after = ((steps == nearest + x).to(delay.dtype) for x in (-span, 0, span))
    return here + (delay - delay.detach()) * (after - before) / (2 * span)


def _check_finite(delay: Tensor) -> None:
    if not math.isfinite(delay.detach().sum()):  # faster than a look at each
        raise NotFiniteError("delay: expected finite numbers, got NaN or Inf")


def _rounded(delay: Tensor, most: int) -> Tensor:
    """Whole steps from 0 to `most`, int64."""
    return delay.detach().round().long().clamp(0, most)  # last, since long() makes NaN a number


def _events_in(
    spikes: EventBatch | Tensor, events: SpikeEvents | None, weight: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Arguments of `_sort`."""
    if isinstance(spikes, EventBatch):
        scale = weight.new_ones(1) if spikes.scale is None else spikes.scale[:, None]
        return scale.to(weight.dtype).expand(spikes.shape), spikes.row_ptr, spikes.unit
    if is_traced(weight, spikes):
        return spikes.detach(), None, None
    row_ptr, unit = (events or SpikeEvents(spikes.detach() != 0)).row_ptr_and_unit
    return spikes.detach(), torch.from_numpy(row_ptr), torch.from_numpy(unit)


def _sort(
    values: Tensor, row_ptr: Tensor | None, unit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sort spikes as `sort_spikes` does; without events, all of values [T, B, K] that are not 0.

    The number of spikes is then unknown to a compiler, so there is room for one at each place.
    """
    spikes = _fake_sorted(values, row_ptr, unit)
    if row_ptr is None or unit is None:
        row_ptr, unit = map(torch.from_numpy, SpikeEvents(values != 0).row_ptr_and_unit)
    sort_spikes(values, row_ptr, unit, spikes)
    return spikes


def _fake_sorted(values: Tensor, row_ptr: Tensor | None, unit: Tensor | None) -> SortedSpikes:
    return room_for_spikes(values, values.numel() if unit is None else unit.shape[0])


def _delayed_currents(
    weight: Tensor, delay: Tensor, bias: Tensor, spikes: Tensor | None, first: Tensor,
    last: Tensor, place: Tensor, size: Tensor, shape: Sequence[int], most: int, span: Tensor,
) -> Tensor:  # fmt: skip
    """Current [T, B, N] of sorted spikes.

    Args:
        weight, delay, bias: [N, K] (post, pre) both, and [N]; delays in steps, rounded here.
        spikes: the same spikes as a tensor [T, B, K], which only receives a gradient.
        first, last, place, size: see `SortedSpikes`.
        shape: (T, B).
        most: the longest delay.
        span: steps of the difference that is the gradient of a delay.
    """
    _check_finite(delay)
    out = weight.new_empty(*shape, len(weight), requires_grad=False)
    delayed_current(
        SortedSpikes(first, last, place, size), weight, _rounded(delay, most), bias, out
    )
    return out


def _setup(ctx, inputs, output):
    weight, delay, _, _, *by_unit, _, ctx.most, span = inputs
    ctx.save_for_backward(weight, delay, *by_unit, span)


def _backward(ctx, grad):
    weight, *_, span = ctx.saved_tensors
    to_spikes = ctx.needs_input_grad[3]
    sums, grad_spikes = _current_sums(grad, *ctx.saved_tensors, ctx.most, to_spikes)
    grad_weight, change = sums.unbind(2)
    gradients = grad_weight, weight * change / (2 * span), grad.sum((0, 1))
    return *gradients, grad_spikes if to_spikes else None, *(None,) * 7


def _sums(
    grad: Tensor, weight: Tensor, delay: Tensor, first: Tensor, last: Tensor, place: Tensor,
    size: Tensor, span: Tensor, most: int, to_spikes: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """`delayed_current_sums`, and the gradient to spikes; arguments as in `_delayed_currents`."""
    by_unit, steps = SortedSpikes(first, last, place, size), _rounded(delay, most)
    sums = delayed_current_sums(by_unit, grad, steps, int(span))
    return sums, gradient_to_spikes(grad, weight, steps) if to_spikes else grad.new_empty(0)


def _fake_sums(grad, weight, *others):
    to_spikes = (*grad.shape[:2], weight.shape[1]) if others[-1] else 0
    return grad.new_empty(*weight.shape, 2), grad.new_empty(to_spikes)


_sorted_spikes = Operator("sorted_spikes", _sort, _fake_sorted)
_current_sums = Operator("delayed_current_sums", _sums, _fake_sums)
_currents = Operator(
    "delayed_currents",
    _delayed_currents,
    lambda weight, *others: weight.new_empty(*others[7], len(weight)),
    _setup,
    _backward,
)
