"""Triton kernels of `fused_gpu.py`: a tile of columns through a range of steps, and back.

A program works on a chunk of steps at a time, unrolled and in registers, while the rows of the next
chunk are on their way from memory. Chunks start at multiples of their length; steps of a chunk that
are not asked for are computed and dropped: then the mask `live` of the columns is empty.
"""
# What a kernel is written in only looks like Python.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

import math

import triton
import triton.language as tl

FAST_SIGMOID, BOXCAR, MULTI_GAUSSIAN = (tl.constexpr(code) for code in range(3))
_CENTRE = tl.constexpr(0.5 * 1.15 / (0.5 * math.sqrt(2 * math.pi)))
_SIDES = tl.constexpr(0.5 * 0.15 / (3 * math.sqrt(2 * math.pi)))
_SCALARS = ["arp", "first", "last", "n_columns", "n_neurons"]  # one kernel for all values


@triton.jit
def _own_columns(beta, p, b, n_columns, n_neurons, tile: tl.constexpr):
    """The columns of a program, which of them exist, and their parameters."""
    column = tl.program_id(0) * tile + tl.arange(0, tile)
    inside = column < n_columns
    neuron = column % n_neurons
    beta_ = tl.load(beta + neuron, mask=inside, other=0.0)
    p_ = tl.load(p + neuron, mask=inside, other=0.0)
    b_ = tl.load(b + neuron, mask=inside, other=0.0)
    return column, inside, beta_, p_, b_


@triton.jit
def _load_rows(x, origin, start, first, last, column, n_columns, chunk: tl.constexpr):
    """Rows start … start + chunk − 1 as a tuple of [tile]; 0 outside of first … last − 1.

    Row `origin` is where x begins. The type is left as it is: converting would wait for the load.
    """
    stride = n_columns.to(tl.int64)
    rows = ()
    for k in tl.static_range(chunk):
        t = start + k
        live = column < tl.where((t >= first) & (t < last), n_columns, 0)
        rows += (tl.load(x + (t - origin) * stride + column, mask=live, other=0.0),)
    return rows


@triton.jit
def _load_two(
    x, y, start, first, last, column, n_columns, has_y: tl.constexpr, chunk: tl.constexpr
):
    """The rows of x [T, B·N] and of y, whose row 0 is step `first`; without y those of x twice."""
    rows = _load_rows(x, 0, start, first, last, column, n_columns, chunk)
    more = rows
    if has_y:
        more = _load_rows(y, first, start, first, last, column, n_columns, chunk)
    return rows, more


@triton.jit
def _step(drive, membrane, adaptation, silent, beta, p, b, arp):
    """One step of SPEC section 1: spike, margin, and the state after it."""
    open_ = (silent == 0).to(membrane.dtype)
    membrane = beta * membrane + drive * open_
    threshold = 1.0 + b * adaptation
    fires = membrane > threshold
    s = fires.to(membrane.dtype)
    after = tl.where(fires, arp, tl.maximum(silent - 1, 0))
    return s, membrane - threshold, membrane * (1.0 - s), p * adaptation + s, after


