"""ALIF in one pass over time with the state in registers, forward and backward (Triton).

The contract, equations and gradient of `../fused_cpu.py`. [T, B, N] is T rows of B·N columns, and
a program of `kernels_gpu.py` takes a tile of columns through all of time. With recurrence it takes
a block of arp + 1 steps, and between two blocks is one matrix product. Kept for backward are the
margin V − θ and, every CHUNK steps, (a, silent steps): 5 bytes per neuron and step.
"""

from functools import partial
from typing import Any

import torch
import triton
from torch import Tensor

from blockspike.neurons.alif import kernels_gpu
from blockspike.neurons.gpu import Graphs, launching_on
from blockspike.neurons.surrogate import Boxcar, FastSigmoid, MultiGaussian, Surrogate
from blockspike.neurons.trace import (
    ALIFTrace,
    check_finite,
    needs_gradient,
    threshold_of,
    trace_of_margin,
)

CHUNK = 8  # steps between saved states; 16 take too many registers
TILE = 32  # columns of a program: one warp, since few columns must fill many processors
_CODES = {
    FastSigmoid: kernels_gpu.FAST_SIGMOID.value,
    Boxcar: kernels_gpu.BOXCAR.value,
    MultiGaussian: kernels_gpu.MULTI_GAUSSIAN.value,
}
FORWARD_OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}  # rounds as a PyTorch loop does
BACKWARD_OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}
_MOST_COLUMNS = 2**31 - 2**10  # a tile beyond the last is still a number of 32 bits
_graphs = Graphs()


def _launch(kernel: Any, n_columns: int, *args: Tensor | int, **options: Any) -> None:
    """Run a kernel on every tile of the columns."""
    kernel[(triton.cdiv(n_columns, TILE),)](*args, tile=TILE, chunk=CHUNK, **options)


