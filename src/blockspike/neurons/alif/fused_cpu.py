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

from blockspike.neurons.alif.strips_cpu import (
    ADAPTATION,
    MEMBRANE,
    REPLAYED,
    SILENT,
    STATE,
    WIDTH,
    advance,
    advance_narrow,
    advance_recurrent,
    copy_row,
    count_strips,
    evaluate_slopes,
    flush_strips,
    new_state,
    replay,
    reverse,
    reverse_narrow,
)
from blockspike.neurons.alif.tiles_cpu import (
    CHUNK,
    add_feedback,
    columns,
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
from blockspike.neurons.kernels import LINE_BYTES, borrowed, kernel, run
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.surrogate_cpu import surrogate_code

_STREAMED_BYTES = 2**23  # from here on results go past the caches, which would not keep them
_NARROW = 8  # columns below which a loop over time beats one over columns
_WIDEST_TILE = 4096  # without recurrence; memory likes long rows


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
        state = new_state(start, stop, beta, p, b)
        n_slots = int(arp) + 1 if recurrent else 1
        n_neurons = weight_t.shape[1] if recurrent else width
        drive = np.empty((min(n_slots, CHUNK), width if recurrent else 1), current.dtype)
        units = np.empty((n_slots, width if recurrent else 1), np.int32)  # that fired
        n_units = np.zeros((n_slots, width // n_neurons), np.int64)
        for first in range(0, n_steps, CHUNK):
            last = min(n_steps, first + CHUNK)
            if keep_margin:
                copy_row(state, ADAPTATION, start, stop, saved_adaptation[first // CHUNK], False)
                copy_row(state, SILENT, start, stop, saved_silent[first // CHUNK], False)
            if recurrent:
                advance_recurrent(
                    first, last, stride, start, stop, current, arp, state, keep_margin, stream,
                    spikes, fired, margin, weight_t, units, n_units, drive,
                )  # fmt: skip
            elif width < _NARROW:
                advance_narrow(
                    first, last, stride, start, stop, source, arp, state, keep_margin, spikes,
                    fires, margin,
                )  # fmt: skip
            else:
                advance(
                    first, last, stride, start, stop, source, stride, np.uintp(0), arp, state,
                    keep_margin, stream, spikes, fires, margin,
                )  # fmt: skip
        copy_row(state, MEMBRANE, start, stop, last_state, False)


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
        state = new_state(start, stop, beta, p, b)
        n_strips = count_strips(start, stop)
        replayed = np.empty((n_strips if feedback else 1) * 3 * CHUNK * WIDTH, margin.dtype)
        grad_s = np.empty(stop - start if feedback else 1, margin.dtype)
        for chunk in range((n_steps - 1) // CHUNK, -1, -1):
            first = chunk * CHUNK
            last = min(n_steps, first + CHUNK)
            steps = down[CHUNK - (last - first) :]
            copy_row(state, ADAPTATION, start, stop, saved_adaptation[chunk], True)
            copy_row(state, SILENT, start, stop, saved_silent[chunk], True)
            for strip in range(n_strips):
                left = start + strip * WIDTH
                right = min(stop, left + WIDTH)
                o = np.uintp(strip) * STATE
                r = np.uintp(strip) * REPLAYED if feedback else none
                replay(first, last, stride, left, right, margin, arp, state, o, replayed, r)
                evaluate_slopes(surrogate, first, last, stride, left, right, margin, replayed, r)
                if feedback:
                    continue
                if stop - start < _NARROW:
                    reverse_narrow(
                        steps, first, stride, left, right, given, margin, attached, state,
                        replayed, to_current,
                    )  # fmt: skip
                else:
                    reverse(
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
                    left = start + strip * WIDTH
                    reverse(
                        steps[i : i + 1], first, stride, left, min(stop, left + WIDTH),
                        grad_s, shift, margin, attached, state, np.uintp(strip) * STATE, replayed,
                        np.uintp(strip) * REPLAYED, to_current,
                    )  # fmt: skip
            flush_strips(start, stop, state, grad_beta, grad_p, grad_b)


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
