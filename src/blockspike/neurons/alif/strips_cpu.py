"""Strips: columns that take a chunk of steps together, so that their state stays in the L1 cache.

What `fused_cpu.py` runs a tile through, forward and backward, and the single steps that
`fitting_cpu.py` shares. Kernels index flat arrays, and the rows of a strip's state lie at constant
distances: loops over columns then vectorise, and hardly check before each if arrays overlap.
"""

import numpy as np

from blockspike.neurons.alif.tiles_cpu import CHUNK, add_recurrent, list_spikes
from blockspike.neurons.kernels import (
    LINE_BYTES,
    borrowed,
    kernel,
    kernel_with_fma,
    stream_line,
)
from blockspike.neurons.surrogate_cpu import surrogate_derivative

WIDTH = 128  # columns of a strip
# The rows of its state: parameters, neurons, and gradients.
_STRIP, _N_ROWS = np.uintp(WIDTH), 11
_BETA, _P, _B, MEMBRANE, ADAPTATION, SILENT, _GRAD_V, _GRAD_A, _SUM_BETA, _SUM_P, _SUM_B = (
    np.uintp(row) * _STRIP for row in range(_N_ROWS)
)
_SPIKES, _MARGIN = _GRAD_V, _GRAD_A  # forward and backward share the rows
STATE = np.uintp(_N_ROWS) * _STRIP
# What backward replays of a chunk, [CHUNK, strip] each.
_ADAPTATIONS, _OPENS, _SLOPES = (np.uintp(row * CHUNK) * _STRIP for row in range(3))
REPLAYED = np.uintp(3 * CHUNK * WIDTH)


@kernel
def _after_step(fires, arp, silent):
    """Steps of silence left after a step; arp and silent are of one type, which is kept."""
    return arp if fires else type(silent)(max(silent - type(silent)(1), type(silent)(0)))


@kernel
def neuron_step(drive, beta, p, b, arp, state, adaptation, silent):
    """One step of SPEC section 1: spike, margin, and the state after it."""
    real = type(drive)
    open_ = real(1.0) if silent == type(silent)(0) else real(0.0)
    membrane = beta * state + drive * open_
    threshold = real(1.0) + b * adaptation
    fires = membrane > threshold
    s = real(1.0) if fires else real(0.0)
    after = _after_step(fires, arp, silent)
    return s, membrane - threshold, membrane * (real(1.0) - s), p * adaptation + s, after


@kernel
def replay_step(margin, p, arp, adaptation, silent):
    """Adaptation and steps of silence after a step; a spike is a margin above 0."""
    real = type(margin)
    fires = margin > real(0.0)
    s = real(1.0) if fires else real(0.0)
    return p * adaptation + s, _after_step(fires, arp, silent)


@kernel_with_fma
def reverse_step(
    grad_spike, margin, slope, adaptation_before, open_, beta, p, b, attached, grad_membrane,
    grad_adaptation,
):  # fmt: skip
    """Backpropagation through one step.

    Given dLoss/dV[t+1] and dLoss/da[t]. `attached` is 1 if the spike in the reset carries
    gradient, else 0.

    Returns:
        dLoss/dV[t], dLoss/da[t−1], dLoss/dI[t], and what the step adds to dLoss/d(beta, p, b).
    """
    real = type(margin)
    s = real(1.0) if margin > real(0.0) else real(0.0)
    membrane = margin + (real(1.0) + b * adaptation_before)
    kept = real(1.0) - s
    grad_state = beta * grad_membrane  # dLoss/dV⁺[t]
    grad_s = grad_spike + grad_adaptation - attached * membrane * grad_state
    grad_margin = grad_s * slope
    before = grad_state * kept + grad_margin
    return (
        before,
        p * grad_adaptation - b * grad_margin,
        before * open_,
        grad_membrane * membrane * kept,
        grad_adaptation * adaptation_before,
        -grad_margin * adaptation_before,
    )


@kernel
def count_strips(start, stop):
    """Strips that columns start … stop − 1 take; the last may be narrower."""
    return (stop - start + WIDTH - 1) // WIDTH


