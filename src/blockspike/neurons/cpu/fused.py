"""Simulation of any model on a CPU in one pass over time, and its gradient in one pass back.

A step needs few operations for each number it reads, so memory is the limit. A loop over time in
PyTorch writes every intermediate result to memory. Here each thread takes a tile of columns through
all of time, and chunk by chunk the state of a group of columns stays in registers (`groups.py`):

               tile of a thread            next tile
               | group | group | group | | …
    chunk 0    |  0 →  |  1 →  |  2 →  |      CHUNK = 8 steps of a group at a time: a group's
    chunk 1    |  3 →  |  4 →  |  5 →  |      states wait in `saved` for its next chunk, and
    …                                         kernels read a chunk's rows in order

    saved      states before chunk 0, before chunk 1, …, after the last step

Saved for backward: the input of each step and column, the state before each chunk and, with
recurrence, the spikes as bytes. Keeping every state would cost more memory traffic than the steps.
So backward takes a chunk at a time, from the last: it replays the steps from the chunk's first
state into the L1 cache, then runs the chunk in reverse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.cpu.events import SpikeEvents, event_weight_gradient
from blockspike.neurons.cpu.groups import (
    CHUNK,
    Gradients,
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
from blockspike.neurons.cpu.steps import numbers
from blockspike.neurons.cpu.surrogate import Slope
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.cpu.tiles import (
    WIDEST_TILE,
    add_arriving,
    add_feedback,
    add_recurrent,
    columns,
    list_arriving,
    list_spikes,
    tile_width,
    weight_panels,
)
from blockspike.neurons.delays import RecurrentDelays

if TYPE_CHECKING:
    from blockspike.neurons.ops import Settings

# Larger results bypass the caches, which could not hold them. An ordinary store would first read
# the line that it overwrites.
_STREAMED_BYTES = 2**23
_WIDEST_TILE = 4096  # without gradient through recurrence; long rows suit the memory


@kernel
def _flat(array):
    return without_refcount(array).ravel()


@kernel
def _forward(
    first_tile, last_tile, tile, current, model, constants, parameters, delay, delays, weight_t,
    before, stream, spikes, spike_bytes, membrane, threshold, drives, saved,
):  # fmt: skip
    """Simulate some tiles; arrays of size 0 are not wanted, or mean that there is no recurrence.

    `before` [delay, B·N] are the spikes, as bytes, that came before the first step; empty: none.
    With `delays` [N] of the neurons, `delay` is the shortest, and `before` as long as the longest.

    Arguments are bundled here and not before, since Numba takes 10 µs to recognise a bundle.
    """
    # What is sliced or passed on loses its reference count, or threads would share the counter.
    n_steps, n_columns = current.shape
    stride, none, recurrent = np.uintp(n_columns), np.uintp(0), weight_t.size > 0
    current, spike_bytes = without_refcount(current), without_refcount(spike_bytes)
    before = without_refcount(before)
    weight_t, states, drives = without_refcount(weight_t), _flat(saved), _flat(drives)
    neurons = Neurons(model, constants, _flat(parameters))
    out = Outputs(
        _flat(spikes), _flat(spike_bytes), _flat(membrane), _flat(threshold), membrane.size > 0,
        stream,
    )  # fmt: skip
    source = Rows(_flat(current), stride, none)
    # The states of a chunk's start are kept for backward; else each chunk overwrites them.
    size = np.uintp(saved.shape[1]) * stride if len(saved) > 1 else none
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width, at = stop - start, none  # `at` is where the chunk's first states are
        if not recurrent:
            for first in range(0, n_steps, CHUNK):
                span = Span(first, min(n_steps, first + CHUNK), start, stop, stride)
                advance(neurons, span, source, states, at, at + size, out)
                at += size
            continue
        # A ring of lists: slot t mod delay holds the units whose spikes arrive at step t. Step t
        # reads its slot before it writes the spikes that arrive at step t + delay.
        units = np.empty((delay, width), np.int32)
        n_units = np.zeros((delay, width // weight_t.shape[1]), np.int64)
        if delays.size == 0:
            for slot in range(len(before)):
                list_spikes(before[slot, start:stop], weight_t.shape[1], units[slot], n_units[slot])
        # The recurrent input of up to `delay` steps is known in advance, since none of them hears
        # of another's spikes. A block of it stays in the cache, and groups run through all of it.
        block = np.empty((min(delay, CHUNK), width), current.dtype)
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
                # Step `begin` of column `start` is the block's first number.
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
def _copy(row, target, at, stream):
    """Store a row from target[at] on, past the caches if `stream`."""
    lanes, n = np.uintp(n_lanes(row)), np.uintp(row.size)
    for i_ in range(0, row.size, n_lanes(row)):
        i = np.uintp(i_)
        width = min(lanes, n - i)
        store_lanes(load_lanes(row, i, width), target, at + i, width, stream)


@kernel
def _backward(
    first_tile, last_tile, tile, grad_spikes, grad_level, drives, saved, model, constants,
    parameters, delay, delays, panels, n_neurons, surrogate, slope_constants,
    reset_has_grad, grad_current, grads, sums,
):  # fmt: skip
    """Backpropagate through some tiles; `panels` of size 0: not through recurrence.

    `delay` and `delays` are as in `_forward`. `grad_level` are gradients of membrane and threshold,
    flat, or None.
    """
    n_steps, n_columns = drives.shape
    stride, none, feedback = np.uintp(n_columns), np.uintp(0), panels.size > 0
    grad_spikes, grad_current = without_refcount(grad_spikes), without_refcount(grad_current)
    drives, states, panels = _flat(drives), _flat(saved), without_refcount(panels)
    back = Gradients(reset_has_grad, _flat(grads), _flat(grad_current), _flat(sums))
    neurons = Neurons(model, constants, _flat(parameters))
    slopes = Slopes(surrogate, slope_constants)
    from_spikes = Rows(_flat(grad_spikes), stride, none)
    lanes, group_size = n_lanes(drives), replayed_size(model, drives)
    n_block = min(delay, CHUNK) if feedback else 1  # steps that get their gradient together
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        # Without feedback, a group is replayed and reversed before the next one, in the L1 cache.
        # With feedback, step t of a column needs later steps of the whole sample, so the groups of
        # a tile are all replayed first. WIDEST_TILE keeps them in the L2 cache.
        n_groups = (width + lanes - 1) // lanes if feedback else 1
        replayed = np.empty(np.uintp(n_groups) * group_size, drives.dtype)
        block = np.empty((n_block, width if feedback else 1), drives.dtype)
        # With a delay for each neuron, `fed` is a ring of Wᵀ·gradient for steps that are done; each
        # neuron takes its part from the step at which its spike arrived.
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
                    reverse(neurons, first, span, drives, own, from_spikes, grad_level, back)
            if not feedback:
                continue
            # As forward: the feedback of up to `delay` steps comes from later ones. So it is added
            # to the gradient of a block of spikes, and then each group runs back through the block.
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
                    reverse(neurons, first, span, drives, own, from_block, grad_level, back)
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


_NO_SPIKES = np.empty((0, 0), np.uint8)
_NO_DELAYS = np.empty(0, np.int64)


def _bytes(spikes: Tensor | None, n_steps: int) -> np.ndarray:
    """The first `n_steps` steps of spikes [D, B, N] as uint8 [n_steps, B·N]; without any, empty."""
    if spikes is None:
        return _NO_SPIKES
    return spikes.detach()[:n_steps].to(torch.uint8).flatten(1).contiguous().numpy()


def _delay(s: Settings, delays: RecurrentDelays | None, n_steps: int) -> tuple[int, np.ndarray]:
    """The delay of the recurrence, or the shortest, and those of the neurons if they have own."""
    if delays is None:
        return min(s.delay, n_steps), _NO_DELAYS
    return min(delays.shortest, n_steps), delays.whole.numpy()


def n_saved(n_steps: int) -> int:
    """Number of chunks whose first state is kept for backward, and one for the last state."""
    return -(-n_steps // CHUNK) + 1


def forward(
    current: Tensor, parameters: Tensor, weight: Tensor | None, values: Tensor | None,
    before: Tensor | None, delays: RecurrentDelays | None, s: Settings, membrane: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Simulate; arguments and results as in `ops.simulate`."""
    n_steps, batch_size, n_neurons = current.shape
    flat = current.detach().reshape(n_steps, -1).contiguous()
    n_columns, n_states = flat.shape[1], len(s.model.all_states)
    like = flat.numpy()
    of_weight = like[:0] if weight is None else weight.detach().T.contiguous().numpy()
    spikes = flat.new_empty(current.shape)
    spike_bytes = torch.empty_like(flat, dtype=torch.uint8)
    level = [torch.empty_like(flat) if membrane else flat.new_empty(0, 0) for _ in range(2)]
    drives = torch.empty_like(flat) if keep and weight is not None else flat.new_empty(0, 0)
    saved = flat.new_empty(n_saved(n_steps) if keep else 1, n_states, n_columns)
    saved[0] = 0 if values is None else values.detach().flatten(1)
    delay, of_neurons = _delay(s, delays, n_steps)
    arrived = _bytes(None if weight is None else before, delay if delays is None else s.delay)
    tile = tile_width(n_columns, weight, _WIDEST_TILE)
    of_spikes = spikes.flatten(1)
    written = [x for x in (of_spikes, *level, drives) if x.numel()]
    stream = all(_may_stream(tile, x) for x in written)
    run(
        _forward, -(-n_columns // tile), tile, like, s.derived, numbers(s.constants, like),
        columns(parameters, batch_size), delay, of_neurons, of_weight, arrived, stream,
        of_spikes.numpy(), spike_bytes.numpy(),
        *(x.numpy() for x in (*level, drives, saved)),
    )  # fmt: skip
    last = saved[-1].clone() if keep else saved[-1]
    shape = current.shape if membrane else (0,)
    return (
        spikes, last.view(n_states, batch_size, n_neurons), *(x.view(shape) for x in level),
        spike_bytes.view(current.shape), drives,
        saved if keep else saved.new_empty(0, n_states, n_columns),
    )  # fmt: skip


def backward(
    grad_spikes: Tensor, grad_last: Tensor | None, grad_level: list[Tensor] | None, drives: Tensor,
    saved: Tensor, parameters: Tensor, weight: Tensor | None, delays: RecurrentDelays | None,
    s: Settings,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of current [T, B, N], states [K, B·N] and, in float64, parameters [P, B·N].

    Arguments as in `ops.simulate_backward`; `weight` only if gradient flows through it.
    """
    n_steps, batch_size, n_neurons = grad_spikes.shape
    n_columns, model = drives.shape[1], s.model
    grad_flat = grad_spikes.detach().reshape(drives.shape).contiguous()
    drives = drives.detach().contiguous()
    grad_current = torch.empty_like(drives)
    of_states = drives.new_zeros(len(model.states) + len(model.accumulators), n_columns)
    if grad_last is not None:
        of_states[: len(grad_last)] = grad_last.flatten(1)
    sums = torch.zeros(len(parameters), n_columns, dtype=torch.float64, device="cpu")
    delay, of_neurons = _delay(s, delays, n_steps)
    tile = tile_width(n_columns, weight, _WIDEST_TILE if weight is None else WIDEST_TILE)
    level = grad_level and tuple(x.reshape(-1).contiguous().numpy() for x in grad_level)
    like = drives.numpy()
    run(
        _backward, -(-n_columns // tile), tile, grad_flat.numpy(), level, like, saved.numpy(),
        s.derived, numbers(s.constants, like), columns(parameters, batch_size), delay, of_neurons,
        weight_panels(weight, drives), n_neurons, Slope(s.surrogate, 2 + len(s.slope_constants)),
        numbers(s.slope_constants, like), like.dtype.type(not s.detach_reset),
        grad_current.numpy(), of_states.numpy(), sums.numpy(),
    )  # fmt: skip
    return grad_current.view(grad_spikes.shape), of_states, sums


def weight_gradient(
    grad_current: Tensor, spike_bytes: Tensor, before: Tensor | None, delay: int, weight: Tensor
) -> Tensor:
    """Gradient of the recurrent weight [N, N], dLoss/dW = Σ gI[t] ⊗ S[t − delay], event by event.

    It is the transpose of a contiguous tensor, as layers keep their weights.
    """

    def outer(later: Tensor, spikes: Tensor) -> Tensor:
        n = later.shape[2]
        if not len(later):
            return later.new_zeros(n, n).T
        events = SpikeEvents(spikes).row_ptr_and_unit
        rows = later.flatten(0, 1).numpy()
        return torch.from_numpy(event_weight_gradient(*events, rows, 1, 0, n))[0].T

    grad = outer(grad_current[delay:], spike_bytes)
    if before is not None:
        on_their_way = before[: len(grad_current)].to(torch.uint8)
        grad = grad + outer(grad_current[: len(before)], on_their_way)
    return grad
