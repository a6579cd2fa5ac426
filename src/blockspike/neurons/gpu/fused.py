"""Simulation of any model on a GPU in one pass over time, and its gradient in one pass back.

Unproven: tested in Triton's interpreter and compiled, never run on a GPU.

Contract, equations and gradient are those of `cpu/fused.py`. [T, B, N] is T rows of B·N columns,
and each program of `gpu/kernels.py` takes TILE of them, one per thread of a warp, through time:

                 program 0    program 1    …
               | 32 columns | 32 columns | …
    chunk 0    |  8 steps in registers   |      one launch covers all steps, or with recurrence
    chunk 1    |  …                      |      as many as the shortest delay

A program cannot see the spikes of another one's columns. So with recurrence a chain of launches
alternates with matrix products: spikes that arrive during the next launch, times the weights.

Saved for backward: the input of each step, the states every CHUNK steps and, with recurrence, the
spikes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import triton
from torch import Tensor

from blockspike.neurons.delays import RecurrentDelays, shifted
from blockspike.neurons.derivative import Derived, slope_text
from blockspike.neurons.gpu import kernels as kernels_gpu
from blockspike.neurons.gpu.graphs import Graphs, launching_on
from blockspike.neurons.gpu.kernels import in_triton

if TYPE_CHECKING:
    from blockspike.neurons.ops import Settings

CHUNK = 8  # steps between saved states; 16 need too many registers
# One warp per program: B·N columns are few, and have to occupy many processors.
TILE = 32
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}  # rounds like a PyTorch loop: no FMA
_MOST_COLUMNS = 2**31 - 2**10  # a tile past the end still fits in int32
_graphs = Graphs()


def sizes(derived: Derived, n_constants: int) -> dict[str, int]:
    """Numbers of parameters, constants and states, as the kernels take them."""
    return {
        "n_parameters": len(derived.model.parameters),
        "n_constants": n_constants,
        "n_states": len(derived.model.all_states),
    }


def n_saved(n_steps: int) -> int:
    """Number of chunks whose first state is kept for backward."""
    return -(-n_steps // CHUNK)


def _launch(kernel: Any, n_columns: int, *args: Tensor | int, **options: Any) -> None:
    """Launch a kernel on all tiles of columns."""
    kernel[(triton.cdiv(n_columns, TILE),)](*args, tile=TILE, chunk=CHUNK, **options, **OPTIONS)


def _simulate(
    current: Tensor, parameters: Tensor, constants: Tensor, values: Tensor,
    weight: Tensor | None = None, before: Tensor | None = None, delays: Tensor | None = None, *,
    derived: Derived, delay: int, membrane: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Simulate for current [T, B, N], parameters [P, N] and constants [C], 0 and 1 first.

    `values` [K, B·N] are the states at the start, and `before` [D, B, N] the spikes that came in
    the D steps before: all of `delay`, or with `delays` [N] of the neurons all of the longest that
    is possible, while `delay` is the shortest.

    Returns:
        Spikes [T, B·N], spikes as bytes, membrane, threshold, input of each step with what
        recurrence adds, `saved` [chunks, K, B·N] and the last state [K, B·N]; empty if not wanted.
    """
    n_steps, _, n_neurons = current.shape
    rows = current.reshape(n_steps, -1)
    n_columns, n_before = rows.shape[1], 0 if before is None else len(before)
    # Row t holds the spikes of n_before steps earlier, so a launch reads what arrives as one piece.
    history = rows.new_empty(n_before + n_steps, n_columns)
    spikes, spike_bytes = history[n_before:], torch.empty_like(rows, dtype=torch.uint8)
    if before is not None:
        history[:n_before] = before.flatten(1)
    keep_drives = keep and weight is not None
    membranes, thresholds = (parameters.new_empty(rows.shape if membrane else 0) for _ in range(2))
    drives = parameters.new_empty(rows.shape if keep_drives else (0, 0))
    saved = parameters.new_empty(n_saved(n_steps) if keep else 0, len(values), n_columns)
    state = values.clone()
    block = n_steps if weight is None else delay
    for first in range(0, n_steps, block):
        last = min(n_steps, first + block)
        recurrent = rows
        if weight is not None:
            arriving = history[first:last]
            if delays is not None:
                whole = history.view(-1, *current.shape[1:])
                arriving = shifted(whole, first + n_before - delays, current[first:last])
            recurrent = arriving.reshape(-1, n_neurons).to(weight.dtype) @ weight.T
        _launch(
            kernels_gpu.forward, n_columns, rows, recurrent, parameters, constants, state, spikes,
            spike_bytes, membranes, thresholds, drives, saved, first, last, n_columns, n_neurons,
            step=in_triton(derived.step), **sizes(derived, len(constants)),
            has_recurrent=weight is not None, keep_membrane=membrane, keep_drives=keep_drives,
            keep_states=keep,
        )  # fmt: skip
    return spikes, spike_bytes, membranes, thresholds, drives, saved, state