@kernel
def new_state(start, stop, beta, p, b):
    """State of the strips of columns start … stop − 1: parameters, and zeros."""
    state = np.zeros(count_strips(start, stop) * _N_ROWS * WIDTH, beta.dtype)
    for column in range(start, stop):
        o = np.uintp((column - start) // WIDTH) * STATE + np.uintp((column - start) % WIDTH)
        state[o + _BETA], state[o + _P], state[o + _B] = beta[column], p[column], b[column]
    return state


@kernel
def copy_row(state, row, start, stop, values, to_state):
    """A row of every strip's state to or from `values` of the columns start … stop − 1."""
    for column in range(start, stop, WIDTH):
        o = np.uintp((column - start) // WIDTH) * STATE + row
        own = values[column : min(column + WIDTH, stop)]
        for i in range(own.size):
            if to_state:
                state[o + np.uintp(i)] = own[i]
            else:
                own[i] = state[o + np.uintp(i)]


@kernel
def _store(target, at, source, first, n, stream):
    """target[at …] = source[first …], n of them."""
    done = np.uintp(0)
    step = np.uintp(LINE_BYTES // target.itemsize)
    if stream:
        while done + step <= np.uintp(n):
            stream_line(target, at + done, source, first + done)  # pyright: ignore
            done += step
    for i in range(done, np.uintp(n)):
        target[at + np.uintp(i)] = source[first + np.uintp(i)]


@kernel
def advance(
    first, last, stride, start, stop, source, source_stride, shift, arp, state, keep_margin,
    stream, spikes, fired, margin,
):  # fmt: skip
    """Steps first … last − 1 of columns start … stop − 1, strip by strip.

    Arrays are flat: step t of column c lies at t · stride + c, in `source` at
    t · source_stride + c − shift.
    """
    for column in range(start, stop, WIDTH):
        o = np.uintp((column - start) // WIDTH) * STATE
        width = min(WIDTH, stop - column)
        for t in range(first, last):
            x = np.uintp(t) * stride + np.uintp(column)
            y = np.uintp(t) * source_stride + np.uintp(column) - shift
            for i_ in range(width):
                i = np.uintp(i_)
                s, u, v, a, silent = neuron_step(
                    source[y + i], state[o + _BETA + i], state[o + _P + i], state[o + _B + i],
                    arp, state[o + MEMBRANE + i], state[o + ADAPTATION + i],
                    state[o + SILENT + i],
                )  # fmt: skip
                state[o + MEMBRANE + i], state[o + ADAPTATION + i] = v, a
                state[o + SILENT + i] = silent
                state[o + _SPIKES + i] = s
                state[o + _MARGIN + i] = u
                fired[x + i] = np.uint8(s)
            _store(spikes, x, state, o + _SPIKES, width, stream)
            if keep_margin:
                _store(margin, x, state, o + _MARGIN, width, stream)


@kernel
def advance_recurrent(
    first, last, stride, start, stop, current, arp, state, keep_margin, stream, spikes, fired,
    margin, weight_t, units, n_units, drive,
):  # fmt: skip
    """The same with recurrence, as many steps at a time as its delay allows.

    Slot t mod (arp + 1) of `units` and `n_units` holds what fired at step t − arp − 1, and then
    at t. `drive` [steps at a time, tile] is scratch.
    """
    n_slots, width = units.shape
    n_neurons = weight_t.shape[1]
    drives, fires = drive.ravel(), fired.ravel()
    for begin in range(first, last, drive.shape[0]):
        end = min(last, begin + drive.shape[0])
        for t in range(begin, end):
            slot = t % n_slots
            row = current[t, start:stop]
            add_recurrent(row, units[slot], n_units[slot], weight_t, drive[t - begin])
        shift = np.uintp(begin) * np.uintp(width) + np.uintp(start)
        advance(
            begin, end, stride, start, stop, drives, np.uintp(width), shift, arp, state,
            keep_margin, stream, spikes, fires, margin,
        )  # fmt: skip
        for t in range(begin, end):
            slot = t % n_slots
            list_spikes(fired[t, start:stop], n_neurons, units[slot], n_units[slot])


@kernel
def advance_narrow(
    first, last, stride, start, stop, source, arp, state, keep_margin, spikes, fired, margin
):
    """The same for less than a strip, a column at a time with its state in registers."""
    for column in range(start, stop):
        i = np.uintp(column - start)
        beta, p, b = state[_BETA + i], state[_P + i], state[_B + i]
        v, a, silent = state[MEMBRANE + i], state[ADAPTATION + i], state[SILENT + i]
        for t in range(first, last):
            x = np.uintp(t) * stride + np.uintp(column)
            s, u, v, a, silent = neuron_step(source[x], beta, p, b, arp, v, a, silent)
            spikes[x] = s
            fired[x] = np.uint8(s)
            if keep_margin:
                margin[x] = u
        state[MEMBRANE + i], state[ADAPTATION + i], state[SILENT + i] = v, a, silent


@kernel
def replay(first, last, stride, start, stop, margin, arp, state, o, replayed, r):
    """Repeat adaptation and refractoriness of a chunk of one strip."""
    real = margin.dtype.type
    for t in range(first, last):
        x = np.uintp(t) * stride + np.uintp(start)
        k = r + np.uintp(t - first) * _STRIP
        for i_ in range(stop - start):
            i = np.uintp(i_)
            a, silent = state[o + ADAPTATION + i], state[o + SILENT + i]
            replayed[k + _ADAPTATIONS + i] = a
            replayed[k + _OPENS + i] = real(1.0) if silent == real(0.0) else real(0.0)
            state[o + ADAPTATION + i], state[o + SILENT + i] = replay_step(
                margin[x + i], state[o + _P + i], arp, a, silent
            )


@kernel
def evaluate_slopes(code, first, last, stride, start, stop, margin, replayed, r):
    """Surrogate derivatives of a chunk of one strip."""
    replayed, width = borrowed(replayed), np.uintp(stop - start)
    for t in range(first, last):
        x = np.uintp(t) * stride + np.uintp(start)
        k = r + np.uintp(t - first) * _STRIP + _SLOPES
        surrogate_derivative(code, margin[x : x + width], replayed[k : k + width])


@kernel_with_fma
def reverse(
    steps, first, stride, start, stop, grad_spikes, shift, margin, attached, state, o, replayed, r,
    grad_current,
):  # fmt: skip
    """Backpropagation through `steps` of the chunk that begins at `first`, for one strip.

    The steps come as a list: inside a loop that counts down LLVM does not vectorise.
    """
    for step in steps:
        x = (np.uintp(first) + step) * stride + np.uintp(start)
        k = r + step * _STRIP
        for i_ in range(stop - start):
            i = np.uintp(i_)
            before, adaptation, to_current, to_beta, to_p, to_b = reverse_step(
                grad_spikes[x - shift + i], margin[x + i], replayed[k + _SLOPES + i],
                replayed[k + _ADAPTATIONS + i], replayed[k + _OPENS + i], state[o + _BETA + i],
                state[o + _P + i], state[o + _B + i], attached, state[o + _GRAD_V + i],
                state[o + _GRAD_A + i],
            )  # fmt: skip
            state[o + _GRAD_V + i], state[o + _GRAD_A + i] = before, adaptation
            grad_current[x + i] = to_current
            state[o + _SUM_BETA + i] += to_beta
            state[o + _SUM_P + i] += to_p
            state[o + _SUM_B + i] += to_b


@kernel_with_fma
def reverse_narrow(
    steps, first, stride, start, stop, grad_spikes, margin, attached, state, replayed, grad_current
):
    """The same for less than a strip, a column at a time."""
    for column in range(start, stop):
        i = np.uintp(column - start)
        beta, p, b = state[_BETA + i], state[_P + i], state[_B + i]
        gv, ga = state[_GRAD_V + i], state[_GRAD_A + i]
        for step in steps:
            x = (np.uintp(first) + step) * stride + np.uintp(column)
            k = step * _STRIP + i
            gv, ga, grad_current[x], to_beta, to_p, to_b = reverse_step(
                grad_spikes[x], margin[x], replayed[k + _SLOPES], replayed[k + _ADAPTATIONS],
                replayed[k + _OPENS], beta, p, b, attached, gv, ga,
            )  # fmt: skip
            state[_SUM_BETA + i] += to_beta
            state[_SUM_P + i] += to_p
            state[_SUM_B + i] += to_b
        state[_GRAD_V + i], state[_GRAD_A + i] = gv, ga


@kernel
def flush_strips(start, stop, state, grad_beta, grad_p, grad_b):
    """Add a chunk's sums to the totals in float64, so that long recordings lose nothing."""
    zero = state.dtype.type(0.0)
    for column in range(start, stop, WIDTH):
        o = np.uintp((column - start) // WIDTH) * STATE
        for i_ in range(min(WIDTH, stop - column)):
            i = np.uintp(i_)
            c = np.uintp(column) + i
            grad_beta[c] += state[o + _SUM_BETA + i]
            grad_p[c] += state[o + _SUM_P + i]
            grad_b[c] += state[o + _SUM_B + i]
            state[o + _SUM_BETA + i] = state[o + _SUM_P + i] = state[o + _SUM_B + i] = zero
