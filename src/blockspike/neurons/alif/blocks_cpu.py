"""The Blocks method in one pass over time, forward and backward (Numba).

It gives the spikes of `standard.py` and the published gradient of `blocks.py` without matrix
products, so its cost hardly depends on arp. Time is still divided into blocks of n = arp + 1 steps,
because the gradient depends on them. Within a block, V continues without reset, and θ ignores the
block's own spike.

Saved for backward: the margin V − θ of each neuron and step, with recurrence also the spikes as
bytes, and the state every CHUNK steps. Backward takes a chunk at a time: it replays the state from
the start of the chunk, then runs the chunk in reverse. Equations: docs/paper.md, Blocks.
"""

import numpy as np
import torch
from torch import Tensor

from blockspike.neurons.alif.fused import fused
from blockspike.neurons.autograd import differentiable_once
from blockspike.neurons.cpu.events import SpikeEvents
from blockspike.neurons.cpu.kernels import kernel, kernel_with_fma, without_refcount
from blockspike.neurons.cpu.surrogate import surrogate_code, surrogate_derivative
from blockspike.neurons.cpu.threads import run
from blockspike.neurons.cpu.tiles import (
    CHUNK,
    add_feedback,
    add_recurrent,
    columns,
    list_spikes,
    recurrent_weight_gradient,
    tile_width,
    weight_array,
    weight_panels,
)
from blockspike.neurons.surrogate import Surrogate
from blockspike.neurons.trace import (
    SpikeTrace,
    check_finite,
    needs_gradient,
    threshold_of,
    zero_after_spike_,
)


@kernel
def _reset(membrane, spiked):
    """Reset the membrane, at the end of a block, of neurons that spiked in it."""
    real = membrane.dtype.type
    for i in range(membrane.size):
        membrane[i] *= real(1.0) if spiked[i] == 0 else real(0.0)  # NaN and Inf × 0 = NaN


@kernel
def _enter_block(adaptation, base, n_closed, spiked):
    """Carry the state of one tile into the next block; every array is [tile].

    `spiked` is 1 + the step in the block at which the neuron spiked, or 0. `n_closed` is the number
    of steps masked by a spike in the previous block. `base` is the adaptation at the start of the
    block; it decays and sets θ.
    """
    for i in range(spiked.size):
        base[i] = adaptation[i]
        n_closed[i] = max(spiked[i] - 1, 0)
        spiked[i] = 0


@kernel
def _follow(margin, k, p, adaptation, base, spiked):
    """Spike, adaptation, `base` and `spiked` after step k of a block."""
    real = type(margin)
    fires = (margin > real(0.0)) & (spiked == 0)
    s = real(1.0) if fires else real(0.0)
    return s, p * adaptation + s, p * base, np.int32(k + 1) if fires else spiked


@kernel
def _advance(
    k, drive, beta, p, b, membrane, adaptation, base, n_closed, spiked, spikes, spike_bytes, margin
):
    """Simulate step k of a block for one tile."""
    real = drive.dtype.type
    for i in range(drive.size):
        input_mask = real(1.0) if k >= n_closed[i] else real(0.0)
        membrane[i] = beta[i] * membrane[i] + drive[i] * input_mask
        margin[i] = membrane[i] - (real(1.0) + b[i] * base[i])
        spikes[i], adaptation[i], base[i], spiked[i] = _follow(
            margin[i], k, p[i], adaptation[i], base[i], spiked[i]
        )
        spike_bytes[i] = np.uint8(spikes[i])


