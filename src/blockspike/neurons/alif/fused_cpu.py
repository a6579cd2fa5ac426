"""ALIF in one pass over time with the state in cache, forward and backward (Numba).

Exactly the equations and the gradient of `standard.py`. Per neuron and step it keeps the margin
V − θ and, for recurrence, the spike as a byte; every CHUNK steps also (a, silent steps). Backward
takes a chunk at a time: it replays adaptation and refractoriness from there, then runs the chunk in
reverse.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.alif.tiles_cpu import (
    CHUNK,
    add_feedback,
    add_recurrent,
    columns,
    list_spikes,
    recurrent_weight_gradient,
    tile_width,
    weight_array,
)
from blockspike.neurons.alif.trace import (
    ALIFTrace,
    check_finite,
    needs_gradient,
    trace_of_margin,
)
from blockspike.neurons.events_cpu import Fired
from blockspike.neurons.kernels import (
    LINE_BYTES,
    borrowed,
    kernel,
    kernel_with_fma,
    run,
    stream_line,
)
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.surrogate_cpu import (
    BOXCAR,
    FAST_SIGMOID,
    boxcar,
    fast_sigmoid,
    multi_gaussian,
    surrogate_code,
)

_STREAMED_BYTES = 2**23  # from here on results go past the caches, which would not keep them
_NARROW = 8  # columns below which a loop over time beats one over columns
_WIDEST_TILE = 4096  # without recurrence; memory likes long rows
_WIDTH = 128  # columns of a strip, which take a chunk of steps together: their state stays in L1
# The state of a strip, a row each. Kernels index flat arrays, and rows lie at constant distances:
# so the loops over columns vectorise, with next to no check before each whether arrays overlap.
_STRIP, _N_ROWS = np.uintp(_WIDTH), 11
_BETA, _P, _B, _V, _A, _SILENT, _GRAD_V, _GRAD_A, _SUM_BETA, _SUM_P, _SUM_B = (
    np.uintp(row) * _STRIP for row in range(_N_ROWS)
)
_SPIKES, _MARGIN = _GRAD_V, _GRAD_A  # forward and backward share the rows
_STATE = np.uintp(_N_ROWS) * _STRIP
# What backward replays of a chunk, [CHUNK, strip] each.
_ADAPTATIONS, _OPENS, _SLOPES = (np.uintp(row * CHUNK) * _STRIP for row in range(3))
_REPLAYED = np.uintp(3 * CHUNK * _WIDTH)


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
def _n_strips(start, stop):
    return (stop - start + _WIDTH - 1) // _WIDTH


@kernel
def _new_state(start, stop, beta, p, b):
    """State of the strips of columns start … stop − 1: parameters, and zeros."""
    state = np.zeros(_n_strips(start, stop) * _N_ROWS * _WIDTH, beta.dtype)
    for column in range(start, stop):
        o = np.uintp((column - start) // _WIDTH) * _STATE + np.uintp((column - start) % _WIDTH)
        state[o + _BETA], state[o + _P], state[o + _B] = beta[column], p[column], b[column]
    return state


@kernel
def _copy_row(state, row, start, stop, values, to_state):
    """A row of every strip's state to or from `values` of the columns start … stop − 1."""
    for column in range(start, stop, _WIDTH):
        o = np.uintp((column - start) // _WIDTH) * _STATE + row
        own = values[column : min(column + _WIDTH, stop)]
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
def _advance(
    first, last, stride, start, stop, source, source_stride, shift, arp, state, keep_margin,
    stream, spikes, fired, margin,
):  # fmt: skip
    """Steps first … last − 1 of columns start … stop − 1, strip by strip.

    Arrays are flat: step t of column c lies at t · stride + c, in `source` at
    t · source_stride + c − shift.
    """
    for column in range(start, stop, _WIDTH):
        o = np.uintp((column - start) // _WIDTH) * _STATE
        width = min(_WIDTH, stop - column)
        for t in range(first, last):
            x = np.uintp(t) * stride + np.uintp(column)
            y = np.uintp(t) * source_stride + np.uintp(column) - shift
            for i_ in range(width):
                i = np.uintp(i_)
                s, u, state[o + _V + i], state[o + _A + i], state[o + _SILENT + i] = neuron_step(
                    source[y + i], state[o + _BETA + i], state[o + _P + i],
                    state[o + _B + i], arp, state[o + _V + i], state[o + _A + i],
                    state[o + _SILENT + i],
                )  # fmt: skip
                state[o + _SPIKES + i] = s
                state[o + _MARGIN + i] = u
                fired[x + i] = np.uint8(s)
            _store(spikes, x, state, o + _SPIKES, width, stream)
            if keep_margin:
                _store(margin, x, state, o + _MARGIN, width, stream)


@kernel
def _advance_recurrent(
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
        _advance(
            begin, end, stride, start, stop, drives, np.uintp(width), shift, arp, state,
            keep_margin, stream, spikes, fires, margin,
        )  # fmt: skip
        for t in range(begin, end):
            slot = t % n_slots
            list_spikes(fired[t, start:stop], n_neurons, units[slot], n_units[slot])


@kernel
def _advance_narrow(
    first, last, stride, start, stop, source, arp, state, keep_margin, spikes, fired, margin
):
    """The same for less than a strip, a column at a time with its state in registers."""
    for column in range(start, stop):
        i = np.uintp(column - start)
        beta, p, b = state[_BETA + i], state[_P + i], state[_B + i]
        v, a, silent = state[_V + i], state[_A + i], state[_SILENT + i]
        for t in range(first, last):
            x = np.uintp(t) * stride + np.uintp(column)
            s, u, v, a, silent = neuron_step(source[x], beta, p, b, arp, v, a, silent)
            spikes[x] = s
            fired[x] = np.uint8(s)
            if keep_margin:
                margin[x] = u
        state[_V + i], state[_A + i], state[_SILENT + i] = v, a, silent


@kernel
def _replay(first, last, stride, start, stop, margin, arp, state, o, replayed, r):
    """Repeat adaptation and refractoriness of a chunk of one strip."""
    real = margin.dtype.type
    for t in range(first, last):
        x = np.uintp(t) * stride + np.uintp(start)
        k = r + np.uintp(t - first) * _STRIP
        for i_ in range(stop - start):
            i = np.uintp(i_)
            a, silent = state[o + _A + i], state[o + _SILENT + i]
            replayed[k + _ADAPTATIONS + i] = a
            replayed[k + _OPENS + i] = real(1.0) if silent == real(0.0) else real(0.0)
            state[o + _A + i], state[o + _SILENT + i] = replay_step(
                margin[x + i], state[o + _P + i], arp, a, silent
            )


@kernel_with_fma
def _evaluate_slopes(code, first, last, stride, start, stop, margin, replayed, r):
    """Surrogate derivatives of a chunk of one strip."""
    for t in range(first, last):
        x = np.uintp(t) * stride + np.uintp(start)
        k = r + np.uintp(t - first) * _STRIP + _SLOPES
        if code == FAST_SIGMOID:
            for i_ in range(stop - start):
                i = np.uintp(i_)
                replayed[k + i] = fast_sigmoid(margin[x + i])
        elif code == BOXCAR:
            for i_ in range(stop - start):
                i = np.uintp(i_)
                replayed[k + i] = boxcar(margin[x + i])
        else:
            for i_ in range(stop - start):
                i = np.uintp(i_)
                replayed[k + i] = multi_gaussian(margin[x + i])


@kernel_with_fma
def _reverse(
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
def _reverse_narrow(
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
def _flush_sums(start, stop, state, grad_beta, grad_p, grad_b):
    """Add a chunk's sums to the totals in float64, so that long recordings lose nothing."""
    zero = state.dtype.type(0.0)
    for column in range(start, stop, _WIDTH):
        o = np.uintp((column - start) // _WIDTH) * _STATE
        for i_ in range(min(_WIDTH, stop - column)):
            i = np.uintp(i_)
            c = np.uintp(column) + i
            grad_beta[c] += state[o + _SUM_BETA + i]
            grad_p[c] += state[o + _SUM_P + i]
            grad_b[c] += state[o + _SUM_B + i]
            state[o + _SUM_BETA + i] = state[o + _SUM_P + i] = state[o + _SUM_B + i] = zero


@kernel
def _forward(
    first_tile, last_tile, current, beta, p, b, arp, weight_t, recurrent, tile, keep_margin,
    stream, spikes, fired, margin, saved_adaptation, saved_silent, last_state,
):  # fmt: skip
    n_steps, n_columns = current.shape
    current, fired = borrowed(current), borrowed(fired)
    source, spikes, fires = current.ravel(), borrowed(spikes).ravel(), fired.ravel()
    margin, weight_t = borrowed(margin).ravel(), borrowed(weight_t)
    stride = np.uintp(n_columns)
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        state = _new_state(start, stop, beta, p, b)
        n_slots = int(arp) + 1 if recurrent else 1
        n_neurons = weight_t.shape[1] if recurrent else width
        drive = np.empty((min(n_slots, CHUNK), width if recurrent else 1), current.dtype)
        units = np.empty((n_slots, width if recurrent else 1), np.int32)  # that fired
        n_units = np.zeros((n_slots, width // n_neurons), np.int64)
        for first in range(0, n_steps, CHUNK):
            last = min(n_steps, first + CHUNK)
            if keep_margin:
                _copy_row(state, _A, start, stop, saved_adaptation[first // CHUNK], False)
                _copy_row(state, _SILENT, start, stop, saved_silent[first // CHUNK], False)
            if recurrent:
                _advance_recurrent(
                    first, last, stride, start, stop, current, arp, state, keep_margin, stream,
                    spikes, fired, margin, weight_t, units, n_units, drive,
                )  # fmt: skip
            elif width < _NARROW:
                _advance_narrow(
                    first, last, stride, start, stop, source, arp, state, keep_margin, spikes,
                    fires, margin,
                )  # fmt: skip
            else:
                _advance(
                    first, last, stride, start, stop, source, stride, np.uintp(0), arp, state,
                    keep_margin, stream, spikes, fires, margin,
                )  # fmt: skip
        _copy_row(state, _V, start, stop, last_state, False)


@kernel
def _backward(
    first_tile, last_tile, grad_spikes, margin, saved_adaptation, saved_silent, beta, p, b, arp,
    weight, feedback, attached, surrogate, tile, grad_current, grad_beta, grad_p, grad_b,
):  # fmt: skip
    n_steps, n_columns = margin.shape
    grad_spikes, grad_current = borrowed(grad_spikes), borrowed(grad_current)
    given, to_current = grad_spikes.ravel(), grad_current.ravel()
    margin, weight = borrowed(margin).ravel(), borrowed(weight)
    stride, none = np.uintp(n_columns), np.uintp(0)
    down = np.empty(CHUNK, np.uintp)
    for i in range(CHUNK):
        down[i] = np.uintp(CHUNK - 1 - i)
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        state = _new_state(start, stop, beta, p, b)
        n_strips = _n_strips(start, stop)
        replayed = np.empty((n_strips if feedback else 1) * 3 * CHUNK * _WIDTH, margin.dtype)
        grad_s = np.empty(stop - start if feedback else 1, margin.dtype)
        for chunk in range((n_steps - 1) // CHUNK, -1, -1):
            first = chunk * CHUNK
            last = min(n_steps, first + CHUNK)
            steps = down[CHUNK - (last - first) :]
            _copy_row(state, _A, start, stop, saved_adaptation[chunk], True)
            _copy_row(state, _SILENT, start, stop, saved_silent[chunk], True)
            for strip in range(n_strips):
                left = start + strip * _WIDTH
                right = min(stop, left + _WIDTH)
                o = np.uintp(strip) * _STATE
                r = np.uintp(strip) * _REPLAYED if feedback else none
                _replay(first, last, stride, left, right, margin, arp, state, o, replayed, r)
                _evaluate_slopes(surrogate, first, last, stride, left, right, margin, replayed, r)
                if feedback:
                    continue
                if stop - start < _NARROW:
                    _reverse_narrow(
                        steps, first, stride, left, right, given, margin, attached, state,
                        replayed, to_current,
                    )  # fmt: skip
                else:
                    _reverse(
                        steps, first, stride, left, right, given, none, margin, attached, state, o,
                        replayed, r, to_current,
                    )  # fmt: skip
            for i in range(steps.size if feedback else 0):
                t = last - 1 - i
                later = t + int(arp) + 1  # hears of the spikes of step t
                grad_s[:] = grad_spikes[t, start:stop]
                if later < n_steps:
                    add_feedback(grad_current[later, start:stop], weight, grad_s)
                shift = np.uintp(t) * stride + np.uintp(start)
                for strip in range(n_strips):
                    left = start + strip * _WIDTH
                    _reverse(
                        steps[i : i + 1], first, stride, left, min(stop, left + _WIDTH),
                        grad_s, shift, margin, attached, state, np.uintp(strip) * _STATE, replayed,
                        np.uintp(strip) * _REPLAYED, to_current,
                    )  # fmt: skip
            _flush_sums(start, stop, state, grad_beta, grad_p, grad_b)


def _may_stream(tile: int, target: Tensor) -> bool:
    """Whether tiles of `target` [T, B·N] are written past the caches: it is large, and in lines."""
    in_lines = (
        target.shape[1] * target.itemsize % LINE_BYTES == 0
        and tile * target.itemsize % LINE_BYTES == 0
        and target.data_ptr() % LINE_BYTES == 0
    )
    return in_lines and target.nbytes >= _STREAMED_BYTES


def _run(
    current: Tensor, beta: Tensor, p: Tensor, b: Tensor, arp: int, weight: Tensor | None,
    keep_margin: bool,
) -> tuple[Tensor, Fired, Tensor, Tensor, Tensor]:  # fmt: skip
    """Spikes [T, B, N], what fired, margin [T, B·N] or empty, saved adaptation and silence."""
    n_steps, batch_size, n_neurons = current.shape
    flat = current.detach().reshape(n_steps, -1).contiguous()
    n_columns = flat.shape[1]
    weight_t = weight_array(None if weight is None else weight.T, flat)
    spikes = torch.empty_like(flat)
    fired = torch.empty_like(flat, dtype=torch.uint8)
    margin = torch.empty_like(flat) if keep_margin else flat.new_empty(0, 0)
    n_saved = -(-n_steps // CHUNK) if keep_margin else 0
    saved_adaptation = flat.new_empty(n_saved, n_columns)
    saved_silent = torch.empty_like(saved_adaptation)
    last_state = flat.new_empty(n_columns)
    tile = tile_width(n_columns, weight, _WIDEST_TILE)
    stream = _may_stream(tile, spikes) and _may_stream(tile, margin if keep_margin else spikes)
    run(
        _forward, -(-n_columns // tile), flat.numpy(),
        *(columns(x, batch_size) for x in (beta, p, b)), flat.numpy().dtype.type(min(arp, n_steps)),
        weight_t, weight is not None, tile, keep_margin, stream, spikes.numpy(), fired.numpy(),
        margin.numpy(), saved_adaptation.numpy(), saved_silent.numpy(), last_state.numpy(),
    )  # fmt: skip
    check_finite(last_state.view(batch_size, n_neurons), current)
    spikes, fired = spikes.view(current.shape), fired.view(current.shape)
    return spikes, Fired(fired), margin, saved_adaptation, saved_silent


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, beta, p, b, weight, arp: int, surrogate: Surrogate, detach: bool,
        firing: list[Fired],
    ):  # fmt: skip
        """Spikes and margin [T, B, N]; what fired is appended to `firing`."""
        spikes, fired, *saved = _run(current, beta, p, b, arp, weight, keep_margin=True)
        firing.append(fired)
        ctx.save_for_backward(*saved, beta, p, b, weight)
        ctx.fired = fired if weight is not None else None
        ctx.arp, ctx.surrogate, ctx.detach, ctx.shape = arp, surrogate, detach, current.shape
        margin = saved[0].view(current.shape)
        ctx.mark_non_differentiable(margin)
        ctx.set_materialize_grads(False)
        return spikes, margin

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grads[0] is None:
            return (None,) * 9
        margin, saved_adaptation, saved_silent, beta, p, b, weight = ctx.saved_tensors
        n_steps, batch_size, n_neurons = ctx.shape
        recurrent = weight is not None
        n_columns = margin.shape[1]
        grad_spikes = grads[0].reshape(margin.shape).contiguous()
        grad_current = torch.empty_like(margin)
        sums = [torch.zeros(n_columns, dtype=torch.float64) for _ in range(3)]
        tile = tile_width(n_columns, weight, _WIDEST_TILE)
        run(
            _backward, -(-n_columns // tile), grad_spikes.numpy(), margin.numpy(),
            saved_adaptation.numpy(), saved_silent.numpy(),
            *(columns(x, batch_size) for x in (beta, p, b)),
            margin.numpy().dtype.type(min(ctx.arp, n_steps)),
            weight_array(weight, margin),
            recurrent and not ctx.detach, margin.numpy().dtype.type(not ctx.detach),
            surrogate_code(ctx.surrogate), tile, grad_current.numpy(),
            *(x.numpy() for x in sums),
        )  # fmt: skip
        grad_current = grad_current.view(ctx.shape)
        per_neuron = [x.view(batch_size, n_neurons).sum(0).to(margin.dtype) for x in sums]
        grad_weight = None
        if recurrent and ctx.needs_input_grad[4]:
            grad_weight = recurrent_weight_gradient(grad_current, ctx.fired, ctx.arp)
        return grad_current, *per_neuron, grad_weight, None, None, None, None


def fused_cpu(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None,
    b: Tensor | None,
    *,
    arp: int,
    recurrent_weight: Tensor | None,
    surrogate: Surrogate,
    detach_spikes: bool,
) -> ALIFTrace:
    """Spikes and gradient of `standard`, one pass; arguments as `alif`, already checked."""
    p_ = torch.zeros_like(beta) if p is None else p
    b_ = torch.zeros_like(beta) if b is None else b
    inputs = (current, beta, p_, b_, recurrent_weight)
    simulate = partial(_run, current, beta, p_, b_, arp, recurrent_weight)
    margin = None
    if needs_gradient(*inputs):
        firing: list[Fired] = []
        spikes, margin = _Fused.apply(  # pyright: ignore
            *inputs, arp, surrogate, detach_spikes, firing
        )
        fired = firing[0]
    else:
        spikes, fired, *_ = simulate(keep_margin=False)
    return trace_of_margin(spikes, margin, lambda: simulate(keep_margin=True)[2], p, b, fired)
