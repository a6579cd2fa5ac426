"""ALIF in one pass over time with the state in cache, forward and backward (Numba).

Exactly the equations and the gradient of `standard.py`. Per neuron and step it keeps the margin
V − θ and, for recurrence, the spike as a byte; every CHUNK steps also (a, silent steps). Backward
takes a chunk at a time: it replays adaptation and refractoriness from there, then runs the chunk in
reverse.
"""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.alif.tiles_cpu import (
    CHUNK,
    add_feedback,
    add_recurrent,
    columns,
    flush_sums,
    list_spikes,
    recurrent_weight_gradient,
    tile_width,
    weight_array,
)
from blockspike.neurons.alif.trace import ALIFTrace, check_finite, threshold_of
from blockspike.neurons.events_cpu import Fired
from blockspike.neurons.kernels import borrowed, kernel, kernel_with_fma, run
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.surrogate_cpu import surrogate_code, surrogate_derivative

_NARROW = 8  # columns below which a loop over time beats one over columns


@kernel
def _step(drive, beta, p, b, arp, state, adaptation, silent):
    """One step of SPEC section 1: spike, margin, and the state after it."""
    real = type(drive)
    open_ = real(1.0) if silent == 0 else real(0.0)
    membrane = beta * state + drive * open_
    threshold = real(1.0) + b * adaptation
    fires = membrane > threshold
    s = real(1.0) if fires else real(0.0)
    after = arp if fires else np.int32(max(silent - 1, 0))
    return s, membrane - threshold, membrane * (real(1.0) - s), p * adaptation + s, after


@kernel
def _advance(drive, beta, p, b, arp, state, adaptation, silent, spikes, fired, margin):
    """One step for one tile; every array is [tile]."""
    for i in range(drive.size):
        spikes[i], margin[i], state[i], adaptation[i], silent[i] = _step(
            drive[i], beta[i], p[i], b[i], arp, state[i], adaptation[i], silent[i]
        )
        fired[i] = np.uint8(spikes[i])


@kernel
def _advance_columns(
    first, last, start, current, beta, p, b, arp, state, adaptation, silent, spikes, fired, margin
):
    """The same for steps first … last − 1 of a narrow tile, a column at a time."""
    keep_margin = margin.size > 0
    for i in range(state.size):
        v, a, left = state[i], adaptation[i], silent[i]
        for t in range(first, last):
            s, u, v, a, left = _step(current[t, start + i], beta[i], p[i], b[i], arp, v, a, left)
            spikes[t, start + i] = s
            fired[t, start + i] = np.uint8(s)
            if keep_margin:
                margin[t, start + i] = u
        state[i], adaptation[i], silent[i] = v, a, left


@kernel
def _replay_step(margin, p, arp, adaptation, silent):
    """Adaptation and steps of silence after a step; a spike is a margin above 0."""
    real = type(margin)
    fires = margin > real(0.0)
    s = real(1.0) if fires else real(0.0)
    return p * adaptation + s, arp if fires else np.int32(max(silent - 1, 0))


@kernel
def _replay(k, margin, p, arp, adaptation, silent, margins, adaptations, opens):
    """Repeat adaptation and refractoriness of step k of a chunk into the arrays [CHUNK, tile]."""
    real = margin.dtype.type
    for i in range(margin.size):
        margins[k, i] = margin[i]
        adaptations[k, i] = adaptation[i]
        opens[k, i] = real(1.0) if silent[i] == 0 else real(0.0)
        adaptation[i], silent[i] = _replay_step(margin[i], p[i], arp, adaptation[i], silent[i])


@kernel
def _replay_columns(
    first, last, start, margin, p, arp, adaptation, silent, margins, adaptations, opens
):
    """The same for a whole chunk of a narrow tile, a column at a time."""
    real = margin.dtype.type
    for i in range(adaptation.size):
        a, left = adaptation[i], silent[i]
        for t in range(first, last):
            u = margin[t, start + i]
            margins[t - first, i] = u
            adaptations[t - first, i] = a
            opens[t - first, i] = real(1.0) if left == 0 else real(0.0)
            a, left = _replay_step(u, p[i], arp, a, left)


