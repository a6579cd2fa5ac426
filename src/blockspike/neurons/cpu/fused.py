"""Simulation of any model in one pass over time, forward and backward, with the state in cache.

The kernels (Numba) run exactly the model's steps and their gradient. Saved for backward: the input
of each step and column, the state every CHUNK steps and, with recurrence, the spikes as bytes.
Backward takes a chunk at a time: it replays the steps from the chunk's first state, then runs the
chunk in reverse.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numba.core.errors import NumbaError
from torch import Tensor

from blockspike.neurons.autograd import differentiable_once
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.cpu.groups import (
    CHUNK,
    Neurons,
    Outputs,
    Replayed,
    Rows,
    Slopes,
    Span,
    advance,
    replay,
    replayed_size,
    reverse,
)
from blockspike.neurons.cpu.kernels import kernel, without_refcount
from blockspike.neurons.cpu.lane_memory import STREAM_BYTES, load_lanes, store_lanes
from blockspike.neurons.cpu.lanes import n_lanes
from blockspike.neurons.cpu.model_errors import error_of_model
from blockspike.neurons.cpu.steps import numbers
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.cpu.tiles import (
    WIDEST_TILE,
    add_arriving,
    add_feedback,
    add_recurrent,
    columns,
    list_arriving,
    list_spikes,
    recurrent_weight_gradient,
    tile_width,
    weight_array,
    weight_panels,
    write_arriving,
)
from blockspike.neurons.recurrent_delays import RecurrentDelays
from blockspike.neurons.spec import SimulationSpec
from blockspike.neurons.state import Start
from blockspike.neurons.trace import Simulation, check_finite, needs_gradient

_STREAMED_BYTES = 2**23  # larger results bypass the caches, which could not hold them
_WIDEST_TILE = 4096  # without gradient through recurrence; long rows suit the memory


@kernel
def _flat(array):
    return without_refcount(array).ravel()


@kernel
def _forward(
    first_tile, last_tile, tile, current, model, constants, parameters, delay, delays, weight_t,
    before, stream, spikes, spike_bytes, margin, drives, saved,
):  # fmt: skip
    """Simulate some tiles; arrays of size 0 are not wanted, or mean that there is no recurrence.

    `before` [delay, B·N] are the spikes, as bytes, that came before the first step; empty: none.
    With `delays` [N] of the neurons, `delay` is the shortest, and `before` as long as the longest.

    Arguments are bundled here and not before, since Numba takes 10 µs to recognise a bundle.
    """
    n_steps, n_columns = current.shape
    stride, none, recurrent = np.uintp(n_columns), np.uintp(0), weight_t.size > 0
    current, spike_bytes = without_refcount(current), without_refcount(spike_bytes)
    before = without_refcount(before)
    weight_t, states, drives = without_refcount(weight_t), _flat(saved), _flat(drives)
    neurons = Neurons(model, constants, _flat(parameters))
    out = Outputs(_flat(spikes), _flat(spike_bytes), _flat(margin), margin.size > 0, stream)
    source = Rows(_flat(current), stride, none)
    # The states of a chunk's start are kept for backward; else each chunk overwrites them.
    size = np.uintp(saved.shape[1]) * stride if len(saved) > 1 else none
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width, at = stop - start, none
        if not recurrent:
            for first in range(0, n_steps, CHUNK):
                span = Span(first, min(n_steps, first + CHUNK), start, stop, stride)
                advance(neurons, span, source, states, at, at + size, out)
                at += size
            continue
        units = np.empty((delay, width), np.int32)  # that spiked: slot t mod delay is for step t
        n_units = np.zeros((delay, width // weight_t.shape[1]), np.int64)
        if before.size > 0 and delays.size == 0:
            _list_before(before, start, stop, weight_t.shape[1], units, n_units)
        block = np.empty((min(delay, CHUNK), width), current.dtype)  # total input of some steps
        for first in range(0, n_steps, CHUNK):
            last = min(n_steps, first + CHUNK)
            for begin in range(first, last, len(block)):
                end = min(last, begin + len(block))
                for t in range(begin, end):
                    slot, row = t % delay, block[t - begin]
                    if delays.size > 0:
                        list_arriving(
                            spike_bytes, before, t, start, delays, units[slot], n_units[slot]
                        )
                    add_recurrent(current[t, start:stop], units[slot], n_units[slot], weight_t, row)
                    if drives.size > 0:
                        _copy(row, drives, np.uintp(t) * stride + np.uintp(start), stream)
                shift = np.uintp(begin) * np.uintp(width) + np.uintp(start)
                span, rows = Span(begin, end, start, stop, stride), _flat(block)
                now = at if begin == first else at + size
                advance(
                    neurons, span, Rows(rows, np.uintp(width), shift), states, now, at + size, out,
                )  # fmt: skip
                if delays.size == 0:
                    for t in range(begin, end):
                        slot, fired = t % delay, spike_bytes[t, start:stop]
                        list_spikes(fired, weight_t.shape[1], units[slot], n_units[slot])
            at += size


@kernel
def _list_before(before, start, stop, n_neurons, units, n_units):
    for slot in range(len(before)):
        list_spikes(before[slot, start:stop], n_neurons, units[slot], n_units[slot])


@kernel
def _copy(row, target, at, stream):
    lanes, n = np.uintp(n_lanes(row)), np.uintp(row.size)
    for i_ in range(0, row.size, n_lanes(row)):
        i = np.uintp(i_)
        width = min(lanes, n - i)
        store_lanes(load_lanes(row, i, width), target, at + i, width, stream)


@kernel
def _backward(
    first_tile, last_tile, tile, grad_spikes, grad_membrane, drives, saved, model, constants,
    parameters, delay, delays, panels, n_neurons, surrogate, slope_constants,
    reset_has_grad, grad_current, grads, sums,
):  # fmt: skip
    """Backpropagate through some tiles; `panels` of size 0: not through recurrence.

    `delay` and `delays` are as in `_forward`.

    `grad_membrane` is flat, or None if the membrane has no gradient.
    """
    n_steps, n_columns = drives.shape
    stride, none, feedback = np.uintp(n_columns), np.uintp(0), panels.size > 0
    grad_spikes, grad_current = without_refcount(grad_spikes), without_refcount(grad_current)
    grad_current_flat, drives, states = _flat(grad_current), _flat(drives), _flat(saved)
    grads, sums, panels = _flat(grads), _flat(sums), without_refcount(panels)
    neurons = Neurons(model, constants, _flat(parameters))
    slopes = Slopes(surrogate, slope_constants)
    from_spikes = Rows(_flat(grad_spikes), stride, none)
    lanes, group_size = n_lanes(drives), replayed_size(model, drives)
    n_block = min(delay, CHUNK) if feedback else 1  # steps that get their gradient together
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        n_groups = (width + lanes - 1) // lanes if feedback else 1
        replayed = np.empty(np.uintp(n_groups) * group_size, drives.dtype)
        block = np.empty((n_block, width if feedback else 1), drives.dtype)
        n_fed = min(n_steps, delays.max()) + n_block if feedback and delays.size > 0 else 1
        fed = np.empty((n_fed, width if n_fed > 1 else 1), drives.dtype)
        for chunk in range((n_steps - 1) // CHUNK, -1, -1):
            first, before = chunk * CHUNK, np.uintp(chunk) * np.uintp(saved.shape[1]) * stride
            last, at = min(n_steps, first + CHUNK), none
            for left in range(start, stop, lanes):
                span = Span(first, last, left, min(stop, left + lanes), stride)
                own = Replayed(without_refcount(replayed), at)
                replay(neurons, slopes, span, drives, states, before, own)
                if feedback:
                    at += group_size
                else:
                    reverse(
                        neurons, reset_has_grad, first, span, from_spikes, grad_membrane, drives,
                        own, grads, grad_current_flat, sums,
                    )  # fmt: skip
            if not feedback:
                continue
            for end in range(last, first, -n_block):
                begin = max(first, end - n_block)
                for t in range(begin, end):
                    row = block[t - begin]
                    row[:] = grad_spikes[t, start:stop]
                    if delays.size > 0:
                        add_arriving(fed, t, n_steps, delays, row)
                    elif t + delay < n_steps:  # the step that receives the spikes of step t
                        later = grad_current[t + delay, start:stop]
                        add_feedback(later, panels, n_neurons, row)
                shift = np.uintp(begin) * np.uintp(width) + np.uintp(start)
                from_block, at = Rows(_flat(block), np.uintp(width), shift), none
                for left in range(start, stop, lanes):
                    span = Span(begin, end, left, min(stop, left + lanes), stride)
                    own = Replayed(without_refcount(replayed), at)
                    reverse(
                        neurons, reset_has_grad, first, span, from_block, grad_membrane, drives,
                        own, grads, grad_current_flat, sums,
                    )  # fmt: skip
                    at += group_size
                for t in range(begin, end if delays.size > 0 else begin):
                    row = fed[t % n_fed]
                    row[:] = 0
                    add_feedback(grad_current[t, start:stop], panels, n_neurons, row)


def _may_stream(tile: int, target: Tensor) -> bool:
    """Whether writes to `target` [T, B·N] bypass the caches: it is large, and aligned to lines."""
    in_lines = (
        target.shape[1] * target.itemsize % STREAM_BYTES == 0
        and tile * target.itemsize % STREAM_BYTES == 0
        and target.data_ptr() % STREAM_BYTES == 0
    )
    return in_lines and target.nbytes >= _STREAMED_BYTES


class _Result(NamedTuple):
    """Spikes [T, B, N], input (`drives`) and optional margin of each step and column [T, B·N].

    `saved` [chunks + 1, states, B·N] holds the states before each chunk and the last ones; without
    backward only these. `parameters` are [K, B·N].
    """

    spikes: Tensor
    events: SpikeEvents
    margin: Tensor
    drives: Tensor
    saved: Tensor
    parameters: np.ndarray


_NO_SPIKES = np.empty((0, 0), np.uint8)
_NO_DELAYS = np.empty(0, np.int64)


def _bytes(spikes: Tensor | None, n_steps: int) -> np.ndarray:
    """The first `n_steps` steps of spikes [D, B, N] as uint8 [n_steps, B·N]; without any, empty."""
    if spikes is None:
        return _NO_SPIKES
    return spikes.detach()[:n_steps].to(torch.uint8).flatten(1).contiguous().numpy()


def _delays(spec: SimulationSpec, weight: Tensor | None, n_steps: int) -> tuple[int, np.ndarray]:
    """The delay of the recurrence, or the shortest, and those of the neurons if they have own."""
    if weight is None or spec.delays is None:
        return min(spec.longest_delay, n_steps), _NO_DELAYS
    return min(spec.delays.shortest, n_steps), spec.delays.whole.numpy()


def _run(
    current: Tensor, parameters: Sequence[Tensor], weight: Tensor | None, start: Start | None,
    spec: SimulationSpec, for_backward: bool, keep_margin: bool = False,
) -> _Result:  # fmt: skip
    n_steps, batch_size, n_neurons = current.shape
    flat = current.detach().reshape(n_steps, -1).contiguous()
    n_columns = flat.shape[1]
    weight_t = weight_array(weight, flat)
    spikes = flat.new_empty(current.shape)  # no view, so that it may be changed in place
    spike_bytes = torch.empty_like(flat, dtype=torch.uint8)
    nothing = flat.new_empty(0, 0)
    margin = torch.empty_like(flat) if keep_margin else nothing
    keep_drives = for_backward and weight is not None
    drives = torch.empty_like(flat) if keep_drives else nothing
    model, (delay, delays) = spec.model, _delays(spec, weight, n_steps)
    n_states = len(model.states) + len(model.counters)
    saved = flat.new_empty(-(-n_steps // CHUNK) + 1 if for_backward else 1, n_states, n_columns)
    saved[0] = 0 if start is None else start.values.detach().flatten(1)
    n_before = delay if len(delays) == 0 else spec.longest_delay
    before = _bytes(None if start is None or weight is None else start.spikes, n_before)
    tile = tile_width(n_columns, weight, _WIDEST_TILE)
    of_spikes = spikes.flatten(1)
    written = [x for x in (of_spikes, margin, drives) if x.numel()]
    stream = all(_may_stream(tile, x) for x in written)
    repeated = columns(torch.stack(tuple(parameters)), batch_size)
    try:
        run(
            _forward, -(-n_columns // tile), tile, flat.numpy(), model,
            numbers(spec.constants, flat.numpy()), repeated, delay, delays, weight_t, before,
            stream, of_spikes.numpy(), spike_bytes.numpy(), margin.numpy(), drives.numpy(),
            saved.numpy(),
        )  # fmt: skip
    except NumbaError as error:
        raise error_of_model(spec, flat.dtype, error) from None
    last = saved[-1, : len(model.states)].view(-1, batch_size, n_neurons)
    check_finite(last, current, model.states)
    kept = drives if keep_drives else flat
    events = SpikeEvents(spike_bytes.view(current.shape))
    return _Result(spikes, events, margin, kept, saved, repeated)


def _arriving(
    spike_bytes: Tensor, before: Tensor | None, delays: RecurrentDelays, dtype: torch.dtype,
    delay: Tensor,
) -> Tensor:  # fmt: skip
    """Spikes [T, B, N] that arrive after delays int64 [N]; see `RecurrentDelays.arriving`."""
    arriving = torch.empty(spike_bytes.shape, dtype=dtype, device="cpu")
    run(
        write_arriving, len(arriving), spike_bytes.flatten(1).numpy(),
        _bytes(before, delays.longest), delay.numpy(), arriving.flatten(1).numpy(),
    )  # fmt: skip
    return arriving


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, weight, values, before, delay_steps, spec: SimulationSpec, keep_margin: bool,
        events_out: list[SpikeEvents], *parameters: Tensor
    ):  # fmt: skip
        """Spikes [T, B, N], the last states [K, B, N], the margin [T, B, N] if it is wanted.

        `values` and `before` are a `Start`, or None; `delay_steps` those of `spec`. Appends the
        events to `events_out`.
        """
        start = None if values is None else Start(values, before)
        result = _run(
            current, parameters, weight, start, spec, for_backward=True, keep_margin=keep_margin
        )
        events_out.append(result.events)
        ctx.save_for_backward(result.drives, result.saved[:-1], weight, before, *parameters)
        ctx.events = result.events if weight is not None else None
        ctx.spec, ctx.shape, ctx.parameters = spec, current.shape, result.parameters
        ctx.set_materialize_grads(False)
        last = result.saved[-1].clone().view(-1, *current.shape[1:])
        if keep_margin:
            return result.spikes, last, result.margin.view(current.shape)
        return result.spikes, last

    @staticmethod
    @differentiable_once("method='fused' (and 'blocks' on a CPU)", instead="method='standard'")
    def backward(ctx, *grads: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]
        drives, saved, weight, before, *parameters = ctx.saved_tensors
        spec: SimulationSpec = ctx.spec
        n_steps, batch_size, n_neurons = ctx.shape
        n_columns, n_states = drives.shape[1], len(spec.model.states)
        grad_spikes, grad_last, grad_membrane = (*grads, None)[:3]
        if grad_spikes is None:
            grad_spikes = torch.zeros_like(drives)
        grad_spikes = grad_spikes.reshape(drives.shape).contiguous()
        if grad_membrane is not None:
            grad_membrane = grad_membrane.reshape(-1).contiguous().numpy()
        grad_current = torch.empty_like(drives)
        grads_of_states = drives.new_zeros(n_states + len(spec.model.accumulators), n_columns)
        if grad_last is not None:
            grads_of_states[:n_states] = grad_last[:n_states].flatten(1)
        sums = torch.zeros(len(parameters), n_columns, dtype=torch.float64, device="cpu")
        feedback = weight is not None and not spec.detach_recurrence
        delay, delays = _delays(spec, weight, n_steps)
        tile = tile_width(n_columns, weight, WIDEST_TILE if feedback else _WIDEST_TILE)
        panels = weight_panels(weight if feedback else None, drives)
        try:
            run(
                _backward, -(-n_columns // tile), tile, grad_spikes.numpy(), grad_membrane,
                drives.numpy(), saved.numpy(), spec.model, numbers(spec.constants, drives.numpy()),
                ctx.parameters, delay, delays, panels, n_neurons, spec.surrogate,
                numbers(spec.surrogate.constants, drives.numpy()),
                drives.numpy().dtype.type(not spec.detach_reset), grad_current.numpy(),
                grads_of_states.numpy(), sums.numpy(),
            )  # fmt: skip
        except NumbaError as error:
            raise error_of_model(spec, drives.dtype, error) from None
        grad_current = grad_current.view(ctx.shape)
        per_neuron = sums.view(-1, batch_size, n_neurons).sum(1).to(drives.dtype)
        grad_weight = grad_values = grad_before = grad_steps = None
        if weight is not None and spec.delays is not None:
            arriving = partial(_arriving, ctx.events.array, before, spec.delays, weight.dtype)
            grad_weight, grad_steps = spec.delays.gradients(grad_current, weight, arriving)
        elif weight is not None and ctx.needs_input_grad[1]:
            grad_weight = recurrent_weight_gradient(grad_current, ctx.events, spec.longest_delay)
            if before is not None:
                on_their_way = SpikeEvents(before[:delay].to(torch.uint8))
                grad_weight += recurrent_weight_gradient(grad_current[:delay], on_their_way, 0)
        if ctx.needs_input_grad[2]:
            grad_values = drives.new_zeros(saved.shape[1], n_columns)
            grad_values[:n_states] = grads_of_states[:n_states]
            grad_values = grad_values.view(-1, batch_size, n_neurons)
        if weight is not None and before is not None and feedback and ctx.needs_input_grad[3]:
            if spec.delays is not None:
                grad_before = spec.delays.gradient_of_before(grad_current, weight)
            else:
                grad_before = drives.new_zeros(before.shape)
                grad_before[:delay] = grad_current[:delay] @ weight
        return (
            grad_current, grad_weight, grad_values, grad_before, grad_steps, None, None, None,
            *per_neuron,
        )  # fmt: skip


def fused_cpu(
    spec: SimulationSpec,
    current: Tensor,
    parameters: Sequence[Tensor],
    recurrent_weight: Tensor | None,
    start: Start | None = None,
    membrane_gradient: bool = False,
) -> Simulation:
    """Simulate in one pass, with the spikes and gradient of the loop; arguments already checked.

    Args:
        spec: the model, and the settings shared by its neurons.
        current: [T, B, N].
        parameters: tensors [N], in the model's order.
        recurrent_weight: [N, N] (post, pre), or None.
        start: state at the start; None = 0.
        membrane_gradient: whether `Simulation.margin` is wanted.
    """
    values, before = start or (None, None)
    inputs = (current, recurrent_weight, values, before, spec.delay_steps, *parameters)
    simulate = partial(_run, current, parameters, recurrent_weight, start, spec)
    if not needs_gradient(*inputs):
        result = simulate(for_backward=False)
        last, margin = result.saved[-1].view(-1, *current.shape[1:]), None
        spikes, events = result.spikes, result.events
    else:
        events_out: list[SpikeEvents] = []
        spikes, last, *margins = _Fused.apply(  # pyright: ignore
            *inputs[:5], spec, membrane_gradient, events_out, *parameters
        )
        events, margin = events_out[0], next(iter(margins), None)
    compute_margin = partial(simulate, for_backward=False, keep_margin=True)
    return Simulation(
        spec, spikes, events, last, before, recurrent_weight is not None, margin,
        lambda: compute_margin().margin, inputs,
    )  # fmt: skip
