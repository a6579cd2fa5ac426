"""Training on long recordings: a `SpikingClassifier` piece by piece, in little memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from blockspike.networks.classifier import (
    ClassifierOutput,
    ClassifierState,
    SpikingClassifier,
    mean_over_views,
)
from blockspike.networks.layer import check_counts
from blockspike.neurons.events import EventBatch
from blockspike.neurons.gpu.graphs import TRITON_DEVICES


class PiecewiseOutput(NamedTuple):
    """Result of `run_in_pieces`; attributes as in `ClassifierOutput`."""

    scores: Tensor
    rates: list[Tensor]
    membrane_power: Tensor | None = None
    rates_by_neuron: Sequence[Tensor] = ()  # if `by_neuron`

    def mean_over_views(self, n_samples: int) -> Tensor:
        """See `ClassifierOutput.mean_over_views`."""
        return mean_over_views(self.scores, n_samples)


def run_in_pieces(
    network: SpikingClassifier,
    x: EventBatch | Tensor,
    n_steps: int,
    truncate: bool = False,
    by_neuron: bool = False,
    membrane: bool = False,
) -> PiecewiseOutput:
    """Run a network piece by piece and keep only the states in between for backward.

    Backward simulates each piece again. So memory grows with the number of pieces and their length,
    T/K + K, and not with T.

    Args:
        network: the classifier.
        x: input [T, B, n_inputs], which gets no gradient.
        n_steps: length K of a piece; the last one may be shorter.
        truncate: whether gradients stop where pieces meet (truncated backpropagation through time).
            Else they are those of the whole; but dropped spikes and delays are drawn anew for each
            piece, and the difference that is a delay's gradient ends with its piece.
        by_neuron: whether the output has `rates_by_neuron`.
        membrane: whether it has `membrane_power`.

    Raises:
        ValueError: `n_steps` is below 1, or no multiple of arp + 1 with method "blocks"; the
            network scales its input, or normalises currents in training, for which it has to see
            the whole.
    """
    check_counts(n_steps=n_steps)
    if network.has_batch_norm:
        raise ValueError("network: expected no batch_norm in training, got a layer with it")
    options = _Options(network, n_steps, truncate, by_neuron, membrane)
    own = [p for p in network.parameters() if p.requires_grad]
    if own and torch.is_grad_enabled():
        results: Any = _InPieces.apply(options, x, *own)
    else:
        results = _total([output for _, output in _run(options, x)])
    scores, rates, *others = results
    n_layers = len(network.layers) if by_neuron else 0
    power, of_neurons = others[: len(others) - n_layers], others[len(others) - n_layers :]
    return PiecewiseOutput(scores, list(rates), power[0] if power else None, of_neurons)


class _Options(NamedTuple):
    """Arguments of `run_in_pieces` other than the input."""

    network: SpikingClassifier
    n_steps: int
    truncate: bool
    by_neuron: bool
    membrane: bool


def _run(
    options: _Options, x: EventBatch | Tensor
) -> Iterator[tuple[ClassifierState | None, tuple[Tensor, ...]]]:
    """State at the start of each piece, and what it adds to the results."""
    state = None
    for first in range(0, x.shape[0], options.n_steps):
        piece = _piece(x, first, options.n_steps)
        output = options.network(piece, state, membrane=options.membrane)
        of_piece = state, _share(options, output, piece, x, state is None)
        if first + options.n_steps < x.shape[0]:
            state = output.state
        del output  # which holds all steps
        yield of_piece


def _piece(x: EventBatch | Tensor, first: int, n_steps: int) -> EventBatch | Tensor:
    last = min(first + n_steps, x.shape[0])
    return x.steps(first, last) if isinstance(x, EventBatch) else x[first:last]


def _share(
    options: _Options, output: ClassifierOutput, piece: EventBatch | Tensor,
    x: EventBatch | Tensor, is_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    share = piece.shape[0] / x.shape[0]
    network, scores = options.network, output.scores
    if network.scores == "mean":
        n_counted = piece.shape[0] - is_first * network.skip_steps
        scores = scores * (n_counted / (x.shape[0] - network.skip_steps))
    power = () if output.membrane_power is None else (output.membrane_power * share,)
    of_neurons = [rates * share for rates in output.rates_by_neuron] if options.by_neuron else []
    return scores, torch.stack(output.rates) * share, *power, *of_neurons


def _total(outputs: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(of_pieces).sum(0) for of_pieces in zip(*outputs, strict=True))


class _InPieces(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, options: _Options, x: EventBatch | Tensor, *parameters: Tensor
    ) -> tuple[Tensor, ...]:
        """Scores [B, n_classes], rates [n_layers] and what else is asked for, see `_share`."""
        ctx.options, ctx.x, network = options, x, options.network
        ctx.n_parameters, ctx.modes = len(parameters), _modes(network)
        # Backward notices if one of these was changed in place.
        given = (x.row_ptr, x.unit) if isinstance(x, EventBatch) else (x,)
        ctx.save_for_backward(*parameters, *network.buffers(), *given)
        device = parameters[0].device.type
        ctx.autocast = {
            "device_type": device,
            "dtype": torch.get_autocast_dtype(device),
            "enabled": torch.is_autocast_enabled(device),
        }
        ctx.starts, outputs = [], []
        drawn = _random_state(parameters[0].device)
        for state, output in _run(options, x):
            ctx.starts.append((state, drawn))
            outputs.append(output)
            drawn = _random_state(parameters[0].device)
        return _total(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        network, n_steps, truncate, _, membrane = ctx.options
        x, parameters = ctx.x, ctx.saved_tensors[: ctx.n_parameters]
        if _modes(network) != ctx.modes:
            raise RuntimeError(
                "recompute_steps: expected the network in the mode of the forward pass, which "
                "backward repeats, got another; call train() or eval() after backward()"
            )
        sums = [torch.zeros_like(p) for p in parameters]
        grads_of_state: list[Tensor | None] = []
        for i, (state, drawn) in reversed(list(enumerate(ctx.starts))):
            with torch.enable_grad(), torch.autocast(**ctx.autocast), _with_random_state(drawn):
                start = state and state.map(lambda x: x.detach().requires_grad_(not truncate))
                piece = _piece(x, i * n_steps, n_steps)
                output = network(piece, start, membrane=membrane)
                ends = [*_share(ctx.options, output, piece, x, state is None)]
                ends += _tensors(output.state) if grads_of_state else []
            pairs = zip(ends, (*grads, *grads_of_state), strict=True)
            used = [(x, g) for x, g in pairs if g is not None and x.requires_grad]
            inputs = [x for x in _tensors(start) if x.requires_grad]
            found = torch.autograd.grad(
                [x for x, _ in used], [*parameters, *inputs], [g for _, g in used],
                allow_unused=True,
            )  # fmt: skip
            for total, grad in zip(sums, found, strict=False):
                if grad is not None:
                    total += grad
            of_inputs = iter(found[len(parameters) :])
            grads_of_state = [next(of_inputs) if x.requires_grad else None for x in _tensors(start)]
            if truncate:
                grads_of_state = []
        return None, None, *sums


def _modes(network: SpikingClassifier) -> list[bool]:
    return [module.training for module in network.modules()]


def _tensors(state: ClassifierState | None) -> list[Tensor]:
    tensors: list[Tensor] = []
    if state is not None:
        state.map(lambda x: tensors.append(x) or x)
    return tensors


def _random_state(device: torch.device) -> tuple[torch.device, list[Tensor]]:
    on_gpu = []
    if device.type in TRITON_DEVICES:
        on_gpu = [torch.get_device_module(device).get_rng_state(device)]
    return device, [torch.get_rng_state(), *on_gpu]


@contextmanager
def _with_random_state(drawn: tuple[torch.device, list[Tensor]]) -> Iterator[None]:
    device, (on_cpu, *on_gpu) = drawn
    devices: list[Any] = [device] if on_gpu else []
    with torch.random.fork_rng(devices, device_type=device.type if on_gpu else "cuda"):
        torch.set_rng_state(on_cpu)
        for state in on_gpu:
            torch.get_device_module(device).set_rng_state(state, device)
        yield
