"""Strips: columns that take a chunk of steps together, so that their state stays in the L1 cache.

`cpu/fused.py` uses these kernels to run a tile forward and backward, for any model. They index flat
arrays, and the rows of a strip's state are at constant distances. So loops over columns vectorise
and need few checks for overlapping arrays.
"""

import numpy as np

from blockspike.neurons.cpu.kernels import (
    LINE_BYTES,
    kernel,
    kernel_with_fma,
    stream_line,
    without_refcount,
)
from blockspike.neurons.cpu.model import (
    WIDTH,
    add_to_sums,
    load_grads,
    load_parameters,
    load_states,
    n_rows,
    reverse_step,
    step,
    store_grads,
    store_states,
)
from blockspike.neurons.cpu.surrogate import surrogate_derivative
from blockspike.neurons.cpu.tiles import add_feedback, add_recurrent, list_spikes

CHUNK = 8  # steps between saved states, few enough that their replay stays in the L1 cache

# Rows of a strip's state: spikes and margins of a step, then parameters, states, gradients of the
# states, sums of the parameters' gradients. Rows of a replayed step: margins, slopes, then the
# states before the step.
_STRIP = np.uintp(WIDTH)
_SPIKES, _MARGINS, _PARAMETERS = np.uintp(0), _STRIP, np.uintp(2) * _STRIP
_SLOPES, _BEFORE = _STRIP, np.uintp(2) * _STRIP  # margins are at 0


@kernel
def strip_layout(model):
    """Offsets of a strip's states, their gradients and the sums, and the strip's size."""
    n_parameters, n_states, n_grads = n_rows(model)
    states = _PARAMETERS + np.uintp(n_parameters) * _STRIP
    grads = states + np.uintp(n_states) * _STRIP
    sums = grads + np.uintp(n_grads) * _STRIP
    return states, grads, sums, sums + np.uintp(n_parameters) * _STRIP


@kernel
def replayed_size(model):
    """Size of a replayed step of a strip."""
    return _BEFORE + np.uintp(n_rows(model)[1]) * _STRIP


@kernel
def count_strips(start, stop):
    """Number of strips for columns start … stop − 1; the last strip may be narrower."""
    return (stop - start + WIDTH - 1) // WIDTH