def _differentiate(
    grad_spikes: Tensor, grad_membrane: Tensor, grad_threshold: Tensor, grad_state: Tensor,
    drives: Tensor, saved: Tensor, parameters: Tensor, constants: Tensor, slope_constants: Tensor,
    weight: Tensor | None = None, delays: Tensor | None = None, *, derived: Derived, slope: str,
    reset_has_grad: float, delay: int, longest: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of current [T, B, N], states [K, B·N] and, in float64, parameters [P, B·N].

    If neurons have `delays` [N] of their own, `delay` is the shortest. The gradients of membrane
    and threshold may be empty. Pass `weight` only if gradient flows through the recurrence.
    """
    n_steps, n_columns = drives.shape
    grad_current, carried = torch.empty_like(grad_spikes), grad_state.clone()
    # Launches go back through time; each takes gradients that later ones, launched before, wrote.
    sums = parameters.new_zeros(len(parameters), n_columns, dtype=torch.float64)
    has_level = grad_membrane.numel() > 0
    block = n_steps if weight is None else delay
    fed = None
    if weight is not None and delays is not None:
        fed = weight.new_zeros(n_steps + longest, *grad_spikes.shape[1:])
    for last in range(n_steps, 0, -block):
        first = max(0, last - block)
        feedback = None
        if weight is not None and last < n_steps:
            if delays is not None and fed is not None:
                feedback = shifted(fed, first + delays, fed[first:last])
            else:
                later = grad_current[first + block : last + block].flatten(0, 1)
                feedback = later.to(weight.dtype) @ weight
        _launch(
            kernels_gpu.backward, n_columns, grad_spikes,
            grad_spikes if feedback is None else feedback, grad_membrane, grad_threshold, drives,
            saved, parameters, constants, slope_constants, carried, grad_current, sums, first, last,
            n_columns, parameters.shape[1], step=in_triton(derived.step),
            reverse_step=in_triton(derived.reverse_all if has_level else derived.reverse),
            slope=in_triton(slope), **sizes(derived, len(constants)), n_carried=len(carried),
            n_slope_constants=len(slope_constants), has_feedback=feedback is not None,
            has_level=has_level, reset_has_grad=reset_has_grad,
        )  # fmt: skip
        if weight is not None and fed is not None:
            fed[first:last] = grad_current[first:last].to(weight.dtype) @ weight
    return grad_current, carried, sums


def _delay(s: Settings, delays: RecurrentDelays | None, n_steps: int) -> int:
    """Steps that are simulated at a time: the delay of the recurrence, or the shortest."""
    return min(s.delay if delays is None else delays.shortest, n_steps)


def _on_device(constants: Sequence[float], like: Tensor) -> Tensor:
    """0, 1 and the constants, filled on the device, since a copy from the CPU would wait for it."""
    return torch.stack([like.new_full((), x) for x in (0.0, 1.0, *constants)])


def forward(
    current: Tensor, parameters: Tensor, weight: Tensor | None, values: Tensor | None,
    before: Tensor | None, delays: RecurrentDelays | None, s: Settings, membrane: bool, keep: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Simulate; arguments and results as in `ops.simulate`.

    `current` may be bfloat16 with float32 parameters. Spikes and the current's gradient are then
    bfloat16, and everything in between is float32.

    Raises:
        ValueError: B·N exceeds the 32-bit column indices of the kernels.
    """
    n_steps, *shape = current.shape
    if shape[0] * shape[1] > _MOST_COLUMNS:
        raise ValueError(
            f"current: expected B·N ≤ {_MOST_COLUMNS} for 'fused' on a GPU, "
            f"got {shape[0]} · {shape[1]}"
        )
    if values is None:
        values = parameters.new_zeros(len(s.model.all_states), *shape)
    delay = _delay(s, delays, n_steps)
    given = [current, parameters, _on_device(s.constants, parameters), values.flatten(1)]
    if weight is not None:
        if before is None:
            before = current.new_zeros(s.delay, *shape)
        given += [weight, before[:delay]] if delays is None else [weight, before, delays.whole]
    run = _simulate if weight is None else partial(_graphs.run, _simulate)
    with launching_on(current.device):
        spikes, spike_bytes, *level, drives, saved, state = run(
            *(x.detach().contiguous() for x in given), derived=s.derived, delay=delay,
            membrane=membrane, keep=keep,
        )  # fmt: skip
    return (
        spikes.view(current.shape), state.view(-1, *shape),
        *(x.view(current.shape if membrane else (0,)) for x in level),
        spike_bytes.view(current.shape), drives, saved,
    )  # fmt: skip


def backward(
    grad_spikes: Tensor, grad_last: Tensor | None, grad_level: list[Tensor] | None, drives: Tensor,
    saved: Tensor, parameters: Tensor, weight: Tensor | None, delays: RecurrentDelays | None,
    s: Settings,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of current [T, B, N], states [K, B·N] and, in float64, parameters [P, B·N].

    Arguments as in `ops.simulate_backward`; `weight` only if gradient flows through it.
    """
    n_carried = len(s.model.states) + len(s.model.accumulators)
    grad_state = parameters.new_zeros(n_carried, drives.shape[1])
    if grad_last is not None:
        grad_state[: len(grad_last)] = grad_last.flatten(1)
    level = grad_level or [parameters.new_empty(0)] * 2
    given = [grad_spikes, *level, grad_state, drives, saved, parameters]
    given += [_on_device(x, parameters) for x in (s.constants, s.slope_constants)]
    if weight is not None:
        given += [weight] if delays is None else [weight, delays.whole]
    run = _differentiate if weight is None else partial(_graphs.run, _differentiate)
    with launching_on(drives.device):
        grad_current, carried, sums = run(
            *(x.detach().contiguous() for x in given), derived=s.derived,
            slope=slope_text(s.surrogate.formula, 2 + len(s.slope_constants)),
            reset_has_grad=0.0 if s.detach_reset else 1.0,
            delay=_delay(s, delays, len(drives)), longest=s.delay,
        )  # fmt: skip
    return grad_current, carried, sums


def weight_gradient(
    grad_current: Tensor, spike_bytes: Tensor, before: Tensor | None, delay: int, weight: Tensor
) -> Tensor:
    """Gradient of the recurrent weight [N, N]: dLoss/dW = Σ gI[t] ⊗ S[t − delay]."""

    def outer(later: Tensor, earlier: Tensor) -> Tensor:
        earlier = earlier[: len(later)]
        product = earlier.flatten(0, 1).to(weight.dtype).T @ later.flatten(0, 1).to(weight.dtype)
        return product.T  # as layers keep their weights

    grad = outer(grad_current[delay:], spike_bytes)
    if before is not None:
        grad += outer(grad_current[:delay], before)
    return grad
