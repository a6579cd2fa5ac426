"""Triton kernels of `gpu/fused.py`: a tile of columns through a range of steps, and back.

Unproven: tested in Triton's interpreter and compiled, never run on a GPU.

A program is one warp, and each of its threads has one column: each value below is a [tile], one
number per thread. A program works on a chunk of steps at a time, unrolled:

    registers    parameters, constants, states | inputs of this chunk | inputs of the next chunk
    memory       read: current (and recurrent input)    written: spikes, bytes, states per chunk

The next chunk's rows are being loaded while this one is computed, since one warp alone would wait
for each of them. Rows are tuples in unrolled loops (`tl.static_range`), since Triton cannot index a
tensor in registers.

Chunks start at multiples of their length; a launch may start or end within one. Steps of a chunk
outside the launch's range are computed and dropped: the mask `live` of their columns is empty.
Columns are numbered in 32 bits, but rows start at 64-bit offsets.

`step`, `reverse_step` and `slope` are texts of `derivative.py`, through `in_triton`.
"""
# Triton's language only looks like Python to the type checker.
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false

from functools import cache
from typing import Any

import triton
import triton.language as tl

from blockspike.neurons.derivative import compiled

_SCALARS = ["first", "last", "n_columns", "n_neurons"]  # else 1 and multiples of 16 compile anew


@triton.jit
def _where(condition, x, y):
    return tl.where(condition, x, y)


@triton.jit
def _maximum(x, least):
    return tl.maximum(x, least)


@triton.jit
def _exp(x):
    return tl.exp(x)


@triton.jit
def _abs(x):
    return tl.abs(x)


@cache
def in_triton(text: str) -> Any:
    """The function of a text, for these kernels."""
    # Triton looks names up in the function's globals; its interpreter needs `tl` there.
    names: Any = {"where": _where, "maximum": _maximum, "exp": _exp, "abs": _abs, "tl": tl}
    return triton.jit(compiled(text, **names))


@triton.jit
def _load_each(x, column, inside, stride, n: tl.constexpr):
    """Load n rows of x at these columns as a tuple of [tile]."""
    rows = ()
    for k in tl.static_range(n):
        rows += (tl.load(x + k * stride + column, mask=inside, other=0.0),)
    return rows


@triton.jit
def _store_each(x, column, inside, stride, rows, n: tl.constexpr):
    for k in tl.static_range(n):
        tl.store(x + k * stride + column, rows[k], mask=inside)


@triton.jit
def _choose(live, new, old, n: tl.constexpr):
    """Select each of n values: the new one where live, else the old one."""
    chosen = ()
    for k in tl.static_range(n):
        chosen += (tl.where(live, new[k], old[k]).to(old[k].dtype),)
    return chosen


@triton.jit
def _own_columns(
    parameters, constants, n_columns, n_neurons, n_parameters: tl.constexpr,
    n_constants: tl.constexpr, tile: tl.constexpr,
):  # fmt: skip
    """Columns of a program, the mask of those that exist, their parameters, and the constants."""
    column = tl.program_id(0) * tile + tl.arange(0, tile)
    inside = column < n_columns
    stride = n_neurons.to(tl.int64)
    own = _load_each(parameters, column % n_neurons, inside, stride, n_parameters)
    return column, inside, own, _numbers(constants, n_constants)


@triton.jit
def _numbers(constants, n: tl.constexpr):
    """Load n numbers as a tuple."""
    numbers = ()
    for k in tl.static_range(n):
        numbers += (tl.load(constants + k),)
    return numbers