@kernel
def new_state(model, start, stop, parameters):
    """Allocate the state of the strips of columns start … stop − 1: parameters, then zeros."""
    size = strip_layout(model)[3]
    state = np.zeros(np.uintp(count_strips(start, stop)) * size, parameters.dtype)
    for k in range(parameters.shape[0]):
        row = _PARAMETERS + np.uintp(k) * _STRIP
        for column in range(start, stop):
            i = column - start
            state[np.uintp(i // WIDTH) * size + row + np.uintp(i % WIDTH)] = parameters[k, column]
    return state


@kernel
def keep_states(model, state, start, stop, values):
    """Save the states of all strips to columns start … stop − 1 of `values` [states, columns]."""
    first, _, _, size = strip_layout(model)
    for k in range(values.shape[0]):
        for column in range(start, stop, WIDTH):
            strip_offset = np.uintp((column - start) // WIDTH) * size + first + np.uintp(k) * _STRIP
            own = values[k, column : min(column + WIDTH, stop)]
            for i in range(own.size):
                own[i] = state[strip_offset + np.uintp(i)]


@kernel
def _store(target, at, source, first, n, stream):
    """Copy n elements from source[first …] to target[at …]."""
    done = np.uintp(0)
    line = np.uintp(LINE_BYTES // target.itemsize)
    if stream:
        while done + line <= np.uintp(n):
            stream_line(target, at + done, source, first + done)  # pyright: ignore
            done += line
    for i in range(done, np.uintp(n)):
        target[at + np.uintp(i)] = source[first + np.uintp(i)]


@kernel
def advance(
    model, first, last, stride, start, stop, source, source_stride, shift, constants, state,
    keep_margin, stream, spikes, spike_bytes, margin,
):  # fmt: skip
    """Run steps first … last − 1 of columns start … stop − 1, strip by strip.

    Arrays are flat. Step t of column c is at t · stride + c; in `source`, it is at
    t · source_stride + c − shift.
    """
    states, _, _, size = strip_layout(model)
    for column in range(start, stop, WIDTH):
        strip_offset = np.uintp((column - start) // WIDTH) * size
        width = min(WIDTH, stop - column)
        for t in range(first, last):
            x = np.uintp(t) * stride + np.uintp(column)
            y = np.uintp(t) * source_stride + np.uintp(column) - shift
            for i_ in range(width):
                i = np.uintp(i_)
                s, u, after = step(
                    model, source[y + i],
                    load_parameters(model, state, strip_offset + _PARAMETERS + i), constants,
                    load_states(model, state, strip_offset + states + i),
                )  # fmt: skip
                store_states(model, state, strip_offset + states + i, after)
                state[strip_offset + _SPIKES + i] = s
                state[strip_offset + _MARGINS + i] = u
                spike_bytes[x + i] = np.uint8(s)
            _store(spikes, x, state, strip_offset + _SPIKES, width, stream)
            if keep_margin:
                _store(margin, x, state, strip_offset + _MARGINS, width, stream)


@kernel
def advance_recurrent(
    model, first, last, stride, start, stop, current, constants, state, keep_margin, stream,
    spikes, spike_bytes, margin, weight_t, units, n_units, drive, keep_drives, drives,
):  # fmt: skip
    """Run `advance` with recurrence, for as many steps at a time as `drive` [steps, tile] holds.

    These are at most the delay. Slot t mod delay of `units` and `n_units` holds the units that
    spiked at step t − delay, and after step t those that spiked at t.
    """
    n_slots, width = units.shape
    n_neurons = weight_t.shape[1]
    source, fires = drive.ravel(), spike_bytes.ravel()
    for begin in range(first, last, drive.shape[0]):
        end = min(last, begin + drive.shape[0])
        for t in range(begin, end):
            slot = t % n_slots
            row = current[t, start:stop]
            add_recurrent(row, units[slot], n_units[slot], weight_t, drive[t - begin])
            if keep_drives:
                x = np.uintp(t) * stride + np.uintp(start)
                _store(drives, x, source, np.uintp(t - begin) * np.uintp(width), width, stream)
        shift = np.uintp(begin) * np.uintp(width) + np.uintp(start)
        advance(
            model, begin, end, stride, start, stop, source, np.uintp(width), shift, constants,
            state, keep_margin, stream, spikes, fires, margin,
        )  # fmt: skip
        for t in range(begin, end):
            slot = t % n_slots
            list_spikes(spike_bytes[t, start:stop], n_neurons, units[slot], n_units[slot])


@kernel
def advance_narrow(
    model, first, last, stride, start, stop, source, constants, state, keep_margin, spikes,
    spike_bytes, margin,
):  # fmt: skip
    """Run `advance` for less than a strip, one column at a time with its state in registers."""
    states, _, _, _ = strip_layout(model)
    for column in range(start, stop):
        i = np.uintp(column - start)
        parameters = load_parameters(model, state, _PARAMETERS + i)
        now = load_states(model, state, states + i)
        for t in range(first, last):
            x = np.uintp(t) * stride + np.uintp(column)
            s, u, now = step(model, source[x], parameters, constants, now)
            spikes[x] = s
            spike_bytes[x] = np.uint8(s)
            if keep_margin:
                margin[x] = u
        store_states(model, state, states + i, now)


@kernel
def replay(
    model, first, last, stride, start, stop, drives, constants, saved, state, strip_offset,
    replayed, replay_offset
):  # fmt: skip
    """Replay a chunk of one strip from its saved states; keep margin and state before each step."""
    size, states = replayed_size(model), strip_layout(model)[0]
    for row in range(saved.shape[0]):
        k = strip_offset + states + np.uintp(row) * _STRIP
        own = saved[row, start:stop]
        for i in range(own.size):
            state[k + np.uintp(i)] = own[i]
    for t in range(first, last):
        x = np.uintp(t) * stride + np.uintp(start)
        k = replay_offset + np.uintp(t - first) * size
        for i_ in range(stop - start):
            i = np.uintp(i_)
            before = load_states(model, state, strip_offset + states + i)
            store_states(model, replayed, k + _BEFORE + i, before)
            _, u, after = step(
                model, drives[x + i], load_parameters(model, state, strip_offset + _PARAMETERS + i),
                constants, before,
            )  # fmt: skip
            replayed[k + i] = u
            store_states(model, state, strip_offset + states + i, after)


@kernel
def evaluate_slopes(model, code, n_steps, width, replayed, replay_offset):
    """Compute the surrogate derivatives of a replayed chunk of one strip."""
    replayed = without_refcount(replayed)
    for t in range(n_steps):
        k = replay_offset + np.uintp(t) * replayed_size(model)
        slopes = replayed[k + _SLOPES : k + _SLOPES + np.uintp(width)]
        surrogate_derivative(code, replayed[k : k + np.uintp(width)], slopes)


@kernel_with_fma
def reverse(
    model, steps, first, stride, start, stop, grad_spikes, shift, drives, constants, reset_has_grad,
    state, strip_offset, replayed, replay_offset, grad_current,
):  # fmt: skip
    """Backpropagate through `steps` of the chunk that begins at `first`, for one strip.

    The steps are an array because LLVM does not vectorise inside a loop that counts down.
    """
    _, grads, sums, _ = strip_layout(model)
    size = replayed_size(model)
    for t in steps:
        x = (np.uintp(first) + t) * stride + np.uintp(start)
        k = replay_offset + t * size
        for i_ in range(stop - start):
            i = np.uintp(i_)
            to_drive, to_parameters, to_states = reverse_step(
                model, drives[x + i], load_parameters(model, state, strip_offset + _PARAMETERS + i),
                constants, load_states(model, replayed, k + _BEFORE + i), replayed[k + i],
                replayed[k + _SLOPES + i], grad_spikes[x - shift + i], reset_has_grad,
                load_grads(model, state, strip_offset + grads + i),
            )  # fmt: skip
            store_grads(model, state, strip_offset + grads + i, to_states)
            grad_current[x + i] = to_drive
            add_to_sums(model, state, strip_offset + sums + i, to_parameters)


@kernel_with_fma
def reverse_narrow(
    model, steps, first, stride, start, stop, grad_spikes, drives, constants, reset_has_grad, state,
    replayed, grad_current,
):  # fmt: skip
    """Run `reverse` for less than a strip, one column at a time."""
    _, grads, sums, _ = strip_layout(model)
    size = replayed_size(model)
    for column in range(start, stop):
        i = np.uintp(column - start)
        parameters = load_parameters(model, state, _PARAMETERS + i)
        now = load_grads(model, state, grads + i)
        for t in steps:
            x = (np.uintp(first) + t) * stride + np.uintp(column)
            k = t * size + i
            grad_current[x], to_parameters, now = reverse_step(
                model, drives[x], parameters, constants, load_states(model, replayed, k + _BEFORE),
                replayed[k], replayed[k + _SLOPES], grad_spikes[x], reset_has_grad, now,
            )  # fmt: skip
            add_to_sums(model, state, sums + i, to_parameters)
        store_grads(model, state, grads + i, now)


@kernel
def reverse_recurrent(
    model, steps, first, stride, start, stop, grad_spikes, drives, constants, reset_has_grad, state,
    replayed, delay, weight, grad_s, grad_current,
):  # fmt: skip
    """Run `reverse` step by step for a tile whose recurrent spikes carry gradient.

    `replayed` holds the replayed steps of all strips, one strip after another; `grad_s` [tile] is
    scratch memory.
    """
    n_steps = grad_spikes.shape[0]
    size, chunk_size = strip_layout(model)[3], np.uintp(CHUNK) * np.uintp(replayed_size(model))
    grad_current_flat = grad_current.ravel()
    for i in range(steps.size):
        t = first + int(steps[i])
        later = t + delay  # receives the spikes of step t
        grad_s[:] = grad_spikes[t, start:stop]
        if later < n_steps:
            add_feedback(grad_current[later, start:stop], weight, grad_s)
        shift = np.uintp(t) * stride + np.uintp(start)
        for strip in range(count_strips(start, stop)):
            left = start + strip * WIDTH
            reverse(
                model, steps[i : i + 1], first, stride, left, min(stop, left + WIDTH), grad_s,
                shift, drives, constants, reset_has_grad, state, np.uintp(strip) * np.uintp(size),
                replayed, np.uintp(strip) * chunk_size, grad_current_flat,
            )  # fmt: skip


@kernel
def flush_strips(model, start, stop, state, totals):
    """Add a chunk's sums to float64 totals, so that long recordings lose no precision."""
    _, _, sums, size = strip_layout(model)
    for k in range(totals.shape[0]):
        for column in range(start, stop, WIDTH):
            strip_offset = np.uintp((column - start) // WIDTH) * size + sums + np.uintp(k) * _STRIP
            total = totals[k, column : min(column + WIDTH, stop)]
            for i in range(total.size):
                total[i] += state[strip_offset + np.uintp(i)]
                state[strip_offset + np.uintp(i)] = 0
