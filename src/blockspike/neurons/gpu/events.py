"""Event-driven products on a GPU: the two functions of `cpu/events.py`, on tensors.

Unproven: tested in Triton's interpreter and compiled, never run on a GPU.

Both sum listed rows of a table in a fixed order. Forward sums the weights of the units that spiked;
the weight gradient sums the current's gradient over the rows in which a unit spiked. A program of
`sum_rows` has one row of the result and TILE of its columns:

    index     | 3 7 0 9 … |  GROUP events at once      table rows 3, 7, 0, 9 …
    total     [ TILE columns ] in registers      +=    summed over the group
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from blockspike.neurons.gpu.graphs import launching_on

TILE = 64  # columns per program
GROUP = 16  # events loaded at once
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(do_not_specialize=["n_table", "n_columns", "start_stride"])
def sum_rows(
    row_ptr, index, table, start, out, n_table, n_columns, start_stride,
    tile: tl.constexpr, group: tl.constexpr,
):  # fmt: skip
    """Sum out[r] = start[r] + Σ table[index[e]] over events e of row r; skip indices ≥ n_table.

    The grid is rows × tiles of columns. `start_stride` is 0 if all rows share one start.
    """
    row = tl.program_id(0).to(tl.int64)  # row · stride may exceed 32 bits
    column = tl.program_id(1) * tile + tl.arange(0, tile)
    inside = column < n_columns
    stride = n_columns.to(tl.int64)
    total = tl.load(start + row * start_stride + column, mask=inside, other=0.0)
    last = tl.load(row_ptr + row + 1)
    # One event at a time would wait for its index, then for its row; a group waits once for all.
    for first in range(tl.load(row_ptr + row), last, group):
        event = first + tl.arange(0, group)
        i = tl.load(index + event, mask=event < last, other=n_table)[:, None]
        present = (i < n_table) & inside[None, :]
        total += tl.sum(tl.load(table + i * stride + column[None, :], mask=present, other=0.0), 0)
    tl.store(out + row * stride + column, total, mask=inside)


def _sum_rows(row_ptr: Tensor, index: Tensor, table: Tensor, start: Tensor, out: Tensor) -> None:
    """Launch the kernel for all rows of `out` [R, N]; `start` is [N] or [R, N] and may be `out`."""
    n_rows, n_columns = out.shape
    kernel: Any = sum_rows
    kernel[(n_rows, triton.cdiv(n_columns, TILE))](
        row_ptr, index, table, start, out, len(table), n_columns,
        n_columns if start.ndim == 2 else 0, tile=TILE, group=GROUP,
        **OPTIONS,
    )  # fmt: skip


def event_currents(
    row_ptr: Tensor, unit: Tensor, weight_t: Tensor, bias: Tensor, lag_rows: int, out: Tensor
) -> None:
    """Sum currents by events: out[r] = bias + Σ_k Σ weight_t[k, unit], units of row r − k·lag_rows.

    Args:
        row_ptr, unit: the events, R rows.
        weight_t: [n_taps, K, N] contiguous; tap k acts k·lag_rows rows later.
        bias: [N] contiguous.
        lag_rows: rows between taps, which is the batch size since rows are time-major.
        out: [R, N] contiguous, overwritten.
    """
    with launching_on(out.device):
        for tap, rows in enumerate(weight_t):
            later = out[tap * lag_rows :]
            if len(later):
                _sum_rows(row_ptr, unit, rows, bias if tap == 0 else later, later)


def event_weight_gradient(
    row_ptr: Tensor, unit: Tensor, grad: Tensor, n_taps: int, lag_rows: int, n_units: int
) -> Tensor:
    """Sum grad[r] over the events of row r − k·lag_rows for each tap k and unit: [n_taps, K, N].

    grad is [R, N], contiguous. Events are first sorted by unit (a stable sort), so that each sum
    has one program and a fixed order.
    """
    out = grad.new_zeros(n_taps, n_units, grad.shape[1])
    zero = grad.new_zeros(grad.shape[1])
    row = torch.repeat_interleave(row_ptr.diff(), output_size=len(unit))  # row of each event
    # Atomic additions event by event would have another order in each run.
    by_unit, order = torch.sort(unit, stable=True)
    row = row[order]
    units = torch.arange(n_units + 1, device=unit.device, dtype=unit.dtype)
    unit_ptr = torch.searchsorted(by_unit, units)
    with launching_on(grad.device):
        for tap, sums in enumerate(out):
            later = grad[tap * lag_rows :]  # row r: where events of row r arrive
            if len(later):
                _sum_rows(unit_ptr, row, later, zero, sums)
    return out