def _simulate(
    current: Tensor, beta: Tensor, p: Tensor, b: Tensor, weight: Tensor | None = None, *,
    arp: int, keep_margin: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """From current [T, B, N]: spikes and margin [T, B·N], saved a and silence, last membrane."""
    n_steps, _, n_neurons = current.shape
    rows = current.reshape(n_steps, -1)
    n_columns = rows.shape[1]
    spikes = torch.empty_like(rows)
    margin = beta.new_empty(rows.shape if keep_margin else (0, 0))
    n_saved = -(-n_steps // CHUNK) if keep_margin else 0
    saved_adaptation = beta.new_empty(n_saved, n_columns)
    saved_silent = torch.empty_like(saved_adaptation, dtype=torch.int32)
    state = beta.new_zeros(2, n_columns)
    silent = torch.zeros(n_columns, dtype=torch.int32, device=beta.device)
    block = n_steps if weight is None else arp + 1
    for first in range(0, n_steps, block):
        last = min(n_steps, first + block)
        recurrent = None
        if weight is not None and first > 0:
            earlier = spikes[first - block : last - block].view(-1, n_neurons)
            recurrent = earlier.to(weight.dtype) @ weight.T
        _launch(
            kernels_gpu.forward, n_columns, rows, rows if recurrent is None else recurrent,
            beta, p, b, state, silent, spikes, margin, saved_adaptation, saved_silent, arp,
            first, last, n_columns, n_neurons, has_recurrent=recurrent is not None,
            keep_margin=keep_margin, **FORWARD_OPTIONS,
        )  # fmt: skip
    return spikes, margin, saved_adaptation, saved_silent, state[0]


def _differentiate(
    grad_spikes: Tensor, margin: Tensor, saved_adaptation: Tensor, saved_silent: Tensor,
    beta: Tensor, p: Tensor, b: Tensor, weight: Tensor | None = None, *,
    arp: int, surrogate: Surrogate, attached: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dLoss/dI [T, B·N] and float64 dLoss/d(beta, p, b) [3, B·N]; `weight` if it takes part."""
    n_steps, n_columns = margin.shape
    grad_current = torch.empty_like(grad_spikes)
    carried = margin.new_zeros(2, n_columns)
    sums = margin.new_zeros(3, n_columns, dtype=torch.float64)
    block = n_steps if weight is None else arp + 1
    for last in range(n_steps, 0, -block):
        first = max(0, last - block)
        feedback = None
        if weight is not None and last < n_steps:
            later = grad_current[first + block : last + block].view(-1, len(weight))
            feedback = later.to(weight.dtype) @ weight
        _launch(
            kernels_gpu.backward, n_columns, grad_spikes,
            grad_spikes if feedback is None else feedback, margin, saved_adaptation, saved_silent,
            beta, p, b, carried, grad_current, sums, arp, first, last, n_columns, len(beta),
            has_feedback=feedback is not None, attached=attached,
            surrogate=_CODES[type(surrogate)], **BACKWARD_OPTIONS,
        )  # fmt: skip
    return grad_current, sums


def _run(
    current: Tensor, beta: Tensor, p: Tensor, b: Tensor, weight: Tensor | None, *,
    arp: int, keep_margin: bool,
) -> list[Tensor]:  # fmt: skip
    """Spikes [T, B, N], margin [T, B·N] or empty, saved adaptation and silence."""
    tensors = [x.detach().contiguous() for x in (current, beta, p, b)]
    options = {"arp": min(arp, len(current)), "keep_margin": keep_margin}
    with launching_on(current.device):
        if weight is None:
            results = _simulate(*tensors, **options)
        else:
            results = _graphs.run(_simulate, *tensors, weight.detach().contiguous(), **options)
    spikes, *saved, last_state = results
    check_finite(last_state.view(current.shape[1:]), current)
    return [spikes.view(current.shape), *saved]


def _recurrent_weight_gradient(grad_current: Tensor, margin: Tensor, arp: int, n: int) -> Tensor:
    """dLoss/dW[post, pre] = Σ gI[t, post] S[t − arp − 1, pre], one product for the whole run."""
    if arp + 1 >= len(margin):
        return margin.new_zeros(n, n)
    spikes = (margin[: -arp - 1] > 0).to(margin.dtype).view(-1, n)
    return grad_current[arp + 1 :].view(-1, n).to(margin.dtype).T @ spikes


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, current, beta, p, b, weight, arp: int, surrogate: Surrogate, detach: bool
    ):  # fmt: skip
        """Spikes and margin [T, B, N]."""
        spikes, *saved = _run(current, beta, p, b, weight, arp=arp, keep_margin=True)
        ctx.save_for_backward(*saved, beta, p, b, weight)
        ctx.arp, ctx.surrogate, ctx.detach, ctx.shape = arp, surrogate, detach, current.shape
        margin = saved[0].view(current.shape)
        ctx.mark_non_differentiable(margin)
        ctx.set_materialize_grads(False)
        return spikes, margin

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        if grads[0] is None:
            return (None,) * 8
        *saved, beta, p, b, weight = ctx.saved_tensors
        margin, n_neurons = saved[0], ctx.shape[2]
        tensors = [grads[0].reshape(margin.shape).contiguous(), *saved]
        tensors += [x.contiguous() for x in (beta, p, b)]
        arp = min(ctx.arp, len(margin))
        options = {"arp": arp, "surrogate": ctx.surrogate, "attached": not ctx.detach}
        grad_weight = None
        with launching_on(margin.device):
            if weight is None or ctx.detach:
                grad_current, sums = _differentiate(*tensors, **options)
            else:
                grad_current, sums = _graphs.run(
                    _differentiate, *tensors, weight.contiguous(), **options
                )
            if weight is not None and ctx.needs_input_grad[4]:
                grad_weight = _recurrent_weight_gradient(grad_current, margin, arp, n_neurons)
        per_neuron = sums.view(3, -1, n_neurons).sum(1).to(margin.dtype).unbind()
        return grad_current.view(ctx.shape), *per_neuron, grad_weight, None, None, None


def fused_gpu(
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
    """Spikes and gradient of `standard` by Triton kernels; arguments as `alif`, already checked.

    `current` may be bfloat16 beside float32 parameters: then spikes and the current's gradient
    are too, and everything in between is float32.

    Raises:
        ValueError: B·N is too large for the kernels' numbers of columns, which are of 32 bits.
    """
    if current.shape[1] * current.shape[2] > _MOST_COLUMNS:
        raise ValueError(
            f"current: expected B·N ≤ {_MOST_COLUMNS} for 'fused' on a GPU, "
            f"got {current.shape[1]} · {current.shape[2]}"
        )
    p_ = torch.zeros_like(beta) if p is None else p
    b_ = torch.zeros_like(beta) if b is None else b
    inputs = (current, beta, p_, b_, recurrent_weight)
    simulate = partial(_run, *inputs, arp=arp)
    margin = None
    if needs_gradient(*inputs):
        spikes, margin = _Fused.apply(  # pyright: ignore
            *inputs, arp, surrogate, detach_spikes
        )
    else:
        spikes, *_ = simulate(keep_margin=False)
    return trace_of_margin(
        spikes,
        lambda: simulate(keep_margin=True)[1] if margin is None else margin,
        partial(threshold_of, p=p, b=b),
    )