@triton.jit(do_not_specialize=_SCALARS)
def forward(
    current, recurrent, beta, p, b, state, silent, spikes, margin, saved_adaptation, saved_silent,
    arp, first, last, n_columns, n_neurons, has_recurrent: tl.constexpr,
    keep_margin: tl.constexpr, tile: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Steps first … last − 1. `state` [2, B·N] (membrane, adaptation) and `silent` are updated."""
    column, inside, beta_, p_, b_ = _own_columns(beta, p, b, n_columns, n_neurons, tile)
    stride = n_columns.to(tl.int64)
    v = tl.load(state + column, mask=inside, other=0.0)
    a = tl.load(state + stride + column, mask=inside, other=0.0)
    left = tl.load(silent + column, mask=inside, other=0)
    start = first // chunk * chunk
    rows, more = _load_two(
        current, recurrent, start, first, last, column, n_columns, has_recurrent, chunk
    )
    for c in range(first // chunk, tl.cdiv(last, chunk)):
        start = c * chunk
        next_rows, next_more = _load_two(
            current, recurrent, start + chunk, first, last, column, n_columns, has_recurrent, chunk
        )
        if keep_margin:
            live = column < tl.where(start >= first, n_columns, 0)
            tl.store(saved_adaptation + c * stride + column, a, mask=live)
            tl.store(saved_silent + c * stride + column, left, mask=live)
        for k in tl.static_range(chunk):
            drive = rows[k].to(v.dtype)
            if has_recurrent:
                drive += more[k].to(v.dtype)
            s, u, v_, a_, left_ = _step(drive, v, a, left, beta_, p_, b_, arp)
            t = start + k
            live = column < tl.where((t >= first) & (t < last), n_columns, 0)
            at = t * stride + column
            tl.store(spikes + at, s.to(spikes.dtype.element_ty), mask=live)
            if keep_margin:
                tl.store(margin + at, u, mask=live)
            v = tl.where(live, v_, v)
            a = tl.where(live, a_, a)
            left = tl.where(live, left_, left)
        rows, more = next_rows, next_more
    tl.store(state + column, v, mask=inside)
    tl.store(state + stride + column, a, mask=inside)
    tl.store(silent + column, left, mask=inside)


@triton.jit
def _load_saved(margin, adaptation, silent, c, last, column, n_columns, chunk: tl.constexpr):
    """Margins of chunk c before step `last`, and the state at its start; zeros if c is −1."""
    margins = _load_rows(margin, 0, c * chunk, 0, last, column, n_columns, chunk)
    live = column < tl.where(c >= 0, n_columns, 0)
    at = c * n_columns.to(tl.int64) + column
    a = tl.load(adaptation + at, mask=live, other=0.0)
    left = tl.load(silent + at, mask=live, other=0)
    return margins, a, left


@triton.jit
def _replay(margins, adaptation, silent, p, arp, chunk: tl.constexpr):
    """Adaptation before each step of a chunk, and whether it lets current in; tuples of [tile]."""
    adaptations = ()
    opens = ()
    for k in tl.static_range(chunk):
        adaptations += (adaptation,)
        opens += ((silent == 0).to(adaptation.dtype),)
        fires = margins[k] > 0.0
        adaptation = p * adaptation + fires.to(adaptation.dtype)
        silent = tl.where(fires, arp, tl.maximum(silent - 1, 0))
    return adaptations, opens


@triton.jit
def _slope(u, surrogate: tl.constexpr):
    """The surrogate derivative at the margin u, by its code; formulas as in `surrogate.py`."""
    if surrogate == FAST_SIGMOID:
        root = 10.0 * tl.abs(u) + 1.0
        slope = 1.0 / (root * root)
    elif surrogate == BOXCAR:
        slope = ((u > -0.5) & (u <= 0.5)).to(u.dtype)
    else:
        above = tl.exp((u - 0.5) * (u - 0.5) * (-1 / 18))
        below = tl.exp((u + 0.5) * (u + 0.5) * (-1 / 18))
        slope = _CENTRE * tl.exp(-2.0 * u * u) - _SIDES * (above + below)
    return slope


@triton.jit
def _reverse_step(
    grad_s, u, adaptation, open_, beta, p, b, grad_membrane, grad_adaptation,
    attached: tl.constexpr, surrogate: tl.constexpr,
):  # fmt: skip
    """Backpropagation through a step, given dLoss/dV[t+1] and dLoss/da[t].

    Returns:
        dLoss/dV[t], dLoss/da[t−1], dLoss/dI[t], and what the step adds to dLoss/d(beta, p, b).
    """
    membrane = u + (1.0 + b * adaptation)
    kept = 1.0 - (u > 0.0).to(u.dtype)
    grad_state = beta * grad_membrane  # dLoss/dV⁺[t]
    grad_s += grad_adaptation
    if attached:
        grad_s -= membrane * grad_state
    grad_margin = grad_s * _slope(u, surrogate)
    before = grad_state * kept + grad_margin
    return (
        before,
        p * grad_adaptation - b * grad_margin,
        before * open_,
        grad_membrane * membrane * kept,
        grad_adaptation * adaptation,
        -grad_margin * adaptation,
    )


@triton.jit
def _reverse_chunk(
    grads, more, margins, adaptations, opens, beta, p, b, gv, ga, grad_current, start, first, last,
    column, n_columns, has_feedback: tl.constexpr, attached: tl.constexpr,
    surrogate: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Backpropagation through a chunk that begins at `start`; writes dLoss/dI.

    Returns:
        dLoss/dV and dLoss/da before the chunk, and its part of dLoss/d(beta, p, b).
    """
    stride = n_columns.to(tl.int64)
    sum_beta = tl.zeros_like(gv)
    sum_p = tl.zeros_like(gv)
    sum_b = tl.zeros_like(gv)
    for k in tl.static_range(chunk - 1, -1, -1):
        grad_s = grads[k].to(gv.dtype)
        if has_feedback:
            grad_s += more[k].to(gv.dtype)
        gv_, ga_, gi, to_beta, to_p, to_b = _reverse_step(
            grad_s, margins[k], adaptations[k], opens[k], beta, p, b, gv, ga, attached, surrogate
        )
        t = start + k
        live = column < tl.where((t >= first) & (t < last), n_columns, 0)
        at = t * stride + column
        tl.store(grad_current + at, gi.to(grad_current.dtype.element_ty), mask=live)
        gv = tl.where(live, gv_, gv)
        ga = tl.where(live, ga_, ga)
        sum_beta += tl.where(live, to_beta, 0.0)
        sum_p += tl.where(live, to_p, 0.0)
        sum_b += tl.where(live, to_b, 0.0)
    return gv, ga, sum_beta, sum_p, sum_b


@triton.jit(do_not_specialize=_SCALARS)
def backward(
    grad_spikes, feedback, margin, saved_adaptation, saved_silent, beta, p, b, carried,
    grad_current, sums, arp, first, last, n_columns, n_neurons, has_feedback: tl.constexpr,
    attached: tl.constexpr, surrogate: tl.constexpr, tile: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Steps last − 1 … first. `carried` [2, B·N] (dLoss/dV, dLoss/da) is updated.

    `sums` float64 [3, B·N] is what dLoss/d(beta, p, b) of every column is added to.
    """
    column, inside, beta_, p_, b_ = _own_columns(beta, p, b, n_columns, n_neurons, tile)
    stride = n_columns.to(tl.int64)
    gv = tl.load(carried + column, mask=inside, other=0.0)
    ga = tl.load(carried + stride + column, mask=inside, other=0.0)
    total_beta = tl.load(sums + column, mask=inside, other=0.0)
    total_p = tl.load(sums + stride + column, mask=inside, other=0.0)
    total_b = tl.load(sums + 2 * stride + column, mask=inside, other=0.0)
    final = (last - 1) // chunk
    start = final * chunk
    grads, more = _load_two(
        grad_spikes, feedback, start, first, last, column, n_columns, has_feedback, chunk
    )
    margins, a, left = _load_saved(
        margin, saved_adaptation, saved_silent, final, last, column, n_columns, chunk
    )
    for i in range(final - first // chunk + 1):
        c = final - i
        start = c * chunk
        next_grads, next_more = _load_two(
            grad_spikes, feedback, start - chunk, first, last, column, n_columns, has_feedback,
            chunk,
        )  # fmt: skip
        next_margins, next_a, next_left = _load_saved(
            margin, saved_adaptation, saved_silent, c - 1, last, column, n_columns, chunk
        )
        adaptations, opens = _replay(margins, a, left, p_, arp, chunk)
        gv, ga, sum_beta, sum_p, sum_b = _reverse_chunk(
            grads, more, margins, adaptations, opens, beta_, p_, b_, gv, ga, grad_current, start,
            first, last, column, n_columns, has_feedback, attached, surrogate, chunk,
        )  # fmt: skip
        total_beta += sum_beta
        total_p += sum_p
        total_b += sum_b
        margins, a, left = next_margins, next_a, next_left
        grads, more = next_grads, next_more
    tl.store(carried + column, gv, mask=inside)
    tl.store(carried + stride + column, ga, mask=inside)
    tl.store(sums + column, total_beta, mask=inside)
    tl.store(sums + stride + column, total_p, mask=inside)
    tl.store(sums + 2 * stride + column, total_b, mask=inside)
