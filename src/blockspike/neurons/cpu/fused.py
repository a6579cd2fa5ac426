"""Simulation of any model in one pass over time, forward and backward, with the state in cache.

The kernels (Numba) run exactly the model's steps and their gradient. Saved for backward: the input
of each step and column, the state every CHUNK steps and, with recurrence, the spikes as bytes.
Backward takes a chunk at a time: it replays the steps from the chunk's first state, then runs the
chunk in reverse.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numba.core.errors import NumbaError
from torch import Tensor

from blockspike.neurons.autograd import differentiable_once
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.cpu.kernels import LINE_BYTES, kernel, run, without_refcount
from blockspike.neurons.cpu.model import WIDTH, numbers
from blockspike.neurons.cpu.model_errors import error_of_model
from blockspike.neurons.cpu.strips import (
    CHUNK,
    advance,
    advance_narrow,
    advance_recurrent,
    count_strips,
    evaluate_slopes,
    flush_strips,
    keep_states,
    new_state,
    replay,
    replayed_size,
    reverse,
    reverse_narrow,
    reverse_recurrent,
    strip_layout,
)
from blockspike.neurons.cpu.surrogate import surrogate_code
from blockspike.neurons.cpu.tiles import (
    WIDEST_TILE,
    columns,
    recurrent_weight_gradient,
    tile_width,
    weight_array,
)
from blockspike.neurons.model import SimulationSpec
from blockspike.neurons.trace import SpikeTrace, check_finite, needs_gradient, trace_of_margin

_STREAMED_BYTES = 2**23  # larger results bypass the caches, which could not hold them
_NARROW = 8  # columns below which an inner loop over time beats one over columns
_WIDEST_TILE = 4096  # without gradient through recurrence; long rows suit the memory


@kernel
def _forward(
    first_tile, last_tile, current, parameters, model, constants, delay, weight_t, recurrent, tile,
    for_backward, keep_margin, stream, spikes, spike_bytes, margin, drives, saved, last_membrane,
):  # fmt: skip
    n_steps, n_columns = current.shape
    current, spike_bytes = without_refcount(current), without_refcount(spike_bytes)
    source, spikes = current.ravel(), without_refcount(spikes).ravel()
    spike_bytes_flat = spike_bytes.ravel()
    margin, drives = without_refcount(margin).ravel(), without_refcount(drives).ravel()
    weight_t, stride = without_refcount(weight_t), np.uintp(n_columns)
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        state = new_state(model, start, stop, parameters)
        n_neurons = weight_t.shape[1] if recurrent else width
        units = np.empty((delay if recurrent else 1, width if recurrent else 1), np.int32)
        n_units = np.zeros((units.shape[0], width // n_neurons), np.int64)  # that spiked
        drive = np.empty((min(delay, CHUNK), width if recurrent else 1), current.dtype)
        for first in range(0, n_steps, CHUNK):
            last = min(n_steps, first + CHUNK)
            if for_backward:
                keep_states(model, state, start, stop, saved[first // CHUNK])
            if recurrent:
                advance_recurrent(
                    model, first, last, stride, start, stop, current, constants, state, keep_margin,
                    stream, spikes, spike_bytes, margin, weight_t, units, n_units, drive,
                    for_backward, drives,
                )  # fmt: skip
            elif width < _NARROW:
                advance_narrow(
                    model, first, last, stride, start, stop, source, constants, state, keep_margin,
                    spikes, spike_bytes_flat, margin,
                )  # fmt: skip
            else:
                advance(
                    model, first, last, stride, start, stop, source, stride, np.uintp(0),
                    constants, state, keep_margin, stream, spikes, spike_bytes_flat, margin,
                )  # fmt: skip
        keep_states(model, state, start, stop, last_membrane)


@kernel
def _backward(
    first_tile, last_tile, grad_spikes, drives, saved, parameters, model, constants, delay, weight,
    feedback, reset_has_grad, surrogate, tile, grad_current, sums,
):  # fmt: skip
    n_steps, n_columns = drives.shape
    grad_spikes, grad_current = without_refcount(grad_spikes), without_refcount(grad_current)
    grad_spikes_flat, grad_current_flat = grad_spikes.ravel(), grad_current.ravel()
    drives, weight, saved = (
        without_refcount(drives).ravel(),
        without_refcount(weight),
        without_refcount(saved),
    )
    stride, none = np.uintp(n_columns), np.uintp(0)
    size = np.uintp(strip_layout(model)[3])
    chunk_size = np.uintp(CHUNK) * np.uintp(replayed_size(model))
    reversed_steps = np.empty(CHUNK, np.uintp)
    for i in range(CHUNK):
        reversed_steps[i] = np.uintp(CHUNK - 1 - i)
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        state = new_state(model, start, stop, parameters)
        n_strips = count_strips(start, stop)
        replayed = np.empty(np.uintp(n_strips if feedback else 1) * chunk_size, drives.dtype)
        grad_s = np.empty(stop - start if feedback else 1, drives.dtype)
        for chunk in range((n_steps - 1) // CHUNK, -1, -1):
            first = chunk * CHUNK
            last = min(n_steps, first + CHUNK)
            steps = reversed_steps[CHUNK - (last - first) :]
            for strip in range(n_strips):
                left = start + strip * WIDTH
                right = min(stop, left + WIDTH)
                strip_offset = np.uintp(strip) * size
                replay_offset = np.uintp(strip) * chunk_size if feedback else none
                replay(
                    model, first, last, stride, left, right, drives, constants, saved[chunk],
                    state, strip_offset, replayed, replay_offset,
                )  # fmt: skip
                evaluate_slopes(
                    model, surrogate, last - first, right - left, replayed, replay_offset
                )
                if feedback:
                    continue
                if stop - start < _NARROW:
                    reverse_narrow(
                        model, steps, first, stride, left, right, grad_spikes_flat, drives,
                        constants, reset_has_grad, state, replayed, grad_current_flat,
                    )  # fmt: skip
                else:
                    reverse(
                        model, steps, first, stride, left, right, grad_spikes_flat, none, drives,
                        constants, reset_has_grad, state, strip_offset, replayed, replay_offset,
                        grad_current_flat,
                    )  # fmt: skip
            if feedback:
                reverse_recurrent(
                    model, steps, first, stride, start, stop, grad_spikes, drives, constants,
                    reset_has_grad, state, replayed, delay, weight, grad_s, grad_current,
                )  # fmt: skip
            flush_strips(model, start, stop, state, sums)


def _may_stream(tile: int, target: Tensor) -> bool:
    """Whether writes to `target` [T, B·N] bypass the caches: it is large, and aligned to lines."""
    in_lines = (
        target.shape[1] * target.itemsize % LINE_BYTES == 0
        and tile * target.itemsize % LINE_BYTES == 0
        and target.data_ptr() % LINE_BYTES == 0
    )
    return in_lines and target.nbytes >= _STREAMED_BYTES


class _Result(NamedTuple):
    """Spikes [T, B, N], input (`drives`) and optional margin of each step and column [T, B·N].

    `saved` [chunks, states, B·N] is empty if no backward is needed.
    """

    spikes: Tensor
    events: SpikeEvents
    margin: Tensor
    drives: Tensor
    saved: Tensor


def _columns(parameters: Sequence[Tensor], batch_size: int) -> np.ndarray:
    """Stack K tensors [N] and repeat them for each sample: [K, B·N]."""
    return np.stack([columns(x, batch_size) for x in parameters])


def _run(
    current: Tensor, parameters: Sequence[Tensor], weight: Tensor | None, spec: SimulationSpec,
    for_backward: bool, keep_margin: bool = False,
) -> _Result:  # fmt: skip
    n_steps, batch_size, n_neurons = current.shape
    flat = current.detach().reshape(n_steps, -1).contiguous()
    n_columns = flat.shape[1]
    weight_t = weight_array(None if weight is None else weight.T, flat)
    spikes = torch.empty_like(flat)
    spike_bytes = torch.empty_like(flat, dtype=torch.uint8)
    nothing = flat.new_empty(0, 0)
    margin = torch.empty_like(flat) if keep_margin else nothing
    keep_drives = for_backward and weight is not None
    drives = torch.empty_like(flat) if keep_drives else nothing
    model = spec.model
    n_states = len(model.states) + len(model.counters)
    saved = flat.new_empty(-(-n_steps // CHUNK) if for_backward else 0, n_states, n_columns)
    last_membrane = flat.new_empty(1, n_columns)
    tile = tile_width(n_columns, weight, _WIDEST_TILE)
    written = [x for x in (spikes, margin, drives) if x.numel()]
    stream = all(_may_stream(tile, x) for x in written)
    try:
        run(
            _forward, -(-n_columns // tile), flat.numpy(), _columns(parameters, batch_size), model,
            numbers(spec.constants, flat.numpy()), min(spec.recurrent_delay, n_steps), weight_t,
            weight is not None, tile, for_backward, keep_margin, stream, spikes.numpy(),
            spike_bytes.numpy(), margin.numpy(), drives.numpy(), saved.numpy(),
            last_membrane.numpy(),
        )  # fmt: skip
    except NumbaError as error:
        raise error_of_model(spec, flat.dtype, error) from None
    check_finite(last_membrane.view(batch_size, n_neurons), current)
    spikes, spike_bytes = spikes.view(current.shape), spike_bytes.view(current.shape)
    return _Result(spikes, SpikeEvents(spike_bytes), margin, drives if keep_drives else flat, saved)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, weight, spec: SimulationSpec, events_out: list[SpikeEvents],
        *parameters: Tensor
    ):  # fmt: skip
        """Spikes [T, B, N]; appends the events of the spikes to `events_out`."""
        result = _run(current, parameters, weight, spec, for_backward=True)
        events_out.append(result.events)
        ctx.save_for_backward(result.drives, result.saved, weight, *parameters)
        ctx.events = result.events if weight is not None else None
        ctx.spec, ctx.shape = spec, current.shape
        return result.spikes

    @staticmethod
    @differentiable_once("method='fused'", instead="method='standard'")
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        drives, saved, weight, *parameters = ctx.saved_tensors
        spec: SimulationSpec = ctx.spec
        n_steps, batch_size, n_neurons = ctx.shape
        recurrent = weight is not None
        n_columns = drives.shape[1]
        grad_spikes = grads[0].reshape(drives.shape).contiguous()
        grad_current = torch.empty_like(drives)
        sums = torch.zeros(len(parameters), n_columns, dtype=torch.float64)
        feedback = recurrent and not spec.detach_spikes
        tile = tile_width(n_columns, weight, WIDEST_TILE if feedback else _WIDEST_TILE)
        try:
            run(
                _backward, -(-n_columns // tile), grad_spikes.numpy(), drives.numpy(),
                saved.numpy(), _columns(parameters, batch_size), spec.model,
                numbers(spec.constants, drives.numpy()), min(spec.recurrent_delay, n_steps),
                weight_array(weight, drives), feedback,
                drives.numpy().dtype.type(not spec.detach_spikes),
                surrogate_code(spec.surrogate), tile, grad_current.numpy(), sums.numpy(),
            )  # fmt: skip
        except NumbaError as error:
            raise error_of_model(spec, drives.dtype, error) from None
        grad_current = grad_current.view(ctx.shape)
        per_neuron = sums.view(-1, batch_size, n_neurons).sum(1).to(drives.dtype)
        grad_weight = None
        if recurrent and ctx.needs_input_grad[1]:
            grad_weight = recurrent_weight_gradient(grad_current, ctx.events, spec.recurrent_delay)
        return grad_current, grad_weight, None, None, *per_neuron


def fused_cpu(
    spec: SimulationSpec,
    current: Tensor,
    parameters: Sequence[Tensor],
    recurrent_weight: Tensor | None,
    compute_threshold: Callable[[Tensor], Tensor] = torch.ones_like,
) -> SpikeTrace:
    """Simulate in one pass, with the spikes and gradient of the loop; arguments already checked.

    Args:
        spec: the model, and the settings shared by its neurons.
        current: [T, B, N].
        parameters: tensors [N], in the model's order.
        recurrent_weight: [N, N] (post, pre), or None.
        compute_threshold: computes θ [T, B, N] from the spikes.
    """
    inputs = (current, recurrent_weight, *parameters)
    simulate = partial(_run, current, parameters, recurrent_weight, spec)
    if needs_gradient(*inputs):
        events_out: list[SpikeEvents] = []
        spikes = _Fused.apply(  # pyright: ignore
            current, recurrent_weight, spec, events_out, *parameters
        )
        events = events_out[0]
    else:
        spikes, events, *_ = simulate(for_backward=False)
    margin = partial(simulate, for_backward=False, keep_margin=True)
    return trace_of_margin(spikes, lambda: margin().margin, compute_threshold, inputs, events)