@kernel_with_fma
def _reverse_step(
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


@kernel_with_fma
def _reverse(
    k, grad_spikes, margins, slopes, adaptations, opens, beta, p, b, attached, grad_membrane,
    grad_adaptation, grad_current, sum_beta, sum_p, sum_b,
):  # fmt: skip
    """Backpropagation through step k of a chunk, for one tile."""
    for i in range(grad_spikes.size):
        grad_membrane[i], grad_adaptation[i], grad_current[i], to_beta, to_p, to_b = _reverse_step(
            grad_spikes[i], margins[k, i], slopes[k, i], adaptations[k, i], opens[k, i],
            beta[i], p[i], b[i], attached, grad_membrane[i], grad_adaptation[i],
        )  # fmt: skip
        sum_beta[i] += to_beta
        sum_p[i] += to_p
        sum_b[i] += to_b


@kernel_with_fma
def _reverse_columns(
    first, last, start, grad_spikes, margins, slopes, adaptations, opens, beta, p, b, attached,
    grad_membrane, grad_adaptation, grad_current, sum_beta, sum_p, sum_b,
):  # fmt: skip
    """The same for a whole chunk of a narrow tile, a column at a time."""
    for i in range(grad_membrane.size):
        gv, ga = grad_membrane[i], grad_adaptation[i]
        for t in range(last - 1, first - 1, -1):
            k = t - first
            gv, ga, gi, to_beta, to_p, to_b = _reverse_step(
                grad_spikes[t, start + i], margins[k, i], slopes[k, i], adaptations[k, i],
                opens[k, i], beta[i], p[i], b[i], attached, gv, ga,
            )  # fmt: skip
            grad_current[t, start + i] = gi
            sum_beta[i] += to_beta
            sum_p[i] += to_p
            sum_b[i] += to_b
        grad_membrane[i], grad_adaptation[i] = gv, ga


@kernel
def _forward(
    first_tile, last_tile, current, beta, p, b, arp, weight_t, recurrent, tile, keep_margin,
    spikes, fired, margin, saved_adaptation, saved_silent, last_state,
):  # fmt: skip
    n_steps, n_columns = current.shape
    current, spikes, fired = borrowed(current), borrowed(spikes), borrowed(fired)
    margin, weight_t = borrowed(margin), borrowed(weight_t)
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_ = beta[start:stop], p[start:stop], b[start:stop]
        state = np.zeros(width, current.dtype)
        adaptation = np.zeros_like(state)
        silent = np.zeros(width, np.int32)
        drive = np.empty_like(state)
        scratch = np.empty_like(state)
        n_slots = arp + 1 if recurrent else 1
        n_neurons = weight_t.shape[1] if recurrent else width
        units = np.empty((n_slots, width if recurrent else 1), np.int32)  # that fired
        n_units = np.zeros((n_slots, width // n_neurons), np.int64)
        for first in range(0, n_steps, CHUNK):
            last = min(n_steps, first + CHUNK)
            if keep_margin:
                saved_adaptation[first // CHUNK, start:stop] = adaptation
                saved_silent[first // CHUNK, start:stop] = silent
            if width < _NARROW and not recurrent:
                _advance_columns(
                    first, last, start, current, beta_, p_, b_, arp, state, adaptation, silent,
                    spikes, fired, margin,
                )  # fmt: skip
                continue
            for t in range(first, last):
                row = current[t, start:stop]
                s, f = spikes[t, start:stop], fired[t, start:stop]
                u = margin[t, start:stop] if keep_margin else scratch
                if recurrent:
                    slot = t % n_slots  # holds the spikes of step t − arp − 1
                    add_recurrent(row, units[slot], n_units[slot], weight_t, drive)
                    _advance(drive, beta_, p_, b_, arp, state, adaptation, silent, s, f, u)
                    list_spikes(f, n_neurons, units[slot], n_units[slot])
                else:
                    _advance(row, beta_, p_, b_, arp, state, adaptation, silent, s, f, u)
        last_state[start:stop] = state


@kernel
def _backward(
    first_tile, last_tile, grad_spikes, margin, saved_adaptation, saved_silent, beta, p, b, arp,
    weight, feedback, attached, surrogate, tile, grad_current, grad_beta, grad_p, grad_b,
):  # fmt: skip
    n_steps, n_columns = margin.shape
    grad_spikes, grad_current = borrowed(grad_spikes), borrowed(grad_current)
    margin, weight = borrowed(margin), borrowed(weight)
    n_chunks = (n_steps + CHUNK - 1) // CHUNK
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_ = beta[start:stop], p[start:stop], b[start:stop]
        grad_membrane = np.zeros(width, margin.dtype)
        grad_adaptation = np.zeros_like(grad_membrane)
        grad_s = np.empty_like(grad_membrane)
        silent = np.empty(width, np.int32)
        adaptation = np.empty_like(grad_membrane)
        margins = np.empty((CHUNK, width), margin.dtype)
        adaptations = np.empty_like(margins)
        opens = np.empty_like(margins)
        slopes = np.empty_like(margins)
        sum_beta = np.zeros_like(grad_membrane)
        sum_p = np.zeros_like(grad_membrane)
        sum_b = np.zeros_like(grad_membrane)
        for chunk in range(n_chunks - 1, -1, -1):
            first = chunk * CHUNK
            last = min(n_steps, first + CHUNK)
            adaptation[:] = saved_adaptation[chunk, start:stop]
            silent[:] = saved_silent[chunk, start:stop]
            narrow = width < _NARROW and not feedback
            if narrow:
                _replay_columns(
                    first, last, start, margin, p_, arp, adaptation, silent, margins, adaptations,
                    opens,
                )  # fmt: skip
            else:
                for t in range(first, last):
                    u = margin[t, start:stop]
                    _replay(t - first, u, p_, arp, adaptation, silent, margins, adaptations, opens)
            used = (last - first) * width
            surrogate_derivative(surrogate, margins.ravel()[:used], slopes.ravel()[:used])
            if narrow:
                _reverse_columns(
                    first, last, start, grad_spikes, margins, slopes, adaptations, opens, beta_,
                    p_, b_, attached, grad_membrane, grad_adaptation, grad_current, sum_beta,
                    sum_p, sum_b,
                )  # fmt: skip
            for t in range(last - 1, first - 1 if not narrow else last - 1, -1):
                g = grad_spikes[t, start:stop]
                if feedback and t + arp + 1 < n_steps:
                    add_feedback(g, grad_current[t + arp + 1, start:stop], weight, grad_s)
                    g = grad_s
                _reverse(
                    t - first, g, margins, slopes, adaptations, opens, beta_, p_, b_, attached,
                    grad_membrane, grad_adaptation, grad_current[t, start:stop],
                    sum_beta, sum_p, sum_b,
                )  # fmt: skip
            flush_sums(start, sum_beta, sum_p, sum_b, grad_beta, grad_p, grad_b)


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
    saved_silent = torch.empty_like(saved_adaptation, dtype=torch.int32)
    last_state = flat.new_empty(n_columns)
    tile = tile_width(n_columns, weight)
    run(
        _forward, -(-n_columns // tile), flat.numpy(),
        *(columns(x, batch_size) for x in (beta, p, b)), np.int32(min(arp, n_steps)),
        weight_t, weight is not None, tile, keep_margin, spikes.numpy(), fired.numpy(),
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
        tile = tile_width(n_columns, weight)
        run(
            _backward, -(-n_columns // tile), grad_spikes.numpy(), margin.numpy(),
            saved_adaptation.numpy(), saved_silent.numpy(),
            *(columns(x, batch_size) for x in (beta, p, b)), np.int32(min(ctx.arp, n_steps)),
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
    needs_grad = any(x is not None and x.requires_grad for x in inputs)
    margin = None
    if torch.is_grad_enabled() and needs_grad:
        firing: list[Fired] = []
        spikes, margin = _Fused.apply(  # pyright: ignore
            *inputs, arp, surrogate, detach_spikes, firing
        )
        fired = firing[0]
    else:
        spikes, fired, *_ = _run(current, beta, p_, b_, arp, recurrent_weight, keep_margin=False)

    def membrane_and_threshold() -> tuple[Tensor, Tensor]:
        u = margin
        if u is None:
            u = _run(current, beta, p_, b_, arp, recurrent_weight, keep_margin=True)[2]
        threshold = threshold_of(spikes.detach(), p, b)
        return u.view(current.shape) + threshold, threshold

    return ALIFTrace(spikes, membrane_and_threshold, fired)