@triton.jit
def _load_rows(x, origin, start, first, last, column, n_columns, chunk: tl.constexpr):
    """Load rows start … start + chunk − 1 as a tuple of [tile]; 0 outside first … last − 1.

    x begins at row `origin`. Rows keep their dtype, since a conversion would wait for the load.
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
    """Load rows of x [T, B·N] and of y, whose row 0 is step `first`; without y, return x twice."""
    rows = _load_rows(x, 0, start, first, last, column, n_columns, chunk)
    more = rows
    if has_y:
        more = _load_rows(y, first, start, first, last, column, n_columns, chunk)
    return rows, more


@triton.jit(do_not_specialize=_SCALARS)
def forward(
    current, recurrent, parameters, constants, state, spikes, spike_bytes, membranes, thresholds,
    drives, saved, first, last, n_columns, n_neurons, step: tl.constexpr,
    n_parameters: tl.constexpr, n_constants: tl.constexpr, n_states: tl.constexpr,
    has_recurrent: tl.constexpr, keep_membrane: tl.constexpr, keep_drives: tl.constexpr,
    keep_states: tl.constexpr, tile: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Run steps first … last − 1 and update `state` [n_states, B·N]."""
    column, inside, own, numbers = _own_columns(
        parameters, constants, n_columns, n_neurons, n_parameters, n_constants, tile
    )
    stride = n_columns.to(tl.int64)
    now = _load_each(state, column, inside, stride, n_states)
    start = first // chunk * chunk
    rows, more = _load_two(
        current, recurrent, start, first, last, column, n_columns, has_recurrent, chunk
    )
    for c in range(first // chunk, tl.cdiv(last, chunk)):
        start = c * chunk
        # Loads of the next chunk come first, so that they arrive while this one is computed.
        next_rows, next_more = _load_two(
            current, recurrent, start + chunk, first, last, column, n_columns, has_recurrent, chunk
        )
        if keep_states:
            # A range that begins inside a chunk finds its first state saved by the range before.
            live = column < tl.where(start >= first, n_columns, 0)
            _store_each(saved + c * n_states * stride, column, live, stride, now, n_states)
        for k in tl.static_range(chunk):
            # In the precision of the states; the current may be bfloat16.
            drive = rows[k].to(now[0].dtype)
            if has_recurrent:
                drive += more[k].to(now[0].dtype)
            spike, membrane, threshold, _, after = step(drive, own, numbers, now)
            t = start + k
            live = column < tl.where((t >= first) & (t < last), n_columns, 0)
            at = t * stride + column
            tl.store(spikes + at, spike.to(spikes.dtype.element_ty), mask=live)
            tl.store(spike_bytes + at, spike.to(tl.uint8), mask=live)
            if keep_membrane:
                tl.store(membranes + at, membrane, mask=live)
                tl.store(thresholds + at, threshold, mask=live)
            if keep_drives:
                tl.store(drives + at, drive, mask=live)
            now = _choose(live, after, now, n_states)
        rows, more = next_rows, next_more
    _store_each(state, column, inside, stride, now, n_states)


@triton.jit
def _load_saved(
    drives, saved, c, last, column, n_columns, n_states: tl.constexpr, chunk: tl.constexpr
):
    """Load the drives of chunk c before step `last` and its first state; zeros if c is −1."""
    rows = _load_rows(drives, 0, c * chunk, 0, last, column, n_columns, chunk)
    live = column < tl.where(c >= 0, n_columns, 0)
    stride = n_columns.to(tl.int64)
    return rows, _load_each(saved + c * n_states * stride, column, live, stride, n_states)


@triton.jit(do_not_specialize=_SCALARS)
def backward(
    grad_spikes, feedback, grad_membranes, grad_thresholds, drives, saved, parameters, constants,
    slope_constants, carried, grad_current, sums, first, last, n_columns, n_neurons,
    step: tl.constexpr, reverse_step: tl.constexpr, slope: tl.constexpr,
    n_parameters: tl.constexpr, n_constants: tl.constexpr, n_states: tl.constexpr,
    n_carried: tl.constexpr, n_slope_constants: tl.constexpr, has_feedback: tl.constexpr,
    has_level: tl.constexpr, reset_has_grad: tl.constexpr, tile: tl.constexpr, chunk: tl.constexpr,
):  # fmt: skip
    """Run steps last − 1 … first and update `carried` [n_carried, B·N], the states' gradient.

    The parameters' gradient of each column is added to `sums`, float64 [n_parameters, B·N].

    With `has_level`, there are gradients of membrane and threshold too.
    """
    column, inside, own, numbers = _own_columns(
        parameters, constants, n_columns, n_neurons, n_parameters, n_constants, tile
    )
    stride = n_columns.to(tl.int64)
    grad_state = _load_each(carried, column, inside, stride, n_carried)
    totals = _load_each(sums, column, inside, stride, n_parameters)
    of_slope = _numbers(slope_constants, n_slope_constants)
    final = (last - 1) // chunk
    grads, more = _load_two(
        grad_spikes, feedback, final * chunk, first, last, column, n_columns, has_feedback, chunk
    )
    rows, state = _load_saved(drives, saved, final, last, column, n_columns, n_states, chunk)
    for i in range(final - first // chunk + 1):
        c = final - i
        start = c * chunk
        next_grads, next_more = _load_two(
            grad_spikes, feedback, start - chunk, first, last, column, n_columns, has_feedback,
            chunk,
        )  # fmt: skip
        next_rows, next_state = _load_saved(
            drives, saved, c - 1, last, column, n_columns, n_states, chunk
        )
        # Replay the chunk from its first state; states and margins of all its steps fill most of
        # the registers, which is what limits the chunk's length.
        states = ()
        margins = ()
        for k in tl.static_range(chunk):  # inline: Triton 3.3 cannot return tuples of tuples
            states += (state,)
            _, _, _, margin, state = step(rows[k].to(state[0].dtype), own, numbers, state)
            margins += (margin,)
        # Sums of a chunk are in the current's precision, those of all chunks in float64.
        of_chunk = _zeros_like(own, n_parameters)
        for k in tl.static_range(chunk - 1, -1, -1):
            real = margins[k].dtype
            t = start + k
            live = column < tl.where((t >= first) & (t < last), n_columns, 0)
            at = t * stride + column
            drive = rows[k].to(real)
            grad_s = grads[k].to(real)
            if has_feedback:
                grad_s += more[k].to(real)
            slope_k = slope(margins[k], of_slope)
            if has_level:
                to_drive, to_own, before = reverse_step(
                    drive, own, numbers, states[k], margins[k], slope_k, grad_s, reset_has_grad,
                    grad_state, tl.load(grad_membranes + at, mask=live, other=0.0),
                    tl.load(grad_thresholds + at, mask=live, other=0.0),
                )  # fmt: skip
            else:
                to_drive, to_own, before = reverse_step(
                    drive, own, numbers, states[k], margins[k], slope_k, grad_s, reset_has_grad,
                    grad_state,
                )  # fmt: skip
            tl.store(grad_current + at, to_drive.to(grad_current.dtype.element_ty), mask=live)
            grad_state = _choose(live, before, grad_state, n_carried)
            of_chunk = _add_live(of_chunk, to_own, live, n_parameters)
        totals = _add_live(totals, of_chunk, inside, n_parameters)
        grads, more, rows, state = next_grads, next_more, next_rows, next_state
    _store_each(carried, column, inside, stride, grad_state, n_carried)
    _store_each(sums, column, inside, stride, totals, n_parameters)


@triton.jit
def _zeros_like(values, n: tl.constexpr):
    zeros = ()
    for k in tl.static_range(n):
        zeros += (tl.zeros_like(values[k]),)
    return zeros


@triton.jit
def _add_live(totals, values, live, n: tl.constexpr):
    """Add each of n values to its total where live."""
    sums = ()
    for k in tl.static_range(n):
        sums += (totals[k] + tl.where(live, values[k], 0.0),)
    return sums