@kernel
def _forward(
    first_tile, last_tile, current, beta, p, b, n, weight_t, recurrent, tile, spikes, spike_bytes,
    margin, saved_state, saved_steps, last_state,
):  # fmt: skip
    n_steps, n_columns = current.shape
    current, spikes, spike_bytes = (
        without_refcount(current),
        without_refcount(spikes),
        without_refcount(spike_bytes),
    )
    margin, weight_t = without_refcount(margin), without_refcount(weight_t)
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_ = beta[start:stop], p[start:stop], b[start:stop]
        membrane = np.zeros(width, current.dtype)
        adaptation, base = np.zeros_like(membrane), np.zeros_like(membrane)
        n_closed, spiked = np.zeros(width, np.int32), np.zeros(width, np.int32)
        drive = np.empty_like(membrane)
        n_neurons = weight_t.shape[1] if recurrent else width
        units = np.empty((n, width if recurrent else 1), np.int32)  # that spiked
        n_units = np.zeros((n, width // n_neurons), np.int64)
        for t in range(n_steps):
            k = t % n
            if k == 0:
                _reset(membrane, spiked)
                _enter_block(adaptation, base, n_closed, spiked)
            if t % CHUNK == 0:
                saved_state[0, t // CHUNK, start:stop] = adaptation
                saved_state[1, t // CHUNK, start:stop] = base
                saved_steps[0, t // CHUNK, start:stop] = n_closed
                saved_steps[1, t // CHUNK, start:stop] = spiked
            row, u = current[t, start:stop], margin[t, start:stop]
            s, f = spikes[t, start:stop], spike_bytes[t, start:stop]
            if recurrent:  # units[k] holds the units that spiked one block ago
                add_recurrent(row, units[k], n_units[k], weight_t, drive)
                row = drive
            _advance(k, row, beta_, p_, b_, membrane, adaptation, base, n_closed, spiked, s, f, u)
            if recurrent:
                list_spikes(f, n_neurons, units[k], n_units[k])
        last_state[start:stop] = membrane


@kernel
def _replay(k, margin, p, adaptation, base, n_closed, spiked, adaptations, bases, opens):
    """Replay step k of a block and record the state before it; arrays are [tile]."""
    real = margin.dtype.type
    for i in range(margin.size):
        adaptations[i], bases[i] = adaptation[i], base[i]
        opens[i] = real(1.0) if k >= n_closed[i] else real(0.0)
        _, adaptation[i], base[i], spiked[i] = _follow(
            margin[i], k, p[i], adaptation[i], base[i], spiked[i]
        )


@kernel
def _leave_block(n, spiked, p, reset_has_grad, rests, left):
    """Record at the end of a block who rested, and how far the spike in `adaptation` decayed."""
    real = p.dtype.type
    for i in range(spiked.size):
        rests[i] = real(1.0) if spiked[i] == 0 else real(0.0)
        left[i] = p[i] ** (n - spiked[i]) if reset_has_grad and spiked[i] > 0 else real(0.0)


@kernel_with_fma
def _come_from_block(left, grad_base, grad_adaptation, grad_via_adaptation, grad_sum, ramp_sum):
    """Carry gradients back into a block, at whose end `base` is set to `adaptation`."""
    for i in range(left.size):
        grad_adaptation[i] += grad_base[i]
        grad_base[i] = 0
        grad_via_adaptation[i] = left[i] * grad_adaptation[i]
        grad_sum[i] = ramp_sum[i] = 0


@kernel_with_fma
def _sum_ramp(grad_spikes, p, base, grad_via_adaptation, grad_sum, ramp_sum, slope):
    """Turn `slope` into the gradient of the margin: slope · Σ_{t≥k} (t−k+1) gS[t].

    This is the straight-through gradient of z. `grad_sum` sums gS, and `ramp_sum` sums `grad_sum`,
    which gives the ramp. `grad_via_adaptation` is the gradient through "a at the spike"; it is 0 if
    spikes are detached.

    It is a loop of its own because LLVM would not vectorise `_reverse` with more arrays.
    """
    for i in range(grad_spikes.size):
        grad_sum[i] += grad_spikes[i] + p[i] * base[i] * grad_via_adaptation[i]
        ramp_sum[i] += grad_sum[i]
        slope[i] *= ramp_sum[i]


@kernel_with_fma
def _reverse(
    grad_margin, margin, adaptation, base, input_mask, survives, beta, p, b, grad_membrane,
    grad_adaptation, grad_base, grad_current, sum_beta, sum_p, sum_b,
):  # fmt: skip
    """Backpropagate through one step of one tile; every array is [tile].

    `survives` is 1, except that at the end of a block it is 0 for neurons that reset there.
    """
    real = margin.dtype.type
    for i in range(margin.size):
        membrane = margin[i] + (real(1.0) + b[i] * base[i])
        to_state = grad_membrane[i] * survives[i]
        sum_beta[i] += to_state * membrane
        sum_p[i] += grad_adaptation[i] * adaptation[i] + grad_base[i] * base[i]
        sum_b[i] -= grad_margin[i] * base[i]
        grad_membrane[i] = beta[i] * to_state + grad_margin[i]
        grad_current[i] = grad_membrane[i] * input_mask[i]
        grad_adaptation[i] = p[i] * grad_adaptation[i]
        grad_base[i] = p[i] * grad_base[i] - b[i] * grad_margin[i]


@kernel
def _flush_sums(start, sum_beta, sum_p, sum_b, grad_beta, grad_p, grad_b):
    """Add a chunk's sums to float64 totals, so that long recordings lose no precision."""
    for i in range(sum_beta.size):
        grad_beta[start + i] += sum_beta[i]
        grad_p[start + i] += sum_p[i]
        grad_b[start + i] += sum_b[i]
        sum_beta[i] = sum_p[i] = sum_b[i] = 0


@kernel
def _backward(
    first_tile, last_tile, grad_spikes, margin, saved_state, saved_steps, beta, p, b, n, panels,
    n_neurons, feedback, reset_has_grad, surrogate, tile, grad_current, grad_beta, grad_p, grad_b,
):  # fmt: skip
    n_steps, n_columns = margin.shape
    grad_spikes, grad_current = without_refcount(grad_spikes), without_refcount(grad_current)
    margin, panels = without_refcount(margin), without_refcount(panels)
    for start in range(first_tile * tile, last_tile * tile, tile):
        stop = min(n_columns, start + tile)
        width = stop - start
        beta_, p_, b_ = beta[start:stop], p[start:stop], b[start:stop]
        grad_membrane = np.zeros(width, margin.dtype)
        grad_adaptation, grad_base = np.zeros_like(grad_membrane), np.zeros_like(grad_membrane)
        grad_via_adaptation, grad_s = np.zeros_like(grad_membrane), np.empty_like(grad_membrane)
        grad_sum, ramp_sum = np.zeros_like(grad_membrane), np.zeros_like(grad_membrane)
        sum_beta, sum_p = np.zeros_like(grad_membrane), np.zeros_like(grad_membrane)
        sum_b, always = np.zeros_like(grad_membrane), np.ones_like(grad_membrane)
        adaptation, base = np.empty_like(grad_membrane), np.empty_like(grad_membrane)
        n_closed, spiked = np.empty(width, np.int32), np.empty(width, np.int32)
        adaptations = np.empty((CHUNK, width), margin.dtype)
        bases, opens = np.empty_like(adaptations), np.empty_like(adaptations)
        slopes, rests = np.empty_like(adaptations), np.empty_like(adaptations)
        left = np.empty_like(adaptations)
        for first in range((n_steps - 1) // CHUNK * CHUNK, -1, -CHUNK):
            last = min(n_steps, first + CHUNK)
            adaptation[:] = saved_state[0, first // CHUNK, start:stop]
            base[:] = saved_state[1, first // CHUNK, start:stop]
            n_closed[:] = saved_steps[0, first // CHUNK, start:stop]
            spiked[:] = saved_steps[1, first // CHUNK, start:stop]
            for t in range(first, last):
                row, u = t - first, margin[t, start:stop]
                if t % n == 0 and t > first:
                    _enter_block(adaptation, base, n_closed, spiked)
                _replay(
                    t % n, u, p_, adaptation, base, n_closed, spiked, adaptations[row],
                    bases[row], opens[row],
                )  # fmt: skip
                surrogate_derivative(surrogate, u, slopes[row])
                if (t + 1) % n == 0:
                    _leave_block(n, spiked, p_, reset_has_grad, rests[row], left[row])
            for t in range(last - 1, first - 1, -1):
                row, survives = t - first, always
                if (t + 1) % n == 0:
                    survives = rests[row]
                    _come_from_block(
                        left[row],
                        grad_base,
                        grad_adaptation,
                        grad_via_adaptation,
                        grad_sum,
                        ramp_sum,
                    )
                g = grad_spikes[t, start:stop]
                if feedback and t + n < n_steps:
                    grad_s[:] = g
                    add_feedback(grad_current[t + n, start:stop], panels, n_neurons, grad_s)
                    g = grad_s
                _sum_ramp(g, p_, bases[row], grad_via_adaptation, grad_sum, ramp_sum, slopes[row])
                _reverse(
                    slopes[row], margin[t, start:stop], adaptations[row], bases[row], opens[row],
                    survives, beta_, p_, b_, grad_membrane, grad_adaptation, grad_base,
                    grad_current[t, start:stop], sum_beta, sum_p, sum_b,
                )  # fmt: skip
            _flush_sums(start, sum_beta, sum_p, sum_b, grad_beta, grad_p, grad_b)


class _BlocksCPU(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, beta, p, b, weight, n: int, surrogate: Surrogate, detach: bool,
        events_out: list[SpikeEvents],
    ):  # fmt: skip
        """Spikes and margin [T, B, N]; appends the events of the spikes to `events_out`."""
        n_steps, batch_size, n_neurons = current.shape
        flat = current.detach().reshape(n_steps, -1).contiguous()
        n_columns = flat.shape[1]
        weight_t = weight_array(weight, flat)
        spikes, margin = torch.empty_like(flat), torch.empty_like(flat)
        spike_bytes = torch.empty_like(flat, dtype=torch.uint8)
        saved_state = flat.new_empty(2, -(-n_steps // CHUNK), n_columns)
        saved_steps = torch.empty_like(saved_state, dtype=torch.int32)
        last_state = flat.new_empty(n_columns)
        tile = tile_width(n_columns, weight)
        run(
            _forward, -(-n_columns // tile), flat.numpy(),
            *(columns(x, batch_size) for x in (beta, p, b)), n, weight_t,
            weight is not None, tile, spikes.numpy(), spike_bytes.numpy(), margin.numpy(),
            saved_state.numpy(), saved_steps.numpy(), last_state.numpy(),
        )  # fmt: skip
        check_finite(last_state.view(batch_size, n_neurons), current)
        spikes, margin = spikes.view(current.shape), margin.view(current.shape)
        events_out.append(SpikeEvents(spike_bytes.view(current.shape)))
        ctx.save_for_backward(margin, saved_state, saved_steps, beta, p, b, weight)
        ctx.events = events_out[0] if weight is not None else None
        ctx.n, ctx.surrogate, ctx.detach = n, surrogate, detach
        ctx.mark_non_differentiable(margin)
        ctx.set_materialize_grads(False)
        return spikes, margin

    @staticmethod
    @differentiable_once("method='blocks'", instead="method='standard'")
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grads[0] is None:
            return (None,) * 9
        margin, saved_state, saved_steps, beta, p, b, weight = ctx.saved_tensors
        n_steps, batch_size, n_neurons = margin.shape
        recurrent, flat = weight is not None, margin.view(n_steps, -1)
        n_columns = flat.shape[1]
        grad_spikes = grads[0].reshape(flat.shape).contiguous()
        grad_current = torch.empty_like(flat)
        sums = [torch.zeros(n_columns, dtype=torch.float64) for _ in range(3)]
        tile = tile_width(n_columns, weight)
        run(
            _backward, -(-n_columns // tile), grad_spikes.numpy(), flat.numpy(),
            saved_state.numpy(), saved_steps.numpy(),
            *(columns(x, batch_size) for x in (beta, p, b)), ctx.n,
            weight_panels(None if ctx.detach else weight, flat), n_neurons,
            recurrent and not ctx.detach, not ctx.detach, surrogate_code(ctx.surrogate), tile,
            grad_current.numpy(), *(x.numpy() for x in sums),
        )  # fmt: skip
        grad_current = grad_current.view(margin.shape)
        per_neuron = [x.view(batch_size, n_neurons).sum(0).to(margin.dtype) for x in sums]
        grad_weight = None
        if recurrent and ctx.needs_input_grad[4]:
            grad_weight = recurrent_weight_gradient(grad_current, ctx.events, ctx.n)
        return grad_current, *per_neuron, grad_weight, None, None, None, None


def blocks_cpu(
    current: Tensor,
    beta: Tensor,
    p: Tensor | None,
    b: Tensor | None,
    *,
    arp: int,
    recurrent_weight: Tensor | None,
    surrogate: Surrogate,
    detach_spikes: bool,
) -> SpikeTrace:
    """Simulate with spikes of `standard` and gradient of `blocks`; arguments as in `alif`, checked.

    If no gradient is needed, `fused` gives the same result.
    """
    p_ = torch.zeros_like(beta) if p is None else p
    b_ = torch.zeros_like(beta) if b is None else b
    inputs = (current, beta, p_, b_, recurrent_weight)
    if not needs_gradient(*inputs):
        return fused(
            current,
            beta,
            p,
            b,
            arp=arp,
            recurrent_weight=recurrent_weight,
            recurrent_delay=arp + 1,
            surrogate=surrogate,
            detach_spikes=detach_spikes,
        )
    n = min(arp + 1, len(current))
    events_out: list[SpikeEvents] = []
    spikes, margin = _BlocksCPU.apply(  # pyright: ignore
        *inputs, n, surrogate, detach_spikes, events_out
    )

    def membrane_and_threshold() -> tuple[Tensor, Tensor]:
        threshold = threshold_of(spikes.detach(), p, b)
        membrane = margin + threshold  # valid up to the spike in each block
        zero_after_spike_(membrane, spikes.detach(), n)
        return membrane, threshold

    return SpikeTrace(spikes, membrane_and_threshold, events_out[0])
